"""The study's tables and figures 1 to 4 as data, from study.yaml."""

from pathlib import Path
from typing import NamedTuple

import yaml


class Row(NamedTuple):
    """A row of a table: the recipe whose run gives it, and the study's values by metric."""

    name: str
    recipe: str
    values: dict[str, float | None]


class StudyTable(NamedTuple):
    """One of the study's tables."""

    title: str
    caption: str
    head: str  # of the rows' names
    rows: list[Row]


class StudyPoint(NamedTuple):
    """A point of a figure: a number of tokens or a category, and a cell of the tables."""

    x: int | str
    y: float | None  # the study's value of the cell; None where it has none
    table: int
    row: str
    metric: str


class StudyFigure(NamedTuple):
    """One of the study's figures of its tables' values."""

    title: str
    caption: str
    axis: str  # of the values
    series: dict[str, list[StudyPoint]]


def _read(path: Path) -> tuple[dict[int, StudyTable], dict[str, StudyFigure]]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    tables = {}
    for number, table in content["tables"].items():
        rows = [Row(name, cells.pop("recipe"), cells) for name, cells in table.pop("rows").items()]
        tables[number] = StudyTable(**table, rows=rows)
    values = {(number, row.name): row.values for number, table in tables.items() for row in table.rows}
    figures = {}
    for name, figure in content["figures"].items():
        series = {
            series_name: [
                StudyPoint(x, values[number, row][metric], number, row, metric)
                for x, (number, row, metric) in points.items()
            ]
            for series_name, points in figure.pop("series").items()
        }
        figures[name] = StudyFigure(**figure, series=series)
    return tables, figures


TABLES, FIGURES = _read(Path(__file__).with_suffix(".yaml"))
