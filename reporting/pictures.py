"""Pictures: the same validation frames through every tokenizer, and what every generator makes."""

from collections import defaultdict
from fractions import Fraction
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from comparison.recipes import label
from comparison.runs import Run
from data.frames import Frame, FrameDataset, list_frames, to_unit_range
from errors import UserError
from models.storage import load_tokenizer
from sizes import Size, height_and_width
from training.finished import load_with_tokenizer

BATCH = 16  # images at once
# The frames as tokenizers see them, by how they are cut (data.resize)
INPUTS = {"short_side": "input", "none": "input, cut out as it is"}


class Pictures(NamedTuple):
    """Images (N, 3, H, W) in [0, 1]."""

    frames: list[Frame]  # of `images`, in their order
    # Reconstructions by the tokenizer run's label, behind the frames as these tokenizers see them
    images: dict[str, Tensor]
    input_of: dict[str, str]  # the name in `images` of what a name there is to be compared with
    generated: dict[str, Tensor]  # by the generator run's label


@torch.inference_mode()
def make_pictures(
    runs: list[Run], num_frames: int, num_generated: int, seed: int, device: torch.device
) -> tuple[Pictures, list[str]]:
    """Reconstruct `num_frames` validation frames with each tokenizer, and generate with each generator.

    The input is at the largest size of any tokenizer that cuts frames alike. Also returns a line for all that
    could not be had: frames that aren't there, and runs whose weights don't load.
    """
    missing: list[str] = []
    tokenizers = [run for run in runs if not run.is_generator]
    frames, images, input_of, generated = [], {}, {}, {}
    if tokenizers and num_frames > 0:
        try:
            folder, frames = choose_frames(tokenizers[-1], num_frames, native_size(tokenizers))
            groups = defaultdict(list)
            for run in tokenizers:
                groups[input_name(run)].append(run)
            for name, group in sorted(groups.items()):
                inputs, restored = reconstruct(group, folder, frames, device, missing)
                if restored:
                    images |= {name: inputs} | restored
                    input_of |= dict.fromkeys([name, *restored], name)
        except UserError as error:
            missing.append(f"reconstructions: {error}")
    for run in runs:
        if run.is_generator and num_generated:
            try:
                generated[label(run)] = generate(run, num_generated, seed, device)
            except UserError as error:
                missing.append(f"images by {run.folder}: {error}")
    return Pictures(frames, images, input_of, generated), missing


def input_name(run: Run) -> str:
    """What frames are called as a tokenizer sees them: how they are cut, and the shape that isn't square."""
    height, width = height_and_width(run.config.model.image_size)
    shape = Fraction(width, height)
    name = INPUTS[run.config.data.resize]
    return name if shape == 1 else f"{name}, {shape.numerator}:{shape.denominator}"


def native_size(tokenizers: list[Run]) -> tuple[int, int]:
    """Height and width, at most, of what tokenizers cut out of frames as they are; 1 if none does so."""
    native = [run.config for run in tokenizers if run.config.data.resize == "none"]
    return tuple(map(max, zip((1, 1), *(height_and_width(config.model.image_size) for config in native))))


def choose_frames(run: Run, num: int, least_size: Size = 1) -> tuple[Path, list[Frame]]:
    """`num` of a run's validation frames, or all if there are fewer, and the folder that they are in.

    One of each video comes before a second of any; unreadable ones, and those smaller than
    `least_size`, are passed over. Raises UserError where there are none, or none can be used.
    """
    data = run.config.data
    folder = Path(data.frames) / "val"
    frames = list_frames(data.frames, "val", **data.val.model_dump())
    videos = defaultdict(list)
    for frame in frames:
        videos[Path(frame.file_name).parent].append(frame)
    in_turn = (frame for turn in zip_longest(*videos.values()) for frame in turn if frame)
    usable = (f for f in in_turn if FrameDataset(folder, [f], least_size, resize="none")[0][0] is not None)
    chosen = list(islice(usable, num))
    if not chosen:
        raise UserError(f"{folder}: none of its {len(frames)} frames can be used")
    return folder, chosen


def reconstruct(
    tokenizers: list[Run], folder: Path, frames: list[Frame], device: torch.device, missing: list[str]
) -> tuple[Tensor, dict[str, Tensor]]:
    """The frames as tokenizers that cut alike see them, at the largest size, and by each tokenizer's label.

    A tokenizer that doesn't load is named in `missing`.
    """
    restored, inputs = {}, torch.empty(0, 3, 0, 0)
    for run in tokenizers:
        try:
            tokenizer = load_tokenizer(run.folder).to(device)
        except UserError as error:
            missing.append(f"reconstructions by {run.folder}: {error}")
            continue
        dataset = FrameDataset(folder, frames, tokenizer.image_size, run.config.data.resize)
        images = torch.stack([dataset[index][0] for index in range(len(frames))])
        parts = [to_unit_range(part, device) for part in images.split(BATCH)]
        restored[label(run)] = torch.cat([tokenizer.decode(tokenizer.encode(part)).cpu() for part in parts])
        if images.shape[-1] > inputs.shape[-1]:
            inputs = to_unit_range(images, torch.device("cpu"))
    return inputs, restored


def generate(run: Run, num: int, seed: int, device: torch.device) -> Tensor:
    """A generator's first `num` images from all-mask, sampled as its config says."""
    generator, tokenizer, guide = (each and each.to(device) for each in load_with_tokenizer(run))
    sampling = run.config.sampling.model_dump() | {"guide": guide}
    parts = []
    for first in range(0, num, BATCH):
        codes = generator.generate(num=min(BATCH, num - first), seed=seed, first_index=first, **sampling)
        parts.append(tokenizer.decode(codes).cpu())
    return torch.cat(parts)
