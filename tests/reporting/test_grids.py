"""Image grids show the images that they are handed, each under its name, found by its colour."""

import itertools

import numpy as np
import scipy.ndimage
import torch

from comparison.runs import Run
from reporting.grids import WIDTH, System, arrange, build_grids, draw_grid
from reporting.pictures import Pictures
from tests.reporting.test_codebook import tokenizer_run
from training.config import GeneratorConfig

COLOURS = [(red, 40 * green, 255) for green in range(1, 6) for red in (0, 50, 100, 150, 200)]


def images_of(*colours):
    """Images (N, 3, 32, 32), each of one of COLOURS by its number."""
    chosen = torch.tensor([COLOURS[number] for number in colours]) / 255
    return chosen[:, :, None, None].expand(-1, -1, 32, 32)


def found(grid):
    """(top, left, size, number of the colour) of each image of a grid, in their reading order."""
    pixels = np.asarray(grid)
    images = []
    for number, colour in enumerate(COLOURS):
        areas, _ = scipy.ndimage.label((pixels == colour).all(axis=-1))
        for rows, columns in scipy.ndimage.find_objects(areas):
            assert rows.stop - rows.start == columns.stop - columns.start
            images.append((rows.start, columns.start, rows.stop - rows.start, number))
    return sorted(images)


def test_every_system_is_under_its_name():
    """Nine systems, more than stand side by side, of two images each."""
    systems = [System("input", images_of(20, 21), is_input=True)]
    systems += [System(f"system {number}", images_of(2 * number, 2 * number + 1)) for number in range(9)]
    lines = arrange(systems)
    assert [line.names for line in lines] == [
        ["input", *(f"system {number}" for number in range(5))],
        ["input", *(f"system {number}" for number in range(5, 9))],
    ]
    grid = draw_grid(lines)
    assert grid.width <= WIDTH * 200
    images = found(grid)
    assert [number for *_, number in images] == [
        *(20, 0, 2, 4, 6, 8, 21, 1, 3, 5, 7, 9),
        *(20, 10, 12, 14, 16, 21, 11, 13, 15, 17),
    ]
    ink = (np.asarray(grid) == (51, 51, 51)).all(axis=-1)
    for top, left, size, number in images:
        above = ink[max(0, top - 30) : top, left : left + size]
        assert above.any() == (number % 2 == 0)  # a name, above the first of two


def test_generated_images_stand_below_their_tokenizers(tmp_path):
    tokenizers = [tokenizer_run(tmp_path, name) for name in ("a", "b", "c")]
    generators = [
        Run(
            tmp_path / f"on_{run.name}",
            GeneratorConfig(tokenizer=str(run.folder), training={"max_steps": 1}),
            1,
            [],
            {},
            run,
        )
        for run in tokenizers[:2]
    ]
    images = {"input": images_of(9)}
    images |= {f"TiTok-64 ({run.name})": images_of(number) for number, run in enumerate(tokenizers)}
    generated = {
        f"MaskGIT on TiTok-64 (on_{name})": images_of(number) for name, number in (("a", 5), ("b", 6))
    }
    pictures = Pictures([], images, dict.fromkeys(images, "input"), generated)
    grids = {grid.name: found(grid.drawing) for grid in build_grids(tokenizers + generators, pictures)[0]}
    shown = {name: [number for *_, number in grid] for name, grid in grids.items()}
    assert shown == {"figure_5": [9, 0, 1, 5, 6], "figure_12": [9, 0, 1, 2], "figure_15": [5, 6]}
    left_of = {number: left for _, left, _, number in grids["figure_5"]}
    assert left_of[9] < left_of[0] == left_of[5] < left_of[1] == left_of[6]


def test_images_are_apart(tmp_path):
    systems = [System(f"system {number}", images_of(number), images_of(number + 5)) for number in range(3)]
    for one, other in itertools.combinations(found(draw_grid(arrange(systems))), 2):
        assert any(abs(one[axis] - other[axis]) > one[2] for axis in (0, 1))


def test_one_tokenizer_on_different_sets(tmp_path):
    runs = [
        tokenizer_run(tmp_path, "small", count=10),
        tokenizer_run(tmp_path, "big", count=20),
        tokenizer_run(tmp_path, "longer", count=20, steps=2),
        tokenizer_run(tmp_path, "other", {"num_tokens": 32}, count=20),
    ]
    names = ("input", "TiTok-64 (small)", "TiTok-64 (big)", "TiTok-64 (longer)", "TiTok-32 (other)")
    images = {name: images_of(number) for number, name in enumerate(names)}
    grids, _ = build_grids(runs, Pictures([], images, dict.fromkeys(images, "input"), {}))
    (grid,) = [grid for grid in grids if grid.name == "figure_9"]
    assert [number for *_, number in found(grid.drawing)] == [0, 1, 2]


def test_what_lacks_is_named(tmp_path):
    grids, missing = build_grids([tokenizer_run(tmp_path, "run")], Pictures([], {}, {}, {}))
    assert grids == []
    for name in ("figure_5", "figure_9", "figure_12", "figure_15"):
        assert any(name in line for line in missing), name
