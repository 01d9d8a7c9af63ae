"""Measure a run's model over its validation frames; each result is a file under runs/<run>/eval/."""

import argparse
import datetime
import json
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm import tqdm

from data.frames import FrameDataset, evaluation_loader, list_frames, to_unit_range
from errors import UserError, command
from metrics.codebook import CodebookUsage
from metrics.frechet import FeatureStatistics, frechet_distance
from metrics.inception import InceptionFeatures, RandomInceptionFeatures
from metrics.similarity import psnr, ssim
from models.perceptual import LPIPS
from models.storage import load_tokenizer
from training.card import write_card
from training.finished import FinishedRun, load_with_tokenizer, newest_run, read_run

OF_TOKENIZERS = ("rfid", "psnr", "ssim", "lpips", "codebook")
OF_GENERATORS = ("gfid",)
FEW_IMAGES = 10_000  # a Fréchet distance of fewer is biased upwards; it compares only with one of as many


@command
def main() -> None:
    arguments = parse_arguments()
    accelerator = Accelerator()
    failures = []
    for run, metrics in what_to_do(arguments):
        measures = build_measures(accelerator, metrics, arguments, run, failures)
        if not measures:
            continue
        with torch.inference_mode():
            images = (measure_generator if run.is_generator else measure_tokenizer)(
                accelerator, run, measures, arguments
            )
        for measure in measures:
            for state in measure.state():
                state.copy_(accelerator.reduce(state))
            if accelerator.is_main_process:
                save_result(run, measure, images, arguments)
        if accelerator.is_main_process:
            write_card(run.folder)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if failures:
        raise UserError("; ".join(failures))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in OF_TOKENIZERS + OF_GENERATORS:
        parser.add_argument(f"--{name}", action="append_const", dest="metrics", const=name)
    parser.add_argument("--all", action="store_true", help="every metric that suits the run")
    parser.add_argument("--run", help="a run folder; by default the newest under --runs")
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument("--frames", help="folder of frames; by default the run's own")
    parser.add_argument("--num", type=int, help="images to generate; by default as many as real ones")
    parser.add_argument("--seed", type=int, default=0, help="of generation")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--feature-extractor", choices=["inception", "random-inception"], default="inception")
    parser.add_argument("--inception-weights", help="torch-fidelity's InceptionV3 file")
    parser.add_argument("--lpips-weights", help="torchvision's VGG16 file")
    arguments = parser.parse_args()
    if not arguments.metrics and not arguments.all:
        parser.error("name at least one metric, or --all")
    return arguments


def what_to_do(arguments: argparse.Namespace) -> list[tuple[FinishedRun, list[str]]]:
    """The runs to measure, each with its metrics."""
    if arguments.run:
        run = read_run(arguments.run)
        suited = OF_GENERATORS if run.is_generator else OF_TOKENIZERS
        metrics = list(suited) if arguments.all else arguments.metrics
        for name in metrics:
            if name not in suited:
                kind = "a generator" if run.is_generator else "a tokenizer"
                raise UserError(f"--{name}: {run.folder} is {kind}'s run; it has {', '.join(suited)}")
        return [(run, metrics)]
    tasks = []
    for generator, suited in ((False, OF_TOKENIZERS), (True, OF_GENERATORS)):
        metrics = [name for name in suited if arguments.all or name in arguments.metrics]
        if metrics:
            tasks.append((newest_run(arguments.runs, generator), metrics))
    return tasks


# --- measures: each takes batches, holds tensors that add up over processes, and gives a result ------------


class MeanSimilarity:
    """The mean over images of a similarity (B,) of images to their originals."""

    extractor = None

    def __init__(self, name: str, similarity: Callable[[Tensor, Tensor], Tensor], device: torch.device):
        self.name = name
        self.similarity = similarity
        self.sum = torch.zeros((), dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, real: Tensor | None, made: Tensor | None, codes: Tensor | None) -> None:
        self.sum += self.similarity(made, real).double().sum()
        self.count += len(real)

    def state(self) -> list[Tensor]:
        return [self.sum, self.count]

    def result(self) -> dict:
        return {"value": (self.sum / self.count).item()}


class Codebook:
    """Share of codes used, and perplexity."""

    name = "codebook"
    extractor = None

    def __init__(self, codebook_size: int, device: torch.device):
        self.usage = CodebookUsage(codebook_size, device)

    def update(self, real: Tensor | None, made: Tensor | None, codes: Tensor | None) -> None:
        self.usage.update(codes)

    def state(self) -> list[Tensor]:
        return [self.usage.counts]

    def result(self) -> dict:
        return {"value": self.usage.usage(), "perplexity": self.usage.perplexity()}


class Frechet:
    """Fréchet distance of real and made images; they need not come in pairs."""

    def __init__(self, name: str, extractor: nn.Module, device: torch.device):
        self.name = name
        self.network = extractor.to(device)
        self.extractor = extractor.name
        self.real = FeatureStatistics(extractor.dim, device)
        self.made = FeatureStatistics(extractor.dim, device)

    def update(self, real: Tensor | None, made: Tensor | None, codes: Tensor | None) -> None:
        for images, statistics in ((real, self.real), (made, self.made)):
            if images is not None:
                statistics.update(self.network(images))

    def state(self) -> list[Tensor]:
        return [part for each in (self.real, self.made) for part in (each.count, each.sum, each.outer)]

    def result(self) -> dict:
        sides = (self.real.mean, self.real.covariance, self.made.mean, self.made.covariance)
        return {"value": frechet_distance(*sides), "num_real": int(self.real.count)}


