"""Take frames out of driving video, or pictures as they are: JPEGs by split and video, and a metadata.jsonl.

    python extract_frames.py --videos bdd100k/videos --labels bdd100k/labels/det_20 --out frames
    python extract_frames.py --images bdd100k/images/100k --labels bdd100k/labels/det_20 --out frames

A clip's folder appears by a rename once all its JPEGs and its part of the metadata are in it. So a clip is
done or untouched wherever the command is interrupted, and the same command goes on from there. Every run, and
every shard of a job array, ends by putting metadata.jsonl together from all clips that are done. A shard that
another process is at is waited for. A picture is a video of one frame.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from tqdm import tqdm

from data.bdd100k import ATTRIBUTES, read_labels
from data.pictures import LONGEST_SIDE, open_picture, save_jpeg, shown, write_jpeg
from data.shards import parse_shard
from data.sources import SPLITS, Still, choose_sources, find_sources
from data.sources import name_hash as name_hash  # which names go to val, for whoever asks
from data.video import Clip
from errors import UserError, command
from files import holding, remove_leftovers, remove_whole, write_whole
from options import number

RECORD = ".frames.json"  # in the folder of a clip that is done: its part of the metadata
OPTIONS = ".extraction"  # in the output folder: the options that all its clips share
LOCK = ".extraction.lock"  # there, while those or the metadata are written
UNDEFINED = "undefined"  # BDD100K's word for what a label doesn't tell
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
    sources, unlabelled, jobs = find_sources(args), dict.fromkeys(ATTRIBUTES), []
    for source in choose_sources(sources, labels, args):
        folder, attributes = args.out / source.split / source.name, labels.get(source.label, unlabelled)
        jobs.append(Job(source.paths, folder, attributes, args.selection, args.short_side))
    # labels may know a video by another name than its folder's
    labels |= {source.name: labels[source.label] for source in sources if source.label in labels}
    args.out.mkdir(parents=True, exist_ok=True)
    with holding_shard(args):
        keep_options(args)
        try:
            extract(jobs, args)
        finally:
            clear_leftovers(jobs)  # not before, as a killed run's workers may go on for a moment
            write_metadata(args.out, labels)
    for split in SPLITS:
        if not (args.out / split / "metadata.jsonl").exists():
            print(f"{shown(args.out)}: {split} has no frames, and training needs some (--val-fraction)")


def extract(jobs: list[Job], args: argparse.Namespace):
    """Do the jobs that are not done, and tell how it went."""
    frames, files, past_end, errors = 0, 0, 0, []
    kind = "clips" if args.videos else "pictures"
    todo = [job for job in jobs if not is_done(job)]
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

    done_before = count_files(jobs) - count_files(todo)
    before = f"; {done_before} {kind} were done before" if done_before else ""
    print(f"{shown(args.out)}: {frames} frames of {files} {kind}{before}")
    if past_end:
        print(f"skipped {past_end} times past the end of their clip")
    if errors:
        print(f"skipped {len(errors)} {kind}:", *sorted(errors), sep="\n  ")
    if errors and files + done_before == 0:
        raise UserError(f"{shown(args.videos or args.images)}: none of its {len(errors)} {kind} gave frames")


def parse_arguments() -> argparse.Namespace:
    def exact(text):  # a fraction of 1e-999999999 would never be done
        return Fraction(float(text)) if "e" in text.lower() else Fraction(text)

    def frames_per_video(text):
        return "frames-per-video", number(1)(text)

    def fps(text):
        return "fps", number(Fraction(1, 3600), kind=exact)(text)

    def times(text):
        return "times", sorted({number(0, kind=exact)(time) for time in text.split(",")})

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
    add(
        "--short-side",
        type=number(0, LONGEST_SIDE),
        default=256,
        help="to resize to; 0 keeps the size (default: 256)",
    )
    for name in ATTRIBUTES:
        add(f"--{name}", type=values, action="extend", help="only what is so labelled; several: a,b")
    add("--limit", type=number(1), help="only so many videos, the same ones on every machine")
    add("--shard", type=parse_shard, default=(0, 1), metavar="i/n", help="a part of them, 0/n to n-1/n")
    add("--val-fraction", type=number(0, 1, float), help="split by video, and put so much in val")
    add("--workers", type=number(1, 1000), default=CPUS, help=f"processes (default: one a CPU, here {CPUS})")
    add("--strict", action="store_true", help="stop at the first clip or picture that cannot be read")
    args = parser.parse_args()
    if args.images and args.selection:
        parser.error(f"--{args.selection[0]} chooses frames of videos; of pictures each is one")
    args.selection = args.selection or ("frames-per-video", 2)
    return args


@contextlib.contextmanager
def holding_shard(args: argparse.Namespace) -> Iterator[None]:
    """Be the only process at a shard, and at its clips: the shards of other counts have them, too."""
    index, count = args.shard
    with holding(args.out / f".shard-{index}-of-{count}.lock", f"{shown(args.out)}, its shard", wait=True):
        for other in args.out.glob(".shard-*.lock"):
            if not other.name.endswith(f"-of-{count}.lock"):
                with holding(other, f"{shown(args.out)}, other shards"):
                    pass
        yield


def keep_options(args: argparse.Namespace):
    """Write down what the clips in the output folder have to agree in, or see that it is as before."""
    option, value = args.selection
    text = ",".join(f"{float(time)}" for time in value) if option == "times" else value
    options = f"--{option} {text}" if args.videos else "--images"
    options += f" --short-side {args.short_side}"
    if args.val_fraction is not None:
        options += f" --val-fraction {args.val_fraction}"
    path = args.out / OPTIONS
    with holding(args.out / LOCK, shown(args.out), wait=True):
        remove_leftovers(args.out, names=[OPTIONS])
        before = path.read_text(errors="replace") if path.exists() else None
        if before not in (None, options) and any(args.out.glob(f"*/[!.]*/{RECORD}")):
            there = f"made with {shown(before)}, not {options}"
            raise UserError(f"{shown(args.out)}: {there}; keep to that or take another --out")
        if before != options:
            with write_whole(path) as part:
                part.write_text(options)


def clear_leftovers(jobs: list[Job]):
    """Remove what killed runs of the same shard left of its clips."""
    for parent in {job.folder.parent for job in jobs}:
        if parent.is_dir():
            remove_leftovers(parent, names={job.folder.name for job in jobs if job.folder.parent == parent})


def is_done(job: Job) -> bool:
    """Whether a video's folder has its record, every frame that is in that, and every picture of the job.

    An empty frame, as a power cut can leave one, isn't there.
    """
    if (rows := read_record(job.folder)) is None:
        return False
    with os.scandir(job.folder) as entries:
        files = {entry.name for entry in entries if entry.stat().st_size > 0}
    there = {Path(row["file_name"]).name for row in rows} <= files
    pictures = {still.frame for still in job.paths} if is_still(job) else set()
    return there and pictures <= {row["frame"] for row in rows}


def read_record(folder: Path) -> list[dict] | None:
    """The lines of metadata of a video that is done, None where they are not there or damaged."""
    keys = {"file_name": str, "video": str, "frame": int}
    try:
        rows = json.loads((folder / RECORD).read_bytes())
        whole = all(isinstance(row[key], kind) for row in rows for key, kind in keys.items())
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return rows if whole else None


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
    """Write a clip's frames, or a video's pictures, and their record: their folder appears whole."""
    if job.folder.exists() and not (job.folder / RECORD).exists():
        return failed(job, f"{shown(job.folder)} is in the way, and no extraction's; take another --out")
    video = job.folder.name
    take, past_end, rows, errors = take_stills if is_still(job) else take_frames, 0, [], []
    job.folder.parent.mkdir(exist_ok=True)
    try:
        # To wait for the disk after each clip would take as long as the clips; see is_done.
        with write_whole(job.folder, sync=False) as part:
            part.mkdir()
            for frame, milliseconds, size in take(job, part, errors):
                if frame is None:
                    past_end += 1
                    continue
                row = {"file_name": f"{video}/{frame_name(video, frame)}", "video": video, "frame": frame}
                row |= {"timestamp_ms": milliseconds, "width": size[0], "height": size[1]}
                rows.append(row | job.labels)
            if errors and not rows:
                raise UserError(errors[0])
            (part / RECORD).write_text(json.dumps(rows))
            if job.folder.exists():  # it has lost frames, or its record is damaged
                remove_whole(job.folder)
    except MemoryError:
        return failed(job, "too little memory for it")
    except UserError as error:
        return Outcome(errors=tuple(errors or [shown(str(error))]))
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
            path = folder / frame_name(job.folder.name, index + 1)
            size = save_jpeg(Image.fromarray(array), job.short_side, path, job.paths[0])
            yield index + 1, clip.milliseconds(index), size


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


def write_metadata(out: Path, labels: dict):
    """Put each split's metadata.jsonl together from the clips that are done, with the labels this run has."""
    with holding(out / LOCK, shown(out), wait=True):
        rows_of = {split: read_records(out / split, labels) for split in SPLITS}
        for name in ATTRIBUTES:
            # imagefolder can't load a split where a column is null throughout, and not so in the other
            bare = [rows for rows in rows_of.values() if all(row.get(name) is None for row in rows)]
            if len(bare) == 1:
                for row in bare[0]:
                    row[name] = UNDEFINED
        for split, rows in rows_of.items():
            path = out / split / "metadata.jsonl"
            if rows:
                remove_leftovers(path.parent, names=[path.name])
                with write_whole(path) as part:
                    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
            else:  # an empty one would fail to load
                path.unlink(missing_ok=True)


def read_records(folder: Path, labels: dict) -> list[dict]:
    """The lines of metadata of all videos of a split that are done, by name; damaged ones are named."""
    rows = []
    for record in folder.glob(f"[!.]*/{RECORD}"):
        if (read := read_record(record.parent)) is None:
            print(f"{shown(record)}: damaged, so its frames are in no metadata; extract that video again")
        else:
            rows += [row | labels.get(row["video"], {}) for row in read]
    return sorted(rows, key=lambda row: row["file_name"])


if __name__ == "__main__":
    main()
