"""Charts: one description of each, drawn by matplotlib for the files and by plotly for the page."""

import html
import math
import os
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import matplotlib
import matplotlib.style
import numpy as np
import plotly.io
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

from errors import UserError
from reporting.runs import Run
from reporting.study import AS_RUN, StudyPoint, label, match, study_series, system
from reporting.tables import Table, build_tables, find_cell

STYLE = Path(__file__).parent / "report.mplstyle"
# A series' look is a number that goes round these. Matplotlib's name: plotly's.
CYCLE = matplotlib.rc_params_from_file(STYLE, use_default_template=False)["axes.prop_cycle"]
COLOURS = CYCLE.by_key()["color"]
MARKERS = {"o": "circle", "s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down"}
MARKERS |= {"P": "cross", "p": "pentagon", "X": "x", "*": "star"}
LINES = {"solid": "solid", "dashed": "dash", "dotted": "dot"}
HATCHES = {"": "", "////": "/", "....": ".", "xxxx": "x"}
MARKED_POINTS = 15  # of a curve that have a marker
PAGE_POINTS = 500  # of a curve on the page, evenly taken from more
GAP, LINE = 0.8, 0.8  # between groups of bars, and of a line of their names, in bars
LOG_DIGITS = (1, 2, 5)  # of ticks
TOOLS = [["zoom2d", "pan2d", "resetScale2d"]]
# Plotly takes no CSS variables. The page's script hands one of these to Plotly.relayout for each
# .plotly-graph-div, at the start and whenever the reader's scheme changes; all else suits both grounds.
THEMES = {
    "light": {"font.color": "#1d2126", "hoverlabel.bgcolor": "#ffffff", "hoverlabel.font.color": "#1d2126"},
    "dark": {"font.color": "#e7e6e2", "hoverlabel.bgcolor": "#1b1f25", "hoverlabel.font.color": "#e7e6e2"},
}
SMOOTHED_SHARE = 0.04  # of a curve's logged values, over which the mean goes
# What runs log as train/<name>, val/<name> or both, with its axis.
TOKENIZER_CURVES = {
    "loss": "total loss (weighted sum)",
    "reconstruction": "reconstruction loss (pixels in [0, 1])",
    "lpips": "LPIPS loss (no unit)",
    "convnext": "ConvNeXt loss (logits²)",
    "adversarial": "adversarial loss (logits)",
    "discriminator": "discriminator loss (logits)",
    "codebook": "codebook loss (distance²)",
    "entropy": "entropy loss (nats)",
    "psnr": "PSNR (dB)",
    "codebook_usage": "codebook usage (share of codes)",
    "perplexity": "perplexity (codes)",
}
GENERATOR_CURVES = {
    "loss": "cross-entropy (nats a masked token)",
    "accuracy": "accuracy (share of masked tokens)",
}
# The study's charts, and what of ours they need at least one of
STUDY_CHARTS = {
    "figure_1": "an rFID of VQGAN or of a TiTok of Tables 2 and 3",
    "figure_2": "an rFID of a TiTok of Tables 2 and 3",
    "figure_3": "an rFID of TiTok-64 on the small or the big set",
    "figure_4": "an rFID of a tokenizer of Tables 1 and 4, or a gFID of a generator of Tables 1 and 5",
    "figure_11": "a run of TiTok from MAE, of any number of tokens, that logged a reconstruction loss",
    "figure_13a": "a run of TiTok-64 of Table 4 that logged a reconstruction loss",
    "figure_13b": "a run of TiTok-64 of Table 4 that logged an LPIPS loss",
    "rfid_gfid": "a gFID of a generator whose tokenizer has an rFID",
}
FAINT, CLEAR = "rgba(128, 128, 128, 0.3)", "rgba(0, 0, 0, 0)"


class Point(NamedTuple):
    """A value, and whose it is."""

    x: float | str  # a bar's category
    y: float
    run: str  # the run folder's name, or the study's table
    note: str  # more to say with the mouse over it: step, seed, number of images
    spread: float = 0.0  # y's standard deviation, where it is a mean over seeds


class Series(NamedTuple):
    """Points under one name. Ours are drawn filled, the study's hollow."""

    name: str  # in the legend; one of ours and one of the study's may share name and look
    look: int
    points: list[Point]
    source: Literal["ours", "study"] = "ours"
    raw: Sequence[Point] = ()  # a thin line under a curve


