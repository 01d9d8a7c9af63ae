"""Sizes of images and of grids: one number for a square, otherwise height and width."""

from collections.abc import Sequence

Size = int | Sequence[int]  # a square's side, or height and width


def height_and_width(size: Size) -> tuple[int, int]:
    """Both sides of a size. Raises ValueError where it has another number of them."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def as_written(size: Size) -> int | list[int]:
    """A size as configs have it: a square is one number."""
    height, width = height_and_width(size)
    return height if height == width else [height, width]


def grid_of(size: Size, factor: int) -> tuple[int, int]:
    """Rows and columns of what is `factor` pixels high and wide, in an image of a size."""
    height, width = height_and_width(size)
    return height // factor, width // factor


def in_words(size: Size) -> str:
    """A size as people write it, width first: 448×256."""
    height, width = height_and_width(size)
    return f"{width}×{height}"