Measure = MeanSimilarity | Codebook | Frechet


def build_measures(
    accelerator: Accelerator,
    metrics: list[str],
    arguments: argparse.Namespace,
    run: FinishedRun,
    failures: list[str],
) -> list[Measure]:
    """The measures that can be had; the others go to `failures`, and don't keep these from their results."""

    def frechet(name: str) -> Frechet:
        if arguments.feature_extractor == "random-inception":
            extractor = RandomInceptionFeatures()
        else:
            extractor = InceptionFeatures(arguments.inception_weights)
        # A distance of other features has another name.
        return Frechet(
            name if extractor.metric_prefix == "fid" else extractor.metric_prefix, extractor, device
        )

    device = accelerator.device
    build = {
        "psnr": lambda: MeanSimilarity("psnr", psnr, device),
        "ssim": lambda: MeanSimilarity("ssim", ssim, device),
        "lpips": lambda: MeanSimilarity(
            "lpips", LPIPS(arguments.lpips_weights, option="--lpips-weights").to(device), device
        ),
        "codebook": lambda: Codebook(run.config.model.quantizer.codebook_size, device),
        "rfid": lambda: frechet("rfid"),
        "gfid": lambda: frechet("gfid"),
    }
    measures = []
    for name in dict.fromkeys(metrics):
        with accelerator.main_process_first():  # so that one process downloads, and the others find the file
            try:
                measures.append(build[name]())
            except UserError as error:
                failures.append(f"--{name}: {error}")
    return measures


# --- the two passes over images -----------------------------------------------------------------------------


def measure_tokenizer(
    accelerator: Accelerator, run: FinishedRun, measures: list[Measure], arguments: argparse.Namespace
) -> int:
    """Feed every validation frame and its reconstruction to the measures; returns how many there were."""
    tokenizer = load_tokenizer(run.folder).to(accelerator.device)
    count = 0
    for images in real_images(accelerator, run, tokenizer.image_size, arguments):
        codes = tokenizer.encode(images)
        restored = tokenizer.decode(codes)
        for measure in measures:
            measure.update(images, restored, codes)
        count += len(images)
    return total(accelerator, count)


def measure_generator(
    accelerator: Accelerator, run: FinishedRun, measures: list[Measure], arguments: argparse.Namespace
) -> int:
    """Feed every validation frame, then as many generated images, to the measures; returns how many."""
    generator, tokenizer = (network.to(accelerator.device) for network in load_with_tokenizer(run))
    count = 0
    for images in real_images(accelerator, run, tokenizer.image_size, arguments):
        for measure in measures:
            measure.update(images, None, None)
        count += len(images)
    num = arguments.num or total(accelerator, count)

    starts = range(0, num, arguments.batch_size)[accelerator.process_index :: accelerator.num_processes]
    for start in tqdm(starts, desc="generated", disable=not accelerator.is_main_process):
        codes = generator.generate(
            num=min(arguments.batch_size, num - start),
            seed=arguments.seed,
            first_index=start,
            **run.config.sampling.model_dump(),
        )
        made = tokenizer.decode(codes)
        for measure in measures:
            measure.update(None, made, codes)
    return num


def real_images(accelerator: Accelerator, run: FinishedRun, size: int, arguments: argparse.Namespace):
    """This process's share of the run's validation frames, (B, 3, H, W) in [0, 1], each exactly once."""
    folder = arguments.frames or run.config.data.frames
    frames = list_frames(folder, "val", **run.config.data.val.model_dump())
    loader = evaluation_loader(
        FrameDataset(Path(folder) / "val", frames, size),
        arguments.batch_size,
        arguments.workers,
        accelerator.process_index,
        accelerator.num_processes,
    )
    broken = []
    for batch in tqdm(loader, desc=f"{folder}/val", disable=not accelerator.is_main_process):
        broken += [frames[index].file_name for index in batch.broken]
        if len(batch.images):
            yield to_unit_range(batch.images, accelerator.device)
    for name in broken:
        tqdm.write(f"{folder}/val/{name}: not readable as a picture, left out")


def total(accelerator: Accelerator, count: int) -> int:
    """A count summed over all processes."""
    return int(accelerator.reduce(torch.tensor(count, device=accelerator.device)))


def save_result(run: FinishedRun, measure: Measure, images: int, arguments: argparse.Namespace) -> None:
    """Write eval/<metric>.json in the run's folder and print the value."""
    result = measure.result()
    record = {
        "metric": measure.name,
        **result,
        "num_images": images,
        "frames": arguments.frames or run.config.data.frames,
        "split": "val",
        "subset": run.config.data.val.model_dump(),
        "feature_extractor": measure.extractor,
        "checkpoint_step": run.step,
        "seed": arguments.seed if run.is_generator else None,
        "sampling": run.config.sampling.model_dump() if run.is_generator else None,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "torch-fidelity")},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    path = run.folder / "eval" / f"{measure.name}.json"
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=2) + "\n")
    os.replace(part, path)
    few = isinstance(measure, Frechet) and images < FEW_IMAGES
    note = f"; fewer than {FEW_IMAGES:,} images bias it upwards" if few else ""
    print(f"{run.folder}: {measure.name} {result['value']:.4f} on {images:,} images, step {run.step}{note}")


if __name__ == "__main__":
    main()
