"""Tokens that were exported as a dataset, read for training."""

import hashlib
from pathlib import Path

import numpy as np

from data.frames import Frame, choose_subset
from data.token_files import FORMATS
from errors import UserError
from training.config import GeneratorConfig
from training.export import DATA, read_record
from training.tokens import file_sha256


def exported_tokens(
    config: GeneratorConfig, tokenizer_sha256: str
) -> dict[str, tuple[np.ndarray, list[Frame], list[str]]]:
    """By split, of the dataset that `data.tokens_from` names: what TokenCache.load gives of its frames.

    The frames are those that the config chooses, in the order in which it takes them from a folder of frames.
    Raises UserError where there is no whole dataset, or its tokens aren't those that the config would have.
    """
    data, folder = config.data, Path(config.data.tokens_from)
    record = read_record(folder)
    if record["tokenizer_sha256"] != tokenizer_sha256:
        raise UserError(
            f"{folder}: its tokens are not of the tokenizer {config.tokenizer}, but of {record['tokenizer']} "
            f"with other weights; export that one's"
        )
    for name in ("resize", "precision"):
        if record[name] != getattr(data, name):
            raise UserError(
                f"{folder}: its tokens were computed with data.{name} {record[name]}, and the config says "
                f"{getattr(data, name)}; set that, or export others"
            )
    if data.flip and not record["flip"]:
        raise UserError(
            f"{folder}: has no tokens of flipped frames; set data.flip=false, or export with data.flip=true"
        )
    subsets = {"train": data.train, "val": data.val}
    splits = {
        split: _read_split(folder, split, record, subset.model_dump(), data.flip and split == "train")
        for split, subset in subsets.items()
    }
    skipped = [name for *_, names in splits.values() for name in names]
    if skipped and data.strict:
        raise UserError(f"{folder}: has no tokens of {skipped[0]}, which was not readable as a picture")
    return splits


def codes_fingerprint(codes: np.ndarray, frames: list[Frame]) -> str:
    """SHA-256, in hex, of frames' names and codes."""
    names = "\n".join(frame.file_name for frame in frames)
    return hashlib.sha256(names.encode() + b"\n" + codes.tobytes()).hexdigest()


def _read_split(
    folder: Path, split: str, record: dict, subset: dict, flip: bool
) -> tuple[np.ndarray, list[Frame], list[str]]:
    rows, parts = [], []
    for name, checksum in record["splits"][split]["files"].items():
        path = folder / DATA / name
        if not path.exists() or file_sha256(path) != checksum:
            raise UserError(f"{path}: not there or damaged; bring it back, or export again")
        told, codes = FORMATS[record["format"]].read(path)
        rows += told
        parts.append(codes[:, : 1 + flip])
    broken = record["splits"][split]["broken"]
    places = {row["file_name"]: place for place, row in enumerate(rows)}
    frames = [Frame(**{name: row[name] for name in Frame._fields}) for row in [*rows, *broken]]
    chosen = choose_subset(frames, f"{folder}, {split}", **subset)
    good = [frame for frame in chosen if frame.file_name in places]
    skipped = [f"{split}/{frame.file_name}" for frame in chosen if frame.file_name not in places]
    if not good:
        raise UserError(f"{folder}, {split}: none of its {len(chosen)} frames could be read")
    return np.concatenate(parts)[[places[frame.file_name] for frame in good]], good, skipped
