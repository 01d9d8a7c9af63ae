"""What only a GPU can show: python -m pytest -m cuda, in under 3 minutes on a recent one."""

import json
import shutil

import pytest
import torch

import train_maskgit
import train_tokenizer
from benchmark.made import for_speed, noise_batch, token_batch
from metrics.frechet import frechet_distance
from metrics.inception import RandomInceptionFeatures
from models.maskgit import MaskGIT
from models.storage import build_tokenizer
from tests.conftest import ROOT, TINY_GENERATOR, TINY_TOKENIZER, run_script
from training.config import GeneratorConfig, TokenizerConfig, load_config
from training.precision import computing_in, set_precision
from training.run import Run

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and pytest -m cuda"),
]
CUDA = torch.device("cuda")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """A folder with configs of tiny networks, and the run `tokenizer`."""
    folder = tmp_path_factory.mktemp("cuda")
    (folder / "tokenizer.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=folder / "runs"))
    places = {"tokenizer": folder / "runs" / "tokenizer", "tokens": folder / "tokens"}
    (folder / "generator.yaml").write_text(
        TINY_GENERATOR.format(frames=frames, runs=folder / "runs", **places)
    )
    train(folder, "tokenizer", "tokenizer")
    return folder


def train(folder, kind, name, *overrides, **options):
    """Train and return the steps' records of metrics.jsonl."""
    script = "train_maskgit.py" if kind == "generator" else "train_tokenizer.py"
    settings = [item for text in (f"run.name={name}", *overrides) for item in ("--set", text)]
    run_script(script, "--config", folder / f"{kind}.yaml", *settings, **options)
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "train/loss" in record]


def assert_alike(one, other, tolerance):
    for a, b in zip(one, other, strict=True):
        for key in ("train/loss", "train/gradient_norm"):
            assert a[key] == pytest.approx(b[key], rel=tolerance), (a["step"], key)


EAGER, EXACT = "training.compile=false", "training.precision=fp32"


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_bfloat16_is_float32_within_its_precision(workplace, kind):
    settings = (EAGER, "training.max_steps=2", *["model.dropout=0"] * (kind == "generator"))
    exact = train(workplace, kind, f"{kind}-fp32", EXACT, *settings)
    assert_alike(exact, train(workplace, kind, f"{kind}-bf16", *settings), 0.05)


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_compiling_and_checkpointing_leave_results(workplace, kind):
    settings = (EXACT, "training.max_steps=2", *["model.dropout=0"] * (kind == "generator"))
    plain = train(workplace, kind, f"{kind}-plain", EAGER, *settings)
    for name, options in {
        "compiled": ["training.compile=true"],
        "checkpointed": [EAGER, "training.gradient_checkpointing=true"],
        "both": ["training.compile=true", "training.gradient_checkpointing=true"],
    }.items():
        assert_alike(plain, train(workplace, kind, f"{kind}-{name}", *options, *settings), 2e-3)


def test_a_deterministic_run_goes_on_to_the_bit(workplace):
    settings = (EAGER, "run.deterministic=true")
    whole = train(workplace, "tokenizer", "whole", *settings)
    train(workplace, "tokenizer", "cut", *settings, "training.max_steps=2")
    cut = train(workplace, "tokenizer", "cut", *settings)
    assert [record["train/loss"] for record in whole] == [record["train/loss"] for record in cut]


def test_one_process_over_nccl_is_one_process(workplace):
    one = train(workplace, "generator", "alone", "model.dropout=0", EAGER)
    name = "over_nccl"
    run_script(
        *["train_maskgit.py", "--config", workplace / "generator.yaml", "--set", f"run.name={name}"],
        *["--set", "model.dropout=0", "--set", EAGER],
        launched=True,
    )
    lines = (workplace / "runs" / name / "metrics.jsonl").read_text().splitlines()
    assert_alike(one, [record for record in map(json.loads, lines) if "train/loss" in record], 5e-3)


def test_generation_is_the_same_in_any_batch():
    torch.manual_seed(0)
    generator = MaskGIT(num_tokens=64, codebook_size=512, width=128, depth=4, heads=4).eval().to(CUDA)
    set_precision("fp32")
    whole = generator.generate(32, seed=3)
    parts = [generator.generate(8, seed=3, first_index=first) for first in range(0, 32, 8)]
    assert (whole == torch.cat(parts)).float().mean() > 0.98  # ties are broken by the last bit


def test_features_are_the_cpus():
    extractor, images = RandomInceptionFeatures(), torch.rand(16, 3, 128, 128)
    here = extractor(images)
    with computing_in("fp32", CUDA):
        there = extractor.to(CUDA)(images.to(CUDA))
    torch.testing.assert_close(here, there.cpu(), rtol=2e-3, atol=2e-3)
    other = torch.rand(20, here.shape[1])
    assert frechet_distance(there, other.to(CUDA)) == pytest.approx(frechet_distance(here, other), rel=1e-3)


@pytest.fixture
def studys_run(tmp_path):
    """TiTok-64's run at device batch 32, all losses on, their weights random."""
    settings = ["training.global_batch_size=32", "losses.convnext=0.1"]
    config = load_config(ROOT / "configs" / "titok_64.yaml", TokenizerConfig, settings)
    run = Run(for_speed(config, tmp_path))
    run.plan(1000, "made for a test")
    return run


def test_no_step_waits_and_memory_stays_under_its_goal(studys_run):
    """All losses at device batch 32 in under 24 GB; and nothing that a step does waits for the device."""
    run = studys_run
    networks, step = train_tokenizer.Networks(run), run.config.losses.adversarial_start + 1
    batch = noise_batch(run, 32)
    for _ in range(2):  # compiles, and looks for the fastest convolutions
        train_tokenizer.train_step(run, networks, [batch], [], step)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train_tokenizer.train_step(run, networks, [batch], [], step)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.cuda.max_memory_allocated() < 24e9


def test_no_step_of_a_generator_waits(tmp_path):
    config = load_config(ROOT / "configs" / "maskgit_mae_64.yaml", GeneratorConfig)
    run = Run(for_speed(config, tmp_path))
    run.plan(1000, "made for a test")
    model = load_config(ROOT / "configs" / "titok_64.yaml", TokenizerConfig).model
    tokenizer = build_tokenizer(model.architecture())
    networks = train_maskgit.Networks(run, tokenizer, {})
    batch = token_batch(run, tokenizer, 32)
    batch = type(batch)(*(field.pin_memory() for field in batch))
    for mode in ("default", "default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            train_maskgit.train_step(run, networks, [batch] * run.accumulation, 1)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_auto_finds_a_batch(workplace):
    settings = (EAGER, "training.device_batch_size=auto", "training.max_steps=1")
    assert len(train(workplace, "tokenizer", "auto", *settings)) == 1
    shutil.rmtree(workplace / "runs" / "auto")
