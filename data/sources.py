"""Clips and pictures in folders: which there are, which split each belongs to, and which are chosen."""

import argparse
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
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
LIMIT_SALT = b"driving-tokens/limit"  # for splits by hash, of which a limit would else take val first
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
    key: str  # what a split by hash goes by: the same for all that is of one video
    paths: list[Path | Still]  # one clip, or pictures


def find_sources(args: argparse.Namespace) -> list[Source]:
    """Every clip under `--videos` or picture under `--images`, split by folder or by a hash of its name.

    Hidden files and folders and `--out` are left out, linked folders are followed. Raises UserError where
    there are none, or where pictures are in `--out` itself.
    """
    root = args.videos or args.images
    suffixes, kind = (CLIPS, "clips") if args.videos else (PICTURES, "pictures")
    if not root.is_dir():
        raise UserError(f"{shown(root)}: no such folder")
    if args.images and root.resolve().is_relative_to(os.path.realpath(args.out)):
        raise UserError(f"--out {shown(args.out)}: the pictures themselves are in it; take another")
    folders = [split for split in SPLITS if (root / split).is_dir()]
    if args.val_fraction is None and not folders:
        args.val_fraction = VAL_FRACTION
        share = f"{VAL_FRACTION:.0%} of its {kind}"
        print(f"{shown(root)}: no train/ or val/, so {share} go to val (--val-fraction)")
    name_all = name_clips if args.videos else name_pictures
    if args.val_fraction is None:
        by_split = {split: files_under(root / split, suffixes, args.out) for split in folders}
        check_apart(by_split)
        if (root / "test").is_dir():
            print(f"{shown(root / 'test')} is left out; with --val-fraction it would be split like the rest")
        sources = name_all({path: (split, root / split) for split in folders for path in by_split[split]})
    else:
        sources = name_all(dict.fromkeys(files_under(root, suffixes, args.out), ("", root)))
        sources = split_by_hash(sources, args.val_fraction, root)
    if not sources:
        raise UserError(f"{shown(root)}: no {kind} in it ({', '.join(suffixes)})")
    return sources


def files_under(root: Path, suffixes: tuple[str, ...], out: Path) -> list[Path]:
    """The files of these suffixes in a folder and the folders in it, but for hidden ones and those in `out`.

    A link to nothing counts: it is a broken file, to be named.
    """
    found = []
    for folder, names in walk(root, out):
        paths = (folder / name for name in sorted(names) if not name.startswith("."))
        paths = (path for path in paths if path.suffix.lower() in suffixes)
        found += [path for path in paths if os.path.isfile(path) or not os.path.exists(path)]
    return found


def walk(root: Path, out: Path) -> Iterator[tuple[Path, list[str]]]:
    """A folder and all in it, each with the names of its files, but for hidden ones and `out`.

    Linked folders come last, so that none is seen by a link that is there itself; none is seen twice, and
    links to what the folder is in are not followed.
    """
    seen = set(root.resolve().parents) | {Path(os.path.realpath(out))} - {root.resolve()}
    tops = [root]
    while tops:
        links = []
        for top in tops:
            for place, folders, files in os.walk(top, onerror=say_left_out):
                folder = Path(place)
                if (real := folder.resolve()) in seen:
                    folders.clear()
                    continue
                seen.add(real)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                links += [folder / name for name in folders if (folder / name).is_symlink()]
                yield folder, files
        tops = links


def say_left_out(error: OSError):
    print(f"{shown(error.filename)} is left out: {error.strerror}")


def check_apart(by_split: dict[str, list[Path]]):
    """Raise UserError where links lead from both splits to the same folder."""
    seen = {}
    for split, paths in by_split.items():
        for folder in sorted({path.parent for path in paths}):
            other = seen.setdefault(folder.resolve(), (split, folder))
            if other[0] != split:
                raise UserError(f"{shown(folder)}: the same folder as {shown(other[1])}, in another split")


def name_clips(paths: dict[Path, tuple[str, Path]]) -> list[Source]:
    """A source for each clip, by its split and the folder that was searched. Raises UserError on twins."""
    called, by_name = Counter(safe_name(path.stem) for path in paths), {}
    for path, (split, _) in paths.items():
        name, key = safe_name(path.stem), path.stem
        if called[name] > 1:
            name = safe_name(without_raw_bytes(key))
        other = by_name.setdefault(name, Source(split, name, key, key, [path])).paths[0]
        if other != path:
            raise UserError(f"{shown(path)}: named like {shown(other)}; rename one of them")
    return list(by_name.values())


