import concurrent.futures
import io
import itertools
import json
import shutil
import signal
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import extract_frames
from extract_frames import name_hash
from tests.clips import decode_all, draw, read, rotate, write_audio, write_clip

ROOT = Path(__file__).parents[1]
DRIVING = ROOT.parent / "shared" / "driving"
DAY = {"weather": "clear", "scene": "highway", "timeofday": "daytime"}
NIGHT = {"weather": "rainy", "scene": "city street", "timeofday": "night"}
DUSK = {"weather": "clear", "scene": "parking lot", "timeofday": "dawn/dusk"}
LABELS = {
    "0000aaaa-00000001": DAY,
    "0000aaaa-00000002": NIGHT,
    "0000aaaa-00000003": DUSK,
    "0000bbbb-00000001": NIGHT,
}
UNLABELLED = "0000bbbb-00000002"


@pytest.fixture(scope="session")
def videos(tmp_path_factory) -> Path:
    """Three clips of 60 frames in train/ and two in val/, one of them without labels."""
    folder = tmp_path_factory.mktemp("bdd100k") / "videos"
    for video in [*LABELS, UNLABELLED]:
        split = "train" if "aaaa" in video else "val"
        (folder / split).mkdir(parents=True, exist_ok=True)
        write_clip(folder / split / f"{video}.mov")
    return folder


