"""Write the study's tables and figures of the runs under a folder, and a page with all there is to see."""

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch

from comparison.ladder import build_ladder, ladder_to_csv
from comparison.runs import Run, read_runs
from comparison.tables import build_tables, runs_outside
from comparison.texts import fill
from data.frames import FrameDataset, collate_images, list_frames, to_unit_range
from errors import UserError, command
from metrics.loading import LoadingLoss, loading_loss, pixels_of
from models.encoder_as_run import LOST
from options import number
from reporting.charts import STUDY_CHARTS, build_charts
from reporting.codebook import build_codebook_figures
from reporting.elastic import progressive_grids
from reporting.figure_files import save_figure
from reporting.grids import build_grids
from reporting.loading import draw_loading, loading_to_csv
from reporting.page import render_page
from reporting.pictures import choose_frames, make_pictures, native_size
from reporting.representation import Representations, compare_representations, draw_representations
from reporting.sweep import sweeps_to_csv
from training.model_sections import TiTokSection

GENERATED_IMAGES = 16  # by each generator
COMPARED_FRAMES = 128  # at most, whose representations are compared
FEWEST_COMPARED = 4


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument(
        "--out", type=Path, default=Path("report"), help="index.html, tables/, figures/ go here"
    )
    parser.add_argument(
        "--source",
        action="append",
        default=[],
        metavar="INIT[=WEIGHTS]",
        help="measure what the study's way of loading loses of a published encoder, also without any run: "
        f"{', '.join(LOST)}; repeatable. Those that the runs start from are always there",
    )
    parser.add_argument(
        "--frames", default="frames", help="of --source, where there is no run: folder of frames"
    )
    parser.add_argument(
        "--num-images", type=number(0, 1000), default=8, help="validation frames to reconstruct"
    )
    parser.add_argument(
        "--seed", type=number(0, 2**31), default=0, help="of all that is random: generation, t-SNE, codes"
    )
    arguments = parser.parse_args()
    out, seed = arguments.out, arguments.seed
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    runs, left_out = read_runs(arguments.runs)
    sources = read_sources(arguments.source, runs)
    if not runs and not sources:
        reasons = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{arguments.runs}: no finished run there{reasons}; train_tokenizer.py makes one")

    for line in left_out:
        print(f"left out: {line.removesuffix('; left out')}")
    tables = build_tables(runs, arguments.runs)
    for table in tables:
        path = out / "tables" / f"table_{table.number}"
        for suffix in (".md", ".tex"):
            write(path.with_suffix(suffix), fill(f"table{suffix}", table=table))
        write(path.with_suffix(".csv"), table.to_csv())
    ladder = build_ladder(runs)
    if ladder:
        write(out / "tables" / "ladder.md", fill("ladder.md", ladder=ladder))
        write(out / "tables" / "ladder.csv", ladder_to_csv(ladder))
    sweeps = sweeps_to_csv(runs)
    if sweeps:
        write(out / "tables" / "sweep.csv", sweeps)
    charts = build_charts(runs)
    drawn_charts = {chart.name for chart in charts}
    left_out += [f"{name}: needs {what}" for name, what in STUDY_CHARTS.items() if name not in drawn_charts]
    print(f"{len(runs)} runs under {arguments.runs}; making pictures", flush=True)
    pictures, missing = make_pictures(runs, arguments.num_images, GENERATED_IMAGES, seed, device)
    left_out += missing
    print("drawing figures", flush=True)
    figures, missing = build_grids(runs, pictures)
    figures += progressive_grids(runs, device, missing)
    codebook_figures, missing_codes = build_codebook_figures(runs, seed)
    figures += codebook_figures
    left_out += missing + missing_codes
    print("comparing representations", flush=True)
    representations = compare(runs, device, seed, left_out)
    drawn = draw_representations(representations) if representations else []
    losses = measure_sources(sources, runs, Path(arguments.frames), device, left_out)
    if losses:
        drawn.append(draw_loading(losses))
        write(out / "tables" / "loading.csv", loading_to_csv(losses))

    for name, text in (representations.to_csv() if representations else {}).items():
        write(out / "tables" / f"{name}.csv", text)
    for figure in charts + figures + drawn:
        save_figure(figure, out / "figures")

    page = render_page(
        runs=runs,
        pictures=pictures,
        tables=tables,
        ladder=ladder,
        losses=losses,
        outside=runs_outside(runs),
        charts=charts,
        figures=figures,
        representations=representations,
        drawn=drawn,
        left_out=left_out,
        seed=seed,
        versions={name: version(name) for name in ("torch", "torchvision", "timm", "accelerate")}
        | {"Python": platform.python_version()},
    )
    write(out / "index.html", page)
    print(out / "index.html")


