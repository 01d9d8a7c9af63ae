"""Figures as the report draws them: one Vega-Lite specification each, for its page and for its files."""

import math
import textwrap
from collections.abc import Sequence
from typing import Literal, NamedTuple

import altair as alt
import numpy as np
from PIL import Image

# Each has a contrast of 3 or more with white and with the page's dark ground. To the eye without red or green
# cones no two are nearer than a CIELAB distance of 23. Neighbours differ in lightness, so also in grey;
# series of one drawing differ by marker or dash too.
COLOURS = ["#3C5AFF", "#E17800", "#B42DB4", "#4BA569", "#D21E2D", "#3C96FF", "#696969", "#C378B4"]
SHAPES = ["circle", "square", "triangle-up", "diamond", "triangle-down", "cross"]
SHAPES += [  # a pentagon, an x, a star; as paths in a square from -1 to 1
    "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
    "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z",
    "M0,-1.1L.3,-.4L1.05,-.34L.48,.15L.65,.89L0,.5L-.65,.89L-.48,.15L-1.05,-.34L-.3,-.4Z",
]
ARROWHEAD = "M0,-1L.75,.8L0,.4L-.75,.8Z"
DASHES = [[1, 0], [6, 3], [2, 2]]
STUDY_DASH = [5, 4]
INK, PAPER = "#333333", "white"  # page.css has others for a dark ground
FAINT = "rgba(128, 128, 128, 0.3)"
WIDTH = 600  # pixels of a figure where its place has no width of its own
DRAWN_POINTS = 500  # of a curve, evenly taken from more
HOVER_POINTS = 100  # of these, with something to say to the mouse; fewer where there are many curves
HOVER_POINTS_IN_ALL = 2000
MARKED_POINTS = 15  # of these, with a marker
# The width of a figure's place on the page. The plot's own, which it follows, is known too late for a legend.
PLACE = f"((containerSize()[0] || {WIDTH}) + 0 * width)"
NUMBERS = alt.Axis(format=".6~g", tickCount=6)  # also where all values are one
CURVE = ["x", "y", "seen"]  # what a curve's row has lists of
OURS, STUDY = "datum.source == 'ours'", "datum.source == 'study'"
WORDS = {"labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "labelFontSize": 11}
CONFIG = {
    "background": PAPER,
    "view": {"continuousWidth": WIDTH, "stroke": None},
    "axis": WORDS | {"labelLimit": 0, "gridColor": FAINT, "domainColor": FAINT, "tickColor": FAINT},
    "axisX": {"grid": False},
    "legend": WORDS | {"labelLimit": 320, "titleLimit": 0, "symbolSize": 70, "symbolOpacity": 1},
    "header": WORDS,
    "title": {
        "color": INK,
        "anchor": "start",
        "fontSize": 13,
        "fontWeight": "normal",
        "offset": 12,
        "limit": WIDTH,
    },
    "text": {"color": INK, "fontSize": 10},
    "point": {"opacity": 1},
}


class Figure(NamedTuple):
    """A drawing with its words, which stand beside it on the page; files have the title in them."""

    name: str  # of its files
    title: str
    caption: str
    drawing: alt.TopLevelMixin | Image.Image  # a picture has figure_files.DOTS_AN_INCH


def specification(figure: Figure) -> dict:
    """A figure's Vega-Lite specification, without its title and caption."""
    return figure.drawing.to_dict() | {"config": CONFIG}


class Point(NamedTuple):
    """A value, and whose it is."""

    x: float | str  # a bar's category
    y: float
    run: str  # the run folder's name, or the study's table
    note: str  # more to say with the mouse over it: step, seed, number of images
    spread: float = 0.0  # y's standard deviation, where it is a mean over seeds

    @property
    def value(self) -> str:
        """41.44, or 41.44 ± 0.52."""
        return f"{self.y:.2f}" + (f" ± {self.spread:.2f}" if self.spread else "")


class Series(NamedTuple):
    """Points under one name. Ours are drawn filled, the study's hollow."""

    name: str  # in the legend; one of ours and one of the study's may share name and look
    look: int  # a number that goes round colours, shapes and dashes
    points: Sequence[Point]
    source: Literal["ours", "study"] = "ours"
    raw: Sequence[Point] = ()  # a thin line under a curve


class Arrow(NamedTuple):
    """From one point to another."""

    start: Point
    end: Point


def over_places(name: str, look: int, run: str, values: np.ndarray) -> Series:
    """Values of a run over their places, which count from 1."""
    points = [Point(place, value, run, name) for place, value in enumerate(values.tolist(), start=1)]
    return Series(name, look, points)


# --- what is drawn ------------------------------------------------------------------------------------------


def draw_lines(
    series: Sequence[Series], x_label: str, y_label: str, from_zero: bool = True
) -> alt.LayerChart:
    """Points over counts, on a logarithmic axis, joined by lines; `from_zero` is of the other axis."""
    counts = sorted({point.x for each in series for point in each.points})
    axis = alt.Axis(values=counts, labelFlush=False, labelOverlap=False)
    looks = _looks(series)
    place = {
        "x": alt.X(
            "x:Q", title=x_label, axis=axis, scale=alt.Scale(type="log", base=2, nice=False, padding=14)
        ),
        "y": alt.Y("y:Q", title=y_label, scale=alt.Scale(zero=from_zero)),
    }
    line = alt.Chart().mark_line().encode(**place, color=looks["color"], detail="source:N")
    lines = [
        line.transform_filter(OURS).encode(strokeDash=looks["strokeDash"]),
        line.transform_filter(STUDY).encode(strokeDash=alt.value(STUDY_DASH)),
    ]
    said = [alt.Tooltip("x:Q", title=x_label), alt.Tooltip("value:N", title=y_label)]
    return _whole([*lines, *_error_bars(place, looks, "y"), *_markers(place, looks, said)], _rows(series))


def draw_scatter(
    series: Sequence[Series], x_label: str, y_label: str, arrows: Sequence[Arrow] = ()
) -> alt.LayerChart:
    """Points with a value on each axis, neither of which begins at 0, and arrows between some of them."""
    place = {
        axis: kind(
            f"{axis}:Q", title=label, scale=alt.Scale(zero=False, padding=12), axis=alt.Axis(grid=True)
        )
        for axis, kind, label in (("x", alt.X, x_label), ("y", alt.Y, y_label))
    }
    said = [alt.Tooltip("x:Q", title=x_label, format=".2f"), alt.Tooltip("y:Q", title=y_label, format=".2f")]
    layers = [*_arrows(place, arrows), *_markers(place, _looks(series), said)]
    return _whole(layers, _rows(series))


def draw_bars(series: Sequence[Series], x_label: str) -> alt.LayerChart:
    """Lying bars with their values, a group for each category, in the order of the series with the most."""
    longest_first = sorted(series, key=lambda each: -len(each.points))
    categories = list(dict.fromkeys(_wrapped(point.x) for each in longest_first for point in each.points))
    slots = list(dict.fromkeys(f"{each.name}, {each.source}" for each in series))
    points = [point for each in series for point in each.points]
    longest = max(point.y + point.spread for point in points)
    room = 14 + 6 * max(len(point.value) for point in points)  # pixels for the values behind the bars
    scale = alt.Scale(
        domainMin=0, domainMax=alt.ExprRef(f"{longest} * width / max(20, width - {room})"), nice=False
    )
    wrapped = alt.Axis(labelExpr="split(datum.label, '\\n')", labelPadding=6, ticks=False, grid=False)
    looks = _looks(series)
    place = {
        "x": alt.X("y:Q", title=x_label, scale=scale, axis=alt.Axis(grid=True, tickCount=5)),
        "y": alt.Y("x:N", title=None, sort=categories, axis=wrapped),
        "yOffset": alt.YOffset("slot:N", sort=slots, scale=alt.Scale(paddingInner=0.12)),
    }
    bar = alt.Chart().encode(**place, color=looks["color"])
    said = [alt.Tooltip("x:N", title="of"), alt.Tooltip("value:N", title=x_label)]
    layers = [
        bar.transform_filter(OURS).mark_bar(opacity=0.75),
        bar.transform_filter(STUDY).mark_bar(filled=False, fill=PAPER),
        *_error_bars(place, looks, "x"),
        *_markers(place, looks, said),
        alt.Chart()
        .mark_text(align="left", dx=9)
        .encode(**place | {"x": alt.X("high:Q", title=x_label, scale=scale)}, text="value:N"),
    ]
    rows = [
        row | {"x": _wrapped(row["x"]), "slot": f"{row['name']}, {row['source']}"} for row in _rows(series)
    ]
    lines = max(1 + category.count("\n") for category in categories)
    height = max(14 * len(slots) + 8, 14 * lines + 6)  # of a group, with room for its words
    return _whole(layers, rows).properties(height=height * len(categories))


def draw_curves(series: Sequence[Series], x_label: str, y_label: str, log_y: bool = False) -> alt.LayerChart:
    """Curves over steps, each with a thin line under it; at most DRAWN_POINTS points of each.

    With Ctrl the wheel zooms; a mouse drags what is shown, and a double click brings all of it back.
    """
    x_axis = alt.Axis(format=",d", tickMinStep=1, tickCount=6, labelOverlap=True)
    y_scale = alt.Scale(type="log", nice=False) if log_y else alt.Scale(zero=False)
    place = {
        "x": alt.X("x:Q", title=x_label, scale=alt.Scale(zero=False, nice=False, padding=6), axis=x_axis),
        "y": alt.Y("y:Q", title=y_label, scale=y_scale, axis=NUMBERS),
    }
    *layers, found = _curve_layers(place, _looks(series), clip=True)
    zoom = alt.selection_interval(
        bind="scales",
        zoom="wheel![event.ctrlKey]",
        translate="[pointerdown[event.pointerType == 'mouse'], window:pointerup] > window:pointermove!",
    )
    rows = _curve_rows(series, least=0 if log_y else -math.inf)
    return _whole([*layers, found.add_params(zoom)], rows).transform_flatten(CURVE)


def draw_panels(panels: dict[str, Sequence[Series]], x_label: str, log_x: bool) -> alt.FacetChart:
    """Curves of the same names side by side, each panel under its title with an axis of its own from 0."""
    rows = [{"panel": title} | row for title, series in panels.items() for row in _curve_rows(series, log_x)]
    width = WIDTH // len(panels) - 40
    log = {"type": "log", "base": 2} if log_x else {"zero": False}
    x_scale = alt.Scale(nice=False, padding=6, **log)
    place = {
        "x": alt.X(
            "x:Q", title=x_label, scale=x_scale, axis=alt.Axis(format="d", tickMinStep=1, tickCount=8)
        ),
        "y": alt.Y("y:Q", title=None, axis=NUMBERS),
    }
    layers = _curve_layers(place, _looks(next(iter(panels.values())), str(WIDTH)), clip=False)
    return (
        alt.layer(*layers)
        .properties(width=width, height=180)
        .facet(alt.Facet("panel:N", title=None, sort=list(panels)), data=values(rows), columns=len(panels))
        .resolve_scale(y="independent")
        .transform_flatten(CURVE)
    )


def _curve_layers(place: dict, looks: dict, clip: bool) -> list[alt.Chart]:
    """Lines, markers, and on top of them what the mouse finds, of which nothing is seen."""
    line = alt.Chart().encode(**place, detail="part:N", color=looks["color"], strokeDash=looks["strokeDash"])
    point = alt.Chart().encode(**place, color=looks["color"], shape=looks["shape"])
    said = [
        alt.Tooltip("run:N", title="title"),
        alt.Tooltip("name:N", title="series"),
        alt.Tooltip("x:Q", title=place["x"]["title"], format=","),
        alt.Tooltip("y:Q", title=place["y"]["title"] or "value", format=".4~g"),
        alt.Tooltip("note:N", title="of"),
    ]
    lines = {
        "raw": {"strokeWidth": 0.8, "opacity": 0.55},
        "alone": {"strokeWidth": 1.2},
        "curve": {"strokeWidth": 2.2},
    }
    return [
        *(
            line.transform_filter(f"datum.part == '{part}'").mark_line(clip=clip, **look)
            for part, look in lines.items()
        ),
        point.transform_filter("datum.seen == 2").mark_point(filled=True, size=45, clip=clip),
        point.transform_filter("datum.seen > 0")
        .mark_point(filled=True, size=90, opacity=0, clip=clip)
        .encode(tooltip=said),
    ]


def _curve_rows(series: Sequence[Series], log_x: bool = False, least: float = -math.inf) -> list[dict]:
    """A row a line, with lists of its points: x, y, and how one is seen: 2 with a marker, 1 by the mouse.

    What isn't above the least is a gap.
    """
    hover_points = max(MARKED_POINTS, min(HOVER_POINTS, HOVER_POINTS_IN_ALL // len(series)))
    rows = []
    for each in series:
        parts = {"raw": each.raw, "curve": each.points} if each.points else {"alone": each.raw}
        for part, points in parts.items():
            if not points:
                continue
            drawn = [points[place] for place in _evenly(len(points), DRAWN_POINTS)]
            seen = dict.fromkeys(_evenly(len(drawn), hover_points), 1)
            if part != "raw":
                seen |= dict.fromkeys(_evenly(len(drawn), MARKED_POINTS, log_x), 2)
            rows.append(
                {"name": each.name, "part": part, "run": drawn[0].run, "note": drawn[0].note}
                | {"x": [point.x for point in drawn]}
                | {"y": [point.y if point.y > least else None for point in drawn]}
                | {"seen": [seen.get(place, 0) for place in range(len(drawn))]}
            )
    return rows


def _evenly(count: int, most: int, log: bool = False) -> list[int]:
    """At most `most` of `count` places from 0, with the first and the last, even in themselves or in log."""
    spaced = np.geomspace if log else np.linspace
    return sorted({round(place) - 1 for place in spaced(1, count, min(count, most)).tolist()})


def _rows(series: Sequence[Series]) -> list[dict]:
    return [
        {"name": each.name, "source": each.source, "x": point.x, "y": point.y, "value": point.value}
        | {"low": point.y - point.spread, "high": point.y + point.spread}
        | {"run": point.run, "note": point.note}
        for each in series
        for point in each.points
    ]


def _whole(layers: Sequence[alt.Chart], rows: list[dict]) -> alt.LayerChart:
    """Layers over the same data, as wide as their place."""
    return alt.layer(*layers, data=values(rows)).properties(
        width="container", height=250, autosize=alt.AutoSizeParams(type="fit-x", contains="padding")
    )


def values(rows: list[dict]) -> alt.InlineData:
    """Rows of numbers, texts and lists of these as data; what isn't finite is null, as JSON has no other."""

    def finite(value: object) -> object:
        if isinstance(value, list):
            return [finite(each) for each in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return alt.InlineData(values=[{key: finite(value) for key, value in row.items()} for row in rows])


def _looks(series: Sequence[Series], width: str = PLACE) -> dict:
    """Colour, shape and dash of each name, in one legend that fits a width, an expression of Vega's."""
    looks = {each.name: each.look for each in series}
    has_study = any(each.source == "study" for each in series)
    # A name is some 6 pixels a character wide; beside the legend is the room of the axis.
    columns = alt.ExprRef(f"max(1, floor(({width} - 60) / {30 + 6 * max(map(len, looks))}))")
    title = ["filled: our runs", "hollow: the study's values"] if has_study else None
    legend = alt.Legend(title=title, orient="bottom", columns=columns)

    def scale(cycle: list, period: int = 1) -> alt.Scale:
        chosen = [cycle[look // period % len(cycle)] for look in looks.values()]
        return alt.Scale(domain=list(looks), range=chosen)

    return {
        "color": alt.Color("name:N", scale=scale(COLOURS), legend=legend),
        "shape": alt.Shape("name:N", scale=scale(SHAPES), legend=legend),
        "strokeDash": alt.StrokeDash("name:N", scale=scale(DASHES, len(SHAPES)), legend=legend),
    }


def _markers(place: dict, looks: dict, said: list[alt.Tooltip]) -> list[alt.Chart]:
    said = [alt.Tooltip("run:N", title="title"), alt.Tooltip("name:N", title="series"), *said]
    said.append(alt.Tooltip("note:N", title="from"))
    marker = alt.Chart().encode(**place, color=looks["color"], shape=looks["shape"], tooltip=said)
    return [
        marker.transform_filter(STUDY).mark_point(filled=False, fill=PAPER, size=60, strokeWidth=1.6),
        marker.transform_filter(OURS).mark_point(filled=True, size=70),
    ]


def _arrows(place: dict, arrows: Sequence[Arrow]) -> list[alt.Chart]:
    """A line for each, with a head in its middle, where no marker hides it."""
    if not arrows:
        return []
    rows = [
        {"x": start.x, "y": start.y, "x2": end.x, "y2": end.y}
        | {"xm": (start.x + end.x) / 2, "ym": (start.y + end.y) / 2}
        for start, end in arrows
    ]
    across, down = (f"(scale('{axis}', datum.{axis}2) - scale('{axis}', datum.{axis}))" for axis in "xy")
    turned = alt.ExprRef(f"90 + atan2({down}, {across}) * 180 / PI")  # degrees, from upwards
    chart = alt.Chart(values(rows)).encode(**place)
    return [
        chart.mark_rule(color=INK, opacity=0.6).encode(x2="x2:Q", y2="y2:Q"),
        chart.mark_point(shape=ARROWHEAD, filled=True, size=90, angle=turned, color=INK).encode(
            x=_at("xm:Q", place["x"]), y=_at("ym:Q", place["y"])
        ),
    ]


def _at(field: str, encoding: alt.X | alt.Y) -> alt.X | alt.Y:
    """The same encoding of another field."""
    other = encoding.copy()
    other.shorthand = field
    return other


def _error_bars(place: dict, looks: dict, along: Literal["x", "y"]) -> list[alt.Chart]:
    shown = place | {along: _at("low:Q", place[along]), f"{along}2": "high:Q", "color": looks["color"]}
    return [alt.Chart().transform_filter("datum.high > datum.low").mark_rule(strokeWidth=1.6).encode(**shown)]


def _wrapped(category: str) -> str:
    return "\n".join(textwrap.wrap(category, 18))
