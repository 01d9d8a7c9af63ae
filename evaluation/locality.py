"""How local a generator's edits are."""

import math

import torch
from accelerate import Accelerator

from evaluation.frames import ValidationFrames, spread
from evaluation.results import save_result
from models.editing import change_by_region, random_box, share_inside, token_influence, tokens_of_box
from models.maskgit import MaskGIT
from models.tokenizer import Tokenizer
from sizes import height_and_width

FRAMES_TO_EDIT = 64  # without --num


def measure_locality(
    accelerator: Accelerator,
    frames: ValidationFrames,
    generator: MaskGIT,
    tokenizer: Tokenizer,
    sampling: dict,
) -> None:
    """Edit a random box of each of the first validation frames, and measure where the image changes.

    It is generate.py's edit, told the frame's own conditions, and compared with the reconstruction.
    sampling: options of MaskGIT.fill_steps.
    """
    device, arguments, size = accelerator.device, frames.arguments, tokenizer.image_size
    conditions = frames.conditions(generator)
    sums = torch.zeros(3, dtype=torch.float64, device=device)  # changes inside and outside, and frames
    for places, images in frames.batches(arguments.num or FRAMES_TO_EDIT):
        first = int(places[0])
        rows, codes = spread(places, tokenizer.encode(images))
        boxes = [random_box(size, arguments.seed, place) for place in places.tolist()]
        mask = torch.zeros_like(codes, dtype=torch.bool)
        for row, box in zip(rows, boxes):
            influence = token_influence(tokenizer, codes[row], seed=arguments.seed)
            mask[row, tokens_of_box(influence, box)] = True
        own = conditions[first : first + len(codes)]
        edited = generator.fill(codes, mask, own, seed=arguments.seed, first_index=first, **sampling)
        inside = torch.stack([box.pixels(size) for box in boxes]).to(device)
        changes = change_by_region(tokenizer.decode(edited[rows]), tokenizer.decode(codes[rows]), inside)
        sums += torch.stack([*(each.double().sum() for each in changes), sums.new_tensor(len(rows))])

    inside, outside, num_images = accelerator.reduce(sums).tolist()
    area = random_box(size, 0, 0).area / math.prod(height_and_width(size))  # of each
    share = share_inside(inside, outside, area)
    if share is None:
        frames.failures.append("--locality: no edit changed anything; the generator fills in what was there")
    elif accelerator.is_main_process:
        result = {
            "value": share,
            "value_is": "share of the edits' change that falls inside the box",
            "share_of_area": area,
            "inside": inside / num_images,
            "outside": outside / num_images,
        }
        save_result(frames, "locality", result, int(num_images))
