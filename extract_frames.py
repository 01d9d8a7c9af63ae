"""Take frames out of driving video, or pictures as they are: JPEGs by split and video, and a metadata.jsonl.

    python extract_frames.py --videos bdd100k/videos --labels bdd100k/labels/det_20 --out frames
    python extract_frames.py --images bdd100k/images/100k --labels bdd100k/labels/det_20 --out frames

A clip's folder appears by a rename once all its JPEGs and its part of the metadata are in it. So a clip is
done or untouched wherever the command is interrupted, and the same command goes on from there. Every run, and
every shard of a job array, ends by putting metadata.jsonl together from all clips that are done. A picture is
a video of one frame.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from data.bdd100k import ATTRIBUTES, read_labels
from data.pictures import QUALITY, open_picture, resize, shown, write_jpeg
from data.shards import parse_shard
from data.sources import SPLITS, Still, choose_sources, find_sources
from data.sources import name_hash as name_hash  # which names go to val, for whoever asks
from data.video import Clip
from errors import UserError, command

RECORD = ".frames.json"  # in the folder of a clip that is done: its part of the metadata
OPTIONS = ".extraction"  # in the output folder: the options that all its clips share
CPUS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


class Job(NamedTuple):
    paths: list[Path | Still]  # a clip, or the pictures of one video
    folder: Path  # out/split/video
    labels: dict[str, str | None]
    selection: tuple[str, int | Fraction | list[Fraction]]  # frames-per-video, fps or times, and its value
    short_side: int


class Outcome(NamedTuple):
    frames: int = 0
    files: int = 0  # clips or pictures that they are of
    past_end: int = 0  # how many of --times are after the clip's end
    errors: tuple[str, ...] = ()  # of the clip, or of each broken picture


@command
def main():
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what batch systems send: leave in good order
    labels = read_labels(args.labels) if args.labels else {}
    unlabelled = dict.fromkeys(ATTRIBUTES)
    jobs = []
    sources = find_sources(args)
    for source in choose_sources(sources, labels, args):
        folder, attributes = args.out / source.split / source.name, labels.get(source.label, unlabelled)
        jobs.append(Job(source.paths, folder, attributes, args.selection, args.short_side))
    # labels may know a video by another name than its folder's
    labels |= {source.name: labels[source.label] for source in sources if source.label in labels}
    frames, files, past_end, errors = 0, 0, 0, []
    kind = "clips" if args.videos else "pictures"
    try:
        keep_options(args)
        todo = [job for job in jobs if not is_done(job)]
        try:
            progress = tqdm(total=count_files(todo), unit=kind[:-1])
            with progress as bar, contextlib.closing(extract_clips(todo, args.workers)) as outcomes:
                for outcome in outcomes:
                    if outcome.errors and args.strict:
                        raise UserError(f"{outcome.errors[0]} (without --strict it would be skipped)")
                    errors += outcome.errors
                    frames, files = frames + outcome.frames, files + outcome.files
                    past_end += outcome.past_end
                    rate = frames / max(bar.format_dict["elapsed"], 0.001)
                    bar.set_postfix({"frames": frames, "frames/s": f"{rate:.1f}"}, refresh=False)
                    bar.update(outcome.files + len(outcome.errors))
        finally:
            for split in SPLITS:
                write_metadata(args.out / split, labels)
    except OSError as error:
        raise UserError(f"{error.filename or args.out}: {error.strerror or error}") from error

    done_before = count_files(jobs) - count_files(todo)
    before = f"; {done_before} {kind} were done before" if done_before else ""
    print(f"{shown(args.out)}: {frames} frames of {files} {kind}{before}")
    if past_end:
        print(f"skipped {past_end} times past the end of their clip")
    if errors:
        print(f"skipped {len(errors)} {kind}:", *sorted(errors), sep="\n  ")
    if errors and files + done_before == 0:
        raise UserError(f"{args.videos or args.images}: none of its {len(errors)} {kind} gave frames")


def parse_arguments() -> argparse.Namespace:
    def at_least(lowest, kind=int):
        def number(text):
            with contextlib.suppress(ValueError, ZeroDivisionError):
                if lowest <= (value := kind(text)) < 10**9:
                    return value
            raise argparse.ArgumentTypeError(f"{text} is no number from {lowest} on")

        return number

    def frames_per_video(text):
        return "frames-per-video", at_least(1)(text)

    def fps(text):
        return "fps", at_least(Fraction(1, 3600), Fraction)(text)

    def times(text):
        return "times", sorted({at_least(0, Fraction)(time) for time in text.split(",")})

    def values(text):
        return text.split(",")

    parser = argparse.ArgumentParser(description="Take frames out of driving video, or pictures as they are.")
    add = parser.add_argument
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--videos", type=Path, help="folder of clips, perhaps with train/ and val/ in it")
    where.add_argument("--images", type=Path, help="folder of JPEG, PNG or WebP pictures, likewise")
    add("--labels", type=Path, help="BDD100K's labels, new form or old: their folder or a file")
    add("--out", type=Path, default=Path("frames"), help="folder to write to (default: frames)")
    which = parser.add_mutually_exclusive_group()
    for option, kind, metavar, help in [
        ("--frames-per-video", frames_per_video, "N", "N frames a clip, evenly spread (default: 2)"),
        ("--fps", fps, "F", "F frames a second"),
        ("--times", times, "T,T", "the frames on screen at these seconds: 10.0,20.0"),
    ]:
        which.add_argument(option, type=kind, dest="selection", metavar=metavar, help=help)
    add("--short-side", type=at_least(0), default=256, help="to resize to; 0 keeps the size (default: 256)")
    for name in ATTRIBUTES:
        add(f"--{name}", type=values, action="extend", help="only what is so labelled; several: a,b")
    add("--limit", type=at_least(1), help="only so many videos, the same ones on every machine")
    add("--shard", type=parse_shard, default=(0, 1), metavar="i/n", help="a part of them, 0/n to n-1/n")
    add("--val-fraction", type=at_least(0, float), help="split by video, and put so much in val")
    add("--workers", type=at_least(1), default=CPUS, help=f"processes (default: one a CPU, here {CPUS})")
    add("--strict", action="store_true", help="stop at the first clip or picture that cannot be read")
    args = parser.parse_args()
    if args.images and args.selection:
        parser.error(f"--{args.selection[0]} chooses frames of videos; of pictures each is one")
    args.selection = args.selection or ("frames-per-video", 2)
    return args


def keep_options(args: argparse.Namespace):
    """Write down what the clips in the output folder have to agree in, or see that it is as before."""
    option, value = args.selection
    text = ",".join(f"{float(time)}" for time in value) if option == "times" else value
    options = f"--{option} {text}" if args.videos else "--images"
    options += f" --short-side {args.short_side}"
    if args.val_fraction is not None:
        options += f" --val-fraction {args.val_fraction}"
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / OPTIONS).exists():
        write_whole(args.out / OPTIONS, options)
    if (before := (args.out / OPTIONS).read_text()) != options:
        raise UserError(f"{args.out}: made with {before}, not {options}; keep to that or take another --out")


def is_done(job: Job) -> bool:
    """Whether a video's folder has its record, every frame that is in that, and every picture of the job."""
    try:
        rows = json.loads((job.folder / RECORD).read_text())
        there = {Path(row["file_name"]).name for row in rows} <= set(os.listdir(job.folder))
    except (OSError, ValueError):
        return False
    pictures = {still.frame for still in job.paths} if is_still(job) else set()
    return there and pictures <= {row["frame"] for row in rows}