class Chart(NamedTuple):
    """What a chart shows, apart from how it is drawn.

    `lines` are over token counts, on a logarithmic axis; `bars` lie, in a group for each category, so that
    x_label is of their values; `curves` are over training steps; a `scatter` has a value on each axis.
    """

    name: str  # of its files
    title: str
    caption: str
    kind: Literal["lines", "bars", "curves", "scatter"]
    x_label: str
    y_label: str
    series: list[Series]
    categories: Sequence[str] = ()  # of bars, from the top
    log_y: bool = False


# --- from runs ----------------------------------------------------------------------------------------------


def build_charts(runs: list[Run]) -> list[Chart]:
    """The charts that have a point of ours: the study's, those of its open questions, and every run's curves.

    In figures 1 to 4 our value is that of the run nearest to the study's training, or the mean over such runs
    that differ in their seeds only.
    """
    tables = build_tables(runs)
    tokenizers = [run for run in runs if not run.is_generator]
    generators = [run for run in runs if run.is_generator]
    charts = [
        *_study_charts(tables),
        *_loss_charts(tokenizers),
        _rfid_gfid_chart(generators, tables),
        _random_features_chart(runs),
        *_training_charts("tokenizer", TOKENIZER_CURVES, tokenizers),
        *_training_charts("generator", GENERATOR_CURVES, generators),
    ]
    return [chart for chart in charts if any(series.source == "ours" for series in chart.series)]


def smooth(values: Sequence[float], reach: int) -> np.ndarray:
    """The mean over each value and `reach` on either side of it.

    Near the start, where losses fall, it is as many on either side as there are before; near the end it is
    those that there are.
    """
    sums = np.concatenate([[0.0], np.cumsum(values)])
    places = np.arange(len(values))
    reach = np.minimum(reach, places)
    starts, ends = places - reach, np.minimum(places + reach + 1, len(values))
    return (sums[ends] - sums[starts]) / (ends - starts)


def _study_charts(tables: list[Table]) -> list[Chart]:
    """Figures 1 to 4: cells of the tables, ours beside the study's."""
    by_count = study_series(2)
    named_counts = {
        name: [point._replace(x=f"{point.x} tokens") for point in points] for name, points in by_count.items()
    }
    return [
        _study_chart(
            tables,
            by_count | study_series(1),
            name="figure_1",
            title="rFID against token count",
            caption="FID of the reconstructions for each number of tokens.",
            kind="lines",
            x_label="tokens",
            y_label="rFID",
        ),
        _study_chart(
            tables,
            named_counts,
            name="figure_2",
            title="With and without initialisation",
            caption="FID of the reconstructions by TiTok from scratch and from MAE.",
            kind="bars",
            x_label="rFID",
        ),
        _study_chart(
            tables,
            study_series(3),
            name="figure_3",
            title="Small set against big set",
            caption="FID of TiTok-64's reconstructions. The small set has 12,454 frames of daytime, the big "
            "one 35,000 of day and night.",
            kind="bars",
            x_label="rFID",
        ),
        _study_chart(
            tables,
            study_series(4),
            name="figure_4",
            title="rFID and gFID of every system",
            caption="FID of the reconstructions, and of images that MaskGIT makes of the system's tokens.",
            kind="bars",
            x_label="FID",
        ),
    ]


def _study_chart(
    tables: list[Table],
    points_by_name: dict[str, list[StudyPoint]],
    *,
    name: str,
    title: str,
    caption: str,
    kind: Literal["lines", "bars"],
    x_label: str,
    y_label: str = "",
) -> Chart:
    series, noted = [], []
    for look, (series_name, points) in enumerate(points_by_name.items()):
        ours, study = [], []
        for point in points:
            for candidate in find_cell(tables, point.table, point.row, point.metric).candidates[:1]:
                run, note = ", ".join(candidate.runs), candidate.origin
                if candidate.mark:
                    note += f"<br>note {candidate.mark} of Table {point.table}"
                    noted.append(f"{run} (note {candidate.mark} of Table {point.table})")
                ours.append(Point(point.x, candidate.value, run, note, candidate.std or 0.0))
            if point.y is not None:
                study.append(Point(point.x, point.y, "study", f"Table {point.table}"))
        series += [Series(series_name, look, ours), Series(series_name, look, study, "study")]
    series = [each for each in series if each.points]
    shown = {point.x for each in series for point in each.points}
    categories = dict.fromkeys(point.x for points in points_by_name.values() for point in points)
    return Chart(
        name,
        title,
        f"{caption} Lower is better.{_remark(noted)}",
        kind,
        x_label,
        y_label,
        series,
        [category for category in categories if category in shown],
    )


