"""What the tests of evaluate.py share: how it is called, and a small stand-in for InceptionV3."""

import json

import torch

from data.frames import FrameDataset, list_frames
from tests.conftest import run_script

RANDOM = ("--feature-extractor", "random-inception", "--workers", 0)


class Pooled(torch.nn.Module):
    """A stand-in for RandomInceptionFeatures: the means of 2×2 regions. Counts the images it sees."""

    name, dim, suffix = "pooled", 12, "random"
    seen = 0

    def forward(self, images):
        Pooled.seen += len(images)
        return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def own_conditions(folder):
    """What a generator is told of the validation frames."""
    frames = list_frames(folder / "frames", "val")
    conditions = torch.tensor([[1 + (frame.timeofday == "night")] for frame in frames])
    assert len(conditions.unique()) == 2
    return conditions


def evaluate(run, *arguments, **options):
    return run_script("evaluate.py", "--run", run, *arguments, **options)


def result(run, metric):
    return json.loads((run / "eval" / f"{metric}.json").read_text())


def real_images(folder):
    dataset = FrameDataset(folder / "frames" / "val", list_frames(folder / "frames", "val"), 32)
    return torch.stack([dataset[index][0] for index in range(len(dataset))]).float() / 255