def name_pictures(paths: dict[Path, tuple[str, Path]]) -> list[Source]:
    """A source for each picture, or for those of one video that lie in a folder of its name.

    A picture is called by its name without suffix; where several are called so, by its whole path.
    """
    called = Counter(safe_name(path.stem) for path in paths)
    sources, taken = {}, {}
    for path, (split, root) in paths.items():
        numbered = re.fullmatch(r"(.+)-([0-9]{7})", path.stem, re.DOTALL)
        # X/X-0000301.jpg: BDD100K's, and our own; the root may be "."
        if numbered and numbered[1] == (root.resolve() if path.parent == root else path.parent).name:
            video, still = numbered[1], Still(path, int(numbered[2]))
        elif STILL.fullmatch(path.stem):
            video, still = path.stem, Still(path, STILL_FRAME, STILL_MILLISECONDS)
        else:
            video, still = None, Still(path)
        name = video or path.stem
        if called[safe_name(path.stem)] > 1:
            below = path.relative_to(root)
            name = without_raw_bytes(f"{below.with_suffix('')}_{path.suffix[1:]}".replace(os.sep, "_"))
        key, name = video or name, safe_name(name)
        # not across splits: the pictures of each may be numbered from 1
        other = taken.setdefault((split, name, still.frame), path)
        if other is not path:
            raise UserError(f"{shown(path)}: would be called like {shown(other)}; rename one of them")
        source = Source(split, name, video_name(path.name), key, [])
        sources.setdefault((split, name), source).paths.append(still)
    return list(sources.values())


def without_raw_bytes(name: str) -> str:
    """A name with each byte that is no UTF-8, which in a safe name would be like any other, as `_e9`."""
    return re.sub("[\udc80-\udcff]", lambda byte: f"_{ord(byte[0]) - 0xDC00:02x}", name)


def safe_name(name: str) -> str:
    """A name as valid UTF-8, and short enough for frames' names to have it in them."""
    valid = os.fsencode(name).decode("utf-8", "replace")
    if len(valid.encode()) <= LONGEST:
        return valid
    end = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return f"{valid.encode()[:LONGEST].decode(errors='ignore')}-{end}"


def split_by_hash(sources: list[Source], val_fraction: float, root: Path) -> list[Source]:
    """The sources in the splits that their keys' hashes give, at least one in each that is to have any."""
    ordered = sorted({source.key for source in sources}, key=name_hash)
    count = sum(name_hash(key) < val_fraction for key in ordered)
    if 0 < val_fraction < 1 and len(ordered) == 1:
        print(f"{shown(root)}: holds {shown(ordered[0])} only, so one of train and val stays empty")
    elif 0 < val_fraction < 1 and ordered:
        count = min(max(count, 1), len(ordered) - 1)
    in_val = set(ordered[:count])
    return [source._replace(split=SPLITS[source.key in in_val]) for source in sources]


def name_hash(name: str | Path, salt: bytes = SALT) -> float:
    """A number from 0 to 1 that looks random and depends on the name, without folders and suffix, alone."""
    name = os.fsencode(name.stem if isinstance(name, Path) else name)
    return int.from_bytes(hashlib.blake2b(name, key=salt, digest_size=8).digest()) / 2**64


def choose_sources(sources: list[Source], labels: dict, args: argparse.Namespace) -> list[Source]:
    """What the filters, `--limit` and `--shard` leave, ordered by hash: a limit takes a sample."""
    kind = "clips" if args.videos else "pictures"
    if args.labels:
        print(f"{sum(each.label in labels for each in sources)} of {len(sources)} {kind} are labelled")
    for name in ATTRIBUTES:
        if (wanted := getattr(args, name)) is None:
            continue
        known = sorted({label[name] for label in labels.values()} - {None})
        if unknown := set(wanted) - set(known):
            there = ", ".join(known) or ("nothing" if args.labels else "nothing without --labels")
            raise UserError(f"--{name} {','.join(sorted(unknown))}: there is {there}")
        sources = [each for each in sources if labels.get(each.label, {}).get(name) in wanted]
    if not sources:
        raise UserError(f"{shown(args.videos or args.images)}: no {kind[:-1]} is labelled as asked")
    index, count = args.shard
    salt = SALT if args.val_fraction is None else LIMIT_SALT
    sources = sorted(sources, key=lambda each: (name_hash(each.key, salt), each.name))
    return sources[: args.limit][index::count]