def _remark(runs: list[str]) -> str:
    return f" Not quite what the study did: {', '.join(dict.fromkeys(runs))}." if runs else ""


def _loss_charts(tokenizers: list[Run]) -> list[Chart]:
    """Figures 11 and 13: the runs that are, or come nearest to, the study's trainings."""
    near = defaultdict(list)
    for run in tokenizers:
        nearest = match(run)
        near[nearest and nearest.recipe].append(run)

    def find(*recipes: str) -> list[Run]:
        return [run for recipe in recipes for family in (recipe, AS_RUN + recipe) for run in near[family]]

    from_mae = find("mae_16", "mae_32", "mae_64", "mae_128", "mae_256")
    from_scratch = find("titok_16", "titok_32", "titok_64", "titok_128", "titok_256")
    by_init = find("titok_64_150ep", "mae_64", "clip_64", "dino_64", "dinov2_64", "depth_anything_v2_64")
    by_count = "Reconstruction loss for each token count"
    return [
        _loss_chart("figure_11", f"{by_count}, from MAE", "reconstruction", from_mae),
        _loss_chart("figure_11_scratch", f"{by_count}, from scratch", "reconstruction", from_scratch),
        _loss_chart("figure_13a", "Reconstruction loss for each initialisation", "reconstruction", by_init),
        _loss_chart("figure_13b", "Perceptual loss for each initialisation", "lpips", by_init),
    ]


def _loss_chart(name: str, title: str, loss: str, runs: list[Run]) -> Chart:
    series = []
    for look, run in enumerate(runs):
        raw, points = (_logged(run, f"train/{loss}", note) for note in ("as logged", "smoothed"))
        reach = round(SMOOTHED_SHARE * len(raw) / 2)
        points = [point._replace(y=y) for point, y in zip(points, smooth(_ys(raw), reach).tolist())]
        norm = ", L1" if loss == "reconstruction" and run.config.losses.reconstruction == "l1" else ""
        if points:
            series.append(Series(label(run) + norm, look, points, raw=raw))
    return Chart(
        name,
        title,
        f"In training. Thin: as logged. Bold: the moving mean over {SMOOTHED_SHARE:.0%} of what is logged.",
        "curves",
        "step",
        TOKENIZER_CURVES[loss],
        series,
        log_y=True,
    )


def _rfid_gfid_chart(generators: list[Run], tables: list[Table]) -> Chart:
    """For each generator, the rFID of its tokenizer and its own gFID."""
    as_study = {
        (cell.metric, name)
        for table in tables
        for row in table.rows
        for cell in row.cells
        if cell
        for candidate in cell.candidates
        if not candidate.notes
        for name in candidate.runs
    }
    rfid, gfid = ({point.x: point.y for point in points} for points in study_series(4).values())
    study = {name: [Point(rfid[name], gfid[name], "study", "Tables 1, 4 and 5")] for name in rfid}
    ours, noted = defaultdict(list), []
    for run in generators:
        tokenizer = run.tokenizer
        if tokenizer and "gfid" in run.results and "rfid" in tokenizer.results:
            values = tokenizer.results["rfid"]["value"], run.results["gfid"]["value"]
            note = f"{_origin(tokenizer, 'rfid')}<br>{_origin(run, 'gfid')}"
            ours[system(tokenizer)].append(Point(*values, f"{tokenizer.name}, {run.name}", note))
            if not {("rfid", tokenizer.name), ("gfid", run.name)} <= as_study:
                noted.append(run.name)
    series = []
    for look, name in enumerate(study | ours):
        series += [Series(name, look, ours[name]), Series(name, look, study.get(name, []), "study")]
    return Chart(
        "rfid_gfid",
        "rFID against gFID",
        "FID of a tokenizer's reconstructions, and of the images that MaskGIT makes of its tokens; lower is "
        "better. If better reconstruction meant better generation, the points would lie on a rising line."
        + _remark(noted),
        "scatter",
        "rFID",
        "gFID",
        [each for each in series if each.points],
    )


