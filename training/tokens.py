"""Tokens of frames, computed once for a tokenizer and a list of frames, and examples made of them."""

import hashlib
import io
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Literal, NamedTuple

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
    content_fingerprint,
    evaluation_loader,
    list_frames,
    to_unit_range,
)
from errors import UserError
from files import holding, remove_leftovers, write_whole
from models.sampling import MASK_SCHEDULES
from models.storage import fingerprint, load_tokenizer
from training.config import GeneratorConfig
from training.precision import Precision, computing_in
from training.speed import compile_for

UNLABELLED = (None, "undefined")  # BDD100K's names for it
AT_ONCE = 128  # images on a device, where training.device_batch_size is "auto"
CHUNK = 1024  # frames to a file while tokens are computed; what an interruption loses at most
BROKEN = -1  # in the place of the codes of a frame that can't be read


class TokenCache:
    """The codes of frames by a tokenizer, in a folder under `cache` whose name has a key of both.

    `tokenizer` is a run, a model folder or a Hub id; the key is of its weights, the frames' files (see
    data.frames.content_fingerprint), how they are cut to the image (`resize`, see data.frames.cut),
    whether they are there flipped too, and of the `precision`. The codes are computed chunk by chunk, each a
    file, by any number of processes on machines that share the folder, and put together when no chunk is
    missing.
    """

    def __init__(
        self,
        tokenizer: str | Path,
        split_folder: str | Path,
        frames: list[Frame],
        cache: str | Path,
        resize: str = "short_side",
        flip: bool = True,
        precision: Precision = "fp32",
    ):
        self.tokenizer = tokenizer
        self.flip = flip
        self.precision = precision
        self.resize = resize
        self.split_folder = split_folder
        self.frames = frames
        self.weights = fingerprint(tokenizer)
        content = [self.weights, content_fingerprint(split_folder, frames), resize, flip, precision]
        key = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]
        self.folder = Path(cache) / f"{Path(tokenizer).name}-{Path(split_folder).name}-{key}"
        self.chunks = [range(len(frames))[start : start + CHUNK] for start in range(0, len(frames), CHUNK)]

    @property
    def is_whole(self) -> bool:
        """Whether all codes are there and put together."""
        return (self.folder / "tokens.json").exists()

    @property
    def sha256(self) -> str:
        """SHA-256, in hex, of the file of all codes, which is there."""
        return json.loads((self.folder / "tokens.json").read_text())["tokens_sha256"]

    def missing(self, *parts: tuple[int, int]) -> list[range]:
        """The chunks of frames' places that aren't there, of part (i, n) of part (i, n) … of all."""
        chunks = [] if self.is_whole else self.chunks
        for index, count in parts:
            chunks = chunks[index::count]
        return [chunk for chunk in chunks if _load_array(self._path(chunk)) is None]

    def compute(
        self,
        accelerator: Accelerator,
        batch_size: int | Literal["auto"],
        workers: int,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        """Compute the missing chunks of shard (i, n), each process its share; returns when all are done.

        Chunks that are done stay, wherever it is interrupted.
        """
        if accelerator.is_main_process and self.folder.exists():
            remove_leftovers(self.folder)
        chunks = self.missing(shard, (accelerator.process_index, accelerator.num_processes))
        if chunks:
            shown = accelerator.is_main_process
            frames = [self.frames[place] for chunk in chunks for place in chunk]
            seen = 0
            parts = []
            for codes in self._codes(frames, accelerator.device, batch_size, workers, shown):
                parts.append(codes)
                seen += len(codes)
                while chunks and seen >= len(chunks[0]):
                    chunk, together = chunks.pop(0), np.concatenate(parts)
                    _save_array(self._path(chunk), together[: len(chunk)])
                    parts, seen = [together[len(chunk) :]], seen - len(chunk)
        accelerator.wait_for_everyone()

    def finish(self, device: torch.device, workers: int) -> None:
        """Make one file of all chunks, and look again for the frames that could not be read.

        That may have been a disk's bad moment. What is left of the chunks goes.
        """
        if not self.is_whole:
            self._save(np.concatenate([_load_array(self._path(chunk)) for chunk in self.chunks]))
        remove_leftovers(self.folder, alone=True)
        for chunk in self.chunks:
            self._path(chunk).unlink(missing_ok=True)
        tokens = self._load()
        broken = np.flatnonzero(tokens[:, 0, 0] == BROKEN)
        if len(broken):
            frames = [self.frames[place] for place in broken]
            codes = np.concatenate(list(self._codes(frames, device, "auto", workers, shown=False)))
            if (codes != BROKEN).any():
                tokens = np.array(tokens)
                tokens[broken] = codes
                self._save(tokens)

    def load(self, strict: bool = False) -> tuple[np.ndarray, list[Frame], list[str]]:
        """Codes int32 (N, V, K) of each frame's centre square as it is and, if `flip`, flipped; the N frames.

        Frames that could not be read are left out; the third value has their paths. Raises UserError where
        there are any and `strict`, where no frame could be read, and where the file is damaged.
        """
        tokens = self._load()
        good = tokens[:, 0, 0] != BROKEN
        if good.all():
            return tokens, self.frames, []
        broken = [f"{self.split_folder}/{self.frames[place].file_name}" for place in np.flatnonzero(~good)]
        if not good.any():
            raise UserError(f"{self.split_folder}: none of its {len(self.frames)} frames can be read")
        if strict:
            raise UserError(f"{broken[0]}: not readable as a picture")
        return tokens[good], [frame for frame, is_good in zip(self.frames, good) if is_good], broken

    @torch.no_grad()
    def _codes(
        self,
        frames: list[Frame],
        device: torch.device,
        batch_size: int | Literal["auto"],
        workers: int,
        shown: bool,
    ) -> Iterator[np.ndarray]:
        """The frames' codes int32 (n, V, K) in batches; BROKEN where one can't be read."""
        batch_size = AT_ONCE if batch_size == "auto" else batch_size
        tokenizer = load_tokenizer(self.tokenizer).to(device)
        flips = (False, True) if self.flip else (False,)
        compile_for(len(flips) * len(frames), tokenizer)
        dataset = FrameDataset(self.split_folder, frames, tokenizer.image_size, self.resize)
        bar = tqdm(total=len(frames), desc=f"tokens of {self.split_folder}", unit="frame", disable=not shown)
        for start, batch in enumerate(evaluation_loader(dataset, batch_size, workers)):
            first = start * batch_size
            size = min(batch_size, len(frames) - first), len(flips), tokenizer.num_tokens
            codes = np.full(size, BROKEN, np.int32)
            if len(batch.indices):
                images = to_unit_range(batch.images, device)
                with computing_in(self.precision, device):
                    views = [tokenizer.encode(images.flip(-1) if flipped else images) for flipped in flips]
                codes[batch.indices.numpy() - first] = torch.stack(views, dim=1).cpu().numpy()
            bar.update(len(codes))
            yield codes
        bar.close()

    def _save(self, tokens: np.ndarray) -> None:
        """Write tokens.npy and, when it is there, tokens.json, which has its SHA-256."""
        broken = np.flatnonzero(tokens[:, 0, 0] == BROKEN)
        _save_array(self.folder / "tokens.npy", tokens)
        record = {
            "tokenizer": str(self.tokenizer),
            "tokenizer_sha256": self.weights,
            "precision": self.precision,
            "frames": str(self.split_folder),
            "num_frames": len(tokens) - len(broken),
            "broken": [self.frames[place].file_name for place in broken],
            "tokens_sha256": file_sha256(self.folder / "tokens.npy"),
        }
        with write_whole(self.folder / "tokens.json") as part:
            part.write_text(json.dumps(record, indent=2))

    def _load(self) -> np.ndarray:
        path = self.folder / "tokens.npy"
        try:
            if file_sha256(path) != self.sha256:
                raise ValueError("it is not what was written")
            return np.load(path, mmap_mode="r")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: damaged ({error}); remove {self.folder}, and its tokens are computed again"
            ) from error

    def _path(self, chunk: range) -> Path:
        return self.folder / f"frames_{chunk.start:08d}_{chunk.stop:08d}.npy"


