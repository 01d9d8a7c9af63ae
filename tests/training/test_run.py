"""A run's steps: what they draw at random, and loaders that start as any Python starts them."""

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import train_tokenizer
from data.frames import (
    Draw,
    FrameDataset,
    ImageBatch,
    collate_images,
    leave_signals_to_parent,
    list_frames,
)
from errors import UserError
from tests.conftest import TINY_TOKENIZER
from training.checkpoints import require_finite
from training.config import TokenizerConfig, load_config
from training.memory import first_that_fits
from training.optimizer import build_optimizer
from training.run import Run
from training.tokens import TokenDataset


@pytest.fixture
def run(tmp_path, frames):
    """A tiny tokenizer's run that has its plan, of 4 steps, and no networks."""
    (tmp_path / "tiny.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=tmp_path))
    run = Run(load_config(tmp_path / "tiny.yaml", TokenizerConfig))
    run.plan(20, "made for a test")
    return run


def draws(run, process, monkeypatch):
    monkeypatch.setattr(type(run.accelerator), "process_index", process)
    return [torch.rand(4).tolist() for _ in run.steps()]


def test_dropout_is_anew_in_each_step_and_process_and_the_same_again(run, monkeypatch):
    first, second = (draws(run, process, monkeypatch) for process in (0, 1))
    assert len({value for step in (*first, *second) for value in step}) == 2 * 4 * 4
    run.first_step = 2  # as when it goes on from there
    assert draws(run, 0, monkeypatch) == first[2:]


def test_loaders_start_by_spawn(frames):
    """Python 3.14 starts processes without what their parent has in memory."""
    listed = list_frames(frames, "train")
    images = FrameDataset(frames / "train", listed, 32, random_crop=True, flip=True)
    codes = np.random.default_rng(0).integers(64, size=(20, 2, 8))
    tokens = TokenDataset(codes, np.zeros((20, 0), np.int64), "arccos", 0, flip=True, condition_dropout=0.1)
    for dataset, collate in ((images, collate_images), (tokens, None)):
        batches = [[Draw(0, 3), Draw(0, 1)]]
        here, there = (
            next(iter(DataLoader(dataset, batch_sampler=batches, collate_fn=collate, **options)))
            for options in (
                {},
                {
                    "num_workers": 1,
                    "multiprocessing_context": "spawn",
                    "worker_init_fn": leave_signals_to_parent,
                },
            )
        )
        assert torch.equal(here[0], there[0]) and torch.equal(here[1], there[1])


def test_a_batch_that_fits_is_found_largest_first():
    def attempt(limit, tried, size):
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("made for a test")

    for limit, found in ((100, 64), (20, 16), (0, None)):
        tried = []
        assert first_that_fits([64, 32, 16, 8], partial(attempt, limit, tried)) == found
        assert tried == [size for size in (64, 32, 16, 8) if found is None or size >= found]


def test_a_step_that_runs_out_of_memory_says_which_batch_to_try(run):
    message = r"8 images at once are too many .*training.device_batch_size=4$"
    with pytest.raises(UserError, match=message), run.open():
        raise torch.OutOfMemoryError("made for a test")


def test_auto_is_a_number_on_a_cpu(tmp_path):
    (tmp_path / "tiny.yaml").write_text(TINY_TOKENIZER.format(frames=tmp_path, runs=tmp_path))
    settings = ["training.device_batch_size=auto", "training.global_batch_size=96"]
    run = Run(load_config(tmp_path / "tiny.yaml", TokenizerConfig, settings))
    assert (run.micro_batch_size, run.accumulation) == (32, 3)


class Scale(nn.Module):
    """One weight, times what it gets."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


def train_scale(run, inputs):
    """Train one weight on a number a step; returns the weight and its average before each step and after."""
    network, ema = Scale(), Scale()
    optimizer = build_optimizer(network, run.config.training)
    run.prepare({"model": network}, [optimizer], {"ema": ema})
    weights = [network.weight.item()]
    for step, value in zip(run.steps(), inputs, strict=True):
        loss = (network.weight * value).sum()
        loss.backward()
        run.add(loss=loss)
        run.clip_and_step((network, optimizer))
        run.end_step(step, run.set_learning_rate(step))
        weights.append(network.weight.item())
    return weights, optimizer.state[network.weight]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(run, bad):
    run.set_learning_rate = lambda step: 0.1
    weights, state = train_scale(run, [1.0, bad, bad, 1.0])
    assert weights[1] == weights[2] == weights[3] != weights[4]
    assert state["step"] == 2 and all(value.isfinite().all() for value in state.values())
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line.get("train/skipped_steps", 0) for line in lines] == [0, 1, 1, 0]
    assert ["train/loss" in line for line in lines] == [True, False, False, True]


def test_a_run_stops_after_its_patience_and_names_the_frames(tmp_path, frames):
    (tmp_path / "tiny.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=tmp_path))
    run = Run(load_config(tmp_path / "tiny.yaml", TokenizerConfig, ["training.patience=2"]))
    listed = list_frames(frames, "train")
    run.plan(20, "made for a test", listed)
    with pytest.raises(UserError, match="not finite in 2 steps in a row, up to step 3") as caught:
        train_scale(run, [1.0, math.nan, math.nan, 1.0])
    order = np.random.default_rng([42, 0]).permutation(20)
    assert listed[order[16]].file_name in str(caught.value)  # the first of step 3, of 8 frames each


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_tokenizers_step_that_is_not_finite_changes_neither_network(tmp_path, frames, norm, monkeypatch):
    """Nor what else would be spoiled for good: the adversary's statistics, the average."""
    (tmp_path / "tiny.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=tmp_path))
    run = Run(load_config(tmp_path / "tiny.yaml", TokenizerConfig, [f"discriminator.norm={norm}"]))
    run.plan(20, "made for a test")
    networks = train_tokenizer.Networks(run)
    batch = ImageBatch(torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8), {})
    train_tokenizer.train_step(run, networks, [batch], [], step=2)
    before = run.state(keep=True)

    terms = train_tokenizer.reconstruction_terms
    monkeypatch.setattr(
        train_tokenizer, "reconstruction_terms", lambda *of: {k: v * math.nan for k, v in terms(*of).items()}
    )
    train_tokenizer.train_step(run, networks, [batch], [], step=3)
    after = run.state(keep=True)
    require_finite(after, tmp_path)
    for name in ("model", "model_optimizer", "discriminator", "discriminator_optimizer"):
        for key, value in before[name].items():
            assert torch.equal(value, after[name][key]), (name, key)