def _random_features_chart(runs: list[Run]) -> Chart:
    measured = [run for run in runs if "fd_random" in run.results]
    categories, series = [], []
    for look, (name, is_generator) in enumerate((("reconstructions", False), ("generated images", True))):
        points = []
        for run in measured:
            if run.is_generator == is_generator:
                result = run.results["fd_random"]
                category = f"{label(run)}, {result['num_images']:,} images"
                categories.append(category)
                points.append(Point(category, result["value"], run.name, _origin(run, "fd_random")))
        series.append(Series(name, look, points))
    return Chart(
        "fd_random",
        "Fréchet distance of random features",
        "Not FID: the features are those of an InceptionV3 with fixed random weights. It compares only with "
        "others of its kind, on as many images.",
        "bars",
        "fd_random",
        "",
        [each for each in series if each.points],
        categories,
    )


def _training_charts(kind: str, curves: dict[str, str], runs: list[Run]) -> list[Chart]:
    """What runs of one kind logged, a chart for each name that some of them did."""
    caption = "Thin: training. Bold, with markers: the validation set, by the averaged weights (EMA)."
    if kind == "generator":
        caption += " A training loss has label smoothing and dropout, a validation loss neither."
    charts = []
    for name, y_label in curves.items():
        series = []
        for look, run in enumerate(runs):
            training, validation = (_logged(run, f"{split}/{name}", split) for split in ("train", "val"))
            if training or validation:
                series.append(Series(label(run), look, validation, raw=training))
        title = f"{kind.capitalize()}s: {y_label}"
        charts.append(Chart(f"{kind}_{name}", title, caption, "curves", "step", y_label, series))
    return charts


def _logged(run: Run, key: str, note: str) -> list[Point]:
    note = f"{note}, seed {run.config.run.seed}"
    return [Point(line["step"], line[key], run.name, note) for line in run.log if key in line]


def _origin(run: Run, metric: str) -> str:
    result = run.results[metric]
    step, images = result["checkpoint_step"], result["num_images"]
    return f"{metric} at step {step:,}, seed {run.config.run.seed}, {images:,} images"


# --- drawn by matplotlib ------------------------------------------------------------------------------------


def save_figure(figure: Figure, folder: Path, name: str) -> tuple[Path, Path]:
    """Write a figure as <name>.png, 200 dots an inch, and <name>.pdf. The same figure gives the same bytes.

    Raises UserError where the folder can't be written to.
    """
    paths = folder / f"{name}.png", folder / f"{name}.pdf"
    metadata = {".png": {"Software": None}, ".pdf": {"Creator": None, "Producer": None, "CreationDate": None}}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in paths:
            with matplotlib.style.context(STYLE):
                figure.savefig(f"{path}.part", format=path.suffix[1:], metadata=metadata[path.suffix])
            os.replace(f"{path}.part", path)
    except OSError as error:
        raise UserError(f"{folder / name}: not writable ({error.strerror}); name another folder") from error
    return paths


def draw(chart: Chart) -> Figure:
    """Draw a chart for print, in the report's style, with its title and without its caption."""
    drawers = {"lines": _draw_points, "scatter": _draw_points, "bars": _draw_bars, "curves": _draw_curves}
    with matplotlib.style.context(STYLE):
        figure = Figure()
        axes = figure.add_subplot(title=chart.title, xlabel=chart.x_label, ylabel=chart.y_label)
        drawers[chart.kind](axes, chart)
        if chart.log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=LOG_DIGITS))
            axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
            axes.yaxis.set_minor_locator(NullLocator())
        _draw_legend(figure, chart)
    return figure


def _draw_points(axes: Axes, chart: Chart) -> None:
    for series in chart.series:
        axes.errorbar(_xs(series.points), _ys(series.points), _spreads(series), **_line_look(series, chart))
    if chart.kind == "scatter":
        axes.grid(visible=True, axis="both")
    else:
        counts = _token_counts(chart)
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, labels=counts)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_ylim(bottom=0)


