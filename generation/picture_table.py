"""Pictures in a table with words, as one picture."""

import math
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from models.editing import Box

FONT = ImageFont.load_default(12)
LINE = 16  # pixels to a line of words
GAP = 8  # pixels between pictures
TOKEN_COLOURS = {
    "given token": (38, 70, 83),
    "filled token": (231, 111, 81),
    "not filled yet": (222, 222, 222),
}
GIVEN, FILLED, UNKNOWN = range(3)  # what a token is: places in TOKEN_COLOURS
BOX_COLOUR = (255, 40, 40)


class Row(NamedTuple):
    """A line of words above a row of pictures."""

    caption: str
    pictures: list[Image.Image]


def draw_table(columns: list[str], rows: list[Row], key: bool = True) -> Image.Image:
    """Rows of pictures, pixel for pixel, under the columns' names; below, what tokens' colours mean."""
    by_column = list(zip(*(row.pictures for row in rows), strict=True))
    widths = [
        max(text_width(name), *(picture.width for picture in pictures))
        for name, pictures in zip(columns, by_column, strict=True)
    ]
    heights = [GAP // 2 + LINE + max(picture.height for picture in row.pictures) + GAP for row in rows]
    colours = TOKEN_COLOURS if key else {}
    of_key = sum(LINE + text_width(name) + GAP for name in colours)
    width = max(sum(widths) + GAP * (len(widths) - 1), of_key, *(text_width(row.caption) for row in rows))
    table = Image.new("RGB", (width + 2 * GAP, sum(heights) + 2 * LINE + 2 * GAP), "white")
    draw = ImageDraw.Draw(table)
    lefts = [GAP + sum(widths[:place]) + GAP * place for place in range(len(widths))]
    for left, name in zip(lefts, columns):
        draw.text((left, GAP), name, "black", FONT)
    top = GAP + LINE
    for row, height in zip(rows, heights):
        draw.text((GAP, top + GAP // 2), row.caption, "dimgray", FONT)
        for left, picture in zip(lefts, row.pictures):
            table.paste(picture, (left, top + GAP // 2 + LINE))
        top += height
    left = GAP
    for name, colour in colours.items():
        draw.rectangle([left, top + 2, left + 9, top + 11], colour)
        draw.text((left + LINE, top), name, "black", FONT)
        left += LINE + text_width(name) + GAP
    return table


def text_width(text: str) -> int:
    """In pixels."""
    return math.ceil(FONT.getlength(text))


def with_tokens(picture: Image.Image, states: Tensor, grid: tuple[int, int] | None) -> Image.Image:
    """A picture above its tokens: int (K,), each GIVEN, FILLED or UNKNOWN.

    The tokens of a grid are drawn as one, at most half as wide as the picture, others in a line.
    """
    cells = states.reshape(grid or (1, -1))
    width = max(1, picture.width // (2 * cells.shape[1] if grid else len(states)))
    height = width if grid else GAP
    colours = np.array([*TOKEN_COLOURS.values()], dtype=np.uint8)[cells.cpu()]
    tokens = Image.fromarray(colours.repeat(height, axis=0).repeat(width, axis=1))
    top = picture.height + GAP // 2
    both = Image.new("RGB", (max(picture.width, tokens.width), top + tokens.height), "white")
    both.paste(picture)
    both.paste(tokens, (0, top))
    return both


def outlined(picture: Image.Image, box: Box) -> Image.Image:
    """A copy of a picture, with a line around a box just inside it."""
    copy = picture.copy()
    ImageDraw.Draw(copy).rectangle([box.left, box.top, box.right - 1, box.bottom - 1], outline=BOX_COLOUR)
    return copy


def heat_map(values: Tensor) -> Image.Image:
    """Values (H, W), not negative, in colours from black for 0 to light yellow for their largest."""
    share = values / values.max().clamp_min(1e-12)
    grey = Image.fromarray((255 * share).round().byte().numpy())
    return ImageOps.colorize(grey, "#000004", "#fcffa4", "#bc3754")


def to_picture(image: Tensor) -> Image.Image:
    """An image float (3, H, W) in [0, 1], on the CPU."""
    return Image.fromarray((255 * image).round().byte().permute(1, 2, 0).contiguous().numpy())
