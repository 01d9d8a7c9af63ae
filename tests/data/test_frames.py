"""Frames: subsets in a stable order, the examples of each step, and pictures as they go to a network."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.frames import (
    Draw,
    DrawSampler,
    FrameDataset,
    collate_images,
    evaluation_loader,
    frames_fingerprint,
    list_frames,
    load_image,
)
from errors import UserError


def names(frames):
    return [frame.file_name for frame in frames]


def test_subset_by_attribute_and_count(frames):
    night = list_frames(frames, "train", timeofday=["night"])
    assert len(night) == 10 and {frame.timeofday for frame in night} == {"night"}
    assert names(list_frames(frames, "train", timeofday=["night"], count=4)) == names(night)[:4]
    assert len(list_frames(frames, "train", timeofday=["night", "daytime"])) == 20
    assert names(list_frames(frames, "train")) != sorted(names(list_frames(frames, "train")))


def test_order_depends_on_names_alone(frames, tmp_path):
    lines = (frames / "train" / "metadata.jsonl").read_text().splitlines()
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert list_frames(tmp_path, "train") == list_frames(frames, "train")
    assert frames_fingerprint(list_frames(tmp_path, "train")) == frames_fingerprint(
        list_frames(frames, "train")
    )
    added = [json.dumps(json.loads(line) | {"file_name": f"new/{n}.jpg"}) for n, line in enumerate(lines)]
    (tmp_path / "train" / "metadata.jsonl").write_text("\n".join(lines + added) + "\n")
    old = [name for name in names(list_frames(tmp_path, "train")) if not name.startswith("new/")]
    assert old == names(list_frames(frames, "train"))


@pytest.mark.parametrize(
    ("subset", "words"),
    [({"scene": ["tunnel"]}, "none of its 20 frames has scene in"), ({"count": 21}, "20 frames, but")],
)
def test_too_small_a_subset_is_refused(frames, subset, words):
    with pytest.raises(UserError, match=words):
        list_frames(frames, "train", **subset)
    with pytest.raises(UserError, match="extract_frames"):
        list_frames(frames / "nowhere", "train")


def test_image_is_the_centre_square(tmp_path):
    pixels = np.zeros((32, 64, 3), np.uint8)
    pixels[:, 16:48] = 200
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", 32).shape == (32, 32, 3)
    assert (load_image(tmp_path / "a.png", 32) == 200).all()
    smaller = load_image(tmp_path / "a.png", 16)
    assert smaller.shape == (16, 16, 3) and smaller.min() > 180
    crops = {load_image(tmp_path / "a.png", 32, np.random.default_rng(n)).mean() for n in range(20)}
    assert len(crops) > 5


def draws(processes, micro_batch_size, steps=range(6), length=20, seed=3):
    """The examples of each step, as sets over processes and parts."""
    taken = {step: [] for step in steps}
    for process in range(processes):
        sampler = DrawSampler(length, 8, micro_batch_size, steps, seed, process, processes)
        batches = list(sampler)
        assert len(batches) == len(sampler) and {len(batch) for batch in batches} == {micro_batch_size}
        for number, batch in enumerate(batches):
            taken[steps[number * micro_batch_size * processes // 8]] += batch
    return {step: sorted(batch) for step, batch in taken.items()}


def test_steps_take_the_same_examples_however_they_are_split():
    whole = draws(processes=1, micro_batch_size=8)
    assert draws(1, 2) == draws(2, 4) == draws(4, 1) == whole
    later = draws(1, 8, steps=range(3, 6))
    assert later == {step: whole[step] for step in range(3, 6)}
    stream = [draw for batch in DrawSampler(20, 8, 8, range(5), 3) for draw in batch]
    assert sorted(stream[:20]) == [Draw(0, index) for index in range(20)]
    assert sorted(stream[20:]) == [Draw(1, index) for index in range(20)]
    assert [d.index for d in stream[:20]] != [d.index for d in stream[20:]]
    assert draws(1, 8, seed=4) != whole


def test_examples_do_not_depend_on_workers(frames):
    listed = list_frames(frames, "train")
    dataset = FrameDataset(frames / "train", listed, 32, seed=1, random_crop=True, flip=True)
    sampler = DrawSampler(len(listed), 8, 4, range(5), seed=1)
    batches = [
        list(DataLoader(dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate_images))
        for workers in (0, 2)
    ]
    for one, other in zip(*batches, strict=True):
        assert torch.equal(one.images, other.images) and one.images.dtype == torch.uint8
        assert torch.equal(one.indices, other.indices)
    flipped = FrameDataset(frames / "train", listed, 32, seed=1, flip=True)
    plain = FrameDataset(frames / "train", listed, 32)
    mirrored = [torch.equal(flipped[Draw(0, n)][0], plain[n][0].flip(-1)) for n in range(20)]
    same = [torch.equal(flipped[Draw(0, n)][0], plain[n][0]) for n in range(20)]
    assert all(a != b for a, b in zip(mirrored, same)) and 4 < sum(mirrored) < 16


@pytest.mark.parametrize(("processes", "batch_size"), [(1, 3), (2, 3), (3, 2), (8, 4)])
def test_evaluation_takes_each_frame_once(frames, processes, batch_size):
    dataset = FrameDataset(frames / "val", list_frames(frames, "val"), 32)
    indices = []
    for process in range(processes):
        for batch in evaluation_loader(dataset, batch_size, 0, process, processes):
            assert len(batch.images) == len(batch.indices) <= batch_size
            indices += batch.indices.tolist()
    assert sorted(indices) == list(range(7))
