"""The study's figures of codebooks: use of the codes over training, t-SNE of latents and codes."""

import math
import textwrap
from collections import defaultdict
from collections.abc import Sequence

import altair as alt
import numpy as np
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from comparison.recipes import label
from comparison.runs import Run
from errors import UserError
from reporting.drawing import COLOURS, FAINT, WIDTH, Figure, values
from training.analysis import Analysis, list_analyses, read_analysis
from training.model_sections import TiTokSection

CHOSEN_STEPS = 4  # in figure 10b
CODE_ROWS = 256  # in figure 10a; where there are more codes, several make a row
TSNE_POINTS = 1200  # in a figure, two thirds of them latents
GROUND = "#ffffff"  # of colours by value, whatever the reader's scheme
LOOKS = {  # told apart by shape, by size and by being hollow
    "latents": {"shape": "circle", "size": 9, "fill": "#9aa5b8", "stroke": "transparent"},
    "codes not in use": {"shape": "circle", "size": 22, "fill": "transparent", "stroke": COLOURS[1]},
    "codes in use": {"shape": "triangle-up", "size": 34, "fill": COLOURS[0], "stroke": "transparent"},
}


def build_codebook_figures(runs: list[Run], seed: int) -> tuple[list[Figure], list[str]]:
    """Figures 10a, 10b of each tokenizer, and 14, as far as there are analyses for them.

    Returns them, and a line for each that could not be made and each file that could not be read.
    """
    missing: list[str] = []
    analysed = read_analyses([run for run in runs if not run.is_generator], missing)
    figures = []
    several_steps = [(run, by_step) for run, by_step in analysed if len(by_step) > 1]
    if several_steps:
        title = "Use of the codes over training"
        caption = (
            "A row is a code, a column a step at which validation frames were counted; the darker, the more "
            "of their tokens have the code; white is a code that none has. The codes are sorted by their use "
            f"at the last step; of more than {CODE_ROWS}, a row is the mean over neighbours in this order."
        )
        panels = {label(run): by_step for run, by_step in several_steps}
        figures.append(Figure("figure_10a", title, caption, draw_code_use(panels)))
    else:
        missing.append("figure_10a, figure_10b: no tokenizer has analyses of two steps")
    for run, by_step in several_steps:
        title = f"Latents and codebook of {label(run)} over training"
        caption = (
            "t-SNE, one projection for all steps: the same latents (tokens of validation frames) and the "
            "same codes at each. A code is in use where any of the counted tokens has it."
        )
        panels = {f"step {step:,}": by_step[step] for step in spread_steps(list(by_step), CHOSEN_STEPS)}
        figures.append(Figure(f"figure_10b_{run.name}", title, caption, draw_tsne(panels, seed)))

    starts, step = same_but_for_start(analysed)
    if len(starts) > 1:
        title = f"Latents and codebook by initialisation, step {step:,}"
        caption = (
            "t-SNE, one projection for all tokenizers, at the last step that all of them have. Each "
            "tokenizer has a latent space of its own: what compares is how its points cluster and how its "
            "codes lie among its latents, not where they are."
        )
        panels = {label(run): by_step[step] for run, by_step in starts}
        figures.append(Figure("figure_14", title, caption, draw_tsne(panels, seed)))
    else:
        missing.append("figure_14: there are no two tokenizers that differ in their initialisation only")
    return figures, missing


def read_analyses(tokenizers: list[Run], missing: list[str]) -> list[tuple[Run, dict[int, Analysis]]]:
    """The runs that have analyses, with these by step; files that can't be read are named in `missing`."""
    analysed = []
    for run in tokenizers:
        by_step = {}
        for step, path in list_analyses(run.folder).items():
            try:
                by_step[step] = read_analysis(path)
            except UserError as error:
                missing.append(str(error))
        if by_step:
            analysed.append((run, by_step))
        else:
            missing.append(f"{run.folder}: no analysis/ to draw its codes from")
    return analysed


def spread_steps(steps: list[int], num: int) -> list[int]:
    """At most `num` of the steps, the first and the last of them and others about evenly between in log."""
    wanted = np.geomspace(steps[0], steps[-1], num)
    distances = np.abs(np.log(steps)[:, None] - np.log(wanted))
    return [steps[place] for place in sorted(set(distances.argmin(axis=0)))]


def same_but_for_start(
    analysed: list[tuple[Run, dict[int, Analysis]]],
) -> tuple[list[tuple[Run, dict[int, Analysis]]], int]:
    """The largest group of TiToks that differ in the encoder's start only, and the last step they all have.

    Of runs with the same start it is the newest; of groups of the same size that of the newest run.
    """
    groups = defaultdict(dict)
    for run, by_step in analysed:
        model = run.config.model
        if isinstance(model, TiTokSection):
            key = (model.num_tokens, model.image_size, str(model.quantizer), str(run.config.data.train))
            groups[key][model.encoder.init, model.init_from] = (run, by_step)
    largest = max(reversed(groups.values()), key=len, default={})
    common = set.intersection(*(set(by_step) for _, by_step in largest.values())) if largest else set()
    return (list(largest.values()), max(common)) if common else ([], 0)


