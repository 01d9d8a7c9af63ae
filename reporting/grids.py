"""The study's figures of images: systems side by side, drawn pixel for pixel by Pillow."""

import math
import textwrap
from collections import defaultdict
from typing import NamedTuple

from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from comparison.recipes import label
from comparison.runs import Run
from reporting.drawing import INK, PAPER, Figure
from reporting.figure_files import DOTS_AN_INCH, font_of
from reporting.pictures import Pictures

WIDTH, HEIGHT, LARGEST = 7.0, 9.0, 1.6  # inches, of a grid that fills a page, and of a column
COLUMNS = 7  # of images side by side
ROWS = 4  # of a system's images below each other; fewer, but two, where there are more rows of systems
GAP = 24  # pixels between images of different systems


class System(NamedTuple):
    """A column of an image grid: images (N, 3, H, W) in [0, 1] of one system."""

    name: str
    restored: Tensor | None = None
    generated: Tensor | None = None
    is_input: bool = False  # frames, which others are compared with


class Line(NamedTuple):
    """What stands side by side: images (N, 3, H, W) of each column, or None."""

    columns: list[Tensor | None]
    names: list[str]  # above them; none where they stand above the line before


def build_grids(runs: list[Run], pictures: Pictures) -> tuple[list[Figure], list[str]]:
    """Figures 5, 9, 12 and 15, those that there are images for, and a line for each of the others."""
    restored, generated = pictures.images, pictures.generated
    tokenizers = [run for run in runs if label(run) in restored]
    generators = [run for run in runs if label(run) in generated]
    generated_on = {label(run.tokenizer): generated[label(run)] for run in generators if run.tokenizer}

    def recipe_but_frames(run: Run) -> tuple:
        return run.config.model, run.config.training.epochs, run.config.training.max_steps

    on_several_sets = [
        run
        for run in tokenizers
        if any(
            recipe_but_frames(run) == recipe_but_frames(other)
            and run.config.data.train != other.config.data.train
            for other in tokenizers
        )
    ]
    wanted = [
        (
            "figure_5",
            "Reconstructed and generated images",
            "Above, validation frames and what each tokenizer that has a generator makes of them; below, "
            "what its generator makes from masks alone.",
            [
                System(label(run), restored[label(run)], generated_on[label(run)])
                for run in tokenizers
                if label(run) in generated_on
            ],
            "there is no generator with its tokenizer",
        ),
        (
            "figure_9",
            "One tokenizer, different training sets",
            "Above, validation frames through the same tokenizer trained on different sets of frames; below, "
            "what their generators, where there are any, make from masks alone.",
            [
                System(label(run), restored[label(run)], generated_on.get(label(run)))
                for run in on_several_sets
            ],
            "there is no tokenizer that was trained on two sets of frames",
        ),
        (
            "figure_12",
            "Reconstructed images",
            "The same validation frames through every tokenizer.",
            [System(label(run), restored[label(run)]) for run in tokenizers],
            "there is no tokenizer",
        ),
        (
            "figure_15",
            "Generated images",
            "What every generator makes from masks alone, decoded by the tokenizer that it was trained on.",
            [System(label(run), generated=generated[label(run)]) for run in generators],
            "there is no generator",
        ),
    ]
    missing = [f"{name}: {reason}" for name, _, _, systems, reason in wanted if not systems]
    grids = [
        Figure(name, title, caption, draw_grid(arrange(with_inputs(systems, pictures))))
        for name, title, caption, systems, _ in wanted
        if systems
    ]
    return grids, missing


def with_inputs(systems: list[System], pictures: Pictures) -> list[System]:
    """The systems, those that see frames alike behind these frames."""
    groups = defaultdict(list)
    for each in systems:
        groups[pictures.input_of.get(each.name) if each.restored is not None else None].append(each)
    inputs = {name: [System(name, pictures.images[name], None, True)] if name else [] for name in groups}
    return [each for name, members in groups.items() for each in inputs[name] + members]


def arrange(systems: list[System]) -> list[Line]:
    """Systems side by side, COLUMNS at most and the others below; at most ROWS images of each.

    The first is repeated in each line where it is the frames; generated images stand below reconstructions.
    """
    first, systems = (systems[:1], systems[1:]) if systems[0].is_input else ([], systems)
    num_blocks = math.ceil(len(systems) / (COLUMNS - len(first)))
    per_block = math.ceil(len(systems) / num_blocks)
    lines = []
    for start in range(0, len(systems), per_block):
        block = first + systems[start : start + per_block]
        names = [each.name for each in block]
        for columns in ([each.restored for each in block], [each.generated for each in block]):
            if any(images is not None for images in columns):
                lines.append(Line(columns, names))
                names = []
    most = min(ROWS, max(2, 6 // len(lines)))
    return [
        line._replace(columns=[None if images is None else images[:most] for images in line.columns])
        for line in lines
    ]


def draw_grid(lines: list[Line]) -> Image.Image:
    """Lines below each other, each with its names; DOTS_AN_INCH, WIDTH inches wide at most."""
    heights = [max(len(images) for images in line.columns if images is not None) for line in lines]
    columns = max(len(line.columns) for line in lines)
    inches = min(LARGEST, WIDTH / columns, HEIGHT / sum(heights))
    cell = round(inches * DOTS_AN_INCH) - GAP
    font = font_of(7.5)
    names = [
        [textwrap.fill(name, max(6, int(1.75 * cell / font.size))) for name in line.names] for line in lines
    ]
    row = round(1.25 * font.size)
    above = [row * max((1 + name.count("\n") for name in each), default=0) for each in names]
    tall = [
        max(round(cell * images.shape[2] / images.shape[3]) for images in line.columns if images is not None)
        for line in lines
    ]
    steps = [each + GAP // 4 for each in tall]
    height = sum(above) + sum(map(math.prod, zip(heights, steps))) + GAP * len(lines)
    grid = Image.new("RGB", (columns * (cell + GAP), height), PAPER)
    draw = ImageDraw.Draw(grid)
    top = 0
    for line, texts, words, count, step in zip(lines, names, above, heights, steps):
        top += words
        for place, images in enumerate(line.columns):
            left = place * (cell + GAP)
            if texts:
                draw.multiline_text((left + cell / 2, top - 4), texts[place], INK, font, "md", align="center")
            for number, image in enumerate([] if images is None else images):
                picture = to_pil_image((image * 255).round().byte())
                picture = picture.resize((cell, round(cell * picture.height / picture.width)))
                grid.paste(picture, (left, top + number * step))
        if line.columns[0] is None:
            draw.text((cell, top), "generated", INK, font, "ra")
        top += count * step + GAP
    return grid
