"""Runs to evaluate."""

import shutil

import pytest
import torch
import yaml

import metrics.features
import metrics.inception
from models.maskgit import MaskGIT
from models.storage import build_tokenizer, fingerprint, save_model
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, make_frames, run_script
from tests.evaluation.made import Pooled
from training.config import TokenizerConfig


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with 7 validation frames, a tokenizer's run and a generator's."""
    folder = tmp_path_factory.mktemp("evaluated")
    make_frames(folder / "frames", train=8, val=7)
    paths = {"frames": folder / "frames", "runs": folder / "runs", "tokens": folder / "tokens"}
    (folder / "tok.yaml").write_text(TINY_TOKENIZER.format(**paths))
    run_script("train_tokenizer.py", "--config", folder / "tok.yaml", "--set", "training.max_steps=2")
    (folder / "gen.yaml").write_text(TINY_GENERATOR.format(**paths, tokenizer=folder / "runs" / "tok"))
    run_script("train_maskgit.py", "--config", folder / "gen.yaml", "--set", "training.max_steps=2")
    return folder


@pytest.fixture
def workplace(trained, tmp_path, monkeypatch):
    """A copy whose runs refer to the copy. Four generated images go to a file."""
    folder = shutil.copytree(trained, tmp_path / "work")
    for config in folder.glob("runs/*/config.yaml"):
        config.write_text(config.read_text().replace(str(trained), str(folder)))
    monkeypatch.setattr(metrics.features, "CHUNK", 4)
    return folder


@pytest.fixture
def pooled(monkeypatch):
    """`seen()` tells how many images the stand-in has had since the last call."""
    monkeypatch.setattr(metrics.inception, "RandomInceptionFeatures", Pooled)
    Pooled.seen = 0

    def seen():
        count, Pooled.seen = Pooled.seen, 0
        return count

    return seen


@pytest.fixture
def conditional(workplace):
    """A generator's run as if trained under conditions, on tokens of a tokenizer's run of its own: random
    weights, some enlarged for pictures and choices to differ clearly."""
    torch.manual_seed(0)
    runs = workplace / "runs"
    for name, original in (("bold", "tok"), ("asked", "gen")):
        shutil.copytree(runs / original, runs / name)
        values = yaml.safe_load((runs / name / "config.yaml").read_text())
        if name == "bold":
            values["model"]["decoder"]["init"] = "mimetic"
            architecture = TokenizerConfig.model_validate(values).model.architecture()
            model = build_tokenizer(architecture)
            parts, factor, more = (model.decoder.to_pixels,), 20, {}
        else:
            values["model"]["conditions"] = ["timeofday"]
            values["tokenizer"] = str(runs / "bold")
            model = MaskGIT(8, 64, 32, 2, 2, conditions={"timeofday": ["daytime", "night"]})
            parts, factor, more = (model,), 4, {"tokenizer_sha256": fingerprint(runs / "bold")}
        with torch.no_grad():
            for parameter in (parameter for part in parts for parameter in part.parameters()):
                parameter.mul_(factor if parameter.dim() > 1 else 1)
        (runs / name / "config.yaml").write_text(yaml.safe_dump(values))
        save_model(model, runs / name / "model", step="2", **more)
    return runs / "asked"
