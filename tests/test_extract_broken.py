"""Extractions that are killed, meet others, or are asked for what there isn't."""

import errno
import itertools
import os
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import extract_frames
from data.pictures import save_jpeg
from extract_frames import Job, extract_clips
from files import holding
from tests.clips import write_clip
from tests.test_extract_frames import both, extract, metadata, run, run_here, start


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """Three clips of 60 frames in train/ and two in val/."""
    folder = tmp_path_factory.mktemp("videos")
    for number, split in enumerate(["train"] * 3 + ["val"] * 2):
        (folder / split).mkdir(exist_ok=True)
        write_clip(folder / split / f"clip{number}.mov")
    return folder


@pytest.fixture(scope="module")
def stills(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stills")
    for split, count in (("train", 2), ("val", 1)):
        (folder / split).mkdir()
        for number in range(count):
            pixels = np.random.default_rng(number).integers(256, size=(30, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{split}{number}.png")
    return folder


def killed_at(operation: int, *arguments) -> bool:
    """Run the command in a process that is killed at its so-manieth file operation; whether it got there."""
    child = os.fork()
    if child:
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    operations = itertools.count()

    def on_event(event, args):
        on_disk = event.startswith(("os.", "shutil.")) or (event == "open" and "/out" in str(args[0]))
        if on_disk and event != "os.fork" and next(operations) == operation:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(on_event)
    run_here(*arguments)
    os._exit(0)


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = sorted(folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize("lost_a_frame", [False, True])
def test_killed_at_any_moment_the_same_command_ends_as_if_never_killed(stills, tmp_path, lost_a_frame):
    def prepare(out):
        shutil.rmtree(out, ignore_errors=True)
        if lost_a_frame:
            assert run_here(*arguments)[1] == 0
            next(out.rglob("*.jpg")).unlink()

    out = tmp_path / "out"
    arguments = ("--images", stills, "--out", out)
    assert run_here(*arguments)[1] == 0
    expected = contents(out)
    for operation in itertools.count(step=7):
        prepare(out)
        if not killed_at(operation, *arguments):
            break
        assert run_here(*arguments)[1] == 0
        assert contents(out) == expected, f"killed at its operation {operation}"
    assert operation > 30


def test_a_shard_that_another_process_is_at_is_waited_for(videos, tmp_path):
    out = tmp_path / "frames"
    with holding(out / ".shard-0-of-1.lock", "this"):
        process = start("--videos", videos, "--out", out, "--workers", 1)
        while "waiting for" not in (line := process.stdout.readline()):
            assert process.poll() is None
        assert f"its shard: waiting for process {os.getpid()} on " in line
        assert os.listdir(out) == [".shard-0-of-1.lock"]
    assert "10 frames of 5 clips" in process.communicate(timeout=60)[0] and process.returncode == 0
    with holding(out / ".shard-1-of-4.lock", "this"):
        message = extract(videos, out, fails=True)
    assert f"error: {out}, other shards: already in use by process {os.getpid()} on " in message
    assert sorted(os.listdir(out)) == [".extraction", "train", "val"]


def test_killed_and_started_again(tmp_path):
    videos, out, count = tmp_path / "videos", tmp_path / "frames", 16
    videos.mkdir()
    write_clip(videos / "clip00.mov", frames=90)
    for i in range(1, count):
        shutil.copy(videos / "clip00.mov", videos / f"clip{i:02}.mov")
    arguments = ("--videos", videos, "--out", out, "--frames-per-video", 8, "--short-side", 720)
    arguments += ("--val-fraction", 0, "--workers", 2)
    process = start(*arguments)
    try:
        deadline = time.time() + 60
        while len(list(out.glob("train/clip*"))) < 3:
            assert process.poll() is None and time.time() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    time.sleep(0.5)  # the workers end, too
    done = {path.name for path in out.glob("train/clip*")}
    before = {path: path.stat().st_mtime_ns for path in out.glob("train/clip*/*.jpg")}
    assert 3 <= len(done) < count
    assert len(before) == 8 * len(done)
    # what a kill at a worse moment, on another machine, and a careless person would leave behind
    unfinished = next(f"clip{i:02}" for i in range(count) if f"clip{i:02}" not in done)
    part = out / "train" / f".{unfinished}.0123abcd-1-0123abcd.part"
    part.mkdir()
    (part / f"{unfinished}-0000001.jpg").write_bytes(b"half")
    (out / "train" / min(done) / ".frames.json").write_text('[{"file_name": 1}]')
    (out / "train" / "metadata.jsonl").write_text(
        '{"file_name": "clip00/clip00-0000006.jpg"}\n' * 2 + '{"file_'
    )
    lost = max(before)
    lost.unlink()

    output = run(*arguments)
    assert f"{8 * (count - len(done) + 2)} frames of" in output
    assert f"; {len(done) - 2} clips were done before" in output
    rows = metadata(out, "train")
    assert len(rows) == 8 * count
    assert {row["frame"] for row in rows} == {6, 17, 29, 40, 51, 62, 74, 85}
    for path, changed in before.items():
        kept = path.parent.name not in (min(done), lost.parent.name)
        assert (path.stat().st_mtime_ns == changed) == kept, path
    assert sorted(os.listdir(out)) == [".extraction", "train"]
    assert all(name == "metadata.jsonl" or name.startswith("clip") for name in os.listdir(out / "train"))

    kept = (out / "train" / "metadata.jsonl").read_text()
    assert f"0 frames of 0 clips; {count} clips were done before" in run(*arguments)
    assert (out / "train" / "metadata.jsonl").read_text() == kept
    message = extract(videos, out, "--val-fraction", 0, "--times", "1", fails=True)
    assert "made with --frames-per-video 8 --short-side 720 --val-fraction 0.0, not --times 1.0" in message


@pytest.mark.parametrize(("fraction", "empty", "full"), [(1, "train", "val"), (0, "val", "train")])
def test_a_split_without_frames_is_told(videos, tmp_path, fraction, empty, full):
    output = extract(videos, tmp_path, "--val-fraction", fraction, "--frames-per-video", 1)
    assert f"{tmp_path}: {empty} has no frames" in output and f"{full} has no frames" not in output


def test_a_damaged_record_of_another_video_is_named(videos, tmp_path):
    for number, content in enumerate((b"\xff", b"[null]", b'[{"file_name": "x"}]', b"[" * 100_000)):
        (tmp_path / "train" / f"other{number}").mkdir(parents=True)
        (tmp_path / "train" / f"other{number}" / ".frames.json").write_bytes(content)
    output = extract(videos, tmp_path)
    assert output.count("damaged, so its frames are in no metadata") == 4
    assert "train/other1/.frames.json: damaged" in output and len(metadata(tmp_path, "train")) == 6


def test_other_options_may_follow_where_nothing_came_of_the_first(videos, tmp_path):
    message = extract(videos, tmp_path, "--short-side", 65_000, fails=True)
    assert "128×96 gives too long a JPEG" in message and "none of its 5 clips gave frames" in message
    assert "10 frames of 5 clips" in extract(videos, tmp_path)


def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(videos, tmp_path, monkeypatch):
    room = itertools.count(3, -1)

    def save(image, short_side, path, source):
        if not next(room):
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        return save_jpeg(image, short_side, path, source)

    monkeypatch.setattr(extract_frames, "save_jpeg", save)
    message = extract(videos, tmp_path, fails=True)
    assert re.search(rf"error: {tmp_path}/\w+/clip\d: No space left on device\n$", message)
    assert sum(len(rows) for rows in both(tmp_path).values()) == 2
    assert not list(tmp_path.rglob("*.part"))
    assert "8 frames of 4 clips; 1 clips were done before" in extract(videos, tmp_path)


def test_bad_arguments(videos, tmp_path):
    assert "no such folder" in extract(tmp_path / "none", tmp_path / "frames", fails=True)
    assert "no clips in it" in extract(tmp_path, tmp_path / "frames", fails=True)
    assert "count from 0/2 to 1/2" in extract(videos, tmp_path / "frames", "--shard", "2/2", fails=True)
    (tmp_path / "file").touch()
    assert f"error: {tmp_path / 'file'}" in extract(videos, tmp_path / "file", fails=True)


@pytest.mark.parametrize(
    "wrong",
    [
        "--fps 1/0",
        "--fps 1e999999999",
        "--val-fraction nan",
        "--val-fraction 20",
        "--val-fraction -1",
        "--times 1e400",
        "--times nan",
        "--times 1,,2",
        "--workers 0",
        "--workers 99999",
        "--limit 0",
        "--short-side -1",
        "--short-side 70000",
        "--frames-per-video 1e9",
    ],
)
def test_numbers_that_are_none(tmp_path, wrong, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["extract_frames.py", "--videos", str(tmp_path), *wrong.split()])
    with pytest.raises(SystemExit, match="2"):
        extract_frames.parse_arguments()
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"extract_frames.py: error: argument {wrong.split()[0]}: ") and "no number" in last


def test_numbers_beyond_what_a_clip_has(videos, tmp_path):
    for number, (option, value, frames) in enumerate(
        [
            ("--frames-per-video", "999999999", range(1, 61)),
            ("--fps", "999999999", range(1, 61)),
            ("--times", "1e-999999999", [1]),
        ]
    ):
        extract(videos, tmp_path / f"{number}", option, value, "--limit", 1)
        rows = [row for rows in both(tmp_path / f"{number}").values() for row in rows]
        assert [row["frame"] for row in rows] == list(frames)


def test_a_folder_that_no_extraction_made_is_kept(videos, tmp_path):
    clip = tmp_path / "train" / "a" / "a.mov"
    clip.parent.mkdir(parents=True)
    shutil.copy(next(videos.rglob("*.mov")), clip)
    assert f"{clip}: {clip.parent} is in the way" in extract(tmp_path, tmp_path, fails=True)
    assert clip.is_file()


class Fatal(str):
    """A path that takes down the process that unpickles it, as a crash in a decoder would."""

    def __reduce__(self):
        return os._exit, (1,)


def test_a_clip_that_crashes_the_decoder_is_an_error_like_others(videos, tmp_path):
    paths = sorted(videos.rglob("*.mov"))
    paths.insert(1, Fatal("crash.mov"))
    selection = ("frames-per-video", 1)
    jobs = [Job([path], tmp_path / "train" / Path(path).stem, {}, selection, 256) for path in paths]
    outcomes = list(extract_clips(jobs, workers=2))
    assert sorted(outcome.frames for outcome in outcomes) == [0, 1, 1, 1, 1, 1]
    errors = [outcome.errors for outcome in outcomes if outcome.errors]
    assert errors == [("crash.mov: decoding it crashed, or ran out of memory",)]