def _draw_bars(axes: Axes, chart: Chart) -> None:
    places, middles, end = _places_of_bars(chart)
    axes.figure.set_figheight(0.9 + 0.17 * end)
    for series, each in zip(chart.series, places):
        bars = axes.barh(each, _ys(series.points), 0.9, xerr=_spreads(series), **_bar_look(series))
        axes.bar_label(bars, [_value(point) for point in series.points], padding=3, fontsize=7)
    axes.set_yticks(list(middles.values()), ["\n".join(_wrap(category)) for category in middles])
    axes.set_ylim(end, 0)
    axes.set_xlim(0, _longest_bar(chart, room=0.018))
    axes.grid(visible=True, axis="x")
    axes.grid(visible=False, axis="y")


def _draw_curves(axes: Axes, chart: Chart) -> None:
    for series in chart.series:
        axes.plot(_xs(series.raw), _ys(series.raw), **_raw_look(series))
    for series in chart.series:
        every = math.ceil(len(series.points) / MARKED_POINTS) or 1
        axes.plot(_xs(series.points), _ys(series.points), markevery=every, **_line_look(series, chart))
    axes.locator_params(axis="x", integer=True, nbins=7)


def curve_look(number: int) -> dict:
    """Colour, marker and line of a figure's curve of that number, from 0; no two of a figure look alike."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": list(MARKERS)[number % len(MARKERS)],
        "linestyle": list(LINES)[number % len(LINES)],
        "markersize": 4,
    }


def _line_look(series: Series, chart: Chart) -> dict:
    colour = _colour(series)
    return {
        "color": colour,
        "linestyle": "none" if chart.kind == "scatter" else _line(series),
        "marker": list(MARKERS)[series.look % len(MARKERS)],
        "markerfacecolor": "white" if series.source == "study" else colour,
    }


def _raw_look(series: Series) -> dict:
    """A thin line; a stronger one where no curve stands beside it."""
    look = {"linewidth": 0.7, "alpha": 0.5} if series.points else {"linewidth": 1.0}
    return look | {"color": _colour(series), "linestyle": _line(series)}


def _bar_look(series: Series) -> dict:
    colour, hollow = _colour(series), series.source == "study"
    return {
        "facecolor": "white" if hollow else colour,
        "edgecolor": colour if hollow else "white",  # and the hatch
        "hatch": list(HATCHES)[series.look % len(HATCHES)],
    }


def _draw_legend(figure: Figure, chart: Chart) -> None:
    """Each name once, under the axes, in as many columns as there is room for."""
    handles = {}
    for series in chart.series:
        if chart.kind == "bars":
            handle = Patch(**_bar_look(series))
        else:
            handle = Line2D([], [], **(_line_look(series, chart) if series.points else _raw_look(series)))
        handles.setdefault(series.name, handle)
    columns = min(len(handles), max(1, 95 // (max(map(len, handles)) + 9)))
    figure.set_figheight(figure.get_figheight() + 0.17 * math.ceil(len(handles) / columns))
    figure.legend(
        handles.values(),
        handles.keys(),
        title=_legend_title(chart),
        loc="outside lower left",
        alignment="left",
        ncols=columns,
    )


# --- drawn by plotly ----------------------------------------------------------------------------------------


def to_html(chart: Chart) -> str:
    """Draw a chart for the page: a <div> with a script that wants plotly.js to be there before it.

    It has neither title nor caption, is as wide as its place, and waits for one of THEMES. The mouse over
    a point shows the run and the value. Of a curve it has at most PAGE_POINTS points.
    """
    if chart.kind == "bars":
        places, *_ = _places_of_bars(chart)
        traces = [_bar_trace(series, each) for series, each in zip(chart.series, places)]
    elif chart.kind == "curves":
        traces = [_curve_trace(series, raw=True) for series in chart.series if series.raw]
        traces += [_curve_trace(series, raw=False) for series in chart.series if series.points]
    else:
        traces = [_points_trace(chart, series) for series in chart.series]
    # The legend has each name once: our points rather than the study's, a curve rather than the raw one.
    named = {trace["name"]: trace for trace in (traces if chart.kind == "curves" else reversed(traces))}
    for trace in traces:
        trace["showlegend"] = trace is named[trace["name"]]
    return plotly.io.to_html(
        {"data": traces, "layout": _layout(chart)},
        config={"displaylogo": False, "modeBarButtons": TOOLS},
        include_plotlyjs=False,
        full_html=False,
        div_id=f"chart-{chart.name}",
        validate=False,  # it would add plotly's own template
    )


def _layout(chart: Chart) -> dict:
    height = 320
    x_axis = {"title": {"text": chart.x_label}}
    y_axis = {"title": {"text": chart.y_label}}
    if chart.kind == "lines":
        counts = _token_counts(chart)
        x_axis |= {"type": "log", "tickvals": counts, "ticktext": counts}
        y_axis |= {"rangemode": "tozero"}
    elif chart.kind == "bars":
        _, middles, end = _places_of_bars(chart)
        height = 90 + 20 * end
        labels = [html.escape("\n".join(_wrap(category))).replace("\n", "<br>") for category in middles]
        x_axis |= {"range": [0, _longest_bar(chart, room=0.05)]}
        y_axis |= {"range": [end, 0], "showgrid": False}
        y_axis |= {"tickvals": list(middles.values()), "ticktext": labels}
    if chart.log_y:
        ticks = [digit * 10.0**power for power in range(-6, 7) for digit in LOG_DIGITS]
        y_axis |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    legend_height = 20 * (1 + _legend_rows(dict.fromkeys(series.name for series in chart.series)))
    axis = {"gridcolor": FAINT, "linecolor": FAINT, "zeroline": False, "automargin": True}
    return {
        "height": height + legend_height,
        "margin": {"l": 8, "r": 12, "t": 30, "b": 8},  # the tools are at the top
        "paper_bgcolor": CLEAR,
        "plot_bgcolor": CLEAR,
        "font": {"size": 12, "family": "system-ui, sans-serif"},
        "xaxis": axis | x_axis,
        "yaxis": axis | y_axis,
        "barmode": "overlay",
        "hovermode": "closest",
        "dragmode": False,  # so that a finger scrolls the page
        "legend": {
            "title": {"text": _legend_title(chart), "side": "top"},
            "orientation": "h",
            "xref": "container",
            "x": 0,
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
            "maxheight": legend_height + 40,
            "tracegroupgap": 0,
        },
        "modebar": {"bgcolor": CLEAR, "color": "#808080", "activecolor": COLOURS[5]},
    }


def _legend_rows(names: Iterable[str]) -> int:
    """The rows of a legend on a telephone, where it is 340 pixels wide: the plot isn't to shrink by them."""
    rows, place = 1, 0.0
    for name in names:
        width = 55 + 6.5 * len(name)
        if place + width > 340:
            rows, place = rows + 1, 0.0
        place += width
    return rows


