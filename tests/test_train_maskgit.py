"""train_maskgit.py, and what evaluate.py and generate.py make of its runs."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.frames import FrameDataset, list_frames
from metrics.similarity import psnr, ssim
from models import load_generator, load_tokenizer
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, run_script


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """A folder with a tokenizer's run, a generator's config and its run `whole`: 4 steps of 8 sequences."""
    folder = tmp_path_factory.mktemp("generators")
    (folder / "tokenizer.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=folder / "runs"))
    run_script("train_tokenizer.py", "--config", folder / "tokenizer.yaml")
    (folder / "tiny.yaml").write_text(
        TINY_GENERATOR.format(
            tokenizer=folder / "runs" / "tokenizer",
            frames=frames,
            tokens=folder / "tokens",
            runs=folder / "runs",
        )
    )
    train(folder, "whole")
    return folder


def train(folder, name, *overrides, processes=1, **options):
    arguments = [item for text in (f"run.name={name}", *overrides) for item in ("--set", text)]
    return run_script(
        "train_maskgit.py", "--config", folder / "tiny.yaml", *arguments, processes=processes, **options
    )


def metrics(folder, name):
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(folder, name):
    checkpoint = folder / "runs" / name / "checkpoints" / "step_00000004"
    return {path.stem: load_file(path) for path in sorted(checkpoint.glob("*.safetensors"))}


def result(run, metric):
    return json.loads((run / "eval" / f"{metric}.json").read_text())


def test_tokens_are_the_tokenizers_codes(workplace, frames):
    (folder,) = (workplace / "tokens").glob("tokenizer-train-*")
    tokens = np.load(folder / "tokens.npy")
    listed = list_frames(frames, "train")
    tokenizer = load_tokenizer(workplace / "runs" / "tokenizer")
    dataset = FrameDataset(frames / "train", listed, 32)
    images = torch.stack([dataset[index][0] for index in range(len(listed))]).float() / 255
    assert torch.equal(torch.from_numpy(tokens[:, 0]).long(), tokenizer.encode(images))
    assert torch.equal(torch.from_numpy(tokens[:, 1]).long(), tokenizer.encode(images.flip(-1)))
    record = json.loads((folder / "tokens.json").read_text())
    assert record["num_frames"] == 20 and record["broken"] == []
    assert not list(folder.glob("chunk*"))


def test_logs_loss_and_accuracy(workplace):
    logged = metrics(workplace, "whole")
    assert [line["step"] for line in logged] == [1, 2, 3, 4, 4]
    assert logged[0]["train/loss"] == pytest.approx(np.log(64), rel=0.02)  # nothing learned yet
    assert {"val/loss", "val/accuracy"} <= logged[-1].keys()
    assert 0 <= logged[-1]["val/accuracy"] <= 1


def test_parts_and_processes_change_nothing(workplace):
    train(workplace, "no_dropout", "model.dropout=0")
    train(workplace, "parts", "model.dropout=0", "training.device_batch_size=2")
    train(workplace, "two", "model.dropout=0", processes=2)
    for name in ("parts", "two"):
        for a, b in zip(metrics(workplace, "no_dropout"), metrics(workplace, name), strict=True):
            for key in a.keys() - {"train/images_per_second"}:
                assert a[key] == pytest.approx(b[key], rel=1e-3, abs=1e-5), (name, a["step"], key)


def test_interrupted_is_uninterrupted(workplace):
    """With dropout: the random state is part of a checkpoint."""
    train(workplace, "resumed", "training.max_steps=2")
    assert "goes on after step 2" in train(workplace, "resumed")
    for network, tensors in weights(workplace, "whole").items():
        other = weights(workplace, "resumed")[network]
        assert all(torch.equal(value, other[key]) for key, value in tensors.items()), network


def test_learns_the_sequences_it_sees(workplace):
    """On four frames, without augmentation or dropout, it ends up writing just their sequences."""
    overrides = ["data.train.count=4", "data.flip=false", "model.dropout=0", "model.label_smoothing=0"]
    overrides += ["training.max_steps=150", "training.learning_rate=3e-3", "training.log_every=10"]
    overrides += ["training.validate_every=1000", "training.checkpoint_every=1000"]
    train(workplace, "overfitted", *overrides)
    lines = [line for line in metrics(workplace, "overfitted") if "train/loss" in line]
    assert lines[-1]["train/loss"] < 0.25 * lines[0]["train/loss"]
    caches = [np.load(path) for path in (workplace / "tokens").glob("tokenizer-train-*/tokens.npy")]
    assert sorted(map(len, caches)) == [4, 20]  # a cache for each subset
    known = {tuple(row) for row in min(caches, key=len)[:, 0].tolist()}
    generated = load_generator(workplace / "runs" / "overfitted").generate(num=8, steps=8, randomness=0.5)
    assert np.mean([tuple(row) in known for row in generated.tolist()]) >= 0.5


def test_generate_writes_a_grid_and_single_images(workplace, tmp_path):
    run_script("generate.py", "--run", workplace / "runs" / "whole", "--num", 5, "--out", tmp_path / "five")
    pictures = sorted(path.name for path in (tmp_path / "five").iterdir())
    assert pictures == [*(f"{number:06d}.png" for number in range(5)), "grid.png"]
    assert Image.open(tmp_path / "five" / "000000.png").size == (32, 32)
    arguments = ["--run", workplace / "runs" / "whole", "--num", 5, "--batch-size", 2]
    run_script("generate.py", *arguments, "--out", tmp_path / "again")
    for name in pictures:
        assert (tmp_path / "five" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_evaluate_measures_the_validation_frames(workplace, frames):
    run = workplace / "runs" / "tokenizer"
    run_script("evaluate.py", "--run", run, "--psnr", "--ssim", "--codebook", "--batch-size", 3)
    tokenizer = load_tokenizer(run)
    dataset = FrameDataset(frames / "val", list_frames(frames, "val"), 32)
    images = torch.stack([dataset[index][0] for index in range(7)]).float() / 255
    codes = tokenizer.encode(images)
    restored = tokenizer.decode(codes)
    assert result(run, "psnr")["value"] == pytest.approx(psnr(restored, images).mean().item(), rel=1e-5)
    assert result(run, "ssim")["value"] == pytest.approx(ssim(restored, images).mean().item(), rel=1e-5)
    assert result(run, "codebook")["value"] == len(codes.unique()) / 64
    record = result(run, "psnr")
    assert (record["num_images"], record["checkpoint_step"], record["split"]) == (7, 4, "val")
    assert record["subset"] == {"timeofday": None, "weather": None, "scene": None, "count": None}
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]


def test_two_processes_measure_the_same(workplace):
    """To the sample: 7 frames on two processes are 7, not 8."""
    run = workplace / "runs" / "two_measured"
    shutil.copytree(workplace / "runs" / "tokenizer", run)
    shutil.rmtree(run / "eval", ignore_errors=True)
    arguments = ["--run", run, "--psnr", "--codebook", "--rfid", "--feature-extractor", "random-inception"]
    run_script("evaluate.py", *arguments)
    one = {name: result(run, name) for name in ("psnr", "codebook", "fd_random")}
    assert not (run / "eval" / "rfid.json").exists()
    shutil.rmtree(run / "eval")
    run_script("evaluate.py", *arguments, processes=2)
    for name, record in one.items():
        other = result(run, name)
        assert (other["num_images"], record["num_images"]) == (7, 7)
        assert other["value"] == pytest.approx(record["value"], rel=1e-3), name
    assert other["feature_extractor"] == "random-inception-seed0"


def test_missing_weights_keep_no_other_result(workplace, tmp_path):
    run = workplace / "runs" / "without_weights"
    shutil.copytree(workplace / "runs" / "tokenizer", run, ignore=shutil.ignore_patterns("eval"))
    message = run_script(
        *["evaluate.py", "--run", run, "--rfid", "--lpips", "--psnr"],
        fails=True,
        TORCH_HOME=str(tmp_path),
        https_proxy="http://127.0.0.1:9",
    )
    assert "weights-inception-2015-12-05" in message and "--inception-weights" in message
    assert "vgg16-397923af.pth" in message and "--lpips-weights" in message
    assert [path.name for path in (run / "eval").iterdir()] == ["psnr.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gfid", "--run", "{runs}/tokenizer"], "--gfid: {runs}/tokenizer is a tokenizer's run"),
        (["--rfid", "--run", "{runs}/whole"], "--rfid: {runs}/whole is a generator's run"),
        (["--psnr", "--run", "{runs}/nowhere"], "{runs}/nowhere: no run there"),
        (["--psnr", "--runs", "{runs}/nowhere"], "no finished run of train_tokenizer.py there"),
        ([], "at least one metric"),
    ],
)
def test_evaluate_refuses_in_one_line(workplace, arguments, words):
    runs = str(workplace / "runs")
    message = run_script("evaluate.py", *[text.format(runs=runs) for text in arguments], fails=True)
    assert words.format(runs=runs) in message


def test_a_retrained_tokenizer_is_noticed(workplace, tmp_path):
    kept = shutil.copytree(workplace / "runs" / "tokenizer" / "model", tmp_path / "model")
    arguments = ["--config", workplace / "tokenizer.yaml", "--restart", "--set", "training.max_steps=1"]
    run_script("train_tokenizer.py", *arguments)
    try:
        message = run_script(
            "generate.py", "--run", workplace / "runs" / "whole", "--out", tmp_path / "out", fails=True
        )
        assert "has other weights than when" in message
        assert "its tokenizer have changed" in train(workplace, "whole", fails=True)
    finally:
        shutil.rmtree(workplace / "runs" / "tokenizer" / "model")
        shutil.copytree(kept, workplace / "runs" / "tokenizer" / "model")
