"""Clips and pictures in folders: which there are, which split each belongs to, and which are chosen."""

import argparse
import hashlib
import os
import re
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from data.bdd100k import ATTRIBUTES, video_name
from data.pictures import shown
from errors import UserError

SPLITS = ("train", "val")
VAL_FRACTION = 0.2  # where neither folders nor --val-fraction tell
CLIPS = (".mov", ".mp4", ".m4v", ".avi", ".mkv", ".webm", ".ts")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")
SALT = b"driving-tokens/clips"
LONGEST = 200  # bytes of a name, with which its folder's and its frames' are names, too
STILL = re.compile(r"[0-9a-f]{8}-[0-9a-f]{8}")  # a name of BDD100K's: its stills are the frames at 10 s
STILL_FRAME, STILL_MILLISECONDS = 301, 10_000


class Still(NamedTuple):
    """A picture, and which frame of its video it is."""

    path: Path
    frame: int = 1
    milliseconds: int | None = None


class Source(NamedTuple):
    """What becomes a folder of frames: a clip, or the pictures that are of one video."""

    split: str
    name: str  # the folder's, valid UTF-8
    label: str  # the name under which labels have it
    paths: tuple[Path | Still, ...]  # one clip, or pictures


def find_sources(args: argparse.Namespace) -> list[Source]:
    """Every clip under `--videos` or picture under `--images`, split by folder or by a hash of its name.

    Hidden files and folders are left out, linked folders are followed. Raises UserError where there are none.
    """
    root = args.videos or args.images
    suffixes, kind = (CLIPS, "clips") if args.videos else (PICTURES, "pictures")
    if not root.is_dir():
        raise UserError(f"{shown(root)}: no such folder")
    folders = [split for split in SPLITS if (root / split).is_dir()]
    if args.val_fraction is None and not folders:
        args.val_fraction = VAL_FRACTION
        share = f"{VAL_FRACTION:.0%} of its {kind}"
        print(f"{shown(root)}: no train/ or val/, so {share} go to val (--val-fraction)")
    name_all = name_clips if args.videos else name_pictures
    if args.val_fraction is None:
        by_split = {split: files_under(root / split, suffixes) for split in folders}
        if (root / "test").is_dir():
            print(f"{shown(root / 'test')} is left out; with --val-fraction it would be split like the rest")
        sources = name_all({path: (split, root / split) for split in folders for path in by_split[split]})
    else:
        sources = name_all(dict.fromkeys(files_under(root, suffixes), ("", root)))
        sources = split_by_hash(sources, args.val_fraction, root)
    if not sources:
        raise UserError(f"{shown(root)}: no {kind} in it ({', '.join(suffixes)})")
    return sources


def files_under(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files of these suffixes in a folder and the folders in it, each real folder once."""
    found, seen = [], set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if not name.startswith(".")) if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        paths = (Path(place, name) for name in sorted(files) if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in suffixes and path.is_file()]
    return found


def name_clips(paths: dict[Path, tuple[str, Path]]) -> list[Source]:
    """A source for each clip, by its split and the folder that was searched. Raises UserError on twins."""
    by_name = {}
    for path in paths:
        if by_name.setdefault(path.stem, path) != path:
            raise UserError(f"{shown(path)}: named like {shown(by_name[path.stem])}; rename one of them")
    return [Source(split, safe_name(path.stem), path.stem, (path,)) for path, (split, _) in paths.items()]


def name_pictures(paths: dict[Path, tuple[str, Path]]) -> list[Source]:
    """A source for each picture, or for those of one video that lie in a folder of its name.

    A picture is called by its name without suffix; where several are called so, by its whole path.
    """
    videos, alone = defaultdict(list), []
    for path, (split, _) in paths.items():
        video = video_name(path.stem)
        if video != path.stem and path.parent.name == video:  # X/X-0000301.jpg: BDD100K's, and our own
            videos[split, video].append(Still(path, int(path.stem[-7:])))
        else:
            alone.append(path)
    called = defaultdict(list)
    for path in alone:
        called[path.stem].append(path)
    sources = [
        Source(split, safe_name(video), video, tuple(stills)) for (split, video), stills in videos.items()
    ]
    for path in alone:
        split, root = paths[path]
        name = path.stem
        if len(called[name]) > 1:
            name = "_".join(path.relative_to(root).parts).replace(path.suffix, path.suffix.replace(".", "_"))
        still = Still(path, STILL_FRAME, STILL_MILLISECONDS) if STILL.fullmatch(path.stem) else Still(path)
        sources.append(Source(split, safe_name(name), video_name(path.stem), (still,)))
    taken = {}
    for source in sources:
        other = taken.setdefault(source.name, source)
        if other is not source:
            first, second = (shown(each.paths[0].path) for each in (other, source))
            raise UserError(f"{second}: would be called like {first}; rename one of them")
    return sources


def safe_name(name: str) -> str:
    """A name as valid UTF-8, and short enough for frames' names to have it in them."""
    name = shown(name)
    if len(name.encode()) <= LONGEST:
        return name
    end = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name.encode()[:LONGEST].decode(errors='ignore')}-{end}"


def split_by_hash(sources: list[Source], val_fraction: float, root: Path) -> list[Source]:
    """The sources in the splits that their names' hashes give, at least one in each that is to have any."""
    in_val = {source.name for source in sources if name_hash(source.name) < val_fraction}
    if 0 < val_fraction < 1 and sources:
        ordered = sorted((source.name for source in sources), key=name_hash)
        if len(ordered) == 1:
            print(f"{shown(root)}: holds {ordered[0]} only, so one of train and val stays empty")
        elif not in_val:
            in_val = {ordered[0]}
        elif len(in_val) == len(ordered):
            in_val.remove(ordered[-1])
    return [source._replace(split=SPLITS[source.name in in_val]) for source in sources]


def name_hash(name: str | Path) -> float:
    """A number from 0 to 1 that looks random and depends on the name, without folders and suffix, alone."""
    name = name.stem if isinstance(name, Path) else name
    return int.from_bytes(hashlib.blake2b(name.encode(), key=SALT, digest_size=8).digest()) / 2**64


def choose_sources(sources: list[Source], labels: dict, args: argparse.Namespace) -> list[Source]:
    """What the filters, `--limit` and `--shard` leave, ordered by hash: a limit takes a sample."""
    kind = "clips" if args.videos else "pictures"
    if labels:
        print(f"{sum(each.label in labels for each in sources)} of {len(sources)} {kind} are labelled")
    for name in ATTRIBUTES:
        if (wanted := getattr(args, name)) is None:
            continue
        known = sorted({label[name] for label in labels.values()} - {None})
        if unknown := set(wanted) - set(known):
            there = ", ".join(known) if labels else "nothing without --labels"
            raise UserError(f"--{name} {','.join(sorted(unknown))}: there is {there}")
        sources = [each for each in sources if labels.get(each.label, {}).get(name) in wanted]
    if not sources:
        raise UserError(f"{shown(args.videos or args.images)}: no {kind[:-1]} is labelled as asked")
    index, count = args.shard
    return sorted(sources, key=lambda each: name_hash(each.name))[: args.limit][index::count]
