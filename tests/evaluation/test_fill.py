"""evaluate.py --fill."""

import numpy as np
import pytest
import torch

from data.frames import FrameDataset, list_frames
from metrics.frechet import frechet_distance
from metrics.similarity import psnr
from models import load_generator, load_tokenizer
from tests.evaluation.made import RANDOM, Pooled, evaluate, real_images, result
from training.config import GeneratorConfig, load_config


def test_fill_by_mask_ratio(workplace, pooled):
    run = workplace / "runs" / "gen"
    evaluate(run, "--fill", "--mask-ratio", 0.5, "--mask-ratio", 1, "--batch-size", 3, *RANDOM)
    record = result(run, "fill")
    assert [row["mask_ratio"] for row in record["ratios"]] == [0.5, 1.0]
    assert record["value"] == pytest.approx(np.mean([row["psnr"] for row in record["ratios"]]))
    assert isinstance(record["value"], float) and record["num_images"] == 7

    images, tokenizer = real_images(workplace), load_tokenizer(workplace / "runs" / "tok")
    codes, real = tokenizer.encode(images), Pooled()(images)
    sampling = load_config(workplace / "gen.yaml", GeneratorConfig).sampling.model_dump()
    for row in record["ratios"]:
        order = np.stack([np.random.default_rng([0, place]).permutation(8) for place in range(7)])
        mask = torch.from_numpy(order < row["mask_ratio"] * 8)
        assert mask.sum(dim=1).tolist() == [row["mask_ratio"] * 8] * 7
        filled = tokenizer.decode(load_generator(run).fill(codes, mask, seed=0, **sampling))
        assert row["psnr"] == pytest.approx(psnr(filled, images).mean().item(), rel=1e-4)
        assert row["fd_random"] == pytest.approx(frechet_distance(Pooled()(filled), real), rel=1e-3)


def test_fill_passes_over_a_broken_frame(workplace, pooled):
    """The others' masks and noise stay as they were."""
    run = workplace / "runs" / "gen"
    names = [frame.file_name for frame in list_frames(workplace / "frames", "val")]
    (workplace / "frames" / "val" / names[2]).write_bytes(b"no picture")
    evaluate(run, "--fill", "--mask-ratio", 0.5, "--batch-size", 4, *RANDOM)
    kept = [0, 1, 3, 4, 5, 6]
    dataset = FrameDataset(workplace / "frames" / "val", list_frames(workplace / "frames", "val"), 32)
    images = torch.stack([dataset[place][0] for place in kept]).float() / 255
    tokenizer = load_tokenizer(workplace / "runs" / "tok")
    codes = torch.zeros(7, 8, dtype=torch.int64)
    codes[kept] = tokenizer.encode(images)
    order = np.stack([np.random.default_rng([0, place]).permutation(8) for place in range(7)])
    sampling = load_config(workplace / "gen.yaml", GeneratorConfig).sampling.model_dump()
    filled = load_generator(run).fill(codes, torch.from_numpy(order < 4), seed=0, **sampling)[kept]
    record = result(run, "fill")
    assert record["num_images"] == 6
    assert record["value"] == pytest.approx(psnr(tokenizer.decode(filled), images).mean().item(), rel=1e-4)
