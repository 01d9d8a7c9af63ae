"""Measure a run's model over its validation frames; each result is a file under runs/<run>/eval/."""

import argparse
import os
from functools import partial

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from errors import UserError, command
from evaluation.adaptive import AdaptiveLengths
from evaluation.fill import measure_fill
from evaluation.frames import ValidationFrames, add_up, gather
from evaluation.generated import generated_features
from evaluation.locality import FRAMES_TO_EDIT, measure_locality
from evaluation.networks import build_extractors, build_similarities, sources_of, unique
from evaluation.probe import measure_probe
from evaluation.reconstruction import Pass, by_length, lengths_to_measure
from evaluation.results import save_result
from evaluation.sweep import PASSES, measure_sweep
from files import remove_leftovers
from metrics import as_run
from metrics.codebook import CodebookUsage
from metrics.table import EXTRACTORS, GENERATOR, METRICS, TOKENIZER, metrics_of
from models.storage import load_tokenizer
from options import number, option
from training.card import write_card
from training.finished import (
    FinishedRun,
    list_runs,
    load_with_tokenizer,
    newest_run,
    read_run,
    sampled_otherwise,
)
from training.precision import PRECISIONS, computing_in
from training.speed import compile_for


@command
def main() -> None:
    arguments = parse_arguments()
    accelerator = Accelerator()
    failures = []
    for run, metrics in what_to_do(arguments):
        results = run.folder / "eval"
        if accelerator.is_main_process and results.is_dir() and os.access(results, os.W_OK):
            remove_leftovers(results)
        measure = measure_generator if run.is_generator else measure_tokenizer
        with torch.inference_mode(), computing_in(arguments.precision, accelerator.device):
            measure(accelerator, run, metrics, arguments, failures)
        if accelerator.is_main_process:
            try:
                write_card(run.folder)
            except OSError as error:
                failures.append(f"{run.folder}'s card: not written ({error.strerror})")
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if failures:
        raise UserError("; ".join(failures))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, metric in METRICS.items():
        add = partial(parser.add_argument, action="append_const", dest="metrics", const=name, default=[])
        add(option(name), help=f"{metric.help} ({' or '.join(metric.of)})")
    left_out = " and ".join(option(name) for name, metric in METRICS.items() if not metric.in_all)
    parser.add_argument("--all", action="store_true", help=f"every metric that suits the run, but {left_out}")
    parser.add_argument(
        "--as-run",
        action="store_true",
        help="--rfid, --gfid and --codebook as the study's scripts measure them, on 1,000 images and under "
        f"names of their own: rfid{as_run.SUFFIX}, …",
    )
    parser.add_argument("--run", help="a run folder; by default the newest under --runs")
    parser.add_argument("--runs", default="runs", help="folder of runs")
    parser.add_argument("--frames", help="folder of frames; by default the run's own")
    parser.add_argument(
        "--num",
        type=number(1),
        help="images to generate, by default as many as real ones; frames for --locality to edit, by default "
        f"at most {FRAMES_TO_EDIT}",
    )
    parser.add_argument(
        "--seed", type=number(0, 2**62), default=0, help="of generation, --fill's masks, --locality's boxes"
    )
    parser.add_argument(
        "--mask-ratio", type=float, action="append", help="of --fill, repeatable; by default four up to 1"
    )
    parser.add_argument("--guide", metavar="RUN", help="of a generator, over its config's guide")
    parser.add_argument(
        "--guidance", type=number(0, 10**6, float), help="of a generator, over its config's sampling.guidance"
    )
    parser.add_argument(
        "--passes",
        type=number(2, 10**4),
        action="append",
        help=f"of --sweep, repeatable: forward passes for an image; by default {', '.join(map(str, PASSES))}",
    )
    parser.add_argument(
        "--num-tokens",
        type=number(1),
        action="append",
        default=[],
        metavar="K",
        help="of an elastic tokenizer: every metric also with its first K tokens, in one pass; repeatable",
    )
    parser.add_argument("--batch-size", type=number(1), default=256 if torch.cuda.is_available() else 32)
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="fp32",
        help="of the run's networks, and with tf32 of the metrics' too",
    )
    parser.add_argument("--workers", type=number(0, 1000), default=min(8, os.cpu_count() or 1))
    parser.add_argument("--feature-extractor", choices=[*EXTRACTORS], default="inception")
    parser.add_argument("--inception-weights", help="torch-fidelity's InceptionV3 file")
    parser.add_argument("--dinov2-weights", help="DINOv2's ViT-L/14 file, the authors' or timm's")
    parser.add_argument("--lpips-weights", help="torchvision's VGG16 file")
    arguments = parser.parse_args()
    if not arguments.metrics and not arguments.all:
        parser.error("name at least one metric, or --all")
    others = [name for name in arguments.metrics if name not in as_run.METRICS]
    if arguments.as_run and (others or arguments.all):
        other = option(others[0]) if others else "--all"
        parser.error(f"--as-run is for {', '.join(map(option, as_run.METRICS))}; {other} has no such measure")
    for ratio in arguments.mask_ratio or []:
        if not 0 < ratio <= 1:
            parser.error(f"--mask-ratio {ratio}: a share of tokens is above 0 and at most 1")
    return arguments


