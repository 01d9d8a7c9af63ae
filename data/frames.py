"""Frames on disk: which there are, which of them a subset takes, and batches of them for training."""

import hashlib
import json
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.bdd100k import ATTRIBUTES
from data.pictures import read_picture
from errors import UserError
from sizes import Size, height_and_width, in_words

SUBSET_SALT = b"driving-tokens/subset"


class Frame(NamedTuple):
    """A line of metadata.jsonl, as far as training needs it."""

    file_name: str  # relative to the split's folder
    timeofday: str | None
    weather: str | None
    scene: str | None


def list_frames(frames: str | Path, split: str, **subset: list[str] | int | None) -> list[Frame]:
    """The frames of a split that a subset takes, as choose_subset has them, in its order.

    Raises UserError where there are too few, or none.
    """
    chosen = [frame for frame, _ in read_metadata(frames, split)]
    return choose_subset(chosen, _metadata(frames, split), **subset)


def read_metadata(frames: str | Path, split: str) -> Iterator[tuple[Frame, dict]]:
    """Each frame of a split's metadata.jsonl with all that its line says. Raises UserError on a wrong one."""
    metadata = _metadata(frames, split)
    if not metadata.is_file():
        raise UserError(f"{metadata}: no frames there; make them with extract_frames.py --out {frames}")
    with metadata.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                record = json.loads(line)
                frame = Frame(record["file_name"], **{name: record.get(name) for name in ATTRIBUTES})
                words = [frame.file_name, *(value for value in frame[1:] if value is not None)]
                "".join(words).encode()  # no halves of surrogate pairs
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise UserError(f"{metadata}: line {number} is not a frame's; extract again") from error
            yield frame, record


def choose_subset(
    frames: list[Frame],
    source: str | Path,
    timeofday: list[str] | None = None,
    weather: list[str] | None = None,
    scene: list[str] | None = None,
    count: int | None = None,
) -> list[Frame]:
    """The frames that have one of each listed attribute, the first `count` of them.

    The order is by a salted hash of the file name: it is the same on every machine, looks random, and the
    order among frames stays when others are added. Raises UserError, naming the source, where there are too
    few.
    """
    wanted = {"timeofday": timeofday, "weather": weather, "scene": scene}
    wanted = {name: values for name, values in wanted.items() if values is not None}
    chosen = [
        frame for frame in frames if all(getattr(frame, name) in values for name, values in wanted.items())
    ]
    asked = ", ".join(f"{name} in {values}" for name, values in wanted.items())
    if not chosen:
        raise UserError(f"{source}: none of its {len(frames)} frames has {asked or 'a file name'}")
    if count is not None and len(chosen) < count:
        raise UserError(
            f"{source}: {len(chosen)} frames{' with ' + asked if asked else ''}, but the config's count is "
            f"{count}; extract more or lower the count"
        )
    chosen.sort(key=lambda frame: hashlib.blake2b(frame.file_name.encode(), key=SUBSET_SALT).digest())
    return chosen[:count]


def _metadata(frames: str | Path, split: str) -> Path:
    return Path(frames) / split / "metadata.jsonl"


def frames_fingerprint(frames: list[Frame]) -> str:
    """SHA-256, in hex, of the frames' names in their order."""
    return hashlib.sha256("\n".join(frame.file_name for frame in frames).encode()).hexdigest()


def content_fingerprint(folder: str | Path, frames: list[Frame], times: bool = True) -> str:
    """SHA-256, in hex, of the frames' names, the sizes of their files in `folder`, and when these changed.

    Names stay when frames are extracted anew. Without `times` it stays where files are only copied.
    """

    def stamp(frame: Frame) -> str:
        try:
            stat = (Path(folder) / frame.file_name).stat()
        except OSError:  # not there, or for a moment not to be read
            return f"{frame.file_name} -"
        return f"{frame.file_name} {stat.st_size}" + (f" {stat.st_mtime_ns}" if times else "")

    with ThreadPoolExecutor(32) as pool:  # a network disk answers many at a time
        stamps = "\n".join(pool.map(stamp, frames, chunksize=256))
    return hashlib.sha256(stamps.encode()).hexdigest()


def cut(
    image: Image.Image, size: Size, resize: str = "short_side", rng: np.random.Generator | None = None
) -> np.ndarray:
    """The middle of a picture, or a part drawn by `rng`, as uint8 (H, W, 3) of a size.

    resize: "short_side" first resizes the picture to the smallest that covers the size, so that a square's
    side is the picture's short side; "none" leaves its pixels as they are. Raises UserError where such a
    picture is smaller.
    """
    height, width = height_and_width(size)
    if resize == "none" and (image.height < height or image.width < width):
        raise UserError(
            f"{image.width}×{image.height} pixels, less than the {in_words(size)} to cut out of it"
        )
    scale = max(height / image.height, width / image.width)
    if scale != 1 and resize == "short_side":
        covering = max(width, round(image.width * scale)), max(height, round(image.height * scale))
        image = image.resize(covering, Image.Resampling.BICUBIC)
    spare_x, spare_y = image.width - width, image.height - height
    if rng is None:
        left, top = spare_x // 2, spare_y // 2
    else:
        left, top = int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1))
    return np.asarray(image)[top : top + height, left : left + width]


class Draw(NamedTuple):
    """One training example: which item, in which pass over the data."""

    epoch: int
    index: int


