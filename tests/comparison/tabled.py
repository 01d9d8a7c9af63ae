"""Runs of the study's trainings as its code ran them, and the tables of them taken apart."""

import csv
import io

from comparison.recipes import tokenizer_recipe
from comparison.runs import read_runs
from comparison.tables import build_tables
from comparison.texts import fill
from tests.comparison import made

# The cells of a config's run, as README.md and the thesis have them
CELLS = {
    "vqgan": [(1, "VQGAN (reconstruction)")],
    "maskgit_vqgan": [(1, "MaskGIT (generation)")],
    "titok_16": [(2, "16")],
    "titok_32": [(2, "32")],
    "titok_64": [(2, "64")],
    "titok_128": [(2, "128")],
    "titok_256": [(2, "256")],
    "titok_64_big": [(2, "64, big set")],
    "mae_16": [(3, "16")],
    "mae_32": [(3, "32")],
    "mae_64": [(3, "64"), (4, "MAE")],
    "mae_128": [(3, "128")],
    "mae_256": [(3, "256")],
    "mae_64_big": [(3, "64, big set")],
    "titok_64_150ep": [(4, "scratch")],
    "dino_64": [(4, "DINO")],
    "depth_anything_v2_64": [(4, "Depth Anything v2")],
    "dinov2_64": [(4, "DINOv2")],
    "clip_64": [(4, "CLIP")],
    "maskgit_titok_64": [(5, "scratch")],
    "maskgit_depth_anything_v2_64": [(5, "Depth Anything v2")],
    "maskgit_clip_64": [(5, "CLIP")],
    "maskgit_dino_64": [(5, "DINO")],
    "maskgit_dinov2_64": [(5, "DINOv2")],
    "maskgit_mae_64": [(5, "MAE")],
}


def make_run(root, name, cell, *overrides, results=None, **rest):
    """A run of one of the study's trainings as its code ran it, measured as its scripts measure.

    A generator's tokenizer is otherwise the run of its cell's name.
    """
    if isinstance(cell, str) and cell.startswith("maskgit"):
        tokenizer = tokenizer_recipe(f"as_run/{cell}").removeprefix("as_run/")
        overrides = (f"tokenizer={root / tokenizer}", *overrides)
    results = {f"{metric}_as_run": value for metric, value in (results or {}).items()}
    path = f"as_run/{cell}" if isinstance(cell, str) else cell
    return made.make_run(root, name, path, *overrides, results=results, **rest)


def tables_of(root):
    return build_tables(read_runs(root)[0], root)


def cells_of(tables):
    """Every cell by table, row and metric."""
    return {
        (table.number, row.name, cell.metric): cell
        for table in tables
        for row in table.rows
        for cell in row.cells
        if cell is not None
    }


def filled(tables):
    """The table and row of each cell that has a value of ours."""
    return {key[:2] for key, cell in cells_of(tables).items() if cell.candidates}


def to_markdown(table):
    return fill("table.md", table=table)


def to_latex(table):
    return fill("table.tex", table=table)


def rows_of_csv(table):
    return list(csv.DictReader(io.StringIO(table.to_csv())))
