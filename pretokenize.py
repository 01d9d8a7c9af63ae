"""Compute the tokens that a generator learns, ahead of its training.

    accelerate launch pretokenize.py --config configs/maskgit_mae_64.yaml --shard 0/4

train_maskgit.py computes them itself where they aren't there, and with the same config finds these. Machines
that share the tokens' folder each take a shard; the same command again does what is missing. With --export
DIR they are written as a dataset, too, by the shard that ends last.
"""

import argparse
import os
from pathlib import Path

from accelerate import Accelerator

from data.shards import parse_shard
from data.token_files import FORMATS
from errors import command
from training.config import GeneratorConfig, load_config
from training.export import export_tokens
from training.tokens import token_caches


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, type=Path, help="the generator's YAML under configs/")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="overrides")
    parser.add_argument(
        "--shard", type=parse_shard, default=(0, 1), metavar="i/n", help="a part of the frames, 0/n to n-1/n"
    )
    parser.add_argument(
        "--export", type=Path, metavar="DIR", help="folder to write them to as a dataset, too"
    )
    parser.add_argument(
        "--export-format", choices=FORMATS, default="parquet", help="of its files (default: parquet)"
    )
    arguments = parser.parse_args()
    config = load_config(arguments.config, GeneratorConfig, arguments.overrides)
    accelerator = Accelerator()
    caches = token_caches(config)
    workers = min(config.data.workers, os.cpu_count() or 1)
    for cache in caches.values():
        cache.compute(accelerator, config.training.device_batch_size, workers, arguments.shard)
    if accelerator.is_main_process:
        missing = {split: sum(map(len, cache.missing())) for split, cache in caches.items()}
        for split, cache in caches.items():
            rest = f", {missing[split]:,} of them still to do by other shards" if missing[split] else ""
            print(f"{cache.folder}: {len(cache.frames):,} frames{rest}")
        if arguments.export and not any(missing.values()):
            place, kind = arguments.export, arguments.export_format
            print(export_tokens(config, caches, place, kind, accelerator.device, workers))
        elif arguments.export:
            print(f"{arguments.export}: not written yet; the shard that ends last does")
    accelerator.end_training()


if __name__ == "__main__":
    main()
