"""evaluate.py --probe."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import evaluation.probe
from data.frames import FrameDataset, list_frames
from models import load_tokenizer
from models.pretrained import build_encoder
from models.storage import build_tokenizer, save_model
from tests.conftest import make_frames
from tests.evaluation.made import evaluate, result
from training.config import TokenizerConfig
from training.finished import read_run

PROBE = ("--probe", "--workers", 0)
NAMES = ("accuracy", "balanced_accuracy")
WEATHER = ("clear", "rainy", None, "overcast", "undefined")


@pytest.fixture
def run(workplace):
    """A tokenizer's run on 40 training and 24 validation frames. Weather is labelled here and there, and has
    a class in validation that training lacks; all scenes of training are the same."""
    shutil.rmtree(workplace / "frames")
    make_frames(workplace / "frames", train=40, val=24)
    for split in ("train", "val"):
        path = workplace / "frames" / split / "metadata.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for number, record in enumerate(records):
            record["weather"] = WEATHER[number * 7 % 5]
            record["scene"] = "highway"
            if split == "val" and number % 6 == 0:
                record |= {"weather": "foggy", "scene": "tunnel"}
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return workplace / "runs" / "tok"


def replace_model(run, **model):
    """Give a run a network of random weights, of its config with other keys."""
    values = yaml.safe_load((run / "config.yaml").read_text())
    values["model"] = values["model"] | model if "kind" not in model else model
    (run / "config.yaml").write_text(yaml.safe_dump(values))
    torch.manual_seed(0)
    save_model(
        build_tokenizer(TokenizerConfig.model_validate(values).model.architecture()), run / "model", step="2"
    )


def images_and_labels(run, split, count=None):
    folder = run.parents[1] / "frames"
    listed = list_frames(folder, split)[:count]
    dataset = FrameDataset(folder / split, listed, 32)
    return torch.stack([dataset[place][0] for place in range(len(listed))]) / 255, listed


def expected(train, train_frames, val, val_frames, attribute):
    """A row's scores by scikit-learn's pipelines, of features (N, D)."""
    sides = []
    for features, frames in ((train, train_frames), (val, val_frames)):
        labels = [getattr(frame, attribute) for frame in frames]
        known = [place for place, label in enumerate(labels) if label not in (None, "undefined")]
        sides.append((np.asarray(features, float)[known], [labels[place] for place in known]))
    (train, learned), (val, labels) = sides
    scores = {}
    for name, model in (
        ("linear", LogisticRegression(C=0.01, max_iter=2000)),
        ("knn", KNeighborsClassifier(min(20, len(train)))),
    ):
        told = make_pipeline(StandardScaler(), model).fit(train, learned).predict(val)
        scores[name] = [accuracy_score(labels, told), balanced_accuracy_score(labels, told)]
    return scores


def scores_of(row, attribute):
    return {name: [row[attribute][name][each] for each in NAMES] for name in ("linear", "knn")}


def test_every_row_is_what_its_features_tell(run):
    printed = evaluate(run, *PROBE, "--batch-size", 7)
    record, tokenizer = result(run, "probe"), load_tokenizer(run)
    assert "--probe leaves out scene: the training frames have only highway" in printed
    assert record["labels"].keys() == {"weather", "timeofday"} and record["source"] is None
    assert (record["num_train"], record["num_images"]) == (40, 24)
    assert [(row["features"], row["num_tokens"]) for row in record["probes"]] == [
        (name, length) for name in ("latents", "codes") for length in (1, 2, 4, 8)
    ]
    sides = [images_and_labels(run, split) for split in ("train", "val")]
    with torch.no_grad():
        latents = [torch.nn.functional.normalize(tokenizer.to_latents(images), dim=-1) for images, _ in sides]
        codes = [tokenizer.quantizer.lookup(tokenizer.encode(images)) for images, _ in sides]
    for row in record["probes"]:
        arrays = [
            side[:, : row["num_tokens"]].flatten(1).numpy()
            for side in (latents if row["features"] == "latents" else codes)
        ]
        for attribute in ("weather", "timeofday"):
            wanted = expected(arrays[0], sides[0][1], arrays[1], sides[1][1], attribute)
            assert scores_of(row, attribute) == {name: pytest.approx(each) for name, each in wanted.items()}
    balanced = [record["probes"][-1][name]["linear"]["balanced_accuracy"] for name in record["labels"]]
    assert record["value"] == record["by_num_tokens"]["8"] == pytest.approx(np.mean(balanced))

    weather = [frame.weather for frame in sides[1][1] if frame.weather not in (None, "undefined")]
    about = record["labels"]["weather"]
    assert about["classes"] == 3 and "foggy" in weather
    assert about["num_train"] == 24 and about["num_val"] == len(weather) < 24
    chance = about["most_frequent"]
    assert chance["accuracy"] == weather.count(chance["class"]) / len(weather)
    assert chance["balanced_accuracy"] == 1 / 4


def test_the_first_training_frames_that_can_be_read(run, monkeypatch):
    monkeypatch.setattr(evaluation.probe, "TRAINING_FRAMES", 12)
    _, listed = images_and_labels(run, "train", 12)
    frames = run.parents[1] / "frames"
    (frames / "train" / listed[3].file_name).write_bytes(b"no picture")
    assert f"{listed[3].file_name}: not readable" in evaluate(run, *PROBE)
    record = result(run, "probe")
    labelled = [frame for frame in listed[:3] + listed[4:] if frame.weather not in (None, "undefined")]
    assert record["num_train"] == 11 and record["labels"]["weather"]["num_train"] == len(labelled)


def test_lengths_are_those_asked_for_and_a_grid_has_none(run):
    replace_model(run, elastic=True)
    evaluate(run, *PROBE, "--num-tokens", 3)
    lengths = [row["num_tokens"] for row in result(run, "probe")["probes"]]
    assert lengths == [3, 8, 3, 8]
    quantizer = {"codebook_size": 64, "token_size": 8}
    grid = {"channels": 32, "multipliers": [1, 1], "blocks": 1, "quantizer": quantizer}
    replace_model(run, kind="vqgan", image_size=32, **grid)
    evaluate(run, *PROBE)
    record = result(run, "probe")
    assert [row["num_tokens"] for row in record["probes"]] == [256, 256] and "by_num_tokens" not in record


def test_the_sources_own_features(run, tmp_path):
    """Of the file that the config names; without it a line says so, and the rest is there."""
    torch.manual_seed(1)
    size = {"width": 32, "depth": 2, "heads": 2}
    path = tmp_path / "mae.safetensors"
    save_file(build_encoder("none", image_size=32, patch_size=8, **size).vit.state_dict(), path)
    replace_model(run, encoder={**size, "init": "mae", "weights": str(path)})
    evaluate(run, *PROBE)
    record = result(run, "probe")
    *of_tokens, class_token, mean_patch = record["probes"]
    assert record["source"] == "mae"
    assert (class_token["features"], mean_patch["features"]) == ("class token", "mean patch")
    vit = build_encoder("mae", path, 32, 8, 1, **size).eval()
    sides = [images_and_labels(run, split) for split in ("train", "val")]
    with torch.no_grad():
        outputs = [vit.forward_features(images) for images, _ in sides]
    for row, features in (
        (class_token, [side[:, 0] for side in outputs]),
        (mean_patch, [side[:, 1:].mean(dim=1) for side in outputs]),
    ):
        wanted = expected(features[0], sides[0][1], features[1], sides[1][1], "timeofday")
        assert scores_of(row, "timeofday") == {name: pytest.approx(each) for name, each in wanted.items()}

    path.unlink()
    printed = evaluate(run, *PROBE)
    assert f"--probe leaves out mae's own features: model.encoder.weights: {path} is not a file" in printed
    assert result(run, "probe")["probes"] == of_tokens and result(run, "probe")["source"] is None


def test_frames_without_labels_or_training_keep_no_other_result(run):
    frames = run.parents[1] / "frames"
    for split in ("train", "val"):
        path = frames / split / "metadata.jsonl"
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        unlabelled = [record | {"weather": None, "scene": None, "timeofday": None} for record in lines]
        path.write_text("".join(json.dumps(record) + "\n" for record in unlabelled))
    printed = evaluate(run, *PROBE, "--codebook", fails=True)
    assert "--probe leaves out weather: the training frames have none of it" in printed
    assert f"--probe: {frames} has no labels to tell" in printed
    shutil.rmtree(frames / "train")
    printed = evaluate(run, *PROBE, "--psnr", fails=True)
    assert "--probe: " in printed and "no frames there" in printed
    assert {path.stem for path in (run / "eval").glob("*.json")} == {"codebook", "psnr"}


def test_it_is_in_the_models_card(run):
    evaluate(run, *PROBE)
    card = (run / "model" / "README.md").read_text()
    assert read_run(run).step == 2 and f"| probe | {result(run, 'probe')['value']} | 24 |" in card