def compare(runs: list[Run], device: torch.device, seed: int, left_out: list[str]) -> Representations | None:
    """The tokenizers' representations of the newest one's validation frames; `left_out` says what lacks."""
    tokenizers = [run for run in runs if not run.is_generator]
    if not tokenizers:
        return None
    try:
        folder, frames = choose_frames(tokenizers[-1], COMPARED_FRAMES, native_size(tokenizers))
    except UserError as error:
        left_out.append(f"representations: {error}")
        return None
    if len(frames) < FEWEST_COMPARED:
        left_out.append(f"representations: {folder} has {len(frames)} frames, fewer than {FEWEST_COMPARED}")
        return None
    representations, missing = compare_representations(runs, folder, frames, device, seed)
    left_out += missing
    return representations


class Source(NamedTuple):
    """A published encoder whose loading is looked at, and how it is read."""

    weights: str | None
    pixels: tuple[int, int]  # of the image and of a patch
    size: dict[str, int]  # width, depth and heads; empty for ViT-B


def read_sources(asked: list[str], runs: list[Run]) -> dict[str, Source]:
    """By init: what runs start from, and over it what is asked for. Raises UserError on another init."""
    sources = {}
    for run in runs:
        model = run.config.model
        if not run.is_generator and isinstance(model, TiTokSection) and model.encoder.init in LOST:
            encoder = model.encoder
            size = {"width": encoder.width, "depth": encoder.depth, "heads": encoder.heads}
            sources[encoder.init] = Source(encoder.weights, pixels_of(encoder.init), size)
    for text in asked:
        init, _, weights = text.partition("=")
        if init not in LOST:
            raise UserError(f"--source {text}: the study starts from {', '.join(LOST)}")
        sources[init] = Source(weights or None, pixels_of(init), {})
    return sources


def measure_sources(
    sources: dict[str, Source], runs: list[Run], frames: Path, device: torch.device, left_out: list[str]
) -> list[LoadingLoss]:
    """What each source loses over validation frames, as the study cut them; `left_out` says what lacks."""
    tokenizers = [run for run in runs if not run.is_generator]
    losses = []
    for init, (weights, (pixels, patch), size) in sources.items():
        try:
            if tokenizers:
                folder, chosen = choose_frames(tokenizers[-1], COMPARED_FRAMES)
            else:
                folder, chosen = frames / "val", list_frames(frames, "val")[:COMPARED_FRAMES]
            dataset = FrameDataset(folder, chosen, pixels)
            batch = collate_images([dataset[place] for place in range(len(chosen))])
            if len(batch.indices) < FEWEST_COMPARED:
                raise UserError(f"{folder} has fewer than {FEWEST_COMPARED} frames that can be used")
            images = to_unit_range(batch.images, device)
            losses.append(loading_loss(init, images, weights, patch, **size))
        except UserError as error:
            left_out.append(f"what loading {init} as the study did loses: {error}")
    return losses


def write(path: Path, text: str) -> None:
    """Write a file whole or not at all. Raises UserError where its folder can't be written to."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(text, encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)
    except OSError as error:
        raise UserError(f"{path}: not writable ({error.strerror}); name another folder with --out") from error


if __name__ == "__main__":
    main()
