"""What only makes training faster or smaller leaves its results; and no step waits for the device."""

import json
from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, run_script


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, frames):
    """A folder with configs of tiny networks, and the tokenizer's run `tokenizer`."""
    folder = tmp_path_factory.mktemp("speed")
    (folder / "tokenizer.yaml").write_text(TINY_TOKENIZER.format(frames=frames, runs=folder / "runs"))
    (folder / "vqgan.yaml").write_text(
        TINY_TOKENIZER.format(frames=frames, runs=folder / "runs").split("model:")[0]
        + "model: {kind: vqgan, image_size: 32, channels: 32, multipliers: [1, 1], blocks: 1}\n"
        + f"discriminator: {{channels: 16, layers: 2}}\nrun: {{dir: {folder / 'runs'}, tracker: none}}\n"
        + "losses: {lpips: 0, convnext: 0}\n"
        + "training: {max_steps: 4, global_batch_size: 8, warmup_steps: 2, log_every: 1}\n"
    )
    (folder / "generator.yaml").write_text(
        TINY_GENERATOR.format(
            tokenizer=folder / "runs" / "tokenizer",
            frames=frames,
            tokens=folder / "tokens",
            runs=folder / "runs",
        )
    )
    train(folder, "tokenizer", "tokenizer")
    return folder


def train(folder, kind, name, *overrides):
    """Train and return the steps' records of metrics.jsonl."""
    script = "train_maskgit.py" if kind == "generator" else "train_tokenizer.py"
    settings = [item for text in (f"run.name={name}", *overrides) for item in ("--set", text)]
    run_script(script, "--config", folder / f"{kind}.yaml", *settings)
    lines = (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "train/loss" in record]


# Compiling takes its time: one kind stands for all, whose blocks are of one class with the tokenizer's.
@pytest.mark.parametrize(
    ("kind", "option"),
    [
        ("tokenizer", "gradient_checkpointing"),
        ("vqgan", "gradient_checkpointing"),
        ("generator", "gradient_checkpointing"),
        ("generator", "compile"),
    ],
)
def test_results_stay(workplace, kind, option):
    same = ["model.dropout=0"] if kind == "generator" else []
    plain = train(workplace, kind, f"{kind}-plain", *same)
    other = train(workplace, kind, f"{kind}-{option}", f"training.{option}=true", *same)
    assert len(plain) == len(other) == 4
    for one, two in zip(plain, other):
        for name in ("train/loss", "train/gradient_norm"):
            assert one[name] == pytest.approx(two[name], rel=1e-4), name


class Syncs(TorchDispatchMode):
    """Counts what makes the host wait for a device: values read, and shapes that depend on values."""

    WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")

    def __init__(self):
        super().__init__()
        self.count = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.name().removeprefix("aten::").split(".")[0]
        if name in self.WAITS:
            self.count[name] += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["tokenizer", "generator"])
def test_no_step_waits_for_the_device(workplace, kind, monkeypatch):
    """More steps, with as many logs, validations, analyses and checkpoints, read no more from the device."""
    counts = {steps: count_syncs(workplace, kind, steps, monkeypatch) for steps in (11, 19)}
    assert counts[11]["item"] + counts[11]["_local_scalar_dense"] > 0  # it sees the last step's log
    assert counts[11] == counts[19]


def count_syncs(folder, kind, steps, monkeypatch):
    syncs = Syncs()
    for name in ("cpu", "tolist", "numpy", "item"):
        method = getattr(torch.Tensor, name)

        def counted(tensor, *args, method=method, name=name, **options):
            syncs.count[name] += 1
            return method(tensor, *args, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    rarely = [f"training.{each}_every=100" for each in ("log", "validate", "checkpoint")]
    with syncs:
        train(folder, kind, f"{kind}-{steps}-steps", f"training.max_steps={steps}", *rarely)
    monkeypatch.undo()
    return syncs.count
