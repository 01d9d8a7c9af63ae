"""A region of a picture, made anew."""

import argparse
import json
import math
import os

import torch

from data.frames import cut
from data.pictures import read_picture
from errors import UserError
from generation.picture_table import Row, draw_table, heat_map, outlined, to_picture
from generation.sampler import Sampler
from models.editing import Box, change_by_region, share_inside, token_influence, tokens_of_box
from sizes import Size, height_and_width, in_words


def edit(sampler: Sampler, arguments: argparse.Namespace) -> None:
    """Versions of a picture in which the tokens that a box depends on are filled anew."""
    run, tokenizer, size = sampler.run, sampler.tokenizer, sampler.tokenizer.image_size
    box, num = read_box(arguments.box, size), arguments.edit_tokens
    if num is not None and not 1 <= num <= tokenizer.num_tokens:
        raise UserError(f"--edit-tokens {num}: a picture has {tokenizer.num_tokens} tokens; edit 1 or more")
    try:
        image = torch.tensor(cut(read_picture(arguments.image), size, run.config.data.resize))
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

    area = box.area / math.prod(height_and_width(size))
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
        "guide": run.config.guide,
    }
    (sampler.out / "edit.part").write_text(json.dumps(record, indent=2) + "\n")
    os.replace(sampler.out / "edit.part", sampler.out / "edit.json")
    print(f"{sampler.out / 'edit.png'}: {len(tokens)} of {tokenizer.num_tokens} tokens filled anew")
    print(f"mean change {inside:.4f} inside the box, on {area:.1%} of the area, and {outside:.4f} outside")


def read_box(text: str, size: Size) -> Box:
    """ "x0,y0,x1,y1" as a part of a picture of a size. Raises UserError where it is none."""
    height, width = height_and_width(size)
    try:
        box = Box(*map(int, text.split(",")))
    except (TypeError, ValueError):
        box = Box(0, 0, 0, 0)
    if not (0 <= box.left < box.right <= width and 0 <= box.top < box.bottom <= height):
        raise UserError(
            f"--box {text}: give left,top,right,bottom in whole pixels within the picture, which is "
            f"{in_words(size)} here"
        )
    if box.area == height * width:
        raise UserError(f"--box {text}: the whole picture; --mode synthesize makes new ones")
    return box
