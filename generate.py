"""Make pictures with a generator's run: from nothing, by filling in frames, by an edit, of few tokens."""

import argparse
from pathlib import Path
from typing import get_args

import torch

from data.bdd100k import ATTRIBUTES
from errors import UserError, command
from generation.edit import edit
from generation.fill import fill
from generation.progressive import progressive
from generation.sampler import Sampler
from generation.synthesize import synthesize
from options import number, option
from training.finished import newest_run, read_run
from training.precision import PRECISIONS, computing_in
from training.sections import SamplingSection

MODES = {"synthesize": synthesize, "fill": fill, "edit": edit, "progressive": progressive}
NUM = {"synthesize": 16, "fill": 8, "edit": 4, "progressive": 4}  # without --num


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
    MODES[arguments.mode](sampler, arguments)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--mode", choices=[*MODES], default="synthesize")
    add("--run", help="a generator's run folder; by default the newest under --runs")
    add("--runs", default="runs", help="folder of runs")
    add("--out", type=Path, default=Path("samples"), help="folder for the pictures")
    add(
        "--num",
        type=number(1),
        help="pictures to synthesize (16), frames to fill (8), versions of an edit (4), rows of each kind of "
        "progressive (4)",
    )
    add("--seed", type=number(0, 2**62), default=0, help="of the sampling, and of fill's masks")
    add("--batch-size", type=number(1), default=32)
    add("--precision", choices=PRECISIONS, default="fp32", help="of the networks")
    add("--show-steps", action="store_true", help="also steps.png: each picture and its tokens by step")

    add = parser.add_argument_group("synthesize", "grid.png and single pictures, from all-mask").add_argument
    add("--columns", type=number(1), default=8, help="of the grid")
    add("--num-tokens", type=number(1), metavar="K", help="of an elastic tokenizer: the first K tokens only")

    add = parser.add_argument_group(
        "fill", "fill.png: the first validation frames, reconstructed, and filled in after masking tokens"
    ).add_argument
    add("--frames", help="folder of frames; by default the run's own")
    add("--mask-ratio", type=float, action="append", help="repeatable; by default 0.25, 0.5, 0.75 and 1.0")

    parser.add_argument_group(
        "progressive",
        "progressive.png, of an elastic tokenizer: the first validation frames, and synthesized pictures, of "
        "their first 1, 2, 4, … tokens",
    )

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
    add(
        "--guide",
        metavar="RUN",
        help="a weaker generator of the same tokens, for --guidance",
    )

    arguments = parser.parse_args()
    if arguments.num is None:
        arguments.num = NUM[arguments.mode]
    for ratio in arguments.mask_ratio or []:
        if not 0 < ratio <= 1:
            parser.error(f"--mask-ratio {ratio}: a share of tokens is above 0 and at most 1")
    of_modes = {"frames": "fill progressive", "mask_ratio": "fill", "image": "edit", "box": "edit"}
    of_modes |= {"edit_tokens": "edit", "num_tokens": "synthesize"}
    for name, modes in of_modes.items():
        if arguments.mode not in modes.split() and getattr(arguments, name) is not None:
            parser.error(f"{option(name)} is for --mode {modes.replace(' ', ' and ')}")
    if arguments.mode == "edit" and not (arguments.image and arguments.box):
        parser.error("--mode edit takes an --image and a --box")
    return arguments


if __name__ == "__main__":
    main()
