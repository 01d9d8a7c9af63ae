"""Charts of runs: the study's figures 1 to 4, 11 and 13, its open questions, and what runs logged."""

from collections import defaultdict
from collections.abc import Sequence

import altair as alt
import numpy as np

from comparison.interventions import interventions, plain_generator
from comparison.recipes import AS_RUN, label, match, system
from comparison.runs import Run
from comparison.study import FIGURES, StudyPoint
from comparison.tables import Table, build_tables, find_cell
from metrics.frechet import OTHER_DISTANCES
from reporting.drawing import Arrow, Figure, Point, Series, draw_bars, draw_curves, draw_lines, draw_scatter
from reporting.elastic import elastic_series, length_chart
from reporting.sweep import sweep_charts

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


def build_charts(runs: list[Run]) -> list[Figure]:
    """The charts that have a point of ours: the study's, those of its open questions, and every run's curves.

    In figures 1 to 4 our value is that of the run nearest to the study's training, or the mean over such runs
    that differ in their seeds only.
    """
    tables = build_tables(runs)
    tokenizers = [run for run in runs if not run.is_generator]
    generators = [run for run in runs if run.is_generator]
    charts = [
        *_study_charts(tables, tokenizers),
        *_loss_charts(tokenizers),
        _rfid_gfid_chart(generators, tables),
        *(_both_chart(generators, metric) for metric in OTHER_DISTANCES),
        *(_other_features_chart(runs, metric) for metric in OTHER_DISTANCES),
        length_chart(tokenizers),
        *sweep_charts(generators),
        *_training_charts("tokenizer", TOKENIZER_CURVES, tokenizers),
        *_training_charts("generator", GENERATOR_CURVES, generators),
    ]
    return [chart for chart in charts if chart is not None]


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


# --- the study's figures ------------------------------------------------------------------------------------


def _study_charts(tables: list[Table], tokenizers: list[Run]) -> list[Figure]:
    """Figures 1 to 4: cells of the tables, ours beside the study's; in the first, elastic tokenizers too."""
    charts = []
    for name, figure in FIGURES.items():
        series, noted = _beside_the_study(tables, figure.series)
        if name == "figure_1":
            series += elastic_series(tokenizers, "rfid", len(figure.series))
        if not any(each.source == "ours" for each in series):
            continue
        if name == "figure_1":
            drawing = draw_lines(series, "tokens", figure.axis)
        else:
            drawing = draw_bars([_with_categories(each) for each in series], figure.axis)
        caption = f"{figure.caption} Lower is better.{_remark(noted)}"
        charts.append(Figure(name, figure.title, caption, drawing))
    return charts


def _beside_the_study(
    tables: list[Table], points_by_name: dict[str, list[StudyPoint]]
) -> tuple[list[Series], list[str]]:
    """Our points and the study's under each name, and those of our runs that have notes in the tables."""
    series, noted = [], []
    for look, (name, points) in enumerate(points_by_name.items()):
        ours, study = [], []
        for point in points:
            for candidate in find_cell(tables, point.table, point.row, point.metric).candidates[:1]:
                run, note = ", ".join(candidate.runs), candidate.origin
                if candidate.mark:
                    note += f"\nnote {candidate.mark} of Table {point.table}"
                    noted.append(f"{run} (note {candidate.mark} of Table {point.table})")
                ours.append(Point(point.x, candidate.value, run, note, candidate.std or 0.0))
            if point.y is not None:
                study.append(Point(point.x, point.y, "study", f"Table {point.table}"))
        series += [Series(name, look, ours), Series(name, look, study, "study")]
    return [each for each in series if each.points], noted


def _with_categories(series: Series) -> Series:
    """The series with counts of tokens in words."""
    points = [
        point._replace(x=f"{point.x} tokens") if isinstance(point.x, int) else point
        for point in series.points
    ]
    return series._replace(points=points)


def _remark(runs: list[str]) -> str:
    return f" Not quite what the study did: {', '.join(dict.fromkeys(runs))}." if runs else ""


def _loss_charts(tokenizers: list[Run]) -> list[Figure | None]:
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


def _loss_chart(name: str, title: str, loss: str, runs: list[Run]) -> Figure | None:
    series = []
    for look, run in enumerate(runs):
        raw, points = (_logged(run, f"train/{loss}", note) for note in ("as logged", "smoothed"))
        means = smooth([point.y for point in points], round(SMOOTHED_SHARE * len(raw) / 2))
        points = [point._replace(y=y) for point, y in zip(points, means.tolist())]
        norm = ", L1" if loss == "reconstruction" and run.config.losses.reconstruction == "l1" else ""
        if points:
            series.append(Series(label(run) + norm, look, points, raw=raw))
    if not series:
        return None
    caption = (
        f"In training. Thin: as logged. Bold: the moving mean over {SMOOTHED_SHARE:.0%} of what is logged."
    )
    return Figure(name, title, caption, draw_curves(series, "step", TOKENIZER_CURVES[loss], log_y=True))


# --- its open questions -------------------------------------------------------------------------------------


