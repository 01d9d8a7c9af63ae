"""Write a page of pictures, curves and numbers of all runs under a folder; it opens from disk, offline."""

import argparse
import base64
import io
import json
import os
import platform
import re
from collections import defaultdict
from importlib.metadata import version
from itertools import islice, zip_longest
from pathlib import Path

import jinja2
import matplotlib
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms.functional import to_pil_image

from data.frames import Frame, FrameDataset, list_frames, to_unit_range
from errors import UserError, command
from models.storage import load_tokenizer
from training.finished import FinishedRun, list_runs, load_with_tokenizer

GENERATED_IMAGES = 16  # by each generator
# What is drawn, in this order, with its axis; a run logs train/<name>, val/<name>, both or neither.
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
COLOURS = 8  # --series-0 … in the template; further runs have the same colours with another line
LINES = {"solid": "none", "dashed": "5 2", "dotted": "1.5 2"}  # matplotlib's name: SVG's dashes
# Matplotlib wants fixed colours; these stand for the template's, which differ between light and dark.
GRID, SERIES = "#010000", "#0200{:02x}"
CHART_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same runs give the same page
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titlepad": 10,
    "axes.edgecolor": GRID,
    "axes.formatter.limits": (-4, 5),
    "grid.color": GRID,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument("--out", type=Path, default=Path("report"), help="folder for index.html")
    parser.add_argument("--num-images", type=int, default=8, help="validation frames to reconstruct")
    parser.add_argument("--seed", type=int, default=0, help="of generation")
    arguments = parser.parse_args()

    runs, left_out = list_runs(arguments.runs)
    if not runs:
        reasons = f" ({'; '.join(left_out)})" if left_out else ""
        raise UserError(f"{arguments.runs}: no finished run there{reasons}; train_tokenizer.py makes one")
    tokenizers = [run for run in runs if not run.is_generator]
    generators = [run for run in runs if run.is_generator]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    page = page_template().render(
        runs=tokenizers + generators,
        comparisons=compare(tokenizers, arguments.num_images, device, left_out),
        generated=[(run, generate(run, arguments.seed, device, left_out)) for run in generators],
        curves=[
            (tokenizers, draw_curves(tokenizers, TOKENIZER_CURVES)),
            (generators, draw_curves(generators, GENERATOR_CURVES)),
        ],
        colours=COLOURS,
        dashes=list(LINES.values()),
        trained_on={run.folder.name: count_frames(run) for run in runs},
        results={run.folder.name: read_results(run, left_out) for run in runs},
        left_out=left_out,
        seed=arguments.seed,
        versions={name: version(name) for name in ("torch", "torchvision", "timm", "accelerate")}
        | {"Python": platform.python_version()},
    )
    path = arguments.out / "index.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".part").write_text(page, encoding="utf-8")
        os.replace(path.with_suffix(".part"), path)
    except OSError as error:
        raise UserError(f"{path}: not writable ({error.strerror}); name another folder with --out") from error
    print(path)


