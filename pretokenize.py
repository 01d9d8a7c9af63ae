"""Compute the tokens that a generator learns, ahead of its training.

    accelerate launch pretokenize.py --config configs/maskgit_mae_64.yaml --shard 0/4

train_maskgit.py computes them itself where they aren't there, and with the same config finds these. Machines
that share the tokens' folder each take a shard; the same command again does what is missing.
"""

import argparse
import os
from pathlib import Path

from accelerate import Accelerator

from data.shards import parse_shard
from errors import command
from training.config import GeneratorConfig, load_config
from training.tokens import token_caches


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the generator's YAML under configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument(
        "--shard", type=parse_shard, default=(0, 1), metavar="i/n", help="a part of the frames, 0/n to n-1/n"
    )
    arguments = parser.parse_args()
    config = load_config(arguments.config, GeneratorConfig, arguments.overrides)
    accelerator = Accelerator()
    caches = token_caches(config).values()
    workers = min(config.data.workers, os.cpu_count() or 1)
    for cache in caches:
        cache.compute(accelerator, config.training.device_batch_size, workers, arguments.shard)
    if accelerator.is_main_process:
        for cache in caches:
            missing = sum(map(len, cache.missing()))
            rest = f", {missing:,} of them still to do by other shards" if missing else ""
            print(f"{cache.folder}: {len(cache.frames):,} frames{rest}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
