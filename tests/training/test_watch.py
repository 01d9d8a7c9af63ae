"""What is said of a tokenizer's health, from made logs and from a training whose codebook does collapse."""

import json

import pytest

from tests.conftest import TINY_TOKENIZER, run_script
from training.watch import warnings


@pytest.fixture
def log(tmp_path):
    """Writes records as a metrics.jsonl, and returns its path."""

    def write(*records):
        path = tmp_path / "metrics.jsonl"
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


def trained(step, discriminator=None):
    record = {"step": step, "train/loss": 0.5}
    return record if discriminator is None else record | {"train/discriminator": discriminator}


def validated(step, perplexity):
    return {"step": step, "val/perplexity": perplexity}


def test_a_healthy_run_is_not_spoken_of(log):
    path = log(
        trained(1), validated(2, 30), trained(3, 0.9), validated(4, 300), trained(5, 0.3), validated(6, 290)
    )
    assert warnings(path, 1000) == []


def test_few_codes_from_the_beginning(log):
    (line,) = warnings(log(validated(500, 9.9)), 1000)
    assert line.startswith("step 500: the codebook collapses") and "losses.entropy" in line
    assert warnings(log(validated(500, 10.1)), 1000) == []


def test_codes_that_are_lost_again(log):
    (line,) = warnings(log(validated(100, 800), validated(200, 600), validated(300, 399)), 1000)
    assert line.startswith("step 300: the codebook collapses") and "399.0" in line and "800.0" in line
    assert warnings(log(validated(100, 800), validated(200, 600), validated(300, 401)), 1000) == []


def test_a_discriminator_that_is_always_right(log):
    (line,) = warnings(log(validated(1, 50), trained(2, 0.06), trained(3, 0.01), validated(4, 50)), 100)
    assert line.startswith("step 4: the discriminator wins") and "0.035" in line
    assert "losses.adversarial" in line and "discriminator.learning_rate" in line
    # what was before the last validation but one is no longer so
    early = [trained(1, 0.001), validated(2, 50)]
    assert warnings(log(*early, trained(3, 0.5), validated(4, 50)), 100) == []


def test_training_says_it(tmp_path, frames):
    config = tmp_path / "tok.yaml"
    config.write_text(TINY_TOKENIZER.format(frames=frames, runs=tmp_path / "runs"))
    # a tokenizer that stays as it is, and a discriminator that learns fast
    options = {"discriminator.learning_rate": 0.01, "training.learning_rate": 1e-9, "training.max_steps": 60}
    options |= {"training.validate_every": 30, "losses.lecam": 0}
    sets = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    output = run_script("train_tokenizer.py", "--config", config, *sets)
    assert "step 60: the discriminator wins" in output, output