def what_to_do(arguments: argparse.Namespace) -> list[tuple[FinishedRun, list[str]]]:
    """The runs to measure, each with its metrics.

    Without --run it is the newest run of each kind that the metrics call for; ones that suit both kinds, and
    --all, go to those kinds that there are.
    """
    suited = {False: metrics_of(TOKENIZER), True: metrics_of(GENERATOR)}  # by whether a run is a generator's
    if arguments.run:
        run = read_run(arguments.run)
        for name in arguments.metrics:
            if name not in suited[run.is_generator]:
                kind = "a generator" if run.is_generator else "a tokenizer"
                known = ", ".join(map(option, suited[run.is_generator]))
                raise UserError(f"{option(name)}: {run.folder} is {kind}'s run; it has {known}")
        runs = [run]
    else:
        kinds = [
            kind for kind in suited if set(arguments.metrics) & set(suited[kind]) - set(suited[not kind])
        ]
        if arguments.all or not kinds:
            kinds = sorted({run.is_generator for run in list_runs(arguments.runs)[0]}) or [False]
        runs = [newest_run(arguments.runs, kind) for kind in kinds]
    asked = set(arguments.metrics)
    if arguments.all:
        asked |= {name for name, metric in METRICS.items() if metric.in_all}
    return [(run, [name for name in suited[run.is_generator] if name in asked]) for run in runs]


def measure_tokenizer(
    accelerator: Accelerator,
    run: FinishedRun,
    metrics: list[str],
    arguments: argparse.Namespace,
    failures: list[str],
) -> None:
    """All of a tokenizer's metrics: from one pass over the validation frames and their reconstructions, but
    for probes."""
    extractors = build_extractors(accelerator, metrics, sources_of(arguments), failures)
    similarities = build_similarities(accelerator, metrics, sources_of(arguments), failures)
    of_reconstructions = extractors or similarities or {"codebook", "adaptive"} & set(metrics)
    if not of_reconstructions and "probe" not in metrics:
        return
    tokenizer = load_tokenizer(run.folder).to(accelerator.device)
    lengths = lengths_to_measure(tokenizer, run, metrics, arguments)
    usage = CodebookUsage(tokenizer.codebook_size, accelerator.device)
    frames = ValidationFrames(accelerator, run, tokenizer.image_size, arguments, failures)
    compile_for(len(frames.listed), tokenizer)
    if "probe" in metrics:
        measure_probe(frames, tokenizer)
    if not of_reconstructions:
        return
    kept, real = frames.features(extractors)
    functions = {name: each.function for name, each in similarities.items()}
    passes = {length: Pass(functions, extractors, accelerator.device) for length in lengths}
    adaptive = AdaptiveLengths(tokenizer) if "adaptive" in metrics else None
    count = 0
    for places, images in frames.batches():
        codes = tokenizer.encode(images)
        if adaptive:
            adaptive.update(places, images, codes)
        if arguments.as_run:
            seen = as_run.saved(2 * images - 1)
        for length, each in passes.items():
            restored = tokenizer.decode(codes[:, :length])
            if arguments.as_run:
                each.update(as_run.saved(2 * restored - 1), seen)
            else:
                each.update(restored, images)
        usage.update(codes)
        real.update(seen if arguments.as_run else images)
        count += len(images)

    num_images = add_up(accelerator, count)
    usage.counts = accelerator.reduce(usage.counts)
    values = {length: each.values(accelerator) for length, each in passes.items()}
    made = {length: gather(accelerator, each.made) for length, each in passes.items()}
    real = gather(accelerator, real)
    if adaptive:
        adaptive.save(frames)
    if accelerator.is_main_process:
        for name in functions:
            save_result(
                frames, name, by_length({length: values[length][name] for length in lengths}), num_images
            )
        if "codebook" in metrics:
            result = {"value": usage.usage(), "perplexity": usage.perplexity()}
            save_result(frames, "codebook", result, num_images)
        frames.keep(real)
        save_feature_results(frames, extractors, made, kept | real)


