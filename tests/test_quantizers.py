"""Every quantizer through the commands: trained, gone on with, measured, generated from, shown."""

import json

import pytest
import torch

from models.storage import load_tokenizer
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, make_frames, run_script

KINDS = {
    "rotation": ("{codebook_size: 64, token_size: 8, rotation: true}", 64),
    "simvq": ("{kind: simvq, codebook_size: 64, token_size: 8}", 64),
    "lfq": ("{kind: lfq, codebook_size: 64}", 64),
    "fsq": ("{kind: fsq, levels: [5, 4, 3]}", 60),
}


@pytest.mark.parametrize("kind", KINDS)
def test_trained_measured_generated_from_and_shown(tmp_path, kind):
    quantizer, size = KINDS[kind]
    frames, runs = make_frames(tmp_path / "frames", train=8, val=4), tmp_path / "runs"
    tiny = TINY_TOKENIZER.format(frames=frames, runs=runs)
    tiny = tiny.replace("{codebook_size: 64, token_size: 8}", quantizer)
    (tmp_path / "tok.yaml").write_text(tiny)
    train = ("train_tokenizer.py", "--config", tmp_path / "tok.yaml", "--set")
    run_script(*train, "run.name=parts", "--set", "training.max_steps=2")
    run_script(*train, "run.name=parts")
    run_script(*train, "run.name=tok")
    whole, parts = (load_tokenizer(runs / name).state_dict() for name in ("tok", "parts"))
    assert all(torch.equal(value, parts[key]) for key, value in whole.items())

    run_script("evaluate.py", "--run", runs / "tok", "--psnr", "--codebook", "--workers", 0)
    usage = json.loads((runs / "tok" / "eval" / "codebook.json").read_text())
    assert 0 < usage["value"] <= 1 and 1 <= usage["perplexity"] <= size
    generator = TINY_GENERATOR.format(
        frames=frames, runs=runs, tokens=tmp_path / "tokens", tokenizer=runs / "tok"
    )
    (tmp_path / "gen.yaml").write_text(generator)
    run_script("train_maskgit.py", "--config", tmp_path / "gen.yaml")
    run_script("generate.py", "--run", runs / "gen", "--num", 2, "--out", tmp_path / "made")
    assert (tmp_path / "made" / "000001.png").exists()
    run_script("report.py", "--runs", runs, "--out", tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert f"{size} codes of dimension" in page and (kind == "rotation" or f", {kind}</dd>" in page)
