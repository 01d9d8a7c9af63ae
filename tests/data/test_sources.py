"""Which files of a tree become frames, under which names and in which split."""

import os
from argparse import Namespace
from pathlib import Path

import pytest

from data.sources import choose_sources, find_sources, name_hash
from errors import UserError

BDD = "0000aaaa-00000001"


def make(root: Path, *names: str | bytes) -> Path:
    """Empty files: what is found depends on names alone."""
    for name in names:
        path = Path(os.fsdecode(os.fsencode(root) + b"/" + os.fsencode(name)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def options(root: Path, val_fraction=0.0, clips=False, limit=None) -> Namespace:
    """What the command line would give; without another fraction all goes to train."""
    videos, images = (root, None) if clips else (None, root)
    return Namespace(
        videos=videos,
        images=images,
        out=root / "frames",
        val_fraction=val_fraction,
        limit=limit,
        shard=(0, 1),
        labels=None,
        weather=None,
        scene=None,
        timeofday=None,
    )


def found(root: Path, val_fraction: float | None = 0.0, clips: bool = False) -> dict:
    """{(split, folder): the paths below `root`} of all clips, or (path, frame, ms) of all pictures."""
    sources = find_sources(options(root, val_fraction, clips))
    assert len({(each.split, each.name) for each in sources}) == len(sources)
    if clips:
        return {(each.split, each.name): [str(p.relative_to(root)) for p in each.paths] for each in sources}
    return {
        (each.split, each.name): [(str(p.relative_to(root)), frame, ms) for p, frame, ms in each.paths]
        for each in sources
    }


def names(root: Path, **how) -> list[str]:
    return sorted(name for _, name in found(root, **how))


def test_frame_numbers_and_times(tmp_path):
    make(tmp_path, "drive/drive-0000000.png", "drive/drive-0000301.JPG", "more/drive/drive-0000007.webp")
    make(tmp_path, f"100k/{BDD}.jpg", f"track/{BDD}/{BDD}-0000001.jpg")
    make(tmp_path, "flat-0000301.jpg", "photo/photo.1.jpg", "photo/photo-0000001.jpg.png", "x.jpeg")
    assert found(tmp_path) == {
        ("train", "drive"): [
            ("drive/drive-0000000.png", 0, None),
            ("drive/drive-0000301.JPG", 301, None),
            ("more/drive/drive-0000007.webp", 7, None),
        ],
        ("train", BDD): [(f"100k/{BDD}.jpg", 301, 10000), (f"track/{BDD}/{BDD}-0000001.jpg", 1, None)],
        ("train", "flat-0000301"): [("flat-0000301.jpg", 1, None)],
        ("train", "photo.1"): [("photo/photo.1.jpg", 1, None)],
        ("train", "photo-0000001.jpg"): [("photo/photo-0000001.jpg.png", 1, None)],
        ("train", "x"): [("x.jpeg", 1, None)],
    }


def test_a_folder_given_as_a_dot_has_its_name(tmp_path, monkeypatch):
    make(tmp_path / "drive", "drive-0000005.jpg", "drive-0000006.jpg")
    monkeypatch.chdir(tmp_path / "drive")
    assert names(Path()) == ["drive"]


def test_the_same_stem_twice(tmp_path):
    make(tmp_path, "a/0001.jpg", "b/0001.JPG", "b/0001.png", "X/X-0000001.jpg", "X/X-0000001.png", "X.jpg")
    assert names(tmp_path) == [
        "X",
        "X_X-0000001_jpg",
        "X_X-0000001_png",
        "a_0001_jpg",
        "b_0001_JPG",
        "b_0001_png",
    ]
    frames = {name: stills[0][1] for (_, name), stills in found(tmp_path).items()}
    assert frames["X_X-0000001_png"] == frames["a_0001_jpg"] == 1
    make(tmp_path, "X/X-0000007.png")
    assert ("X/X-0000007.png", 7, None) in found(tmp_path)["train", "X"]


def test_pictures_of_each_split_may_be_numbered_from_one(tmp_path):
    make(tmp_path, "train/0001.jpg", "train/0002.jpg", "val/0001.jpg")
    assert found(tmp_path, None).keys() == {("train", "0001_jpg"), ("train", "0002"), ("val", "0001_jpg")}
    with pytest.raises(UserError, match="called like"):
        find_sources(options(make(tmp_path, "train/0002/0002-0000001.jpg"), None))


def test_names_that_are_no_utf8(tmp_path):
    make(tmp_path, b"one \xe9.jpg", "Фото".encode("cp1251") + b".jpg", "Рука".encode("cp1251") + b".jpg")
    first, second, alone = names(tmp_path)
    assert (first, second) == ("_d0_f3_ea_e0_jpg", "_d4_ee_f2_ee_jpg") and alone == "one \ufffd"
    make(tmp_path, b"clip \xe9.mp4", b"b.mp4")
    assert names(tmp_path, val_fraction=0.5, clips=True) == ["b", "clip \ufffd"]
    make(tmp_path, b"clip \xe8.mp4")
    assert names(tmp_path, clips=True) == ["b", "clip _e8", "clip _e9"]


def test_long_names_stay_apart(tmp_path):
    make(tmp_path, *(f"{folder}/{'ü' * 120}.jpg" for folder in ("a" * 250, "a" * 249 + "b")))
    assert len(set(names(tmp_path))) == 2
    for name in names(tmp_path):
        assert len(f"{name}-0000001.jpg".encode()) <= 255 and len(f".{name}.partial".encode()) <= 255


@pytest.mark.parametrize("clips", [False, True])
def test_what_is_looked_into(tmp_path, clips):
    end = "mp4" if clips else "jpg"
    root, far = tmp_path / "in", tmp_path / "disk"
    make(far, f"part/far.{end}", f".thumbs/far.{end}")
    make(root, f"b/real.{end}", f"near.{end}", f".near.{end}", f".Trash-1000/files/near.{end}", "notes.txt")
    make(root, f"frames/train/near/near-0000001.{end}")  # that is --out
    (root / f"gone.{end}").symlink_to(tmp_path / "nothing")
    (root / "a_link").symlink_to(root / "b")
    (root / "linked").symlink_to(far)
    (far / "back").symlink_to(root)
    (root / "b" / "up").symlink_to(tmp_path)
    files = [file if clips else file[0] for files in found(root, clips=clips).values() for file in files]
    assert sorted(files) == [f"b/real.{end}", f"gone.{end}", f"linked/part/far.{end}", f"near.{end}"]


def test_one_folder_in_both_splits_is_an_error(tmp_path):
    make(tmp_path, "train/a.jpg", "train/more/b.jpg", "val/c.jpg")
    (tmp_path / "val" / "linked").symlink_to(tmp_path / "train" / "more")
    with pytest.raises(UserError, match=r"val/linked: the same folder as .*train/more"):
        find_sources(options(tmp_path, None))


def test_pictures_are_not_taken_from_where_frames_go(tmp_path):
    for root in (tmp_path, tmp_path / "train" / "X"):
        make(root, "X-0000001.jpg")
        with pytest.raises(UserError, match="the pictures themselves are in it"):
            find_sources(Namespace(**vars(options(root)) | {"out": tmp_path}))


def test_splits_by_hash_are_of_videos(tmp_path):
    videos = [f"0000aaaa-{number:08}" for number in range(40)]
    make(tmp_path, *(f"{part}/{video}.jpg" for video in videos for part in ("100k", "10k")))
    make(tmp_path, *(f"track/{video}/{video}-0000001.jpg" for video in videos))
    split_of = {}
    for (split, _), stills in found(tmp_path, 0.3).items():
        for path, *_ in stills:
            split_of.setdefault(Path(path).stem[:17], set()).add(split)
    assert split_of == {video: {"val" if name_hash(video) < 0.3 else "train"} for video in videos}


@pytest.mark.parametrize("clips", [False, True])
def test_of_few_videos_each_split_has_one(tmp_path, clips):
    ordered = sorted((f"v{number}" for number in range(30)), key=name_hash)
    for case, (chosen, in_val) in {
        "low": (ordered[:3], ordered[:2]),  # all of them below the fraction
        "high": (ordered[-3:], ordered[-3:-2]),  # none
        "between": (ordered[::10], [name for name in ordered[::10] if name_hash(name) < 0.5]),
    }.items():
        root = make(tmp_path / case, *(f"{name}.{'mp4' if clips else 'png'}" for name in chosen))
        assert {name for split, name in found(root, 0.5, clips) if split == "val"} == set(in_val)
        assert {split for split, _ in found(root, 0.0, clips)} == {"train"}
        assert {split for split, _ in found(root, 1.0, clips)} == {"val"}


def test_a_limit_takes_of_both_splits(tmp_path):
    make(tmp_path / "any", *(f"{number}.jpg" for number in range(300)))
    args = options(tmp_path / "any", val_fraction=0.2, limit=100)
    sources = find_sources(args)
    chosen = choose_sources(sources, {}, args)
    assert len(chosen) == 100 and 8 <= sum(each.split == "val" for each in chosen) <= 32
    args.limit = 50
    assert choose_sources(sources, {}, args) == chosen[:50]
    # of folders it takes what it always took
    make(tmp_path / "split", *(f"train/{number}.jpg" for number in range(9)))
    args = options(tmp_path / "split", val_fraction=None, limit=4)
    taken = [each.name for each in choose_sources(find_sources(args), {}, args)]
    assert taken == sorted(map(str, range(9)), key=name_hash)[:4]