def _points_trace(chart: Chart, series: Series) -> dict:
    if chart.kind == "scatter":
        values = [f"{chart.x_label} {x:.2f}, {chart.y_label} {y:.2f}" for x, y, *_ in series.points]
    else:
        values = [f"{point.x} tokens, {chart.y_label} {_value(point)}" for point in series.points]
    return _named(series) | {
        "type": "scatter",
        "mode": "markers" if chart.kind == "scatter" else "lines+markers",
        "x": _xs(series.points),
        "y": _ys(series.points),
        "line": {"color": _colour(series), "width": 2, "dash": LINES[_line(series)]},
        "marker": _page_marker(series),
        "error_y": {"array": _spreads(series), "color": _colour(series), "width": 0},
        "cliponaxis": False,
        "hoverinfo": "text",
        "hovertext": _hover_texts(series, values),
    }


def _bar_trace(series: Series, places: list[float]) -> dict:
    colour, hollow = _colour(series), series.source == "study"
    return _named(series) | {
        "type": "bar",
        "orientation": "h",
        "x": _ys(series.points),
        "y": places,
        "width": 0.9,
        "marker": {
            "color": CLEAR if hollow else colour,
            "line": {"color": colour, "width": 1.5},
            "pattern": {
                "shape": list(HATCHES.values())[series.look % len(HATCHES)],
                "fgcolor": colour if hollow else "white",
                "fillmode": "overlay",
                "size": 7,
                "solidity": 0.25,
            },
        },
        "text": [_value(point) for point in series.points],
        "textposition": "outside",
        "constraintext": "none",
        "cliponaxis": False,
        "hoverinfo": "text",
        "hovertext": _hover_texts(series, [f"{point.x}: {_value(point)}" for point in series.points]),
    }