def count_files(jobs: list[Job]) -> int:
    """How many clips or pictures the jobs have."""
    return sum(len(job.paths) for job in jobs)


def extract_clips(jobs: list[Job], workers: int) -> Iterator[Outcome]:
    """The outcome of each job as it gets done.

    One that takes its worker down (a crash in the decoder, too little memory) is an error like others: the
    jobs then under way are tried again, each in a process of its own, to see which it is.
    """
    waiting = collections.deque(jobs)
    while waiting:
        under_way = {}
        with start_workers(workers) as pool, contextlib.suppress(BrokenProcessPool):
            while waiting or under_way:
                while waiting and len(under_way) < 2 * workers:
                    under_way[pool.submit(extract_clip, waiting[0])] = waiting[0]
                    waiting.popleft()
                done, _ = concurrent.futures.wait(under_way, return_when="FIRST_COMPLETED")
                for future in done:
                    yield future.result()
                    del under_way[future]
        for job in under_way.values():
            with start_workers(1) as pool:
                try:
                    yield pool.submit(extract_clip, job).result()
                except BrokenProcessPool:
                    yield failed(job, "decoding it crashed, or ran out of memory")


def failed(job: Job, problem: str) -> Outcome:
    """The outcome of a job none of whose files could be taken."""
    paths = [still.path for still in job.paths] if is_still(job) else job.paths
    return Outcome(errors=tuple(f"{shown(path)}: {problem}" for path in paths))


