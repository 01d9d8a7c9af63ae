"""Figures of pictures and points: image grids, use of the codebook over training, t-SNE."""

import math
import textwrap
from collections import defaultdict
from typing import NamedTuple

import matplotlib.style
import numpy as np
import torch.nn.functional as F
from einops import rearrange
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits
from torch import Tensor

from errors import UserError
from reporting.charts import COLOURS, STYLE
from reporting.pictures import INPUTS, Pictures
from reporting.runs import Run
from reporting.study import label
from training.analysis import Analysis, list_analyses, read_analysis
from training.model_sections import TiTokSection

WIDTH, HEIGHT = 7.0, 9.0  # inches, of a figure that fills a page
COLUMNS = 7  # of images side by side
ROWS = 4  # of a system's images below each other; fewer, but two, where there are more rows of systems
CHOSEN_STEPS = 4  # in figure 10b
TSNE_POINTS = 1500  # in a figure, two thirds of them latents
LOOKS = {  # told apart by shape and by lightness
    "latents": {"marker": "o", "s": 5, "facecolor": "#a9b4c6", "edgecolor": "none"},
    "codes not in use": {"marker": "o", "s": 12, "facecolor": "none", "edgecolor": COLOURS[1]},
    "codes in use": {"marker": "^", "s": 18, "facecolor": "#1c2d80", "edgecolor": "white", "linewidth": 0.4},
}


class Picture(NamedTuple):
    """A drawn figure; its caption stands beside it."""

    name: str  # of its files
    title: str
    caption: str
    figure: Figure


def build_figures(runs: list[Run], pictures: Pictures, seed: int = 0) -> tuple[list[Picture], list[str]]:
    """The study's figures 5, 9, 10, 12, 14 and 15, as far as there are runs for them.

    Returns them, and a line for each that could not be made and each file that could not be read.
    """
    missing: list[str] = []
    grids = build_grids(runs, pictures, missing)
    analysed = read_analyses([run for run in runs if not run.is_generator], missing)
    return grids + build_codebook_figures(analysed, seed, missing), missing


# --- image grids --------------------------------------------------------------------------------------------


class System(NamedTuple):
    """A column of an image grid: images (N, 3, H, W) in [0, 1] of one system."""

    name: str
    restored: Tensor | None = None
    generated: Tensor | None = None


def build_grids(runs: list[Run], pictures: Pictures, missing: list[str]) -> list[Picture]:
    """Figures 5, 9, 12 and 15; those without images are named in `missing`."""
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
    missing += [f"{name}: {reason}" for name, _, _, systems, reason in wanted if not systems]
    return [
        Picture(name, title, caption, draw_grid(title, with_inputs(systems, pictures)))
        for name, title, caption, systems, _ in wanted
        if systems
    ]


def with_inputs(systems: list[System], pictures: Pictures) -> list[System]:
    """The systems, those that see frames alike behind these frames."""
    groups = defaultdict(list)
    for each in systems:
        groups[pictures.input_of.get(each.name) if each.restored is not None else None].append(each)
    inputs = {name: [System(name, pictures.images[name])] if name else [] for name in groups}
    return [each for name, members in groups.items() for each in inputs[name] + members]


