"""evaluate.py --as-run, against the study's scripts' arithmetic written out."""

import numpy as np
import pytest
import torch

from data.frames import FrameDataset, list_frames
from metrics.frechet import frechet_distance
from models import load_generator, load_tokenizer
from tests.evaluation.made import RANDOM, evaluate, result
from training.config import GeneratorConfig, load_config


def as_png(images):
    """Images that are taken for [-1, 1] as a PNG of the study's scripts has them, in [0, 1]."""
    levels = ((images.double() + 1) * 127.5).clamp(0, 255)
    return torch.from_numpy(levels.numpy().astype(np.float32).astype(np.uint8)).float() / 255


def pooled_features(images):
    return torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)


def validation_images(folder):
    frames = list_frames(folder / "frames", "val")
    dataset = FrameDataset(folder / "frames" / "val", frames, 32)
    return torch.stack([dataset[place][0] for place in range(len(frames))]).float() / 255


def test_rfid_as_run_is_of_images_as_the_script_saves_them(workplace, pooled):
    run = workplace / "runs" / "tok"
    evaluate(run, "--rfid", "--codebook", "--as-run", *RANDOM)
    assert not (run / "eval" / "fd_random.json").exists()
    images, tokenizer = validation_images(workplace), load_tokenizer(run)
    with torch.no_grad():
        codes = tokenizer.encode(images)
        restored = tokenizer.decode(codes)
    wanted = frechet_distance(
        pooled_features(as_png(2 * images - 1)), pooled_features(as_png(2 * restored - 1))
    )
    record = result(run, "fd_random_as_run")
    assert record["value"] == pytest.approx(wanted, rel=1e-3) and record["metric"] == "fd_random_as_run"
    assert result(run, "codebook_as_run")["value"] == len(codes.unique()) / 64
    evaluate(run, "--rfid", *RANDOM)
    assert result(run, "fd_random")["value"] != pytest.approx(wanted, rel=1e-3)


def test_gfid_as_run_is_of_images_mapped_twice(workplace, pooled):
    run = workplace / "runs" / "gen"
    evaluate(run, "--gfid", "--as-run", *RANDOM)
    generator, tokenizer = load_generator(run), load_tokenizer(workplace / "runs" / "tok")
    config = load_config(run / "config.yaml", GeneratorConfig)
    codes = generator.generate(7, seed=0, **config.sampling.model_dump())
    with torch.no_grad():
        images = tokenizer.to_images(tokenizer.quantizer.lookup(codes))  # in [0, 1], but for what overshoots
    made, real = as_png(images), as_png(2 * validation_images(workplace) - 1)
    assert made.min() > 0.45  # 127 of 255, with what overshoots
    wanted = frechet_distance(pooled_features(made), pooled_features(real))
    record = result(run, "fd_random_as_run")
    assert record["value"] == pytest.approx(wanted, rel=1e-3)
    assert record["num_images"] == record["num_real"] == 7


def test_as_run_takes_a_thousand_images(workplace, pooled, monkeypatch):
    monkeypatch.setattr("metrics.as_run.NUM_IMAGES", 5)
    for name, metric in (("tok", "--rfid"), ("gen", "--gfid")):
        evaluate(workplace / "runs" / name, metric, "--as-run", *RANDOM)
        record = result(workplace / "runs" / name, "fd_random_as_run")
        assert record["num_images"] == record["num_real"] == 5
    assert "--psnr has no such measure" in evaluate(
        workplace / "runs" / "tok", "--psnr", "--as-run", *RANDOM, fails=True
    )
