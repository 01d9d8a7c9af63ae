"""Make pictures with a generator's run: from nothing, by filling masked tokens of frames, or by an edit."""

import argparse
import io
import json
import os
from pathlib import Path
from typing import get_args

import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor
from torchvision.utils import make_grid
from tqdm import tqdm

from data.bdd100k import ATTRIBUTES
from data.frames import FrameDataset, collate_images, cut_square, list_frames, to_unit_range
from data.pictures import read_picture
from errors import UserError, command
from models.editing import (
    MASK_RATIOS,
    Box,
    change_by_region,
    random_masks,
    share_inside,
    token_influence,
    tokens_of_box,
)
from options import number
from reporting.picture_table import (
    FILLED,
    GIVEN,
    UNKNOWN,
    Row,
    draw_table,
    heat_map,
    outlined,
    to_picture,
    with_tokens,
)
from training.config import GeneratorConfig
from training.finished import FinishedRun, load_with_tokenizer, newest_run, read_run
from training.precision import PRECISIONS, computing_in
from training.sections import SamplingSection
from training.tokens import condition_array

NUM = {"synthesize": 16, "fill": 8, "edit": 4}  # without --num


@command
@torch.inference_mode()
def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with computing_in(arguments.precision, device):
        generate(arguments, device)


def generate(arguments: argparse.Namespace, device: torch.device) -> None:
    """What the command line asks for."""
    run = read_run(arguments.run) if arguments.run else newest_run(arguments.runs, generator=True)
    if not run.is_generator:
        raise UserError(f"{run.folder}: a tokenizer's run; generate from one of train_maskgit.py")
    sampler = Sampler(arguments, run, device)
    {"synthesize": synthesize, "fill": fill, "edit": edit}[arguments.mode](sampler, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--mode", choices=[*NUM], default="synthesize")
    add("--run", help="a generator's run folder; by default the newest under --runs")
    add("--runs", default="runs", help="folder of runs")
    add("--out", type=Path, default=Path("samples"), help="folder for the pictures")
    add(
        "--num",
        type=number(1),
        help="pictures to synthesize (16), frames to fill (8), or versions of an edit (4)",
    )
    add("--seed", type=number(0, 2**62), default=0, help="of the sampling, and of fill's masks")
    add("--batch-size", type=number(1), default=32)
    add("--precision", choices=PRECISIONS, default="fp32", help="of the networks")
    add("--show-steps", action="store_true", help="also steps.png: each picture and its tokens by step")

    add = parser.add_argument_group("synthesize", "grid.png and single pictures, from all-mask").add_argument
    add("--columns", type=number(1), default=8, help="of the grid")

    add = parser.add_argument_group(
        "fill", "fill.png: the first validation frames, reconstructed, and filled in after masking tokens"
    ).add_argument
    add("--frames", help="folder of frames; by default the run's own")
    add("--mask-ratio", type=float, action="append", help="repeatable; by default 0.25, 0.5, 0.75 and 1.0")

    add = parser.add_argument_group(
        "edit", "edit.png and edit.json: the tokens that a region of a picture depends on are filled anew"
    ).add_argument
    add("--image", type=Path, help="cut to the tokenizer's image size as the run's frames are: input.png")
    add("--box", metavar="X0,Y0,X1,Y1", help="the region in pixels of input.png: x0 ≤ x < x1, y0 ≤ y < y1")
    add(
        "--edit-tokens",
        type=int,
        metavar="N",
        help="tokens to fill anew; by default the box's share of the picture, times all tokens",
    )

    add = parser.add_argument_group(
        "conditions", "what a conditional generator is asked for; in fill over what the frames' labels say"
    ).add_argument
    for name in ATTRIBUTES:
        add(f"--{name}", metavar="VALUE")

    add = parser.add_argument_group(
        "sampling", "over the run's config; models.maskgit.MaskGIT.fill_steps explains them"
    ).add_argument
    for name, field in SamplingSection.model_fields.items():
        words = [value for value in get_args(field.annotation) if isinstance(value, str)]
        add(option(name), metavar="|".join(words) or "NUMBER")

    arguments = parser.parse_args()
    if arguments.num is None:
        arguments.num = NUM[arguments.mode]
    for ratio in arguments.mask_ratio or []:
        if not 0 < ratio <= 1:
            parser.error(f"--mask-ratio {ratio}: a share of tokens is above 0 and at most 1")
    of_modes = {"frames": "fill", "mask_ratio": "fill", "image": "edit", "box": "edit", "edit_tokens": "edit"}
    for name, mode in of_modes.items():
        if mode != arguments.mode and getattr(arguments, name) is not None:
            parser.error(f"{option(name)} is for --mode {mode}")
    if arguments.mode == "edit" and not (arguments.image and arguments.box):
        parser.error("--mode edit takes an --image and a --box")
    return arguments


def option(name: str) -> str:
    """What sets an argument on the command line."""
    return f"--{name.replace('_', '-')}"


class Sampler:
    """A run's generator and tokenizer, used in batches as the command line says."""

    def __init__(self, arguments: argparse.Namespace, run: FinishedRun, device: torch.device):
        """Raises UserError on sampling or conditions that the generator can't have."""
        self.run = run._replace(config=with_sampling(run.config, arguments))
        self.sampling = self.run.config.sampling.model_dump()
        self.seed, self.batch_size = arguments.seed, arguments.batch_size
        self.device = device
        self.generator, self.tokenizer = (each.to(self.device) for each in load_with_tokenizer(self.run))
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
        return with_tokens(picture, states, self.tokenizer.is_grid)

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


def with_sampling(config: GeneratorConfig, arguments: argparse.Namespace) -> GeneratorConfig:
    """A run's config with the command line's sampling. Raises UserError on a value that it can't have."""
    given = {name: getattr(arguments, name) for name in SamplingSection.model_fields}
    values = config.model_dump()
    values["sampling"] |= {name: value for name, value in given.items() if value is not None}
    try:
        return GeneratorConfig.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        message = first["msg"].removeprefix("Value error, ")
        if first["loc"]:
            message = f"{option(first['loc'][-1])} {first['input']}: {message[:1].lower()}{message[1:]}"
        raise UserError(message) from error


# --- one function a mode ------------------------------------------------------------------------------------


def synthesize(sampler: Sampler, arguments: argparse.Namespace) -> None:
    """Pictures from all-mask."""
    codes, mask = sampler.generator.all_masked(arguments.num)
    codes, unknown = sampler.fill(codes, mask, sampler.conditions)
    images = sampler.decode(codes[-1])
    names = [f"{number:06d}.png" for number in range(arguments.num)]
    for image, name in zip(images, names):
        sampler.save(to_picture(image), name)
    if arguments.show_steps:
        sampler.save_steps(names, codes, unknown, mask)
    sampler.save(to_picture(make_grid(images, nrow=arguments.columns, pad_value=1)), "grid.png")
    run = sampler.run
    print(f"{sampler.out / 'grid.png'} and {len(images)} pictures, from {run.folder} at step {run.step}")


def fill(sampler: Sampler, arguments: argparse.Namespace) -> None:
    """The first validation frames with tokens masked, as evaluate.py --fill masks them, and filled in."""
    run, num_tokens = sampler.run, sampler.tokenizer.num_tokens
    folder = Path(arguments.frames or run.config.data.frames)
    frames = list_frames(folder, "val", **run.config.data.val.model_dump())[: arguments.num]
    dataset = FrameDataset(folder / "val", frames, sampler.tokenizer.image_size, run.config.data.resize)
    batch = collate_images([dataset[place] for place in range(len(frames))])
    for place, reason in batch.broken.items():
        print(f"{folder}/val/{frames[place].file_name}: {reason}, left out")
    if len(batch.indices) == 0:
        raise UserError(f"{folder}/val: none of the first {len(frames)} frames can be used")

    # Masks and noise go by a frame's place, which one that is left out keeps.
    places, inputs = batch.indices.tolist(), batch.images
    codes = torch.zeros(len(frames), num_tokens, dtype=torch.int64, device=sampler.device)
    codes[places] = sampler.encode(inputs)
    own = torch.from_numpy(condition_array(frames, sampler.generator.conditions)).to(sampler.device)
    conditions = torch.where(sampler.conditions > 0, sampler.conditions, own)
    ratios = sorted(set(arguments.mask_ratio or MASK_RATIOS))
    masks = [random_masks(ratio, *codes.shape, sampler.seed).to(sampler.device) for ratio in ratios]
    steps = [sampler.fill(codes, mask, conditions) for mask in masks]
    restored = sampler.decode(codes[places])
    codes, unknown = (torch.stack(each, dim=2)[:, places] for each in zip(*steps))  # (steps, N, ratios, K)
    masks = torch.stack(masks, dim=1)[places]
    filled = sampler.decode(codes[-1].flatten(0, 1)).unflatten(0, masks.shape[:2])

    rows = []
    for row, place in enumerate(places):
        pictures = {"input": inputs[row] / 255, "reconstruction": restored[row]}
        pictures |= {f"masked_{ratio:g}": image for ratio, image in zip(ratios, filled[row])}
        saved = [
            sampler.save(to_picture(image), f"{place:06d}_{name}.png") for name, image in pictures.items()
        ]
        saved[2:] = map(sampler.show_tokens, saved[2:], masks[row])
        rows.append(Row(frames[place].file_name, saved))
    names = [f"{100 * ratio:g}% masked" for ratio in ratios]
    sampler.save(draw_table(["input", "reconstruction", *names], rows), "fill.png")
    if arguments.show_steps:
        captions = [f"{row.caption}, {name}" for row in rows for name in names]
        sampler.save_steps(captions, codes.flatten(1, 2), unknown.flatten(1, 2), masks.flatten(0, 1))
    print(f"{sampler.out / 'fill.png'}: {len(rows)} frames, filled by {run.folder} at step {run.step}")


def edit(sampler: Sampler, arguments: argparse.Namespace) -> None:
    """Versions of a picture in which the tokens that a box depends on are filled anew."""
    run, tokenizer, size = sampler.run, sampler.tokenizer, sampler.tokenizer.image_size
    box, num = read_box(arguments.box, size), arguments.edit_tokens
    if num is not None and not 1 <= num <= tokenizer.num_tokens:
        raise UserError(f"--edit-tokens {num}: a picture has {tokenizer.num_tokens} tokens; edit 1 or more")
    try:
        image = torch.tensor(cut_square(read_picture(arguments.image), size, run.config.data.resize))
    except UserError as error:
        raise UserError(f"--image {error}") from error
    image = image.permute(2, 0, 1)

    codes = sampler.encode(image[None])
    influence = token_influence(tokenizer, codes[0], seed=sampler.seed, batch_size=sampler.batch_size)
    tokens = tokens_of_box(influence, box, num)
    mask = torch.zeros(arguments.num, tokenizer.num_tokens, dtype=torch.bool, device=sampler.device)
    mask[:, tokens] = True
    steps, unknown = sampler.fill(codes.expand(arguments.num, -1), mask, sampler.conditions)
    restored, edited = sampler.decode(codes), sampler.decode(steps[-1])

    change = (edited - restored).abs().mean(dim=(0, 1))
    picture = sampler.save(to_picture(image / 255), "input.png")
    pictures = [outlined(picture, box), sampler.save(to_picture(restored[0]), "reconstruction.png")]
    for place, version in enumerate(edited):
        picture = sampler.save(to_picture(version), f"{place:06d}.png")
        pictures.append(sampler.show_tokens(picture, mask[place]))
    pictures.append(outlined(sampler.save(heat_map(change), "change.png"), box))
    columns = ["input, box", "reconstruction", *(f"edit {number}" for number in range(len(edited)))]
    columns.append(f"mean change, 0 to {change.max():.2g}")
    sampler.save(draw_table(columns, [Row(str(arguments.image), pictures)]), "edit.png")
    if arguments.show_steps:
        sampler.save_steps([f"edit {number}" for number in range(len(edited))], steps, unknown, mask)

    area = box.area / size**2
    changes = [each.tolist() for each in change_by_region(edited, restored, box.pixels(size))]
    inside, outside = (sum(each) / len(each) for each in changes)
    share = share_inside(inside, outside, area)
    record = {
        "image": str(arguments.image),
        "box": box,
        "share_of_area": area,
        "tokens": tokens.tolist(),
        "num_tokens": tokenizer.num_tokens,
        "inside": inside,
        "outside": outside,
        "share_inside": share,
        "versions": [
            {"inside": here, "outside": there, "share_inside": share_inside(here, there, area)}
            for here, there in zip(*changes)
        ],
        "run": str(run.folder),
        "checkpoint_step": run.step,
        "conditions": sampler.asked,
        "seed": sampler.seed,
        "sampling": sampler.sampling,
    }
    (sampler.out / "edit.part").write_text(json.dumps(record, indent=2) + "\n")
    os.replace(sampler.out / "edit.part", sampler.out / "edit.json")
    print(f"{sampler.out / 'edit.png'}: {len(tokens)} of {tokenizer.num_tokens} tokens filled anew")
    print(f"mean change {inside:.4f} inside the box, on {area:.1%} of the area, and {outside:.4f} outside")


def read_box(text: str, size: int) -> Box:
    """ "x0,y0,x1,y1" as a part of a picture of size × size. Raises UserError where it is none."""
    try:
        box = Box(*map(int, text.split(",")))
    except (TypeError, ValueError):
        box = Box(0, 0, 0, 0)
    if not (0 <= box.left < box.right <= size and 0 <= box.top < box.bottom <= size):
        raise UserError(
            f"--box {text}: give left,top,right,bottom in whole pixels within the picture, which is "
            f"{size}×{size} here"
        )
    if box.area == size**2:
        raise UserError(f"--box {text}: the whole picture; --mode synthesize makes new ones")
    return box


if __name__ == "__main__":
    main()
