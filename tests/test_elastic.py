"""model.elastic through the commands: trained, measured at every length, generated from, shown."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.frames import Draw, FrameDataset, list_frames
from models import load_generator, load_tokenizer
from models.elastic import ElasticTiTok
from models.maskgit import MaskGIT, masked_token_loss
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, run_script
from training.tokens import TokenDataset

RANDOM = ("--feature-extractor", "efficientnet-lite0", "--workers", 0)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """Runs `elastic`, and `gen` on its tokens, coarse first; `plain`'s config beside them."""
    folder = tmp_path_factory.mktemp("elastic")
    common = {"frames": frames, "runs": folder / "runs"}
    plain = TINY_TOKENIZER.format(**common)
    (folder / "plain.yaml").write_text(plain)
    (folder / "elastic.yaml").write_text("base: plain.yaml\nmodel: {elastic: true}\n")
    run_script("train_tokenizer.py", "--config", folder / "elastic.yaml")
    generator = TINY_GENERATOR.format(
        tokenizer=folder / "runs" / "elastic", tokens=folder / "tokens", **common
    )
    (folder / "gen.yaml").write_text(f"{generator}sampling: {{order: coarse_first, steps: 4}}\n")
    run_script("train_maskgit.py", "--config", folder / "gen.yaml")
    return folder


def weights(run, step=4):
    folder = run / "checkpoints" / f"step_{step:08d}"
    return {path.name: load_file(path) for path in sorted(folder.glob("*.safetensors"))}


def test_parts_and_processes_change_nothing(workplace):
    """An image's length goes with its frame and its step, whichever process has it."""
    for name, processes, size in (("one", 1, 8), ("parts", 1, 4), ("two", 2, 4)):
        overrides = [f"run.name={name}", "losses.entropy=0", f"training.device_batch_size={size}"]
        sets = [item for text in overrides for item in ("--set", text)]
        run_script("train_tokenizer.py", "--config", workplace / "elastic.yaml", *sets, processes=processes)
    start, one, *others = (
        weights(workplace / "runs" / name, step)["model.safetensors"]
        for name, step in (("one", 2), ("one", 4), ("parts", 4), ("two", 4))
    )
    moved = sum((tensor - start[key]).abs().sum() for key, tensor in one.items())
    for other in others:
        apart = sum((tensor - other[key]).abs().sum() for key, tensor in one.items())
        assert apart < 0.02 * moved


def test_goes_on_as_if_uninterrupted(workplace):
    options = ("train_tokenizer.py", "--config", workplace / "elastic.yaml", "--set", "run.name=again")
    run_script(*options, "--set", "training.max_steps=2")
    run_script(*options)
    for file, tensors in weights(workplace / "runs" / "elastic").items():
        other = weights(workplace / "runs" / "again")[file]
        assert all(torch.equal(other[key], tensor) for key, tensor in tensors.items())


def test_measured_at_every_length_in_one_pass(workplace, frames):
    run = workplace / "runs" / "elastic"
    run_script(
        "evaluate.py",
        "--run",
        run,
        "--psnr",
        "--rfid",
        "--codebook",
        "--num-tokens",
        2,
        "--num-tokens",
        4,
        *RANDOM,
    )
    tokenizer = load_tokenizer(run)
    assert isinstance(tokenizer, ElasticTiTok)
    listed = list_frames(frames, "val")
    dataset = FrameDataset(frames / "val", listed, 32)
    images = torch.stack([dataset[place][0] for place in range(len(listed))]) / 255
    codes = tokenizer.encode(images)
    record = json.loads((run / "eval" / "psnr.json").read_text())
    assert (
        list(record["by_num_tokens"]) == ["2", "4", "8"] and record["by_num_tokens"]["8"] == record["value"]
    )
    for length, value in record["by_num_tokens"].items():
        errors = (tokenizer.decode(codes[:, : int(length)]) - images).square().mean(dim=(1, 2, 3))
        assert value == pytest.approx((-10 * errors.log10()).mean().item(), abs=1e-3)
    distances = json.loads((run / "eval" / "fd_efficientnet_lite0.json").read_text())["by_num_tokens"]
    assert list(distances) == ["2", "4", "8"] and len(set(distances.values())) == 3

    run_script("evaluate.py", "--run", run, "--adaptive", "--workers", 0, "--batch-size", 3)
    record = json.loads((run / "eval" / "adaptive.json").read_text())
    for row in record["budgets"]:
        assert row["mean_tokens"] <= row["at_most"] and row["psnr"] >= row["psnr_of_one_length"] - 1e-6
    by_time = record["tokens_by_label"]["timeofday"]
    assert sum(row["frames"] for row in by_time.values()) == 7 and set(by_time) == {"night", "daytime"}


