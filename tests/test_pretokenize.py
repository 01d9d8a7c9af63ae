"""pretokenize.py: what it computes is what train_maskgit.py learns, shard by shard and over processes."""

import os

import numpy as np
import pytest
import torch

from data.frames import FrameDataset, list_frames
from models import load_tokenizer
from tests.conftest import TINY_GENERATOR, TINY_TOKENIZER, make_frames, run_script


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """A folder with 2,600 training and 7 validation frames, a tokenizer's run and a generator's config."""
    folder = tmp_path_factory.mktemp("pretokenize")
    make_frames(folder / "frames", train=26, val=7)
    # Many frames, few pictures: links are enough for three chunks.
    split = folder / "frames" / "train"
    lines = (split / "metadata.jsonl").read_text().splitlines()
    for copy in range(1, 100):
        for line in lines[:26]:
            name = line.split('"')[3]
            other = name.replace(".jpg", f"-{copy}.jpg")
            os.link(split / name, split / other)
            lines.append(line.replace(name, other))
    (split / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    settings = {"frames": folder / "frames", "runs": folder / "runs"}
    (folder / "tokenizer.yaml").write_text(TINY_TOKENIZER.format(**settings))
    run_script("train_tokenizer.py", "--config", folder / "tokenizer.yaml", "--set", "training.max_steps=1")
    settings |= {"tokenizer": folder / "runs" / "tokenizer", "tokens": folder / "tokens"}
    (folder / "generator.yaml").write_text(TINY_GENERATOR.format(**settings))
    return folder


def pretokenize(workplace, *arguments, **options):
    return run_script("pretokenize.py", "--config", workplace / "generator.yaml", *arguments, **options)


def files(workplace, split):
    (folder,) = (workplace / "tokens").glob(f"tokenizer-{split}-*")
    return {path.name: np.load(path) for path in sorted(folder.glob("*.npy"))}


def test_shards_make_what_training_finds(workplace):
    output = pretokenize(workplace, "--shard", "1/2")
    assert list(files(workplace, "train")) == ["frames_00001024_00002048.npy"]
    assert "2,600 frames, 1,576 of them still to do by other shards" in output
    assert "7 frames, 7 of them still to do" in output

    # The other shard, on a machine with two processes; the first, again, does nothing.
    before = next((workplace / "tokens").glob("*/frames_00001024*")).stat().st_mtime_ns
    output = pretokenize(workplace, "--shard", "0/2", processes=2)
    assert "still to do" not in output
    pretokenize(workplace, "--shard", "1/2")
    assert next((workplace / "tokens").glob("*/frames_00001024*")).stat().st_mtime_ns == before
    parts = files(workplace, "train")
    assert [len(part) for part in parts.values()] == [1024, 1024, 552]

    # train_maskgit.py puts them together as they are
    train = ["train_maskgit.py", "--config", workplace / "generator.yaml", "--set", "training.max_steps=1"]
    assert "tokens of" not in run_script(*train)
    whole = files(workplace, "train")
    assert list(whole) == ["tokens.npy"]
    assert np.array_equal(whole["tokens.npy"], np.concatenate(list(parts.values())))
    assert "still to do" not in pretokenize(workplace)

    # and they are the tokenizer's codes
    listed = list_frames(workplace / "frames", "train")
    dataset = FrameDataset(workplace / "frames" / "train", listed, 32)
    tokenizer = load_tokenizer(workplace / "runs" / "tokenizer")
    places = [0, 1023, 1024, 2047, 2048, 2599]
    images = torch.stack([dataset[place][0] for place in places]) / 255
    for column, seen in enumerate((images, images.flip(-1))):
        assert torch.equal(
            torch.from_numpy(whole["tokens.npy"][places, column]).long(), tokenizer.encode(seen)
        )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shard", "2/2"], "shards of 2 count from 0/2 to 1/2"),
        (["--shard", "first"], "--shard: 'first' is no i/n, like 0/4"),
        (["--set", "data.frames=nowhere"], "nowhere/train/metadata.jsonl: no frames there"),
        (["--set", "tokenizer=nowhere"], "nowhere"),
        (["--set", "data.token=here"], "did you mean data.tokens?"),
    ],
)
def test_refuses_in_one_line(workplace, arguments, words):
    assert words in pretokenize(workplace, *arguments, fails=True)
