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

from data.frames import (
    Draw,
    Frame,
    FrameDataset,
    evaluation_loader,
    frames_fingerprint,
    list_frames,
    to_unit_range,
)
from errors import UserError
from models.sampling import MASK_SCHEDULES
from models.storage import fingerprint, load_tokenizer
from training.config import GeneratorConfig

UNLABELLED = (None, "undefined")  # BDD100K's names for it
CHUNK = 1024  # frames to a file while tokens are computed; what an interruption loses at most
BROKEN = -1  # in the place of the codes of a frame that can't be read


class TokenCache:
    """The codes of frames by a tokenizer, in a folder under `cache` whose name has a key of both.

    `tokenizer` is a run, a model folder or a Hub id; the key is of its weights, the frames' names, and how
    they are cut to the image (`resize`, see data.frames.cut_square). The codes are computed chunk by chunk,
    each a file, by any number of processes on machines that share the folder, and put together when no chunk
    is missing.
    """

    def __init__(
        self,
        tokenizer: str | Path,
        split_folder: str | Path,
        frames: list[Frame],
        cache: str | Path,
        resize: str = "short_side",
    ):
        self.tokenizer = tokenizer
        self.resize = resize
        self.split_folder = split_folder
        self.frames = frames
        self.weights = fingerprint(tokenizer)
        content = f"{self.weights} {frames_fingerprint(frames)}"
        content += "" if resize == "short_side" else f" {resize}"  # as it was before there was another
        key = hashlib.sha256(content.encode()).hexdigest()[:12]
        self.folder = Path(cache) / f"{Path(tokenizer).name}-{Path(split_folder).name}-{key}"
        self.chunks = [range(len(frames))[start : start + CHUNK] for start in range(0, len(frames), CHUNK)]

    @property
    def is_whole(self) -> bool:
        """Whether all codes are there and put together."""
        return (self.folder / "tokens.npy").exists()

    def missing(self, index: int = 0, count: int = 1) -> list[range]:
        """The chunks of frames' places that aren't there, of each `count`-th from `index` on."""
        if self.is_whole:
            return []
        return [chunk for chunk in self.chunks[index::count] if not self._path(chunk).exists()]

    def compute(
        self, accelerator: Accelerator, batch_size: int, workers: int, shard: tuple[int, int] = (0, 1)
    ) -> None:
        """Compute the missing chunks of shard (i, n), each process its share; returns when all are done.

        Chunks that are done stay, wherever it is interrupted.
        """
        index, count = shard
        processes = accelerator.num_processes
        chunks = self.missing(index * processes + accelerator.process_index, count * processes)
        if chunks:
            self._compute(chunks, accelerator, batch_size, workers)
        accelerator.wait_for_everyone()

    @torch.no_grad()
    def _compute(self, chunks: list[range], accelerator: Accelerator, batch_size: int, workers: int) -> None:
        device = accelerator.device
        self.folder.mkdir(parents=True, exist_ok=True)
        tokenizer = load_tokenizer(self.tokenizer).to(device)
        frames = [self.frames[place] for chunk in chunks for place in chunk]
        dataset = FrameDataset(self.split_folder, frames, tokenizer.image_size, self.resize)
        tokens = np.full((len(frames), 2, tokenizer.num_tokens), BROKEN, dtype=np.int32)
        seen = begin = 0
        bar = tqdm(
            total=len(frames),
            desc=f"tokens of {self.split_folder}",
            unit="frame",
            disable=not accelerator.is_main_process,
        )
        for batch in evaluation_loader(dataset, batch_size, workers):
            if len(batch.indices):
                images = to_unit_range(batch.images, device)
                codes = torch.stack([tokenizer.encode(images), tokenizer.encode(images.flip(-1))], dim=1)
                tokens[batch.indices.numpy()] = codes.cpu().numpy()
            seen = min(seen + batch_size, len(frames))
            bar.update(seen - bar.n)
            while chunks and begin + len(chunks[0]) <= seen:
                chunk = chunks.pop(0)
                _save_array(self._path(chunk), tokens[begin : begin + len(chunk)])
                begin += len(chunk)
        bar.close()

    def put_together(self) -> None:
        """Make one file of all chunks. Broken frames are left out, and named in tokens.json."""
        tokens = np.concatenate([np.load(self._path(chunk)) for chunk in self.chunks])
        broken = tokens[:, 0, 0] == BROKEN
        record = {
            "tokenizer": str(self.tokenizer),
            "tokenizer_sha256": self.weights,
            "frames": str(self.split_folder),
            "num_frames": int((~broken).sum()),
            "broken": [self.frames[index].file_name for index in np.flatnonzero(broken)],
        }
        part = self.folder / "tokens.json.part"
        part.write_text(json.dumps(record, indent=2))
        os.replace(part, self.folder / "tokens.json")
        _save_array(self.folder / "tokens.npy", tokens[~broken])
        for chunk in self.chunks:
            self._path(chunk).unlink()

    def load(self) -> tuple[np.ndarray, list[Frame]]:
        """Codes int32 (N, 2, K), of each frame's centre square as it is and flipped; and the N frames.

        Raises UserError where no frame could be read.
        """
        tokens = np.load(self.folder / "tokens.npy", mmap_mode="r")
        if len(tokens) == 0:
            raise UserError(f"{self.split_folder}: none of its {len(self.frames)} frames can be read")
        broken = set(json.loads((self.folder / "tokens.json").read_text())["broken"])
        return tokens, [frame for frame in self.frames if frame.file_name not in broken]

    def _path(self, chunk: range) -> Path:
        return self.folder / f"frames_{chunk.start:08d}_{chunk.stop:08d}.npy"


def token_caches(config: GeneratorConfig) -> dict[str, TokenCache]:
    """Those of a generator's training and validation frames, by split."""
    data, caches = config.data, {}
    for split, subset in (("train", data.train), ("val", data.val)):
        frames = list_frames(data.frames, split, **subset.model_dump())
        folder = Path(data.frames) / split
        caches[split] = TokenCache(config.tokenizer, folder, frames, data.tokens, data.resize)
    return caches


def cached_tokens(
    accelerator: Accelerator, cache: TokenCache, batch_size: int, workers: int
) -> tuple[np.ndarray, list[Frame]]:
    """What the cache loads; first, all processes compute what is missing, each its share."""
    if not cache.is_whole:
        cache.compute(accelerator, batch_size, workers)
        if accelerator.is_main_process:
            cache.put_together()
        accelerator.wait_for_everyone()
    return cache.load()


def _save_array(path: Path, array: np.ndarray) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.save(file, array)
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
