"""extract_frames.py --images: stills and anybody's pictures, in the layout that clips give."""

import json
import os
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.clips import write_clip
from tests.conftest import ROOT
from tests.test_extract_frames import run

DRIVING = ROOT.parent / "shared" / "driving"
DAY = {"weather": "clear", "scene": "highway", "timeofday": "daytime"}
NIGHT = {"weather": "rainy", "scene": "city street", "timeofday": "night"}


def extract(folder, out, *arguments, **options):
    return run("--images", folder, "--out", out, "--workers", 1, *arguments, **options)


def rows_of(out):
    """The metadata's rows by split."""
    return {
        path.parent.name: [json.loads(line) for line in path.read_text().splitlines()]
        for path in sorted(Path(out).glob("*/metadata.jsonl"))
    }


def names_of(out):
    return {split: [row["file_name"] for row in rows] for split, rows in rows_of(out).items()}


def picture(path, seed=0, size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return path


@pytest.fixture
def stills(tmp_path):
    """BDD100K's stills: four in train/, two in val/, one in test/, and their labels."""
    folder, entries = tmp_path / "images", []
    for number in range(7):
        split = ["train"] * 4 + ["val"] * 2 + ["test"]
        name = f"0000aaaa-0000000{number}"
        picture(folder / split[number] / f"{name}.jpg", number)
        entries.append(
            {"name": f"{name}.jpg", "attributes": NIGHT if number % 2 else DAY, "timestamp": 10000}
        )
    (tmp_path / "det_train.json").write_text(json.dumps(entries))
    return folder


def test_bdd100ks_stills_are_the_frames_at_ten_seconds(stills, tmp_path):
    output = extract(stills, tmp_path / "out", "--labels", tmp_path / "det_train.json", "--short-side", 0)
    assert "6 frames of 6 pictures" in output and "test is left out" in output
    rows = rows_of(tmp_path / "out")
    assert {split: len(each) for split, each in rows.items()} == {"train": 4, "val": 2}
    row = rows["train"][1]
    assert row == {
        "file_name": "0000aaaa-00000001/0000aaaa-00000001-0000301.jpg",
        "video": "0000aaaa-00000001",
        "frame": 301,
        "timestamp_ms": 10000,
        "width": 40,
        "height": 30,
        **NIGHT,
    }
    for split, each in rows.items():
        for row in each:
            source = stills / split / f"{row['video']}.jpg"
            assert (tmp_path / "out" / split / row["file_name"]).read_bytes() == source.read_bytes()
    loaded = datasets.load_dataset(
        "imagefolder", data_dir=str(tmp_path / "out"), cache_dir=tmp_path / "cache"
    )
    assert {split: len(each) for split, each in loaded.items()} == {"train": 4, "validation": 2}


def test_clips_at_ten_seconds_have_the_same_names(tmp_path):
    video = "0000bbbb-00000001"
    (tmp_path / "videos" / "train").mkdir(parents=True)
    write_clip(tmp_path / "videos" / "train" / f"{video}.mov", 310)
    picture(tmp_path / "images" / "train" / f"{video}.jpg")
    run("--videos", tmp_path / "videos", "--out", tmp_path / "a", "--times", "10")
    extract(tmp_path / "images", tmp_path / "b")
    assert names_of(tmp_path / "a") == names_of(tmp_path / "b") == {"train": [f"{video}/{video}-0000301.jpg"]}


def test_filters_limits_and_shards_are_those_of_clips(stills, tmp_path):
    labels = ("--labels", tmp_path / "det_train.json")
    extract(stills, tmp_path / "night", *labels, "--timeofday", "night")
    assert {row["timeofday"] for rows in rows_of(tmp_path / "night").values() for row in rows} == {"night"}
    extract(stills, tmp_path / "few", "--limit", 3)
    extract(stills, tmp_path / "parts", "--limit", 3, "--shard", "0/2")
    once = names_of(tmp_path / "parts")
    extract(stills, tmp_path / "parts", "--limit", 3, "--shard", "1/2")
    assert names_of(tmp_path / "parts") == names_of(tmp_path / "few") != once
    assert "there is daytime, night" in extract(
        stills, tmp_path / "x", *labels, "--timeofday", "noon", fails=True
    )
    assert "made with --images --short-side 256" in extract(
        stills, tmp_path / "few", "--short-side", 0, fails=True
    )


def test_started_again_it_takes_what_is_missing(stills, tmp_path):
    out = tmp_path / "out"
    extract(stills, out)
    lost = out / "train" / "0000aaaa-00000001"
    kept = out / "train" / "0000aaaa-00000002" / "0000aaaa-00000002-0000301.jpg"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(lost)
    (lost.parent / ".0000aaaa-00000001.partial").mkdir()  # as an interruption leaves it
    assert "1 frames of 1 pictures; 5 pictures were done before" in extract(stills, out)
    assert lost.is_dir() and kept.stat().st_mtime_ns == before
    assert len(rows_of(out)["train"]) == 4


def test_broken_ones_are_skipped_and_named(stills, tmp_path):
    broken = stills / "train" / "0000aaaa-00000001.jpg"
    broken.write_bytes(broken.read_bytes()[:200])
    output = extract(stills, tmp_path / "out")
    assert "skipped 1 pictures:" in output and f"{broken}: not readable as a picture" in output
    assert len(rows_of(tmp_path / "out")["train"]) == 3
    assert "without --strict" in extract(stills, tmp_path / "strict", "--strict", fails=True)


def test_frames_of_a_video_in_a_folder_of_its_name_stay_together(tmp_path):
    for frame in (1, 6, 301):
        picture(tmp_path / "in" / "drive" / f"drive-{frame:07d}.png", frame)
    picture(tmp_path / "in" / "photos" / "IMG-0000001.jpg")
    (tmp_path / "in" / "drive" / "drive-0000006.png").write_bytes(b"no picture")
    output = extract(tmp_path / "in", tmp_path / "out", "--val-fraction", 0)
    assert "drive-0000006.png: not readable" in output
    assert names_of(tmp_path / "out") == {
        "train": [
            "IMG-0000001/IMG-0000001-0000001.jpg",
            "drive/drive-0000001.jpg",
            "drive/drive-0000301.jpg",
        ]
    }


def test_any_tree_and_odd_names(tmp_path):
    folder = tmp_path / "in"
    long = "x" * 240
    for name in (
        "a/0001.jpg",
        "b/0001.JPG",
        "b/0001.png",
        "with space & 'quote'.webp",
        "straße 走.jpeg",
        f"{long}.jpg",
    ):
        picture(folder / name, format="WEBP" if name.endswith("webp") else None)
    raw = os.fsencode(folder) + b"/caf\xe9.jpg"
    shutil.copy(folder / "a" / "0001.jpg", os.fsdecode(raw))
    Path(os.fsdecode(os.fsencode(folder) + b"/brok\xe9n.jpg")).write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    output = extract(folder, tmp_path / "out", "--val-fraction", 0)
    assert "7 frames of 7 pictures" in output and "brok\\xe9n.jpg: not readable" in output
    videos = {row["video"] for row in rows_of(tmp_path / "out")["train"]}
    assert {"a_0001_jpg", "b_0001_JPG", "b_0001_png", "with space & 'quote'", "straße 走", "caf�"} < videos
    (shortened,) = [video for video in videos if video.startswith("xxx")]
    assert len(shortened) < 220
    for row in rows_of(tmp_path / "out")["train"]:
        assert (tmp_path / "out" / "train" / row["file_name"]).is_file()


def test_hidden_files_are_left_out_and_linked_folders_followed(tmp_path):
    picture(tmp_path / "disk" / "part" / "far.jpg")
    picture(tmp_path / "in" / "train" / "near.jpg")
    picture(tmp_path / "in" / "val" / "other.jpg")
    for hidden in (".Trash-1000/files/near.jpg", ".near.jpg"):
        picture(tmp_path / "in" / "train" / hidden)
    (tmp_path / "in" / "train" / "linked").symlink_to(tmp_path / "disk" / "part")
    (tmp_path / "in" / "train" / "loop").symlink_to(tmp_path / "in" / "train")
    extract(tmp_path / "in", tmp_path / "out")
    assert [name.split("/")[0] for name in names_of(tmp_path / "out")["train"]] == ["far", "near"]


def test_a_few_pictures_are_in_both_splits(tmp_path):
    for count in (2, 3):
        for seed in range(4):
            folder = tmp_path / f"{count} {seed}"
            for number in range(count):
                picture(folder / f"{seed}{number}.jpg")
            extract(folder, tmp_path / f"out {count} {seed}")
            assert names_of(tmp_path / f"out {count} {seed}").keys() == {"train", "val"}
    picture(tmp_path / "one" / "a.jpg")
    assert "holds a only" in extract(tmp_path / "one", tmp_path / "out one")


def test_wrong_command_lines(tmp_path):
    picture(tmp_path / "in" / "a.jpg")
    for wrong in (["--times", "10"], ["--fps", "1"], ["--frames-per-video", "2"]):
        assert "of pictures each is one" in extract(tmp_path / "in", tmp_path / "out", *wrong, fails=True)
    assert "not allowed with" in extract(tmp_path / "in", tmp_path / "out", "--videos", tmp_path, fails=True)
    assert "no such folder" in extract(tmp_path / "none", tmp_path / "out", fails=True)
    (tmp_path / "empty").mkdir()
    assert "no pictures in it (.jpg, .jpeg, .png, .webp)" in extract(
        tmp_path / "empty", tmp_path / "o", fails=True
    )
    for name in ("a_b/c.jpg", "a/b_c.jpg", "d/c.jpg", "d/b_c.jpg"):
        picture(tmp_path / "twins" / name)
    assert "would be called like" in extract(tmp_path / "twins", tmp_path / "o", fails=True)


@pytest.mark.skipif(not DRIVING.is_dir(), reason="the real clips of ../shared/driving are not there")
def test_real_clips_stills_give_the_same_frames_again(tmp_path):
    labels = ("--labels", DRIVING / "labels" / "det_20", "--short-side", 0)
    clips = ("--videos", DRIVING / "videos", "--out", tmp_path / "clips", "--times", "0.2,0.4")
    run(*clips, *labels)
    extract(tmp_path / "clips", tmp_path / "stills", *labels)
    for split, rows in rows_of(tmp_path / "clips").items():
        again = rows_of(tmp_path / "stills")[split]
        assert len(rows) > 4 and [row | {"timestamp_ms": None} for row in rows] == again
        for row in rows:
            paths = [tmp_path / kind / split / row["file_name"] for kind in ("clips", "stills")]
            assert paths[0].read_bytes() == paths[1].read_bytes()
