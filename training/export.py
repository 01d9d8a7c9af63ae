"""Tokens of frames written as a dataset, which training.exported reads."""

import hashlib
import json
import os
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import torch

from data.frames import read_metadata
from data.token_files import COLUMNS, FORMATS, TokenFile, smallest_dtype
from errors import UserError
from files import holding, remove_leftovers, remove_whole, write_whole
from models.storage import load_tokenizer
from training.card import shareable
from training.config import GeneratorConfig
from training.dataset_card import tokens_in_bytes, write_dataset_card
from training.tokens import TokenCache, file_sha256, name_skipped

FRAMES_A_FILE = 4096  # at most, where a clip has no more
RECORD = "tokens.json"  # in a dataset's folder: what its tokens are of, and its files
DATA = "data"  # there: the files
# What is recorded: of the tokenizer, and of a config's data that decides what its tokens are
NETWORK = ("kind", "image_size", "num_tokens", "codebook_size")
SETTINGS = ("resize", "precision", "flip")
ABOUT = ("tokenizer", "tokenizer_sha256", *NETWORK, *SETTINGS, "format")


def export_tokens(
    config: GeneratorConfig,
    caches: dict[str, TokenCache],
    folder: Path,
    kind: str,
    device: torch.device,
    workers: int,
) -> str:
    """Write the tokens of caches with no chunk missing as a dataset; returns a line about it.

    kind: one of FORMATS. The files come one by one into a hidden folder, which takes its name when all are
    there: so a dataset is there whole or not at all, and the same call goes on where one was interrupted.
    Raises UserError where the folder holds anything else.
    """
    for cache in caches.values():
        with holding(cache.folder / ".lock", str(cache.folder), wait=True):
            cache.finish(device, workers)
    tokens = {split: cache.load(config.data.strict) for split, cache in caches.items()}
    rows = {split: _rows(config.data.frames, split, cache) for split, cache in caches.items()}
    record = _record(config, caches, rows, kind)
    folder.mkdir(parents=True, exist_ok=True)
    with holding(folder / ".lock", str(folder), wait=True):
        if not _is_there(folder, record):
            part = folder / f".{DATA}-{record['sha256'][:12]}"
            remove_leftovers(folder, alone=True)
            for other in set(folder.glob(f".{DATA}-*")) - {part}:  # whose tokens are no longer asked for
                remove_whole(other)
            part.mkdir(exist_ok=True)
            remove_leftovers(part, alone=True)
            record["splits"] = {
                split: _write_split(part, split, *tokens[split][:2], rows[split], record) for split in tokens
            }
            with write_whole(folder / RECORD) as path:
                path.write_text(json.dumps(record, indent=2) + "\n")
            write_dataset_card(folder, record)
            os.replace(part, folder / DATA)
    for *_, broken in tokens.values():
        name_skipped(broken)
    return _summary(folder)


def _rows(frames: str, split: str, cache: TokenCache) -> dict[str, dict]:
    """What is told of each of a cache's frames, by file name, clip by clip in order of time."""
    names, rows = {frame.file_name for frame in cache.frames}, {}
    for frame, line in read_metadata(frames, split):
        if frame.file_name in names:
            row = {name: line.get(name) for name in COLUMNS}
            if not (isinstance(row["video"], str) and isinstance(row["frame"], int)):
                raise UserError(
                    f"{frames}/{split}/metadata.jsonl: tells no video and frame of {frame.file_name}; "
                    f"extract again"
                )
            rows[frame.file_name] = row
    return dict(sorted(rows.items(), key=lambda item: (item[1]["video"], item[1]["frame"], item[0])))


def _record(
    config: GeneratorConfig, caches: dict[str, TokenCache], rows: dict[str, dict[str, dict]], kind: str
) -> dict:
    """What a dataset is of. `sha256` is of all that decides its files' content."""
    tokenizer = load_tokenizer(config.tokenizer)
    record = {"tokenizer": shareable(config.tokenizer), "tokenizer_sha256": caches["train"].weights}
    record |= {name: getattr(tokenizer, name) for name in NETWORK}
    record |= {name: getattr(config.data, name) for name in SETTINGS} | {"format": kind}
    content = [record, rows, [cache.sha256 for cache in caches.values()]]
    return record | {"sha256": hashlib.sha256(json.dumps(content).encode()).hexdigest()}


def _is_there(folder: Path, record: dict) -> bool:
    """Whether a folder has the dataset. Raises UserError where it has another one, or something else."""
    visible = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if visible and RECORD not in visible:
        raise UserError(f"{folder}: holds {visible[0]}, and is no dataset of tokens; take another --export")
    if DATA not in visible:
        return False
    if read_record(folder)["sha256"] != record["sha256"]:
        raise UserError(
            f"{folder}: has other tokens (of another tokenizer, frames or settings, or in another format); "
            f"take another --export, or remove it"
        )
    return True


def read_record(folder: Path) -> dict:
    """What is recorded of a dataset. Raises UserError where the folder holds none, or none that is whole."""
    try:
        record = json.loads((folder / RECORD).read_text())
        if not (folder / DATA).is_dir() or not {"sha256", "splits", *ABOUT} <= record.keys():
            raise ValueError
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{folder}: no dataset of tokens, or none that is whole; make it with pretokenize.py --export"
        ) from error
    return record


def _write_split(
    part: Path, split: str, tokens: np.ndarray, frames: list, rows: dict[str, dict], record: dict
) -> dict:
    """Write a split's missing files; returns what is recorded of it."""
    suffix, write, _ = FORMATS[record["format"]]
    places = {frame.file_name: place for place, frame in enumerate(frames)}
    broken = [row for name, row in rows.items() if name not in places]
    files = _whole_clips([row for name, row in rows.items() if name in places])
    about = {name: record[name] for name in ("tokenizer", "tokenizer_sha256")}
    first, hashes = 0, {}
    for number, of_file in enumerate(files):
        path = part / f"{split}-{number:05d}-of-{len(files):05d}{suffix}"
        if not path.exists():
            codes = tokens[[places[row["file_name"]] for row in of_file]]
            codes = codes.astype(smallest_dtype(record["codebook_size"]))
            with write_whole(path) as whole:
                write(whole, TokenFile(of_file, codes, about, first))
        hashes[path.name] = file_sha256(path)
        first += len(of_file)
    return {"frames": first, "files": hashes, "broken": broken}


def _whole_clips(rows: list[dict]) -> list[list[dict]]:
    """The rows, a list for each file: as many clips as make no more than FRAMES_A_FILE, at least one."""
    files = []
    for _, clip in groupby(rows, key=itemgetter("video")):
        clip = list(clip)
        if not files or len(files[-1]) + len(clip) > FRAMES_A_FILE:
            files.append([])
        files[-1] += clip
    return files


def _summary(folder: Path) -> str:
    """How many frames a dataset has, and what one takes."""
    record = read_record(folder)
    frames = sum(split["frames"] for split in record["splits"].values())
    size = sum(path.stat().st_size for path in (folder / DATA).iterdir())
    flipped = f", {record['splits']['train']['frames']:,} of them flipped, too" if record["flip"] else ""
    return (
        f"{folder}: {frames:,} frames{flipped}; a frame is {tokens_in_bytes(record)}, and takes "
        f"{size / frames:,.0f} bytes on disk with all that is told of it"
    )