class DrawSampler(Sampler[list[Draw]]):
    """The micro-batches of one process, from `first_step` to `last_step`, in an order fixed by the seed.

    The examples of a run are one stream, pass after pass over the data, each in its own random order; step s
    takes the next `global_batch_size` of it. So the examples of a step depend neither on the number of
    processes nor on where a run was interrupted, and a run is one pass of one DataLoader.
    """

    def __init__(
        self,
        length: int,
        global_batch_size: int,
        micro_batch_size: int,
        steps: range,
        seed: int,
        process_index: int = 0,
        num_processes: int = 1,
    ):
        self.length = length
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.steps = steps
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes

    def __len__(self) -> int:
        return len(self.steps) * (self.global_batch_size // (self.micro_batch_size * self.num_processes))

    def __iter__(self) -> Iterator[list[Draw]]:
        self._order, self._order_epoch = None, -1
        together = self.micro_batch_size * self.num_processes
        for step in self.steps:
            for micro_batch in range(self.global_batch_size // together):
                start = step * self.global_batch_size + micro_batch * together
                start += self.process_index * self.micro_batch_size
                yield self._draws(range(start, start + self.micro_batch_size))

    def of_step(self, step: int) -> list[int]:
        """The examples of a step, counted from 0, of all processes."""
        self._order, self._order_epoch = None, -1
        start = step * self.global_batch_size
        return [draw.index for draw in self._draws(range(start, start + self.global_batch_size))]

    def _draws(self, positions: range) -> list[Draw]:
        """What is at those positions of the stream of examples."""
        draws = []
        for position in positions:
            epoch, place = divmod(position, self.length)
            if epoch != self._order_epoch:
                self._order = np.random.default_rng([self.seed, epoch]).permutation(self.length)
                self._order_epoch = epoch
            draws.append(Draw(epoch, int(self._order[place])))
        return draws


class ImageBatch(NamedTuple):
    """Images as they travel to the device, and what could not be read on the way."""

    images: Tensor  # uint8 (B, 3, H, W)
    indices: Tensor  # int64 (B,): each image's place in the list of frames
    broken: dict[int, str]  # places of frames that could not be used, and why


class FrameDataset(Dataset):
    """Frames as uint8 images (3, H, W) of a size, cut as `resize` says (see cut).

    Asked with a Draw it is a training example: cropped and flipped by a random generator of its own, fixed
    by the seed, the pass and the frame; a frame that is broken or too small is replaced by the next of the
    list. Asked with an index it is the middle; such a frame is left out.
    """

    def __init__(
        self,
        folder: str | Path,
        frames: list[Frame],
        size: Size,
        resize: str = "short_side",
        seed: int = 0,
        random_crop: bool = False,
        flip: bool = False,
    ):
        self.folder = Path(folder)
        self.frames = frames
        self.size = size
        self.resize = resize
        self.seed = seed
        self.random_crop = random_crop
        self.flip = flip

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, key: Draw | int) -> tuple[Tensor | None, int, dict[int, str]]:
        """Returns the image or None, its place in the list, and what is wrong with the frames passed over."""
        if not isinstance(key, Draw):
            try:
                return self._read(key), key, {}
            except UserError as error:
                return None, key, {key: str(error)}
        broken = {}
        for index in chain(range(key.index, len(self.frames)), range(key.index)):
            rng = np.random.default_rng([self.seed, key.epoch, index])
            try:
                return self._read(index, rng), index, broken
            except UserError as error:
                broken[index] = str(error)
        raise UserError(
            f"{self.folder}: none of its {len(self.frames)} frames can be used; "
            f"{self.frames[key.index].file_name}: {broken[key.index]}"
        )

    def _read(self, index: int, rng: np.random.Generator | None = None) -> Tensor:
        try:
            picture = read_picture(self.folder / self.frames[index].file_name)
        except UserError as error:  # that names the file: so do those who read this
            raise UserError("not readable as a picture") from error
        image = cut(picture, self.size, self.resize, rng if self.random_crop else None)
        if rng is not None and self.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return torch.from_numpy(image.transpose(2, 0, 1).copy())


def collate_images(items: list[tuple[Tensor | None, int, dict[int, str]]]) -> ImageBatch:
    """Items of a FrameDataset as a batch, without those that could not be used."""
    read = [(image, index) for image, index, _ in items if image is not None]
    return ImageBatch(
        images=torch.stack([image for image, _ in read]) if read else torch.empty(0, dtype=torch.uint8),
        indices=torch.tensor([index for _, index in read], dtype=torch.int64),
        broken={index: reason for _, _, broken in items for index, reason in broken.items()},
    )


def evaluation_loader(
    dataset: FrameDataset, batch_size: int, workers: int, process_index: int = 0, num_processes: int = 1
) -> DataLoader:
    """Every frame of the dataset once over all processes, in batches of at most `batch_size`."""
    mine = range(process_index, len(dataset), num_processes)
    batches = [mine[start : start + batch_size] for start in range(0, len(mine), batch_size)]
    return DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(workers, len(batches)),
        collate_fn=collate_images,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals_to_parent,
        generator=torch.Generator(),  # or it would draw from the run's random numbers
    )


def leave_signals_to_parent(worker: int) -> None:
    """For a DataLoader's workers: a Ctrl-C or a batch system's SIGTERM reaches them too, and the run's own
    answer, a checkpoint, still needs them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def to_unit_range(images: Tensor, device: torch.device) -> Tensor:
    """uint8 images (B, 3, H, W) to float32 in [0, 1] on the device."""
    return images.to(device, non_blocking=True).float() / 255