def test_what_is_not_elastic_says_so(workplace):
    run_script("train_tokenizer.py", "--config", workplace / "plain.yaml")
    plain = workplace / "runs" / "plain"
    for options in (("--psnr", "--num-tokens", 2), ("--adaptive",)):
        assert "has one length" in run_script("evaluate.py", "--run", plain, *options, fails=True)
    elastic = ("evaluate.py", "--run", workplace / "runs" / "elastic", "--psnr", "--num-tokens", 9)
    assert "--num-tokens 9" in run_script(*elastic, fails=True)
    sets = ("--set", f"tokenizer={plain}", "--set", "run.name=none")
    refused = run_script("train_maskgit.py", "--config", workplace / "gen.yaml", *sets, fails=True)
    assert "coarse_first" in refused


def test_half_of_the_sequences_are_prefixes():
    tokens = np.random.default_rng(0).integers(16, size=(300, 2, 8)).astype(np.uint16)
    conditions = np.zeros((300, 0), np.int64)
    dataset, plain = (
        TokenDataset(tokens, conditions, "arccos", 0, False, 0.0, absent=absent) for absent in (16, None)
    )
    prefixes = 0
    for place in range(300):
        codes, mask, _ = dataset[Draw(0, place)]
        there = codes < 16
        length = int(there.sum())
        assert there[:length].all() and torch.equal(
            codes[:length], torch.from_numpy(tokens[place, 0].astype(np.int64))[:length]
        )
        assert not mask[length:].any() and mask.any()
        if length == 8:
            other = plain[Draw(0, place)]
            prefixes += not (torch.equal(other.codes, codes) and torch.equal(other.mask, mask))
        else:
            prefixes += 1
    assert 110 < prefixes < 190


def test_absent_tokens_are_not_predicted():
    torch.manual_seed(0)
    logits, codes = torch.randn(2, 4, 5), torch.tensor([[1, 2, 5, 5], [0, 3, 4, 1]])
    weights = torch.tensor([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    log_p = logits.log_softmax(dim=-1)
    expected = -(log_p[0, 0, 1] + log_p[1, 0, 0] + log_p[1, 1, 3] + log_p[1, 3, 1])
    torch.testing.assert_close(masked_token_loss(logits, codes, weights), expected)


def test_coarse_first_decides_the_first_tokens_first():
    torch.manual_seed(0)
    generator = MaskGIT(8, 16, 32, 1, 2).eval()
    steps = list(generator.fill_steps(*generator.all_masked(3), steps=4, order="coarse_first", seed=1))
    known_before = 0
    for _, unknown in steps:
        known = (~unknown).sum(dim=1)
        assert (known == known[0]).all() and known[0] > known_before
        assert torch.equal(unknown, (torch.arange(8) >= known[0]).expand(3, -1))
        known_before = known[0]
    assert (steps[-1][0] < 16).all()


def test_generated_from_few_tokens_to_all(workplace):
    run, out = workplace / "runs" / "gen", workplace / "made"
    run_script("generate.py", "--run", run, "--num", 2, "--num-tokens", 3, "--out", out)
    generator, tokenizer = load_generator(run), load_tokenizer(workplace / "runs" / "elastic")
    codes, mask = generator.all_masked(2)
    mask[:, 3:] = False
    codes = generator.fill(codes, mask, order="coarse_first", steps=4)
    expected = (255 * tokenizer.decode(codes[:, :3])).round()
    for place in range(2):
        with Image.open(out / f"00000{place}.png") as picture:
            assert np.abs(np.asarray(picture, float) - expected[place].permute(1, 2, 0).numpy()).max() <= 1
    run_script("generate.py", "--run", run, "--mode", "progressive", "--num", 2, "--out", out)
    with Image.open(out / "progressive.png") as picture:
        assert picture.width > 5 * 32 and picture.height > 4 * 32
    assert "--num-tokens 9" in run_script(
        "generate.py", "--run", run, "--num-tokens", 9, "--out", out, fails=True
    )


def test_the_report_has_the_curve_the_grid_and_who_needs_more(workplace):
    run = workplace / "runs" / "elastic"
    run_script("evaluate.py", "--run", run, "--psnr", "--num-tokens", 2, "--num-tokens", 4, "--workers", 0)
    run_script("evaluate.py", "--run", run, "--adaptive", "--workers", 0)
    record = json.loads((run / "eval" / "psnr.json").read_text())
    record |= {"metric": "rfid", "by_num_tokens": {"2": 120.5, "4": 110.25, "8": 99.75}, "value": 99.75}
    (run / "eval" / "rfid.json").write_text(json.dumps(record))
    run_script("report.py", "--runs", workplace / "runs", "--out", workplace / "report")
    page = (workplace / "report" / "index.html").read_text()
    assert "Tokens of any length" in page and "What needs more tokens" in page and "110.25" in page
    for name in ("figure_1", "length_psnr", "progressive_elastic"):
        assert (workplace / "report" / "figures" / f"{name}.png").stat().st_size > 5000
