"""pretokenize.py --export: a dataset that other libraries read, and that train_maskgit.py learns from."""

import hashlib
import itertools
import json
import shutil

import datasets
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

import training.export
import training.tokens
from data.frames import Frame, FrameDataset
from data.token_files import FORMATS
from models.storage import save_model
from models.titok import TiTok
from tests.conftest import TINY_GENERATOR, make_frames, run_script


def tiny_tokenizer(seed):
    torch.manual_seed(seed)
    small = {"width": 32, "depth": 1, "heads": 2}
    return TiTok(32, 8, 8, encoder=small, decoder=small, quantizer={"codebook_size": 64}).eval()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with 20 frames of 5 clips to train on and 7 to validate, a tokenizer, a generator's config.

    A file has at most 9 frames: two of the training's clips.
    """
    monkeypatch.setattr(training.export, "FRAMES_A_FILE", 9)
    make_frames(tmp_path / "frames", train=20, val=7)
    save_model(tiny_tokenizer(seed=0), tmp_path / "tokenizer")
    places = {name: tmp_path / name for name in ("tokenizer", "frames", "tokens", "runs")}
    (tmp_path / "generator.yaml").write_text(TINY_GENERATOR.format(**places))
    return tmp_path


def export(workplace, name, *arguments, **options):
    config = ("--config", workplace / "generator.yaml")
    return run_script("pretokenize.py", *config, "--export", workplace / name, *arguments, **options)


def train(workplace, name, *overrides, **options):
    settings = [f"run.name={name}", "model.conditions=[timeofday]", *overrides]
    arguments = [word for setting in settings for word in ("--set", setting)]
    return run_script("train_maskgit.py", "--config", workplace / "generator.yaml", *arguments, **options)


def content(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metadata(workplace, split):
    lines = (workplace / "frames" / split / "metadata.jsonl").read_text().splitlines()
    return {record["file_name"]: record for record in map(json.loads, lines)}


def codes_of(workplace, split, names):
    """The tokenizer's codes of frames, int64 (N, 2, K): as they are, and flipped."""
    frames = [Frame(name, None, None, None) for name in names]
    dataset = FrameDataset(workplace / "frames" / split, frames, 32)
    images = torch.stack([dataset[place][0] for place in range(len(names))]) / 255
    tokenizer = tiny_tokenizer(seed=0)
    return torch.stack([tokenizer.encode(images), tokenizer.encode(images.flip(-1))], dim=1).numpy()


def check_rows(workplace, split, rows):
    """All frames of a split are there, with what is told of them, clip by clip in order of time."""
    told = metadata(workplace, split)
    assert [told[row["file_name"]] for row in rows] == [
        {key: row[key] for key in told[row["file_name"]]} for row in rows
    ]
    assert sorted(row["file_name"] for row in rows) == sorted(told)
    clips = [list(clip) for _, clip in itertools.groupby(rows, key=lambda row: row["video"])]
    assert len(clips) == 5
    for clip in clips:
        times = [row["timestamp_ms"] for row in clip]
        assert times == sorted(times) and len(set(times)) == len(times)


