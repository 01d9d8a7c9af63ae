"""Frames: subsets in a stable order, the examples of each step, and pictures as they go to a network."""

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from data.frames import (
    Draw,
    DrawSampler,
    Frame,
    FrameDataset,
    collate_images,
    content_fingerprint,
    cut,
    evaluation_loader,
    frames_fingerprint,
    list_frames,
)
from errors import UserError
from tests.conftest import make_frames


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
    picture = Image.fromarray(pixels)
    assert cut(picture, 32).shape == (32, 32, 3)
    assert (cut(picture, 32) == 200).all()
    smaller = cut(picture, 16)
    assert smaller.shape == (16, 16, 3) and smaller.min() > 180
    crops = {cut(picture, 32, rng=np.random.default_rng(n)).mean() for n in range(20)}
    assert len(crops) > 5


@pytest.mark.parametrize(
    ("picture", "size", "covering"),
    [
        ((1280, 720), (256, 448), (455, 256)),
        ((400, 800), (64, 112), (112, 224)),
        ((448, 256), (256, 448), None),
    ],
)
def test_a_rectangle_is_the_middle_of_the_smallest_that_covers_it(picture, size, covering):
    width, height = picture
    whole = Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))
    resized = whole.resize(covering, Image.Resampling.BICUBIC) if covering else whole
    left, top = (resized.width - size[1]) // 2, (resized.height - size[0]) // 2
    expected = resized.crop((left, top, left + size[1], top + size[0]))
    assert (cut(whole, size) == np.asarray(expected)).all()
    drawn = [cut(whole, size, rng=np.random.default_rng(number)) for number in range(5)]
    assert all(each.shape == (*size, 3) for each in drawn)
    assert covering is None or len({each.tobytes() for each in drawn}) > 1


def test_native_cut_is_what_pil_crops():
    pixels = np.random.default_rng(0).integers(256, size=(90, 161, 3), dtype=np.uint8)
    picture = Image.fromarray(pixels)
    left, top = (161 - 32) // 2, (90 - 32) // 2
    expected = np.asarray(picture.crop((left, top, left + 32, top + 32)))
    assert (cut(picture, 32, "none") == expected).all()
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (32, 32, 3))[..., 0, :, :, :]
    places = set()
    for number in range(20):
        part = cut(picture, 32, "none", np.random.default_rng(number))
        rows, columns = np.nonzero((windows == part).all(axis=(2, 3, 4)))
        places.add((*rows, *columns))
    assert len(places) > 10 and all(len(place) == 2 for place in places)
    with pytest.raises(UserError, match="161×90 pixels, less than the 96×96"):
        cut(picture, 96, "none")


def test_a_frame_too_small_for_a_native_cut_is_named_and_passed_over(tmp_path):
    for name, size in (("large", (64, 48)), ("small", (64, 31))):
        Image.new("RGB", size, "red").save(tmp_path / f"{name}.png")
    frames = [Frame(f"{name}.png", None, None, None) for name in ("small", "large")]
    dataset = FrameDataset(tmp_path, frames, 32, "none", random_crop=True)
    batch = collate_images([dataset[0], dataset[1]])
    assert batch.indices.tolist() == [1] and list(batch.broken) == [0] and "64×31" in batch.broken[0]
    image, index, broken = dataset[Draw(0, 0)]
    assert image.shape == (3, 32, 32) and index == 1 and list(broken) == [0]
    alone = FrameDataset(tmp_path, frames[:1], 32, "none")
    with pytest.raises(UserError, match=r"none of its 1 frames can be used; small\.png: 64×31"):
        alone[Draw(0, 0)]


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


def test_content_is_names_sizes_and_times(tmp_path):
    folder = make_frames(tmp_path, train=3, val=1) / "train"
    frames = list_frames(tmp_path, "train")
    first = folder / frames[0].file_name
    seen = {content_fingerprint(folder, frames)}
    copied = content_fingerprint(folder, frames, times=False)
    os.utime(first, ns=(1, 1))
    seen.add(content_fingerprint(folder, frames))
    assert content_fingerprint(folder, frames, times=False) == copied
    seen.add(content_fingerprint(folder, frames[:2]))
    seen.add(content_fingerprint(folder, frames[::-1]))
    first.write_bytes(first.read_bytes() + b" ")
    assert content_fingerprint(folder, frames, times=False) != copied
    seen.add(content_fingerprint(folder, frames))
    first.unlink()
    seen.add(content_fingerprint(folder, frames))
    assert len(seen) == 6