def _curve_trace(series: Series, raw: bool) -> dict:
    points = series.raw if raw else series.points
    if len(points) > PAGE_POINTS:
        points = [points[round(place)] for place in np.linspace(0, len(points) - 1, PAGE_POINTS)]
    width, opacity = (2.5, 1) if not raw else (1, 0.5) if series.points else (1.5, 1)
    return _named(series) | {
        "type": "scatter",
        "mode": "lines" if raw else "lines+markers",
        "opacity": opacity,
        "x": _xs(points),
        "y": _ys(points),
        "line": {"color": _colour(series), "width": width, "dash": LINES[_line(series)]},
        "marker": _page_marker(series) | {"maxdisplayed": MARKED_POINTS},
        "meta": [html.escape(points[0].run), points[0].note],
        "hovertemplate": "<b>%{meta[0]}</b><br>step %{x:,}: %{y:.4g}<br>%{meta[1]}<extra></extra>",
    }


def _named(series: Series) -> dict:
    return {"name": html.escape(series.name), "legendgroup": series.name}


def _page_marker(series: Series) -> dict:
    colour, symbol = _colour(series), list(MARKERS.values())[series.look % len(MARKERS)]
    if series.source == "study":
        return {"symbol": f"{symbol}-open", "size": 9, "color": colour, "line": {"width": 2}}
    return {"symbol": symbol, "size": 9, "color": colour}


def _hover_texts(series: Series, values: list[str]) -> list[str]:
    return [
        f"<b>{html.escape(point.run)}</b><br>{html.escape(series.name)}, {value}<br>{point.note}"
        for point, value in zip(series.points, values)
    ]


# --- of both ------------------------------------------------------------------------------------------------


def _xs(points: Sequence[Point]) -> list:
    return [point.x for point in points]


def _ys(points: Sequence[Point]) -> list[float]:
    return [point.y for point in points]


def _spreads(series: Series) -> list[float]:
    return [point.spread for point in series.points]


def _value(point: Point) -> str:
    """41.44, or 41.44 ± 0.52."""
    return f"{point.y:.2f}" + (f" ± {point.spread:.2f}" if point.spread else "")


def _colour(series: Series) -> str:
    return COLOURS[series.look % len(COLOURS)]


def _line(series: Series) -> str:
    """A line's style: another one for the study's, and for looks whose colours come again."""
    return list(LINES)[(series.source == "study" or series.look // len(COLOURS)) % len(LINES)]


def _token_counts(chart: Chart) -> list[int]:
    return sorted({point.x for series in chart.series for point in series.points})


def _legend_title(chart: Chart) -> str | None:
    if any(series.source == "study" for series in chart.series):
        return "filled: our runs, hollow: the study's values"
    return None


def _wrap(category: str) -> list[str]:
    return textwrap.wrap(category, 18)


def _places_of_bars(chart: Chart) -> tuple[list[list[float]], dict[str, float], float]:
    """Where bars lie, by series, each category's middle, and the end: downwards from 0, bars 1 apart."""
    places = [[0.0] * len(series.points) for series in chart.series]
    middles, end = {}, GAP / 2
    for category in chart.categories:
        found = [
            (each, index)
            for series, each in zip(chart.series, places)
            for index, point in enumerate(series.points)
            if point.x == category
        ]
        height = max(len(found), LINE * len(_wrap(category)))
        middles[category] = end + height / 2
        for number, (each, index) in enumerate(found):
            each[index] = middles[category] + number + 0.5 - len(found) / 2
        end += height + GAP
    return places, middles, end - GAP / 2


def _longest_bar(chart: Chart, room: float) -> float:
    """Where the axis of bars ends, with room for the values beside them: a share of it for each character."""
    points = [point for series in chart.series for point in series.points]
    characters = max(len(_value(point)) for point in points)
    return max(point.y + point.spread for point in points) * (1 + room * characters)
