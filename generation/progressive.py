"""Pictures of an elastic tokenizer from few tokens to all."""

import argparse

from generation.picture_table import Row, draw_table, to_picture
from generation.sampler import Sampler, first_frames
from models.elastic import doubled_lengths


def progressive(sampler: Sampler, arguments: argparse.Namespace) -> None:
    """The first validation frames, and pictures from all-mask, of their first 1, 2, 4, … tokens."""
    tokenizer, run = sampler.elastic(), sampler.run
    frames, batch = first_frames(sampler, arguments)
    codes, mask = sampler.generator.all_masked(arguments.num)
    made = sampler.fill(codes, mask, sampler.conditions)[0][-1]
    lengths = doubled_lengths(tokenizer.num_tokens)
    names = [frames[place].file_name for place in batch.indices]
    numbers = [f"synthesized, {place}" for place in range(arguments.num)]
    rows = []
    for codes, inputs, captions in (
        (sampler.encode(batch.images), batch.images / 255, names),
        (made, sampler.decode(made), numbers),
    ):
        parts = [sampler.decode(codes[:, :length]) for length in lengths]
        for caption, *images in zip(captions, inputs, *parts):
            rows.append(Row(caption, list(map(to_picture, images))))
    columns = [f"{length} token{'s' if length > 1 else ''}" for length in lengths]
    sampler.save(draw_table(["whole", *columns], rows, key=False), "progressive.png")
    print(f"{sampler.out / 'progressive.png'}: {len(rows)} pictures by {run.folder} at step {run.step}")
