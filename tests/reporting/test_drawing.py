"""How figures look: colours, shapes, what is hollow, gaps."""

import itertools
import json

import numpy as np
import pytest
from PIL import ImageColor

from reporting.drawing import (
    COLOURS,
    MARKED_POINTS,
    Figure,
    Point,
    Series,
    draw_bars,
    draw_curves,
    draw_lines,
    draw_panels,
    draw_scatter,
    specification,
)
from tests.reporting.drawn import marks, rows, svg_of, texts

# --- colours ------------------------------------------------------------------------------------------------


def linear(colour: str) -> np.ndarray:
    """sRGB to linear light."""
    channels = np.array(ImageColor.getrgb(colour)) / 255
    return np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    """WCAG 2's contrast ratio."""
    low, high = sorted(linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (one, other))
    return (high + 0.05) / (low + 0.05)


def lab(light: np.ndarray) -> np.ndarray:
    """CIELAB of linear sRGB, white D65."""
    to_xyz = [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.072175],
        [0.0193339, 0.119192, 0.9503041],
    ]
    xyz = to_xyz @ np.clip(light, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), severity 1
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_colours_differ_to_colour_blind_eyes(blindness):
    for one, other in itertools.combinations(COLOURS, 2):
        seen = [lab(BLINDNESS[blindness] @ linear(colour)) for colour in (one, other)]
        assert np.linalg.norm(seen[0] - seen[1]) > 20, (one, other)


@pytest.mark.parametrize("ground", ["#ffffff", "#1b1f25"])
def test_colours_stand_out_from_light_and_dark_grounds(ground):
    assert min(contrast(colour, ground) for colour in COLOURS) >= 2.99


# --- what is drawn ------------------------------------------------------------------------------------------


def points(values, category=None, spread=0.0):
    return [
        Point(category or 2.0 ** (4 + place), y, f"run{place}", f"seed {place}", spread)
        for place, y in enumerate(values)
    ]


BOTH = [
    Series("TiTok", 0, points([90.0, 60.0, 30.0], spread=4.0)),
    Series("TiTok", 0, points([80.0, 50.0]), "study"),
    Series("a system of a rather long name, as some have", 1, points([70.0, 40.0])),
]
FIGURES = {
    "lines": draw_lines(BOTH, "tokens", "rFID"),
    "scatter": draw_scatter(BOTH, "rFID", "gFID"),
    "bars": draw_bars(
        [each._replace(points=points([70.0], "a b", each.points[0].spread)) for each in BOTH], "rFID"
    ),
    "curves": draw_curves(
        [each._replace(raw=points([95.0, 65.0, 35.0])) for each in BOTH], "step", "loss", log_y=True
    ),
    "panels": draw_panels({"left": BOTH, "right": BOTH}, "token", log_x=True),
}


def figure(kind, name="made"):
    return Figure(name, "A title", "A caption.", FIGURES[kind])


@pytest.mark.parametrize("kind, number", [("lines", 20), ("curves", 20), ("scatter", 9), ("bars", 9)])
def test_names_differ_without_colours(kind, number):
    """In the legend, by shape and dash."""
    series = [
        Series(f"system {look}", look, points([1.0 + look], "a" if kind == "bars" else 16))
        for look in range(number)
    ]
    drawing = {
        "lines": lambda: draw_lines(series, "", ""),
        "curves": lambda: draw_curves(series, "", ""),
        "scatter": lambda: draw_scatter(series, "", ""),
        "bars": lambda: draw_bars(series, ""),
    }[kind]()
    symbols = [
        (path.get("d"), path.get("stroke-dasharray"))
        for group in svg_of(Figure("made", "", "", drawing)).iter()
        if "role-legend-symbol" in group.get("class", "")
        for path in group.iter()
        if path.tag.endswith("path") and "#" in (path.get("stroke") or path.get("fill") or "")
    ]
    assert len(symbols) == number and len(set(symbols)) == number


def test_ours_are_filled_and_the_studys_hollow_and_the_legend_says_so():
    for kind in ("lines", "scatter", "bars"):
        fills = [mark["fill"] for mark in marks(figure(kind), "point")]
        assert fills.count("white") == (1 if kind == "bars" else 2)
        assert set(fills) - {"white"} == {COLOURS[0], COLOURS[1]}
        assert {"filled: our runs", "hollow: the study's values"} <= set(texts(figure(kind)))
    ours = Figure("made", "", "", draw_lines(BOTH[:1], "tokens", "rFID"))
    assert not any("hollow" in text for text in texts(ours))


def test_spreads_are_lines_from_below_to_above():
    spans = {(mark["rFID"], mark["high"]) for mark in marks(figure("lines"), "rule mark")}
    assert spans == {("86", "94"), ("56", "64"), ("26", "34")}


def test_values_that_are_not_finite_are_gaps():
    broken = [
        Series(
            "run",
            0,
            [Point(step, y, "run", "") for step, y in enumerate((1.0, float("nan"), 2.0, float("inf"), 3.0))],
        )
    ]
    drawn = Figure("made", "", "", draw_curves(broken, "step", "loss"))
    assert rows(drawn)[0]["y"] == [1.0, None, 2.0, None, 3.0]
    json.dumps(specification(drawn), allow_nan=False)
    assert {mark["loss"] for mark in marks(drawn, "point")} == {"1", "2", "3"}


@pytest.mark.parametrize("number, each", [(2, 100), (40, 50), (200, 15)])
def test_the_mouse_finds_points_of_every_curve_but_not_too_many(number, each):
    long = [Point(step, 1.0, "run", "") for step in range(1000)]
    drawn = Figure(
        "made", "", "", draw_curves([Series(f"{look}", look, long) for look in range(number)], "", "")
    )
    found = [sum(map(bool, row["seen"])) for row in rows(drawn)]
    assert len(found) == number and all(each <= count <= each + MARKED_POINTS for count in found)


def test_a_single_value_is_on_its_axis_as_it_is():
    drawn = Figure(
        "made", "", "", draw_curves([Series("run", 0, [Point(1000, 21.625, "run", "")])], "step", "PSNR")
    )
    assert {"21.625", "1,000"} <= set(texts(drawn))


def test_what_a_logarithm_cannot_have_is_a_gap():
    zero = [Series("run", 0, [Point(step, y, "run", "") for step, y in enumerate((1.0, 0.0, 0.25))])]
    drawn = Figure("made", "", "", draw_curves(zero, "step", "loss", log_y=True))
    assert rows(drawn)[0]["y"] == [1.0, None, 0.25]
    assert {mark["loss"] for mark in marks(drawn, "point")} == {"1", "0.25"}