def test_datasets_loads_it(workplace):
    output = export(workplace, "dataset")
    assert "27 frames, 20 of them flipped, too; a frame is 8 tokens of 6 bits, 6 bytes" in output
    read = datasets.load_dataset(str(workplace / "dataset"), cache_dir=str(workplace / "cache"))
    assert list(read) == ["train", "val"]
    for split, rows in read.items():
        check_rows(workplace, split, list(rows))
        codes = codes_of(workplace, split, rows["file_name"])
        assert np.array_equal(rows["tokens"], codes[:, 0])
        flipped = codes[:, 1].tolist() if split == "train" else [None] * 7
        assert list(rows["tokens_flipped"]) == flipped
    record = json.loads((workplace / "dataset" / "tokens.json").read_text())
    weights = (workplace / "tokenizer" / "model.safetensors").read_bytes()
    assert record["tokenizer_sha256"] == hashlib.sha256(weights).hexdigest()
    _, front, text = (workplace / "dataset" / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["configs"][0]["data_files"][1] == {
        "split": "val",
        "path": "data/val-*.parquet",
    }
    assert record["tokenizer_sha256"] in text
    assert export(workplace, "dataset").splitlines()[-1] == output.splitlines()[-1]


def test_webdataset_loads_it(workplace):
    webdataset = pytest.importorskip("webdataset", reason="the webdataset library isn't installed")
    export(workplace, "dataset", "--export-format", "webdataset", "--set", "data.flip=false")
    for split in ("train", "val"):
        files = sorted(map(str, (workplace / "dataset" / "data").glob(f"{split}-*.tar")))
        samples = list(webdataset.WebDataset(files, shardshuffle=False).decode())
        check_rows(workplace, split, [sample["json"] for sample in samples])
        names = [sample["json"]["file_name"] for sample in samples]
        assert np.array_equal([s["tokens.npy"] for s in samples], codes_of(workplace, split, names)[:, 0])
        assert len({sample["__key__"] for sample in samples}) == len(samples)
        assert "tokens_flipped.npy" not in samples[0]


@pytest.mark.parametrize("kind", FORMATS)
def test_interrupted_it_goes_on_and_is_the_same(workplace, monkeypatch, kind):
    export(workplace, "whole", "--export-format", kind)
    written, way = [], FORMATS[kind]

    def write(path, file):
        way.write(path, file)
        written.append(path)
        if len(written) == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(FORMATS, kind, way._replace(write=write))
        export(workplace, "dataset", "--export-format", kind, fails=True)
    (part,) = (workplace / "dataset").glob(".data-*")
    before = {path.name: path.stat().st_mtime_ns for path in part.iterdir()}
    assert len(before) == 2 and not (workplace / "dataset" / "data").exists()
    with pytest.raises(Exception, match=r"(?i)no.*data files|doesn't contain any data"):
        datasets.load_dataset(str(workplace / "dataset"), cache_dir=str(workplace / "cache"))
    assert "none that is whole" in train(
        workplace, "run", f"data.tokens_from={workplace}/dataset", fails=True
    )

    export(workplace, "dataset", "--export-format", kind)
    assert content(workplace / "dataset") == content(workplace / "whole")
    files = {path.name: path for path in (workplace / "dataset" / "data").iterdir()}
    assert {name: files[name].stat().st_mtime_ns for name in before} == before
    assert sorted(file.split("-of-")[0] for file in files) == [
        *(f"train-0000{place}" for place in range(3)),
        *(f"val-0000{place}" for place in range(1)),
    ]
    videos = [{row["video"] for row in way.read(files[name])[0]} for name in files if "train" in name]
    assert sorted(map(sorted, videos)) == [["video0", "video1"], ["video2", "video3"], ["video4"]]


def test_shards_make_what_one_machine_does(workplace, monkeypatch):
    monkeypatch.setattr(training.tokens, "CHUNK", 4)
    export(workplace, "one")
    elsewhere = ("--set", f"data.tokens={workplace}/shared")
    assert "not written yet" in export(workplace, "two", *elsewhere, "--shard", "1/2")
    assert not (workplace / "two").exists()
    assert "27 frames" in export(workplace, "two", *elsewhere, "--shard", "0/2")
    assert content(workplace / "two") == content(workplace / "one")


def test_a_long_clip_stays_in_one_file(workplace, monkeypatch):
    monkeypatch.setattr(training.export, "FRAMES_A_FILE", 3)
    export(workplace, "dataset")
    files = sorted((workplace / "dataset" / "data").glob("train-*"))
    assert [[row["frame"] for row in FORMATS["parquet"].read(path)[0]] for path in files] == [
        [1 + clip, 6 + clip, 11 + clip, 16 + clip] for clip in range(5)
    ]


@pytest.mark.parametrize("kind", FORMATS)
def test_training_from_it_is_training_from_its_frames(workplace, kind):
    """With conditions, flips, a subset, and a frame among it that can't be read."""
    names = [name for name, record in metadata(workplace, "train").items() if record["timeofday"] == "night"]
    (workplace / "frames" / "train" / names[0]).write_bytes(b"no picture")
    subset = ["data.train={timeofday: [night], count: 10}", "data.val.count=5"]
    output = export(workplace, "dataset", "--export-format", kind)
    assert f"1 frames could not be used and were skipped: {workplace}/frames/train/{names[0]}" in output
    assert "26 frames" in output
    train(workplace, "frames", *subset)
    shutil.move(workplace / "frames", workplace / "gone")
    shutil.rmtree(workplace / "tokens")
    dataset = f"data.tokens_from={workplace}/dataset"
    assert f"1 frames could not be used and were skipped: train/{names[0]}" in train(
        workplace, "tokens", *subset, dataset
    )
    checkpoints = [
        workplace / "runs" / name / "checkpoints" / "step_00000004" for name in ("frames", "tokens")
    ]
    files = [{path.name: load_file(path) for path in each.glob("*.safetensors")} for each in checkpoints]
    assert files[0].keys() == files[1].keys() and files[0]
    for name, weights in files[0].items():
        assert all(torch.equal(value, files[1][name][key]) for key, value in weights.items())
    assert "not readable as a picture" in train(
        workplace, "strict", *subset, dataset, "data.strict=true", fails=True
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["tokenizer={workplace}/other"], "its tokens are not of the tokenizer"),
        (["data.flip=true"], "has no tokens of flipped frames; set data.flip=false"),
        (["data.resize=none"], "computed with data.resize short_side, and the config says none"),
        (["data.precision=bf16"], "computed with data.precision fp32, and the config says bf16"),
        (["data.train.count=21"], "20 frames, but the config's count is 21"),
        (["data.tokens_from={workplace}/frames"], "no dataset of tokens"),
        (["data.tokens_from={workplace}/damaged"], "not there or damaged"),
    ],
)
def test_training_refuses_other_tokens_in_one_line(workplace, settings, words):
    export(workplace, "dataset", "--set", "data.flip=false")
    save_model(tiny_tokenizer(seed=1), workplace / "other")
    shutil.copytree(workplace / "dataset", workplace / "damaged")
    path = next((workplace / "damaged" / "data").iterdir())
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)
    base = ["data.flip=false", f"data.tokens_from={workplace}/dataset"]
    output = train(
        workplace, "run", *base, *(each.format(workplace=workplace) for each in settings), fails=True
    )
    assert words in output and output.count("\nerror:") + output.startswith("error:") == 1


def test_a_folder_of_something_else_is_left_alone(workplace):
    export(workplace, "dataset")
    before = content(workplace / "dataset")
    assert "has other tokens" in export(workplace, "dataset", "--set", "data.train.count=3", fails=True)
    assert "has other tokens" in export(workplace, "dataset", "--export-format", "webdataset", fails=True)
    assert content(workplace / "dataset") == before
    before = content(workplace / "frames")
    assert "is no dataset of tokens; take another --export" in export(workplace, "frames", fails=True)
    assert content(workplace / "frames") == before


def test_strict_stops_at_a_broken_frame(workplace):
    (name, *_) = metadata(workplace, "train")
    (workplace / "frames" / "train" / name).write_bytes(b"no picture")
    output = export(workplace, "dataset", "--set", "data.strict=true", fails=True)
    assert f"{name}: not readable as a picture" in output and not (workplace / "dataset").exists()
