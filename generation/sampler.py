"""A generator's run, ready to be sampled as generate.py's command line says."""

import argparse
import io
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data.bdd100k import ATTRIBUTES
from data.frames import Frame, FrameDataset, ImageBatch, collate_images, list_frames, to_unit_range
from errors import UserError
from generation.picture_table import FILLED, GIVEN, UNKNOWN, Row, draw_table, to_picture, with_tokens
from models.elastic import ElasticTiTok
from training.finished import FinishedRun, load_with_tokenizer, sampled_otherwise
from training.sections import SamplingSection


class Sampler:
    """A run's generator and tokenizer, used in batches as the command line says."""

    def __init__(self, arguments: argparse.Namespace, run: FinishedRun, device: torch.device):
        """Raises UserError on sampling or conditions that the generator can't have."""
        given = {name: getattr(arguments, name) for name in ("guide", *SamplingSection.model_fields)}
        self.run = sampled_otherwise(run, given)
        self.sampling = self.run.config.sampling.model_dump()
        self.seed, self.batch_size = arguments.seed, arguments.batch_size
        self.device = device
        networks = load_with_tokenizer(self.run)
        self.generator, self.tokenizer, self.guide = (each and each.to(self.device) for each in networks)
        asked = {name: getattr(arguments, name) for name in ATTRIBUTES}
        self.asked = {name: value for name, value in asked.items() if value is not None}
        try:
            self.conditions = self.generator.condition_indices(self.asked)  # (C,)
        except ValueError as error:
            raise UserError(f"--{error}") from error
        self.out = arguments.out
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self.out}: no folder can be made there ({error.strerror})") from error

    def elastic(self) -> ElasticTiTok:
        """The tokenizer. Raises UserError where it has one length only."""
        if not isinstance(self.tokenizer, ElasticTiTok):
            raise UserError(f"{self.run.config.tokenizer}: no elastic tokenizer; it has one length")
        return self.tokenizer

    def encode(self, images: Tensor) -> Tensor:
        """Images uint8 (N, 3, H, W) to codes (N, K)."""
        parts = images.split(self.batch_size)
        return torch.cat([self.tokenizer.encode(to_unit_range(part, self.device)) for part in parts])

    def decode(self, codes: Tensor) -> Tensor:
        """Codes (N, K) to images float (N, 3, H, W), on the CPU."""
        return torch.cat([self.tokenizer.decode(part).cpu() for part in codes.split(self.batch_size)])

    def fill(self, codes: Tensor, mask: Tensor, conditions: Tensor) -> tuple[Tensor, Tensor]:
        """MaskGIT.fill_steps of N samples: codes (steps, N, K), and bool (steps, N, K) where not final."""
        conditions = conditions.expand(len(codes), -1)
        parts = []
        for first in tqdm(range(0, len(codes), self.batch_size), desc="batches"):
            batch = slice(first, first + self.batch_size)
            steps = self.generator.fill_steps(
                *(codes[batch], mask[batch], conditions[batch]),
                seed=self.seed,
                first_index=first,
                guide=self.guide,
                **self.sampling,
            )
            parts.append([torch.stack(each) for each in zip(*steps)])
        codes, unknown = (torch.cat(each, dim=1) for each in zip(*parts))
        return codes, unknown

    def save(self, picture: Image.Image, name: str) -> Image.Image:
        """Write a picture whole; returns it."""
        buffer = io.BytesIO()  # into a file of its own Pillow writes what fits on the disk, and says nothing
        picture.save(buffer, format="PNG")
        (self.out / f"{name}.part").write_bytes(buffer.getvalue())
        os.replace(self.out / f"{name}.part", self.out / name)
        return picture

    def show_tokens(self, picture: Image.Image, mask: Tensor, unknown: Tensor | bool = False) -> Image.Image:
        """A picture above its tokens, of which those of a mask (K,) are filled, or still `unknown`."""
        states = torch.where(unknown & mask, UNKNOWN, torch.where(mask, FILLED, GIVEN))
        return with_tokens(picture, states, self.tokenizer.grid)

    def save_steps(self, captions: list[str], codes: Tensor, unknown: Tensor, mask: Tensor) -> None:
        """Write steps.png: what `fill` returns for masks (N, K), a row a sample and a column a step."""
        rows = []
        for caption, of_steps, unknown_then, own_mask in zip(
            captions, codes.unbind(dim=1), unknown.unbind(dim=1), mask
        ):
            pictures = map(to_picture, self.decode(of_steps))
            shown = [self.show_tokens(each, own_mask, then) for each, then in zip(pictures, unknown_then)]
            rows.append(Row(caption, shown))
        self.save(draw_table([f"step {step}" for step in range(1, len(codes) + 1)], rows), "steps.png")


def first_frames(sampler: Sampler, arguments: argparse.Namespace) -> tuple[list[Frame], ImageBatch]:
    """The first validation frames, and their images. Raises UserError where none can be used."""
    data = sampler.run.config.data
    folder = Path(arguments.frames or data.frames)
    frames = list_frames(folder, "val", **data.val.model_dump())[: arguments.num]
    dataset = FrameDataset(folder / "val", frames, sampler.tokenizer.image_size, data.resize)
    batch = collate_images([dataset[place] for place in range(len(frames))])
    for place, reason in batch.broken.items():
        print(f"{folder}/val/{frames[place].file_name}: {reason}, left out")
    if len(batch.indices) == 0:
        raise UserError(f"{folder}/val: none of the first {len(frames)} frames can be used")
    return frames, batch