def measure_generator(
    accelerator: Accelerator,
    run: FinishedRun,
    metrics: list[str],
    arguments: argparse.Namespace,
    failures: list[str],
) -> None:
    """All of a generator's metrics: generated images against the validation frames, then fills and edits."""
    extractors = build_extractors(accelerator, metrics, sources_of(arguments), failures)
    if not extractors and not {"fill", "locality"} & set(metrics):
        return
    run = sampled_otherwise(run, {"guide": arguments.guide, "guidance": arguments.guidance})
    networks = [network and network.to(accelerator.device) for network in load_with_tokenizer(run)]
    generator, tokenizer, guide = networks
    sampling = run.config.sampling.model_dump() | {"guide": guide}
    frames = ValidationFrames(accelerator, run, tokenizer.image_size, arguments, failures)
    compile_for(arguments.num or len(frames.listed), *filter(None, networks))
    real, missing = frames.features(extractors)
    if missing.extractors:
        for _, images in frames.batches():
            missing.update(as_run.saved(2 * images - 1) if arguments.as_run else images)
        gathered = gather(accelerator, missing)
        real |= gathered
        if accelerator.is_main_process:
            frames.keep(gathered)

    to_fill, to_sweep = extractors.pop("fill", None), extractors.pop("sweep", None)
    if extractors:
        with generated_features(frames, generator, tokenizer, unique(extractors), sampling) as made:
            if accelerator.is_main_process:
                save_feature_results(frames, extractors, {tokenizer.num_tokens: made}, real)
    if to_sweep:
        measure_sweep(frames, generator, tokenizer, to_sweep, real, sampling)
    if "fill" in metrics:
        measure_fill(accelerator, frames, generator, tokenizer, to_fill, real, sampling)
    if "locality" in metrics:
        measure_locality(accelerator, frames, generator, tokenizer, sampling)


def save_feature_results(
    frames: ValidationFrames,
    extractors: dict[str, nn.Module],
    made: dict[int, dict[str, Tensor]],
    real: dict[str, Tensor],
) -> None:
    """Compute and save each metric on features (n, dim); sets too small for it are failures.

    made: by the number of tokens, rising, that images are made of.
    """
    device = frames.accelerator.device
    for name, extractor in extractors.items():
        metric, of_real = METRICS[name], real[extractor.name].to(device)
        try:
            results = {
                length: metric.value(features[extractor.name].to(device), of_real, extractor)
                for length, features in made.items()
            }
        except UserError as error:
            frames.failures.append(f"{option(name)}: {error}")
            continue
        whole = max(made)
        result = results[whole] | by_length({length: each["value"] for length, each in results.items()})
        result["num_real"] = len(of_real)
        own_name = f"{metric.stem}_{extractor.suffix}" if extractor.suffix else name
        num_images = len(made[whole][extractor.name])
        save_result(frames, own_name, result, num_images, extractor, metric.biased)


if __name__ == "__main__":
    main()