def token_caches(config: GeneratorConfig) -> dict[str, TokenCache]:
    """Those of a generator's training and validation frames, by split."""
    data, caches = config.data, {}
    for split, subset in (("train", data.train), ("val", data.val)):
        frames = list_frames(data.frames, split, **subset.model_dump())
        folder = Path(data.frames) / split
        flip = data.flip and split == "train"
        caches[split] = TokenCache(
            config.tokenizer, folder, frames, data.tokens, data.resize, flip, data.precision
        )
    return caches


def cached_tokens(
    accelerator: Accelerator,
    cache: TokenCache,
    batch_size: int | Literal["auto"],
    workers: int,
    strict: bool = False,
) -> tuple[np.ndarray, list[Frame]]:
    """The cache's codes and their frames; first, all processes compute what is missing, each its share.

    Frames that could not be read are left out, and named. Of several trainings that want the same tokens one
    computes them, and the others wait.
    """
    with ExitStack() as held:
        if accelerator.is_main_process:
            cache.folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(holding(cache.folder / ".lock", str(cache.folder), wait=True))
        accelerator.wait_for_everyone()
        if not cache.is_whole:
            cache.compute(accelerator, batch_size, workers)
        if accelerator.is_main_process:
            cache.finish(accelerator.device, workers)
        accelerator.wait_for_everyone()
    tokens, frames, broken = cache.load(strict)
    if accelerator.is_main_process:
        name_skipped(broken)
    return tokens, frames


