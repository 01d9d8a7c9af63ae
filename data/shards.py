"""Work shared out to machines."""

import argparse


def parse_shard(text: str) -> tuple[int, int]:
    """An option's `i/n`, part i of n counted from 0, as (i, n). Raises ArgumentTypeError otherwise."""
    try:
        index, count = map(int, text.split("/"))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no i/n, like 0/4") from error
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: there is at least one shard, 0/1")
    if not 0 <= index < count:
        raise argparse.ArgumentTypeError(f"shards of {count} count from 0/{count} to {count - 1}/{count}")
    return index, count
