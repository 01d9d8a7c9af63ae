"""What the page shows of elastic tokenizers: pictures from few tokens to all, and likeness by length."""

import torch
from torch import Tensor

from comparison.recipes import label
from comparison.runs import Run
from data.frames import FrameDataset, collate_images, to_unit_range
from errors import UserError
from models.elastic import doubled_lengths
from models.storage import load_tokenizer
from reporting.drawing import Figure, Point, Series, draw_lines
from reporting.grids import System, arrange, draw_grid
from reporting.pictures import choose_frames, native_size

FRAMES = 4  # rows of a progressive grid


def is_elastic(run: Run) -> bool:
    """Whether a run is an elastic tokenizer's."""
    return getattr(run.config.model, "elastic", False)


def elastic_series(runs: list[Run], metric: str, first_look: int) -> list[Series]:
    """A curve of each elastic tokenizer that has a metric by its number of tokens."""
    series = []
    for look, run in enumerate(filter(is_elastic, runs), start=first_look):
        record = run.results.get(metric, {})
        if "by_num_tokens" in record:
            note = f"one model for every length\nstep {record['checkpoint_step']:,}"
            values = record["by_num_tokens"].items()
            points = [Point(int(length), value, run.name, note) for length, value in values]
            series.append(Series(label(run), look, points))
    return series


def length_chart(runs: list[Run]) -> Figure | None:
    """PSNR by number of tokens: curves of elastic tokenizers, and a point for every other TiTok."""
    curves = elastic_series(runs, "psnr", 0)
    if not curves:
        return None
    alone = [
        Point(run.config.model.num_tokens, run.results["psnr"]["value"], run.name, label(run))
        for run in runs
        if run.config.model.kind == "titok" and not is_elastic(run) and "psnr" in run.results
    ]
    others = [Series("trained for one length", len(curves), sorted(alone))] if alone else []
    caption = (
        "PSNR of reconstructions, in dB; higher is better. A curve is one elastic tokenizer, decoded from "
        "its first tokens alone."
    )
    drawing = draw_lines([*curves, *others], "tokens", "PSNR (dB)", from_zero=False)
    return Figure("length_psnr", "Likeness by number of tokens", caption, drawing)


@torch.inference_mode()
def progressive_grids(runs: list[Run], device: torch.device, missing: list[str]) -> list[Figure]:
    """A grid of each elastic tokenizer: frames, and what their first 1, 2, 4, … tokens give."""
    figures = []
    for run in filter(is_elastic, runs):
        try:
            folder, frames = choose_frames(run, FRAMES, native_size([run]))
            tokenizer = load_tokenizer(run.folder).to(device)
        except UserError as error:
            missing.append(f"progressive grid of {run.folder}: {error}")
            continue
        dataset = FrameDataset(folder, frames, tokenizer.image_size, run.config.data.resize)
        images = collate_images([dataset[place] for place in range(len(frames))]).images
        images = to_unit_range(images, device)
        codes = tokenizer.encode(images)
        systems = [System("input", images.cpu(), is_input=True)]
        for length in doubled_lengths(tokenizer.num_tokens):
            restored: Tensor = tokenizer.decode(codes[:, :length]).cpu()
            systems.append(System(f"{length} token{'s' if length > 1 else ''}", restored))
        caption = "Validation frames, decoded from their first tokens alone by one model."
        title = f"From few tokens to all: {label(run)}"
        figures.append(Figure(f"progressive_{run.name}", title, caption, draw_grid(arrange(systems))))
    return figures