def _rfid_gfid_chart(generators: list[Run], tables: list[Table]) -> Figure | None:
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
    rfid, gfid = ({point.x: point.y for point in points} for points in FIGURES["figure_4"].series.values())
    study = {name: [Point(rfid[name], gfid[name], "study", "Tables 1, 4 and 5")] for name in rfid}
    points = _points_of_both(generators, "rfid", "gfid")
    if not points:
        return None
    noted = [
        run.name for run, _ in points if not {("rfid", run.tokenizer.name), ("gfid", run.name)} <= as_study
    ]
    caption = (
        "FID of a tokenizer's reconstructions, and of the images that MaskGIT makes of its tokens; lower is "
        "better. If better reconstruction meant better generation, the points would lie on a rising line."
    )
    drawing, about_arrows = _draw_both(points, study, "rFID", "gFID")
    return Figure("rfid_gfid", "rFID against gFID", caption + about_arrows + _remark(noted), drawing)


def _both_chart(generators: list[Run], metric: str) -> Figure | None:
    """For each generator, the Fréchet distance that isn't FID of its tokenizer, and its own."""
    points = _points_of_both(generators, metric, metric)
    if len(points) < 2:
        return None
    caption = f"As rFID against gFID, but of features of {OTHER_DISTANCES[metric]}; lower is better."
    drawing, about_arrows = _draw_both(points, {}, "of reconstructions", "of generated images")
    return Figure(
        f"fd_both_{metric}", f"Reconstruction against generation: {metric}", caption + about_arrows, drawing
    )


def _points_of_both(generators: list[Run], of_tokenizer: str, of_generator: str) -> list[tuple[Run, Point]]:
    """Generators that have one result and whose tokenizers have the other, and where they are."""
    points = []
    for run in generators:
        tokenizer = run.tokenizer
        if tokenizer and of_generator in run.results and of_tokenizer in tokenizer.results:
            values = tokenizer.results[of_tokenizer]["value"], run.results[of_generator]["value"]
            note = f"{_origin(tokenizer, of_tokenizer)}\n{_origin(run, of_generator)}"
            points.append((run, Point(*values, f"{tokenizer.name}, {run.name}", note)))
    return points


def _draw_both(
    points: list[tuple[Run, Point]], study: dict[str, list[Point]], x_label: str, y_label: str
) -> tuple[alt.LayerChart, str]:
    """The drawing, with arrows from plain tokenizers to those made for generation, and words on these."""
    ours = defaultdict(list)
    for run, point in points:
        ours[", ".join([system(run.tokenizer), *interventions(run.tokenizer.config)])].append(point)
    series = []
    for look, name in enumerate(study | ours):
        series += [Series(name, look, ours[name]), Series(name, look, study.get(name, []), "study")]
    places = {run.name: point for run, point in points}
    arrows = []
    for run, point in points:
        plain = plain_generator(run, [run for run, _ in points])
        if plain is not None:
            arrows.append(Arrow(places[plain.name], point))
    drawing = draw_scatter([each for each in series if each.points], x_label, y_label, arrows)
    about = " An arrow goes from a plain tokenizer to the same one made for generation." if arrows else ""
    return drawing, about


def _other_features_chart(runs: list[Run], metric: str) -> Figure | None:
    """Fréchet distances that are not FID: a bar for each run that has this one."""
    measured = [run for run in runs if metric in run.results]
    series = []
    for look, (name, is_generator) in enumerate((("reconstructions", False), ("generated images", True))):
        points = []
        for run in measured:
            if run.is_generator == is_generator:
                result = run.results[metric]
                category = f"{label(run)}, {result['num_images']:,} images"
                points.append(Point(category, result["value"], run.name, _origin(run, metric)))
        if points:
            series.append(Series(name, look, points))
    if not series:
        return None
    network = OTHER_DISTANCES[metric]
    caption = (
        f"Not FID: the features are those of {network}. It compares only with others of its kind, on as "
    )
    title = f"Fréchet distance of features of {network}"
    return Figure(metric, title, caption + "many images.", draw_bars(series, metric))


# --- what runs logged ---------------------------------------------------------------------------------------


def _training_charts(kind: str, curves: dict[str, str], runs: list[Run]) -> list[Figure]:
    """What runs of one kind logged, a chart for each name that some of them did."""
    caption = "Thin: training. Bold: the validation set, by the averaged weights (EMA)."
    if kind == "generator":
        caption += " A training loss has label smoothing and dropout, a validation loss neither."
    charts = []
    for name, y_label in curves.items():
        series = []
        for look, run in enumerate(runs):
            training, validation = (_logged(run, f"{split}/{name}", split) for split in ("train", "val"))
            if training or validation:
                series.append(Series(label(run), look, validation, raw=training))
        if series:
            title = f"{kind.capitalize()}s: {y_label}"
            charts.append(Figure(f"{kind}_{name}", title, caption, draw_curves(series, "step", y_label)))
    return charts


def _logged(run: Run, key: str, note: str) -> list[Point]:
    note = f"{note}, seed {run.config.run.seed}"
    return [Point(line["step"], line[key], run.name, note) for line in run.log if key in line]


def _origin(run: Run, metric: str) -> str:
    result = run.results[metric]
    step, images = result["checkpoint_step"], result["num_images"]
    return f"{metric} at step {step:,}, seed {run.config.run.seed}, {images:,} images"