def draw_grid(title: str, systems: list[System]) -> Figure:
    """Systems side by side, COLUMNS at most and the others below; at most ROWS images of each.

    The first is repeated in each line where it is the frames; generated images stand below reconstructions.
    """
    first, systems = (systems[:1], systems[1:]) if systems[0].name in INPUTS.values() else ([], systems)
    num_blocks = math.ceil(len(systems) / (COLUMNS - len(first)))
    per_block = math.ceil(len(systems) / num_blocks)
    rows = []  # of a block: its systems' names, or None below them, and for each its images or None
    for start in range(0, len(systems), per_block):
        block = first + systems[start : start + per_block]
        batches = [[each.restored for each in block], [each.generated for each in block]]
        batches = [row for row in batches if any(images is not None for images in row)]
        rows += zip([[each.name for each in block], None], batches)
    num_images = min(ROWS, max(2, 6 // len(rows)))
    heights = [max(len(images[:num_images]) for images in row if images is not None) for _, row in rows]

    columns = len(first) + per_block
    cell = min(1.5, WIDTH / columns, HEIGHT / sum(heights))
    with matplotlib.style.context(STYLE):
        size = columns * (cell + 0.12), sum(heights) * cell + 0.12 * len(rows) + 0.4 * num_blocks + 0.35
        figure = Figure(size, layout="compressed")
        figure.suptitle(title, x=0.06 / size[0], ha="left")
        grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
        for axes in grid.flat:
            axes.set_axis_off()
        for line, (names, row) in zip(grid, rows):
            for axes, images in zip(line, row):
                if images is not None:
                    axes.imshow(as_strip(images[:num_images]))
            for axes, name in zip(line, names or []):
                axes.set_title(textwrap.fill(name, int(13 * cell)), fontsize=7.5, loc="center", pad=3)
            if first and row[0] is None:
                line[0].text(0.95, 0.99, "generated", ha="right", va="top", fontsize=7.5)
    return figure


def as_strip(images: Tensor) -> np.ndarray:
    """Images (N, 3, H, W) in [0, 1] below each other, white between, as uint8 (height, W, 3)."""
    gap = images.shape[-1] // 32
    strip = rearrange(F.pad(images, (0, 0, 0, gap), value=1), "n c h w -> (n h) w c")
    return (strip * 255).round().byte().numpy()


# --- the codebook -------------------------------------------------------------------------------------------


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


def build_codebook_figures(
    analysed: list[tuple[Run, dict[int, Analysis]]], seed: int, missing: list[str]
) -> list[Picture]:
    """Figures 10a, 10b of each run, and 14; if there is nothing to draw one from, `missing` says so."""
    figures = []
    several_steps = [(run, by_step) for run, by_step in analysed if len(by_step) > 1]
    if several_steps:
        title = "Use of the codes over training"
        caption = (
            "A row is a code, a column a step at which validation frames were counted; the darker, the more "
            "of their tokens have the code; white is a code that none has. The codes are sorted by their use "
            "at the last step."
        )
        panels = {label(run): by_step for run, by_step in several_steps}
        figures.append(Picture("figure_10a", title, caption, draw_code_use(title, panels)))
    else:
        missing.append("figure_10a, figure_10b: no tokenizer has analyses of two steps")
    for run, by_step in several_steps:
        title = f"Latents and codebook of {label(run)} over training"
        caption = (
            "t-SNE, one projection for all steps: the same latents (tokens of validation frames) and the "
            "same codes at each. A code is in use where any of the counted tokens has it."
        )
        panels = {f"step {step:,}": by_step[step] for step in spread_steps(list(by_step), CHOSEN_STEPS)}
        figures.append(Picture(f"figure_10b_{run.name}", title, caption, draw_tsne(title, panels, seed)))

    starts, step = same_but_for_start(analysed)
    if len(starts) > 1:
        title = f"Latents and codebook by initialisation, step {step:,}"
        caption = (
            "t-SNE, one projection for all tokenizers, at the last step that all of them have. Each "
            "tokenizer has a latent space of its own: what compares is how its points cluster and how its "
            "codes lie among its latents, not where they are."
        )
        panels = {label(run): by_step[step] for run, by_step in starts}
        figures.append(Picture("figure_14", title, caption, draw_tsne(title, panels, seed)))
    else:
        missing.append("figure_14: there are no two tokenizers that differ in their initialisation only")
    return figures


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


def draw_code_use(title: str, panels: dict[str, dict[int, Analysis]]) -> Figure:
    """A heatmap for each of the panels' names: codes, the most used at the last step on top, by step."""
    columns = math.ceil(len(panels) / math.ceil(len(panels) / 3))
    rows = math.ceil(len(panels) / columns)
    shares = {
        name: np.stack([analysis.counts / analysis.counts.sum() for analysis in by_step.values()], axis=1)
        for name, by_step in panels.items()
    }
    least = min(each[each > 0].min() for each in shares.values())
    norm = LogNorm(least, max(each.max() for each in shares.values()))
    with matplotlib.style.context(STYLE):
        figure = Figure((min(WIDTH, 1 + 2.6 * columns), min(HEIGHT, 2.7 * rows + 0.6)))
        figure.suptitle(title, x=0.01, ha="left")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (name, share) in zip(grid.flat, shares.items()):
            sorted_codes = np.argsort(-share[:, -1], kind="stable")
            image = axes.imshow(
                np.ma.masked_equal(share[sorted_codes], 0),
                cmap="cividis_r",
                norm=norm,
                aspect="auto",
                interpolation="nearest",
            )
            steps = list(panels[name])
            shown = range(len(steps) - 1, -1, -math.ceil(len(steps) / 4))
            axes.set_xticks(shown, [f"{steps[place]:,}" for place in shown])
            axes.set_title(textwrap.fill(name, 30), fontsize=8.5)
            axes.grid(visible=False)
        figure.colorbar(image, ax=grid, label="share of tokens", pad=0.02)
        figure.supxlabel("training step", fontsize=8.5)
        figure.supylabel("codes, sorted by use at the last step", fontsize=8.5)
    return figure


def draw_tsne(title: str, panels: dict[str, Analysis], seed: int) -> Figure:
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

    columns = math.ceil(len(panels) / math.ceil(len(panels) / 4))
    rows = math.ceil(len(panels) / columns)
    with matplotlib.style.context(STYLE):
        figure = Figure((WIDTH, WIDTH / columns * rows + 0.3 * rows + 0.6), layout="compressed")
        figure.suptitle(title, x=0.01, ha="left")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(panels) :]:
            axes.set_axis_off()
        for axes, (name, panel), latents, codes in zip(grid.flat, panels.items(), places[::2], places[1::2]):
            in_use = panel.counts[which_codes] > 0
            for kind, shown in zip(LOOKS, (latents, codes[~in_use], codes[in_use])):
                axes.scatter(*shown.T, label=kind, rasterized=True, **LOOKS[kind])
            axes.set_title(textwrap.fill(name, 30), fontsize=8.5)
            axes.set(xticks=[], yticks=[], aspect="equal")
            axes.spines[:].set_visible(True)
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3, markerscale=1.5
        )
    return figure


def project_together(groups: list[np.ndarray], seed: int) -> list[np.ndarray]:
    """One t-SNE (van der Maaten and Hinton 2008, JMLR 9) of several groups of points (n, D) to places (n, 2).

    Equal points, in whatever group, have the same place.
    """
    points, index = np.unique(np.concatenate(groups).astype(np.float64), axis=0, return_inverse=True)
    tsne = TSNE(perplexity=min(30, (len(points) - 1) / 3), init="pca", max_iter=500, random_state=seed)
    with threadpool_limits(1):  # faster than waiting for each other, and the same on any number of cores
        places = tsne.fit_transform(points)[index]
    return np.split(places, np.cumsum([len(group) for group in groups])[:-1])
