"""Values of command line options that several scripts take."""

import argparse
import contextlib
from collections.abc import Callable


def number(
    lowest: float, highest: float = 10**9, kind: Callable[[str], float] = int
) -> Callable[[str], float]:
    """An argparse type: a number of a kind, from the lowest to the highest.

    What it returns raises ArgumentTypeError on anything else; nan is in no range.
    """

    def parse(text: str) -> float:
        with contextlib.suppress(ValueError, ZeroDivisionError, OverflowError):
            if lowest <= (value := kind(text)) <= highest:
                return value
        shown = text if text.isprintable() and len(text) < 60 else ascii(text[:60])
        raise argparse.ArgumentTypeError(f"{shown} is no number from {lowest} to {highest}")

    return parse


def option(name: str) -> str:
    """What sets an argument on the command line."""
    return f"--{name.replace('_', '-')}"