@pytest.fixture(scope="session")
def labels(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("labels")
    for split, hint in (("train", "aaaa"), ("val", "bbbb")):
        entries = [{"name": f"{v}.jpg", "attributes": a} for v, a in LABELS.items() if hint in v]
        (folder / f"det_{split}.json").write_text(json.dumps(entries))
    return folder


def start(*arguments) -> subprocess.Popen:
    command = [sys.executable, "extract_frames.py", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


class AtOnce(concurrent.futures.Executor):
    """In a pool's place: does what is submitted in this process, without the second that a worker takes."""

    def submit(self, function, job):
        done = concurrent.futures.Future()
        done.set_result(function(job))
        return done


def run_here(*arguments) -> tuple[str, int]:
    """What the command prints in this process, without workers, and its exit status."""
    printed, status, on_sigterm = io.StringIO(), 0, signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(printed):
        patch.setattr(sys, "argv", ["extract_frames.py", *map(str, arguments)])
        patch.setattr(extract_frames, "start_workers", lambda count: AtOnce())
        try:
            extract_frames.main()
        except SystemExit as stop:
            status = stop.code
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
    return printed.getvalue(), status


def run(*arguments, fails: bool = False) -> str:
    """What the command prints. It must exit with 0, or not if it `fails`, and never with a traceback."""
    if ("--workers", 1) in itertools.pairwise(arguments):
        output, status = run_here(*arguments)
    else:
        process = start(*arguments)
        output, _ = process.communicate(timeout=60)
        status = process.returncode
    assert (status != 0) == fails, output
    assert "Traceback" not in output
    return output


def extract(videos: Path, out: Path, *options, fails: bool = False) -> str:
    return run("--videos", videos, "--out", out, "--workers", 1, *options, fails=fails)


def metadata(out: Path, split: str) -> list[dict]:
    """The lines of a split's metadata; checks that they are those of the images that are there."""
    path = out / split / "metadata.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    names = [row["file_name"] for row in rows]
    assert names == sorted(set(names))
    assert names == sorted(str(path.relative_to(out / split)) for path in (out / split).rglob("*.jpg"))
    for row in rows:
        with Image.open(out / split / row["file_name"]) as image:
            assert image.convert("RGB").size == (row["width"], row["height"])
    return rows


def both(out: Path) -> dict[str, list[dict]]:
    return {split: metadata(out, split) for split in ("train", "val")}


def only_clip(out: Path) -> tuple[str, list[dict]]:
    """The split and the lines of the one clip that there is."""
    ((split, rows),) = [(split, rows) for split, rows in both(out).items() if rows]
    assert len({row["video"] for row in rows}) == 1
    return split, rows


def shown(out: Path, split: str, row: dict) -> int:
    with Image.open(out / split / row["file_name"]) as image:
        return read(np.asarray(image))


@pytest.fixture(scope="session")
def extracted(videos, labels, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("extracted") / "frames"
    extract(videos, out, "--labels", labels)
    return out


def test_two_frames_a_clip_by_default(extracted):
    rows = both(extracted)
    assert [row["frame"] for row in rows["train"]] == [16, 46] * 3
    assert rows["train"][1] == {
        "file_name": "0000aaaa-00000001/0000aaaa-00000001-0000046.jpg",
        "video": "0000aaaa-00000001",
        "frame": 46,
        "timestamp_ms": 1500,
        "width": 341,
        "height": 256,
        **DAY,
    }
    for split, split_rows in rows.items():
        for row in split_rows:
            assert shown(extracted, split, row) == row["frame"] - 1
            unlabelled = dict.fromkeys(DAY)
            assert {key: row[key] for key in DAY} == LABELS.get(row["video"], unlabelled)
    assert {row["video"] for row in rows["val"]} == {"0000bbbb-00000001", UNLABELLED}


def test_a_frame_is_the_decoded_one_but_for_jpeg(videos, tmp_path):
    extract(videos, tmp_path, "--times", "0.5", "--short-side", 0, "--limit", 1)
    split, (row,) = only_clip(tmp_path)
    (path,) = videos.rglob(f"{row['video']}.mov")
    with Image.open(tmp_path / split / row["file_name"]) as image:
        difference = np.asarray(image).astype(int) - decode_all(path)[15]
    assert row["frame"] == 16
    assert np.abs(difference).mean() < 8


def test_imagefolder_reads_it_as_it_is(extracted, tmp_path):
    datasets = pytest.importorskip("datasets")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(extracted), cache_dir=str(tmp_path))
    assert (len(loaded["train"]), len(loaded["validation"])) == (6, 4)
    assert loaded["train"][0]["timeofday"] == "daytime"
    assert loaded["train"][0]["image"].size == (341, 256)


def test_imagefolder_reads_it_where_one_split_is_labelled(videos, labels, tmp_path):
    datasets = pytest.importorskip("datasets")
    out, cache = tmp_path / "frames", tmp_path / "cache"
    extract(videos, out, "--labels", labels / "det_train.json")
    assert {row["timeofday"] for row in metadata(out, "train")} == {"daytime", "night", "dawn/dusk"}
    assert {row["timeofday"] for row in metadata(out, "val")} == {"undefined"}
    loaded = datasets.load_dataset("imagefolder", data_dir=str(out), cache_dir=str(cache))
    assert (len(loaded["train"]), len(loaded["validation"])) == (6, 4)
    extract(videos, out, "--labels", labels)
    assert {row["timeofday"] for row in metadata(out, "val")} == {"night", None}


def test_workers_and_shards_make_no_difference(videos, labels, extracted, tmp_path):
    run("--videos", videos, "--out", tmp_path / "two", "--labels", labels, "--workers", 2)
    assert both(tmp_path / "two") == both(extracted)
    arguments = ["--videos", videos, "--labels", labels, "--out", tmp_path / "shards", "--workers", 1]
    shards = [start(*arguments, "--shard", f"{i}/3") for i in range(3)]
    assert [(shard.communicate(timeout=60), shard.returncode)[1] for shard in shards] == [0, 0, 0]
    assert both(tmp_path / "shards") == both(extracted)


def test_fps_and_times(videos, tmp_path):
    extract(videos, tmp_path / "fps", "--fps", "5", "--limit", 1)
    _, rows = only_clip(tmp_path / "fps")
    assert [row["frame"] for row in rows] == list(range(1, 61, 6))
    assert [row["timestamp_ms"] for row in rows] == list(range(0, 2000, 200))
    output = extract(videos, tmp_path / "times", "--times", "1.0,0.1,9", "--limit", 1)
    _, rows = only_clip(tmp_path / "times")
    assert [row["frame"] for row in rows] == [4, 31]
    assert "skipped 1 times past the end" in output
    run("--videos", videos, "--fps", 1, "--times", "1", fails=True)


def test_filters(videos, labels, tmp_path):
    def videos_of(name, *options):
        extract(videos, tmp_path / name, "--labels", labels, *options)
        return {row["video"] for rows in both(tmp_path / name).values() for row in rows}

    assert videos_of("a", "--timeofday", "night") == {"0000aaaa-00000002", "0000bbbb-00000001"}
    many = (
        "--timeofday",
        "daytime,dawn/dusk",
        "--weather",
        "clear",
        "--scene",
        "highway",
        "--scene",
        "parking lot",
    )
    assert videos_of("b", *many) == {"0000aaaa-00000001", "0000aaaa-00000003"}
    message = extract(videos, tmp_path / "c", "--labels", labels, "--timeofday", "day", fails=True)
    assert "error: --timeofday day: there is dawn/dusk, daytime, night" in message
    assert "without --labels" in extract(videos, tmp_path / "c", "--scene", "highway", fails=True)
    options = ("--labels", labels, "--timeofday", "night", "--scene", "highway")
    assert "no clip is labelled as asked" in extract(videos, tmp_path / "c", *options, fails=True)
    assert not (tmp_path / "c").exists()


def test_older_labels_given_later(videos, labels, extracted, tmp_path):
    for split in ("train", "val"):
        old = tmp_path / f"bdd100k_labels_images_{split}.json"
        shutil.copy(labels / f"det_{split}.json", old)
    extract(videos, tmp_path / "frames")
    assert {row["scene"] for row in metadata(tmp_path / "frames", "train")} == {None}
    assert "5 clips were done before" in extract(videos, tmp_path / "frames", "--labels", tmp_path)
    assert both(tmp_path / "frames") == both(extracted)


def test_bad_clips_are_skipped_and_named(videos, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    (tmp_path / "test").mkdir()
    portrait = [np.ascontiguousarray(np.rot90(draw(i))) for i in range(20)]
    write_clip(tmp_path / "train" / "good.MP4", frames=portrait)
    rotate(tmp_path / "train" / "good.MP4", (0, 1, -1, 0))
    whole = (videos / "train" / "0000aaaa-00000001.mov").read_bytes()
    (tmp_path / "train" / "cut.mov").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "train" / "empty.mov").touch()
    (tmp_path / "train" / "._good.MP4").write_text("what macOS leaves")
    write_audio(tmp_path / "val" / "sound.mp4")
    (tmp_path / "val" / "text.mov").write_text("no video")
    (tmp_path / "test" / "other.mov").write_text("not looked at")
    out = tmp_path / "frames"

    output = extract(tmp_path, out)
    assert "test is left out" in output
    assert "2 frames of 1 clips" in output
    assert "skipped 4 clips:\n" in output
    for line in (
        "train/cut.mov: not a video, or truncated",
        "train/empty.mov: empty file",
        "val/sound.mp4: no video stream",
        "val/text.mov: not a video, or truncated",
    ):
        assert f"\n  {tmp_path}/{line}\n" in output
    rows = metadata(out, "train")
    assert [(row["video"], row["width"], row["height"]) for row in rows] == [("good", 341, 256)] * 2
    assert [shown(out, "train", row) for row in rows] == [5, 15]
    assert metadata(out, "val") == []

    message = extract(tmp_path, out, "--strict", fails=True)
    assert message.splitlines()[-1].startswith(f"error: {tmp_path}")
    (tmp_path / "train" / "cut.mov").write_bytes(whole)  # a bad clip is tried again
    assert "2 frames of 1 clips; 1 clips were done before" in extract(tmp_path, out)
    message = extract(tmp_path, tmp_path / "none", "--limit", 1, "--val-fraction", 1, fails=True)
    assert "none of its 1 clips gave frames" in message


def test_splitting_by_a_fraction(videos, tmp_path):
    output = extract(videos / "train", tmp_path / "default", "--frames-per-video", 1)
    assert "no train/ or val/, so 20% of its clips go to val" in output
    assert sum(len(rows) for rows in both(tmp_path / "default").values()) == 3
    extract(videos, tmp_path / "quarter", "--frames-per-video", 1, "--val-fraction", 0.25)
    found = {split: [row["video"] for row in rows] for split, rows in both(tmp_path / "quarter").items()}
    # by the names alone: the same on every machine, whatever folders the clips are in
    assert found["val"] == ["0000aaaa-00000001", "0000aaaa-00000003"]
    assert found["train"] == ["0000aaaa-00000002", "0000bbbb-00000001", "0000bbbb-00000002"]
    names = [Path(f"clip{i}.mov") for i in range(10_000)]
    assert abs(np.mean([name_hash(name) < 0.3 for name in names]) - 0.3) < 0.02


def test_clips_of_the_same_name(videos, tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "val").mkdir()
    clip = next(videos.rglob("*.mov"))
    shutil.copy(clip, tmp_path / "train" / "a.mov")
    shutil.copy(clip, tmp_path / "val" / "a.mp4")
    assert "a.mp4: named like" in extract(tmp_path, tmp_path / "frames", fails=True)


def still(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_video_of_pictures_is_done_when_all_of_them_are(tmp_path):
    pictures, out = tmp_path / "in" / "a", tmp_path / "out"
    for number in (1, 2, 3):
        still(pictures / f"a-{number:07d}.jpg", number)
    (pictures / "a-0000002.jpg").write_bytes(b"")
    command = ("--images", tmp_path / "in", "--out", out, "--val-fraction", 0, "--short-side", 0)
    for _ in range(2):  # the broken one is tried and named again
        output = run(*command)
        assert "2 frames of 2 pictures" in output and "skipped 1 pictures:" in output
    for number in (2, 4):
        still(pictures / f"a-{number:07d}.jpg", number)
    assert "4 frames of 4 pictures\n" in run(*command)
    assert "0 frames of 0 pictures; 4 pictures were done before" in run(*command)
    for row in metadata(out, "train"):
        copy = out / "train" / row["file_name"]
        assert copy.read_bytes() == (pictures / copy.name).read_bytes()


def test_labels_given_later_find_pictures_named_after_their_paths(tmp_path, labels):
    for folder in "xy":
        still(tmp_path / "in" / folder / "0000aaaa-00000002.jpg")
    command = ("--images", tmp_path / "in", "--out", tmp_path / "out", "--val-fraction", 0)
    run(*command)
    run(*command, "--labels", labels)
    rows = metadata(tmp_path / "out", "train")
    assert [row["video"] for row in rows] == ["x_0000aaaa-00000002_jpg", "y_0000aaaa-00000002_jpg"]
    assert all(NIGHT.items() <= row.items() for row in rows)


@pytest.mark.skipif(not DRIVING.is_dir(), reason=f"no real clips in {DRIVING}")
def test_real_clips(tmp_path):
    labels = DRIVING / "labels" / "det_20"
    extract(DRIVING / "videos", tmp_path, "--labels", labels, "--times", "0.1", "--short-side", 0)
    for split, rows in both(tmp_path).items():
        assert len(rows) == len(list((DRIVING / "videos" / split).glob("*.mov")))
        for row in rows:
            assert (row["frame"], row["scene"]) == (4, "city street")
            expected = decode_all(DRIVING / "videos" / split / f"{row['video']}.mov")[3]
            with Image.open(tmp_path / split / row["file_name"]) as image:
                assert np.abs(np.asarray(image).astype(int) - expected).mean() < 4