def page_template() -> jinja2.Template:
    """report_template.html: the page's words, their order, and its looks."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_uri"] = data_uri
    return environment.get_template("report_template.html")


# --- pictures -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def compare(
    tokenizers: list[FinishedRun], num: int, device: torch.device, left_out: list[str]
) -> list[tuple[Frame, dict[str, Tensor]]]:
    """Validation frames of the newest tokenizer, each with images (3, H, W) by label: input, then restored.

    Frames that aren't there, and tokenizers that don't load, are named in `left_out`.
    """
    if not tokenizers or num < 1:
        return []
    data = tokenizers[-1].config.data
    folder = Path(data.frames) / "val"
    try:
        frames = choose_frames(folder, list_frames(data.frames, "val", **data.val.model_dump()), num)
    except UserError as error:
        left_out.append(f"reconstructions: {error}")
        return []
    images = {}
    for run in tokenizers:
        try:
            tokenizer = load_tokenizer(run.folder).to(device)
        except UserError as error:
            left_out.append(f"reconstructions by {run.folder}: {error}")
            continue
        dataset = FrameDataset(folder, frames, tokenizer.image_size)
        inputs = to_unit_range(torch.stack([dataset[index][0] for index in range(len(frames))]), device)
        images.setdefault("input", inputs.cpu())
        restored = tokenizer.decode(tokenizer.encode(inputs)).cpu()
        images[f"{run.folder.name} · {tokenizer.num_tokens} tokens"] = restored
    # From images by tokenizer to images by frame
    by_frame = zip(*images.values())
    return [(frame, dict(zip(images, each))) for frame, each in zip(frames, by_frame)]


def choose_frames(folder: Path, frames: list[Frame], num: int) -> list[Frame]:
    """`num` of the frames, one of each video before a second of any; unreadable ones are passed over.

    Raises UserError where none can be read.
    """
    videos = defaultdict(list)
    for frame in frames:
        videos[Path(frame.file_name).parent].append(frame)
    in_turn = (frame for turn in zip_longest(*videos.values()) for frame in turn if frame)
    readable = (frame for frame in in_turn if FrameDataset(folder, [frame], size=8)[0][0] is not None)
    chosen = list(islice(readable, num))
    if not chosen:
        raise UserError(f"{folder}: none of its {len(frames)} frames can be read")
    return chosen


@torch.inference_mode()
def generate(run: FinishedRun, seed: int, device: torch.device, left_out: list[str]) -> list[Tensor]:
    """A generator's images (3, H, W), sampled as its config says; if it doesn't load, `left_out` says so."""
    try:
        generator, tokenizer = (network.to(device) for network in load_with_tokenizer(run))
    except UserError as error:
        left_out.append(f"images by {run.folder}: {error}")
        return []
    codes = generator.generate(num=GENERATED_IMAGES, seed=seed, **run.config.sampling.model_dump())
    return list(tokenizer.decode(codes).cpu())


def data_uri(image: Tensor) -> str:
    """An image (3, H, W) in [0, 1] as a JPEG in a URI."""
    file = io.BytesIO()
    to_pil_image((image * 255).round().byte()).save(file, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


# --- curves and numbers -------------------------------------------------------------------------------------


def read_log(run: FinishedRun) -> list[dict]:
    """The lines of a run's metrics.jsonl; one that it was cut off in is left out."""
    path = run.folder / "metrics.jsonl"
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records


def count_frames(run: FinishedRun) -> int | None:
    """How many frames a run was trained on, from its log: its frames folder may have changed since."""
    for record in read_log(run):
        if "train/epoch" in record:
            return round(record["step"] * run.config.training.global_batch_size / record["train/epoch"])
    return None


def draw_curves(runs: list[FinishedRun], labels: dict[str, str]) -> list[tuple[str, str]]:
    """A (label, SVG) for each curve that some run has; training is thin, validation bold with dots."""
    logs = [read_log(run) for run in runs]
    charts = []
    for name, label in labels.items():
        with matplotlib.rc_context(CHART_STYLE):
            figure = Figure(figsize=(4.1, 2.6), layout="constrained")
            axes = figure.add_subplot(xlabel="step")
            axes.set_title(label, loc="left")  # of the y axis, where it is easier to read than beside it
            for index, log in enumerate(logs):
                again, colour = divmod(index, COLOURS)
                look = {"color": SERIES.format(colour), "linestyle": list(LINES)[again % len(LINES)]}
                for key, weight in (
                    (f"train/{name}", {"linewidth": 1, "alpha": 0.7}),
                    (f"val/{name}", {"linewidth": 2, "marker": "o", "markersize": 4}),
                ):
                    points = [(record["step"], record[key]) for record in log if key in record]
                    if points:
                        axes.plot(*zip(*points), **look, **weight)
            axes.spines[["left", "top", "right"]].set_visible(False)
            axes.locator_params(axis="x", integer=True, nbins=6)
            axes.grid(axis="y")
            if axes.lines:
                charts.append((label, to_svg(figure)))
    return charts


def to_svg(figure: Figure) -> str:
    """A figure as SVG for a place in HTML: as wide as the place, and in the page's colours."""
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    svg = file.getvalue()[file.getvalue().index("<svg") :]
    svg = re.sub(r' (width|height)="[\d.]+pt"', "", svg, count=2)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # an id is to be the only one in a page; none refers to these
    variables = {SERIES.format(index): f"var(--series-{index})" for index in range(COLOURS)}
    variables[GRID] = "var(--line)"
    return re.sub("|".join(variables), lambda match: variables[match[0]], svg)


def read_results(run: FinishedRun, left_out: list[str]) -> list[dict]:
    """What evaluate.py saved for a run; files that hold something else are named in `left_out`."""
    needed = {"metric", "value", "num_images", "feature_extractor", "checkpoint_step", "versions"}
    records = []
    for path in sorted((run.folder / "eval").glob("*.json")):
        try:
            record = json.loads(path.read_text())
            complete = needed <= record.keys()
        except (ValueError, AttributeError):
            complete = False
        if complete:
            records.append(record)
        else:
            left_out.append(f"{path}: not a result of evaluate.py; measure it again")
    return records


if __name__ == "__main__":
    main()