def name_skipped(broken: list[str]) -> None:
    """Say on stderr which frames could not be read, if any."""
    if broken:
        listed = ", ".join(broken[:5]) + (", …" if len(broken) > 5 else "")
        print(f"{len(broken)} frames could not be used and were skipped: {listed}", file=sys.stderr)


def _save_array(path: Path, array: np.ndarray) -> None:
    """Write an array whole, with its SHA-256 behind it, which np.load passes over."""
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()  # into a file of its own numpy writes what fits on the disk, and says nothing
    np.save(buffer, array)
    with write_whole(path) as part:
        part.write_bytes(buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest())


def _load_array(path: Path) -> np.ndarray | None:
    """The array of _save_array, or None where there is none, or a damaged one."""
    if not path.exists():
        return None
    content = path.read_bytes()
    whole = hashlib.sha256(content[:-32]).digest() == content[-32:]
    return np.load(io.BytesIO(content)) if whole else None


def file_sha256(path: Path) -> str:
    """SHA-256, in hex, of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TokenBatch(NamedTuple):
    """Token sequences, which of their tokens are hidden, and what is told of their images."""

    codes: Tensor  # int64 (B, K)
    mask: Tensor  # bool (B, K), True is to be predicted
    conditions: Tensor  # int64 (B, C), 0 is absent


class TokenDataset(Dataset):
    """Masked token sequences from tokens (N, V, K), where `flip` with V = 2, and conditions int64 (N, C).

    The flip, the share masked (MaskGIT, section 3.3: at least one token), which tokens those are, and which
    conditions are dropped come from a random generator fixed by the seed, the pass and the frame. With
    probability `condition_dropout` a sequence has none of its conditions, otherwise each is dropped with
    that probability: the generator learns to do without any of them, and without all, as guidance needs it.

    absent: of an elastic tokenizer, the code of a token that isn't there. Of half of the sequences then only
    the first tokens are, and the others neither seen nor predicted.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        conditions: np.ndarray,
        schedule: str,
        seed: int,
        flip: bool,
        condition_dropout: float,
        absent: int | None = None,
    ):
        self.tokens = tokens
        self.conditions = conditions
        self.schedule = schedule
        self.seed = seed
        self.flip = flip
        self.condition_dropout = condition_dropout
        self.absent = absent

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, draw: Draw) -> TokenBatch:
        """One sequence: codes (K,), mask (K,) and conditions (C,)."""
        rng = np.random.default_rng([self.seed, draw.epoch, draw.index])
        codes = self.tokens[draw.index, int(self.flip and rng.random() < 0.5)]
        masked = max(1, round(len(codes) * MASK_SCHEDULES[self.schedule](rng.random())))
        mask = rng.permutation(len(codes)) < masked
        conditions = self.conditions[draw.index]
        dropped = rng.random(1 + len(conditions)) < self.condition_dropout
        conditions = np.where(dropped[0] | dropped[1:], 0, conditions)
        codes = codes.astype(np.int64)
        if self.absent is not None and rng.random() < 0.5:
            length = rng.integers(1, len(codes) + 1)
            codes[length:] = self.absent
            masked = max(1, round(length * masked / len(codes)))
            mask = np.append(rng.permutation(length) < masked, np.zeros(len(codes) - length, dtype=bool))
        return TokenBatch(torch.from_numpy(codes), torch.from_numpy(mask), torch.from_numpy(conditions))


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
