"""Frames with masked tokens, filled in."""

import argparse

import torch

from generation.picture_table import Row, draw_table, to_picture
from generation.sampler import Sampler, first_frames
from models.editing import MASK_RATIOS, random_masks
from training.tokens import condition_array


def fill(sampler: Sampler, arguments: argparse.Namespace) -> None:
    """The first validation frames with tokens masked, as evaluate.py --fill masks them, and filled in."""
    run, num_tokens = sampler.run, sampler.tokenizer.num_tokens
    frames, batch = first_frames(sampler, arguments)

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
