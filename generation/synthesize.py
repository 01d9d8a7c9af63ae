"""Pictures from nothing."""

import argparse

from torchvision.utils import make_grid

from errors import UserError
from generation.picture_table import to_picture
from generation.sampler import Sampler


def synthesize(sampler: Sampler, arguments: argparse.Namespace) -> None:
    """Pictures from all-mask."""
    codes, mask = sampler.generator.all_masked(arguments.num)
    if arguments.num_tokens is not None:
        num_tokens = sampler.elastic().num_tokens
        if arguments.num_tokens > num_tokens:
            raise UserError(f"--num-tokens {arguments.num_tokens}: a picture has {num_tokens} tokens")
        mask[:, arguments.num_tokens :] = False  # they stay absent
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