def draw_code_use(panels: dict[str, dict[int, Analysis]]) -> alt.FacetChart:
    """A heatmap for each of the panels' names: codes, the most used at the last step on top, by step.

    Of more than CODE_ROWS codes each row is the mean over neighbours in this order.
    """
    rows = []
    for name, by_step in panels.items():
        shares = np.stack([analysis.counts / analysis.counts.sum() for analysis in by_step.values()], axis=1)
        shares = shares[np.argsort(-shares[:, -1], kind="stable")]
        edges = np.linspace(0, len(shares), min(len(shares), CODE_ROWS) + 1).round().astype(int)
        means = np.add.reduceat(shares, edges[:-1]) / np.diff(edges)[:, None]
        for step, column in zip(by_step, means.T):
            used = column > 0
            first, end = edges[:-1][used].tolist(), edges[1:][used].tolist()
            row = {"run": _wrapped(name), "step": step, "share": column[used].tolist()}
            rows.append(row | {"first": first, "end": end})
    columns = _columns(len(panels), 3)
    colours = alt.Scale(type="log", scheme="cividis", reverse=True)
    return (
        alt.Chart()
        .mark_rect()
        .encode(
            x=alt.X(
                "step:O", title="training step", axis=alt.Axis(format=",", labelAngle=0, labelOverlap=True)
            ),
            y=alt.Y("first:Q", title="codes, sorted", scale=alt.Scale(reverse=True, nice=False)),
            y2="end:Q",
            color=alt.Color(
                "share:Q", title=["share of", "tokens"], scale=colours, legend=alt.Legend(format=".1~e")
            ),
            tooltip=[
                alt.Tooltip("step:O", title="step", format=","),
                alt.Tooltip("first:Q", title="codes used more"),
                alt.Tooltip("share:Q", title="share of tokens", format=".3g"),
            ],
        )
        .properties(width=min(300, WIDTH // columns - 40), height=220, view=alt.ViewBackground(fill=GROUND))
        .facet(_panels_of("run", panels), data=values(rows), columns=columns)
        .resolve_scale(x="independent", y="independent")
        .transform_flatten(["share", "first", "end"])
    )


def draw_tsne(panels: dict[str, Analysis], seed: int) -> alt.FacetChart:
    """Latents and codes of each panel on its own axes, all of them on one t-SNE's plane."""
    rng = np.random.default_rng(seed)
    num_latents = min(len(panel.latents) for panel in panels.values())
    num_codes = min(len(panel.codebook) for panel in panels.values())
    per_panel = TSNE_POINTS // len(panels)
    which_latents = rng.permutation(num_latents)[: 2 * per_panel // 3]
    which_codes = rng.permutation(num_codes)[: per_panel // 3]
    points = [
        each
        for panel in panels.values()
        for each in (panel.latents[which_latents], panel.codebook[which_codes])
    ]
    places = project_together(points, seed)

    rows = []
    for (name, panel), latents, codes in zip(panels.items(), places[::2], places[1::2]):
        in_use = panel.counts[which_codes] > 0
        for kind, shown in zip(LOOKS, (latents, codes[~in_use], codes[in_use])):
            x, y = shown.astype(np.float64).round(3).T.tolist()
            row = {"panel": _wrapped(name), "kind": kind, "size": LOOKS[kind]["size"]}
            rows.append(row | {"x": x, "y": y})
    columns = _columns(len(panels), 4)
    side = min(260, WIDTH // columns - 14)
    everywhere = np.concatenate(places)
    bounds = alt.Scale(domain=[float(everywhere.min()), float(everywhere.max())], nice=False, padding=6)
    legend = alt.Legend(orient="bottom", title=None)

    def look(channel: str) -> dict:
        scale = alt.Scale(domain=list(LOOKS), range=[each[channel] for each in LOOKS.values()])
        return {"field": "kind", "type": "nominal", "scale": scale, "legend": legend}

    return (
        alt.Chart()
        .mark_point(strokeWidth=1)
        .encode(
            x=alt.X("x:Q", axis=None, scale=bounds),
            y=alt.Y("y:Q", axis=None, scale=bounds),
            size=alt.Size("size:Q", scale=None),
            shape=alt.Shape(**look("shape")),
            fill=alt.Fill(**look("fill")),
            stroke=alt.Stroke(**look("stroke")),
        )
        .properties(width=side, height=side, view=alt.ViewBackground(stroke=FAINT))
        .facet(_panels_of("panel", panels), data=values(rows), columns=columns, spacing=10)
        .transform_flatten(["x", "y"])
    )


def _panels_of(field: str, names: Sequence[str]) -> alt.Facet:
    header = alt.Header(labelExpr="split(datum.label, '\\n')", labelPadding=4)
    return alt.Facet(f"{field}:N", title=None, sort=[_wrapped(name) for name in names], header=header)


def _columns(count: int, most: int) -> int:
    """In which so many panels make full rows, or nearly so."""
    return math.ceil(count / math.ceil(count / most))


def _wrapped(name: str) -> str:
    return textwrap.fill(name, 24)


def project_together(groups: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """One t-SNE (van der Maaten and Hinton 2008, JMLR 9) of several groups of points (n, D) to places (n, 2).

    Equal points, in whatever group, have the same place.
    """
    points, index = np.unique(np.concatenate(groups).astype(np.float64), axis=0, return_inverse=True)
    tsne = TSNE(perplexity=min(30, (len(points) - 1) / 3), init="pca", max_iter=500, random_state=seed)
    with threadpool_limits(1):  # faster than waiting for each other, and the same on any number of cores
        places = tsne.fit_transform(points)[index]
    return np.split(places, np.cumsum([len(group) for group in groups])[:-1])
