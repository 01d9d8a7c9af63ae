"""Files of tokens, each of some frames with their codes: Parquet, and the tar files of WebDataset."""

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

# What is told of a frame, as metadata.jsonl has it
COLUMNS = {"file_name": pa.string(), "video": pa.string(), "frame": pa.int32(), "timestamp_ms": pa.int64()}
COLUMNS |= {"weather": pa.string(), "scene": pa.string(), "timeofday": pa.string()}
VIEWS = ("tokens", "tokens_flipped")  # of the frame, and of it flipped left to right


class TokenFile(NamedTuple):
    """What is in a file: frames in order, their codes, and of what tokenizer these are."""

    rows: list[dict]  # N, with COLUMNS as keys
    codes: np.ndarray  # uint16 or int32 (N, V, K), of the first V of VIEWS
    about: dict  # the same for all files of a dataset
    first: int = 0  # the first frame's place among all of its split


class Format(NamedTuple):
    """A way to write such files and to read rows and codes back."""

    suffix: str
    write: Callable[[Path, TokenFile], None]
    read: Callable[[Path], tuple[list[dict], np.ndarray]]


def smallest_dtype(codebook_size: int) -> np.dtype:
    """uint16 where that holds every code, else int32."""
    return np.dtype(np.uint16 if codebook_size <= 2**16 else np.int32)


def write_parquet(path: Path, file: TokenFile) -> None:
    """A row a frame: COLUMNS, and a list of K codes for each of VIEWS, null where there are none.

    A file's dictionary of codes makes a token take as many bits as the codebook needs. `about` is JSON in the
    schema's metadata under "tokens".
    """
    frames, views, length = file.codes.shape
    # Not lists of a fixed size: of those Arrow 24 can read no nulls
    kind = pa.list_(pa.from_numpy_dtype(file.codes.dtype))
    starts = pa.array(np.arange(0, frames * length + 1, length, dtype=np.int32))
    columns = {
        name: pa.array([row[name] for row in file.rows], column_kind) for name, column_kind in COLUMNS.items()
    }
    for place, name in enumerate(VIEWS):
        if place < views:
            flat = pa.array(file.codes[:, place].reshape(-1))
            columns[name] = pa.ListArray.from_arrays(starts, flat, type=kind)
        else:
            columns[name] = pa.nulls(frames, kind)
    table = pa.table(columns).replace_schema_metadata({"tokens": json.dumps(file.about)})
    pq.write_table(table, path, compression="zstd")


def read_parquet(path: Path) -> tuple[list[dict], np.ndarray]:
    """Rows and codes (N, V, K) of write_parquet."""
    table = pq.read_table(path)
    views = [table[name].combine_chunks() for name in VIEWS]
    codes = [view.flatten().to_numpy().reshape(len(view), -1) for view in views if not view.null_count]
    return table.select(list(COLUMNS)).to_pylist(), np.stack(codes, axis=1)


def write_tar(path: Path, file: TokenFile) -> None:
    """A sample a frame, called by its place: `.json` with COLUMNS and `about`, and an `.npy` of each view."""
    with tarfile.open(path, "w") as tar:
        for place, (row, codes) in enumerate(zip(file.rows, file.codes), start=file.first):
            members = {"json": json.dumps({name: row[name] for name in COLUMNS} | file.about).encode()}
            members |= {f"{name}.npy": _npy(view) for name, view in zip(VIEWS, codes)}
            for suffix, content in members.items():
                member = tarfile.TarInfo(f"{place:09d}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def read_tar(path: Path) -> tuple[list[dict], np.ndarray]:
    """Rows and codes (N, V, K) of write_tar."""
    rows, codes = [], []
    with tarfile.open(path) as tar:
        for member in tar:
            content = tar.extractfile(member).read()
            if member.name.endswith(".json"):
                told = json.loads(content)
                rows.append({name: told[name] for name in COLUMNS})
                codes.append([])
            else:
                codes[-1].append(np.load(io.BytesIO(content)))
    return rows, np.array(codes)


def _npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


FORMATS = {
    "parquet": Format(".parquet", write_parquet, read_parquet),
    "webdataset": Format(".tar", write_tar, read_tar),
}