def start_workers(count: int) -> concurrent.futures.ProcessPoolExecutor:
    context = multiprocessing.get_context("spawn")  # the same on every system
    return concurrent.futures.ProcessPoolExecutor(count, context, initializer=set_up_worker)


def set_up_worker():
    """Leave Ctrl-C to the parent, and end with it even if it is killed."""

    def follow_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow_parent, daemon=True).start()


def extract_clip(job: Job) -> Outcome:
    """Write a clip's frames, or a video's pictures, and their record beside their folder, then rename."""
    if job.folder.exists() and not (job.folder / RECORD).exists():
        return failed(job, f"{shown(job.folder)} is in the way, and no extraction's; take another --out")
    video = job.folder.name
    partial = job.folder.with_name(f".{video}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    take, past_end, rows, errors = take_stills if is_still(job) else take_frames, 0, [], []
    try:
        for frame, milliseconds, size in take(job, partial, errors):
            if frame is None:
                past_end += 1
                continue
            row = {"file_name": f"{video}/{frame_name(video, frame)}", "video": video, "frame": frame}
            row |= {"timestamp_ms": milliseconds, "width": size[0], "height": size[1]}
            rows.append(row | job.labels)
    except UserError as error:
        errors, rows = [shown(str(error))], []
    if errors and not rows:
        shutil.rmtree(partial)
        return Outcome(errors=tuple(errors))
    (partial / RECORD).write_text(json.dumps(rows))
    shutil.rmtree(job.folder, ignore_errors=True)  # there only if it has lost frames
    partial.rename(job.folder)
    return Outcome(len(rows), len(rows) if is_still(job) else 1, past_end, tuple(errors))


def is_still(job: Job) -> bool:
    """Whether a job has pictures, not a clip."""
    return isinstance(job.paths[0], Still)


def take_frames(
    job: Job, folder: Path, errors: list[str]
) -> Iterator[tuple[int | None, int | None, tuple[int, int]]]:
    """Write a clip's chosen frames: each one's number, time and size; no number for a time past the end."""
    with Clip(job.paths[0]) as clip:
        indices = choose_frames(clip, *job.selection)
        yield from [(None, None, (0, 0))] * indices.count(None)
        for index, array in clip.frames(set(indices) - {None}):
            image = resize(Image.fromarray(array), job.short_side)
            image.save(folder / frame_name(job.folder.name, index + 1), quality=QUALITY)
            yield index + 1, clip.milliseconds(index), image.size


def take_stills(
    job: Job, folder: Path, errors: list[str]
) -> Iterator[tuple[int, int | None, tuple[int, int]]]:
    """Write a video's pictures: each one's number, time and size; broken ones go to `errors`."""
    for path, frame, milliseconds in job.paths:
        try:
            with open_picture(path) as picture:
                size = write_jpeg(picture, job.short_side, folder / frame_name(job.folder.name, frame))
        except UserError as error:
            errors.append(str(error))
        else:
            yield frame, milliseconds, size


def frame_name(video: str, frame: int) -> str:
    """BDD100K's name of a frame's file."""
    return f"{video}-{frame:07d}.jpg"


def choose_frames(clip: Clip, option: str, value: int | Fraction | list[Fraction]) -> list[int | None]:
    """The indices that the option asks for, None for a time past the end."""
    if option == "times":
        return [clip.at(time) for time in value]
    return clip.every(value) if option == "fps" else clip.spread(value)


def write_metadata(folder: Path, labels: dict):
    """Put a split's metadata.jsonl together from the clips that are done, with the labels this run has."""
    if not folder.is_dir():
        return
    with open(folder / ".lock", "w") as lock:
        with contextlib.suppress(OSError):  # shards take turns, but for file systems without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        rows = []
        for record in folder.glob(f"[!.]*/{RECORD}"):
            rows += json.loads(record.read_text())
        rows.sort(key=lambda row: row["file_name"])
        lines = [json.dumps(row | labels.get(row["video"], {})) + "\n" for row in rows]
        if lines:
            write_whole(folder / "metadata.jsonl", "".join(lines))
        else:  # an empty one would fail to load
            (folder / "metadata.jsonl").unlink(missing_ok=True)


def write_whole(path: Path, text: str):
    """Write a file beside its place, then rename, so that it is never seen half-written."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    beside.write_text(text)
    beside.replace(path)


if __name__ == "__main__":
    main()
