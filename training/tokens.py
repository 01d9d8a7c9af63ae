"""Tokens of frames, computed once for a tokenizer and a list of frames, and examples made of them."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from data.frames import Draw, Frame, FrameDataset, evaluation_loader, frames_fingerprint, to_unit_range
from errors import UserError
from models.sampling import MASK_SCHEDULES
from models.storage import fingerprint, load_tokenizer

UNLABELLED = (None, "undefined")  # BDD100K's names for it
CHUNK = 4096  # frames to a file while tokens are computed; what an interruption loses at most


def cached_tokens(
    accelerator: Accelerator,
    tokenizer_name: str,
    split_folder: str | Path,
    frames: list[Frame],
    cache: str | Path,
    batch_size: int,
    workers: int,
) -> tuple[np.ndarray, list[Frame]]:
    """Codes int32 (N, 2, K) of frames as they are and flipped, the centre square of each; and the N frames.

    They are kept in a folder under `cache`, whose name is keyed on the tokenizer's weights and the frames'
    names, and computed if they aren't there: chunk by chunk, over all processes, going on where it was
    interrupted. Broken frames are left out and named in tokens.json.
    """
    weights = fingerprint(tokenizer_name)
    key = hashlib.sha256(f"{weights} {frames_fingerprint(frames)}".encode()).hexdigest()[:12]
    folder = Path(cache) / f"{Path(tokenizer_name).name}-{Path(split_folder).name}-{key}"
    if not (folder / "tokens.npy").exists():
        folder.mkdir(parents=True, exist_ok=True)
        chunks = [folder / f"chunk_{start:08d}.npy" for start in range(0, len(frames), CHUNK)]
        _compute(accelerator, tokenizer_name, split_folder, frames, chunks, batch_size, workers)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            tokens = np.concatenate([np.load(chunk) for chunk in chunks])
            broken = tokens[:, 0, 0] < 0
            record = {
                "tokenizer": str(tokenizer_name),
                "tokenizer_sha256": weights,
                "frames": str(split_folder),
                "num_frames": int((~broken).sum()),
                "broken": [frames[index].file_name for index in np.flatnonzero(broken)],
            }
            _write_whole(
                folder / "tokens.json", lambda file: file.write(json.dumps(record, indent=2).encode())
            )
            _write_whole(folder / "tokens.npy", lambda file: np.save(file, tokens[~broken]))
            for chunk in chunks:
                chunk.unlink()
        accelerator.wait_for_everyone()
    tokens = np.load(folder / "tokens.npy", mmap_mode="r")
    if len(tokens) == 0:
        raise UserError(f"{split_folder}: none of its {len(frames)} frames can be read")
    broken = set(json.loads((folder / "tokens.json").read_text())["broken"])
    return tokens, [frame for frame in frames if frame.file_name not in broken]


@torch.no_grad()
def _compute(
    accelerator: Accelerator,
    tokenizer_name: str,
    split_folder: str | Path,
    frames: list[Frame],
    chunks: list[Path],
    batch_size: int,
    workers: int,
) -> None:
    """Fill this process's share of the chunks that aren't there yet; -1 stands for a broken frame."""
    tokenizer = load_tokenizer(tokenizer_name).to(accelerator.device)
    todo = [(number, path) for number, path in enumerate(chunks) if not path.exists()]
    todo = todo[accelerator.process_index :: accelerator.num_processes]
    bar = tqdm(
        total=sum(len(frames[number * CHUNK : (number + 1) * CHUNK]) for number, _ in todo),
        desc=f"tokens of {split_folder}",
        unit="frame",
        disable=not accelerator.is_main_process,
    )
    for number, path in todo:
        part = FrameDataset(split_folder, frames[number * CHUNK : (number + 1) * CHUNK], tokenizer.image_size)
        tokens = np.full((len(part), 2, tokenizer.num_tokens), -1, dtype=np.int32)
        for batch in evaluation_loader(part, batch_size, workers):
            if len(batch.indices):
                images = to_unit_range(batch.images, accelerator.device)
                codes = torch.stack([tokenizer.encode(images), tokenizer.encode(images.flip(-1))], dim=1)
                tokens[batch.indices.numpy()] = codes.cpu().numpy()
            bar.update(len(batch.indices))
        _write_whole(path, lambda file, tokens=tokens: np.save(file, tokens))
    bar.close()


def _write_whole(path: Path, write) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        write(file)
    os.replace(part, path)


class TokenBatch(NamedTuple):
    """Token sequences, which of their tokens are hidden, and what is told of their images."""

    codes: Tensor  # int64 (B, K)
    mask: Tensor  # bool (B, K), True is to be predicted
    conditions: Tensor  # int64 (B, C), 0 is absent


class TokenDataset(Dataset):
    """Masked token sequences from tokens (N, 2, K) and conditions int64 (N, C).

    The flip, the share masked (MaskGIT, section 3.3: at least one token), which tokens those are, and which
    conditions are dropped come from a random generator fixed by the seed, the pass and the frame. With
    probability `condition_dropout` a sequence has none of its conditions, otherwise each is dropped with
    that probability: the generator learns to do without any of them, and without all, as guidance needs it.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        conditions: np.ndarray,
        schedule: str,
        seed: int,
        flip: bool,
        condition_dropout: float,
    ):
        self.tokens = tokens
        self.conditions = conditions
        self.schedule = MASK_SCHEDULES[schedule]
        self.seed = seed
        self.flip = flip
        self.condition_dropout = condition_dropout

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, draw: Draw) -> TokenBatch:
        """One sequence: codes (K,), mask (K,) and conditions (C,)."""
        rng = np.random.default_rng([self.seed, draw.epoch, draw.index])
        codes = self.tokens[draw.index, int(self.flip and rng.random() < 0.5)]
        masked = max(1, round(len(codes) * self.schedule(rng.random())))
        mask = rng.permutation(len(codes)) < masked
        conditions = self.conditions[draw.index]
        dropped = rng.random(1 + len(conditions)) < self.condition_dropout
        conditions = np.where(dropped[0] | dropped[1:], 0, conditions)
        return TokenBatch(
            torch.from_numpy(codes.astype(np.int64)), torch.from_numpy(mask), torch.from_numpy(conditions)
        )


def condition_values(frames: list[Frame], names: list[str]) -> dict[str, list[str]]:
    """The values of each named attribute that some frame has, sorted. Raises UserError where none has any."""
    values = {name: sorted({getattr(frame, name) for frame in frames} - set(UNLABELLED)) for name in names}
    for name in names:
        if not values[name]:
            raise UserError(
                f"model.conditions: none of the {len(frames):,} training frames has a {name}; leave it out, "
                f"or extract the frames with --labels"
            )
    return values


def labels_fingerprint(frames: list[Frame], names: list[str]) -> str:
    """SHA-256, in hex, of the frames' values of the named attributes."""
    labels = [[getattr(frame, name) for name in names] for frame in frames]
    return hashlib.sha256(json.dumps(labels).encode()).hexdigest()


def condition_array(frames: list[Frame], values: dict[str, list[str]]) -> np.ndarray:
    """What MaskGIT is told of frames, int64 (N, C): 1 + the place of a frame's value, 0 if not among them."""
    places = {name: {value: 1 + place for place, value in enumerate(known)} for name, known in values.items()}
    rows = [[place.get(getattr(frame, name), 0) for name, place in places.items()] for frame in frames]
    return np.array(rows, dtype=np.int64).reshape(len(frames), len(values))
