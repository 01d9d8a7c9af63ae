"""Measure how fast the parts are on this machine, and count what training the study's cells takes.

Each part's line has images a second (the median of the repeats, after a warm-up), the peak of memory, the
model's FLOPs for an image, and MFU: their share of the device's own rate of matrix products, measured in the
same run. Weights are random and images made, neither of which changes the speed.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import torch

import train_maskgit
import train_tokenizer
from benchmark.cost import Costs, Rate, measured_rates
from benchmark.made import changed, for_speed, noise_batch, token_batch, write_frames, write_road_clip
from benchmark.measuring import Bench, count_flops
from benchmark.steps import (
    count_generator,
    count_tokenizer,
    losses_one_by_one,
    made_generator,
    terms_on,
    tokenizer_beside,
    tokenizer_step,
    update,
)
from data.frames import FrameDataset, list_frames
from data.video import Clip
from errors import UserError, command
from metrics.inception import RandomInceptionFeatures
from models.maskgit import MaskGIT
from models.storage import build_tokenizer, save_model
from training.cells import CONFIGS, cells_of
from training.config import GeneratorConfig, TokenizerConfig, load_config
from training.run import Run
from training.sections import Section
from training.tokens import TokenCache, cached_tokens

ROOT = Path(__file__).parent


@command
def main() -> None:
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as folder:
        try:
            results = arguments.measure(arguments, Path(folder))
        except torch.OutOfMemoryError as error:
            raise UserError(
                "too little memory on the device; lower --batch-size, --inference-batch-size or "
                "--set training.device_batch_size"
            ) from error
    if arguments.json:
        part = arguments.json.with_name(f"{arguments.json.name}.part")
        part.write_text(json.dumps(results, indent=1) + "\n")
        os.replace(part, arguments.json)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="what")

    def add(name: str, measure: Callable, text: str, config: str | None = None) -> argparse.ArgumentParser:
        options = commands.add_parser(name, help=text, description=text)
        options.set_defaults(measure=measure)
        options.add_argument("--json", type=Path, help="file to write the figures to as well")
        if measure is not plan:
            options.add_argument("--repeats", type=int, default=5, help="to take the median of (default: 5)")
        if config:
            options.add_argument("--config", type=Path, default=CONFIGS / config, help=f"default: {config}")
            options.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
            options.add_argument("--batch-size", type=int, help="of a step (default: the config's; CPU: 4)")
            options.add_argument(
                "--inference-batch-size", type=int, help="of all else (default: 256; CPU: 4)"
            )
            options.add_argument("--images", type=int, help="frames on disk (default: 4096; CPU: 16)")
        return options

    clip = add("extract", bench_extract, "two frames of a clip, against decoding all of it")
    add("tokenizer", bench_tokenizer, "a tokenizer's training step by loss, and coding", "titok_64.yaml")
    add("generator", bench_generator, "a generator's training step, and generation", "maskgit_titok_64.yaml")
    add("loading", bench_loading, "JPEGs from disk: alone, into training steps, into tokens", "titok_64.yaml")
    add("rfid", bench_rfid, "evaluate.py --rfid from start to end", "titok_64.yaml")
    everything = add("all", bench_all, "all of the above", "titok_64.yaml")
    everything.add_argument("--generator-config", type=Path, default=CONFIGS / "maskgit_titok_64.yaml")
    for options in (clip, everything):
        options.add_argument("--seconds", type=int, default=40, help="length of the clip (default: 40)")

    costs = add("plan", plan, "steps, FLOPs and hours of the study's cells, or of other configs")
    costs.add_argument("--config", type=Path, action="append", default=[], help="a tokenizer's; repeatable")
    costs.add_argument(
        "--generator-config", type=Path, action="append", default=[], help="a generator's; repeatable"
    )
    costs.add_argument("--rates", type=Path, action="append", default=[], help="a file of --json, repeatable")
    costs.add_argument("--matrix-rate", type=float, help="TFLOP/s, assumed where --rates has none")
    costs.add_argument("--mfu", type=float, help="the share of it in use, likewise")
    costs.add_argument("--devices", type=int, default=1, help="at work together, each at that rate")
    arguments = parser.parse_args()
    if arguments.measure is plan and (arguments.matrix_rate is None) != (arguments.mfu is None):
        parser.error("--matrix-rate and --mfu go together")
    return arguments


def start(arguments: argparse.Namespace, config_class: type[Section], folder: Path, on_cpu: int = 4) -> Run:
    """The run of the command line's config; fills in the options that depend on the device.

    on_cpu: the batch size of a training step on a CPU.
    """
    config = load_config(arguments.config, config_class, arguments.set)
    gpu = torch.cuda.is_available()
    batch_size = arguments.batch_size or (config.training.global_batch_size if gpu else on_cpu)
    arguments.inference_batch_size = arguments.inference_batch_size or (256 if gpu else 4)
    arguments.images = arguments.images or (4096 if gpu else 16)
    endless = changed(config.training, global_batch_size=batch_size, epochs=None, max_steps=10**9)
    run = Run(for_speed(changed(config, training=endless), folder))
    run.plan(arguments.images, "made for speed")
    return run


def bench_tokenizer(arguments: argparse.Namespace, folder: Path) -> dict:
    """A training step with one loss after another, what its update takes, encode and decode."""
    run = start(arguments, TokenizerConfig, folder)
    bench = Bench(run.device, arguments.repeats)
    steps = losses_one_by_one(run.config.losses)
    counted = count_tokenizer(run, *steps.values())
    networks = train_tokenizer.Networks(run)
    batches = [noise_batch(run, run.micro_batch_size)] * run.accumulation
    batch_size = run.config.training.global_batch_size
    for (name, losses), flops in zip(steps.items(), counted):
        work = partial(tokenizer_step, run, networks, losses, batches)
        row = bench.add(name, work, batch_size, flops, training_precision(run))
    row |= {"kind": run.config.model.kind, "config": run.config.run.name}  # what `plan` goes by
    own = bench.add("of which the tokenizer's update and EMA", update(run, networks.tokenizer, networks.ema))
    parts = parts_of_a_step(bench.rows[:-1], own, terms_on(run.config.losses))
    shares = (f"{name} {value:.4f} s ({value / row['seconds']:.1%})" for name, value in parts.items())
    print(f"  a step's {row['seconds']:.4f} s: {', '.join(shares)}")

    tokenizer, size = networks.ema.module.eval(), arguments.inference_batch_size
    images = torch.rand(size, 3, *[tokenizer.image_size] * 2, device=run.device)
    codes = tokenizer.encode(images[:1]).expand(size, -1)
    for name, code, inputs in (("encode", tokenizer.encode, images), ("decode", tokenizer.decode, codes)):
        flops = count_flops(partial(code, inputs[:1]))
        for precision in inference_precisions(run):
            bench.add(name, in_precision(precision, run, partial(code, inputs)), size, flops, precision)
    return {"tokenizer": {**bench.result(), "parts": parts}}


def parts_of_a_step(rows: list[dict], own: dict, terms: list[str]) -> dict[str, float]:
    """What each part of a step takes of its seconds; a row has one of `terms` more than the row before.

    Rows are compared by their time at one rate of matrix products, should that have drifted between them.
    """
    times = [row["flops_per_image"] / row["mfu"] for row in rows]
    first_update = times[0] * own["seconds"] / rows[0]["seconds"]
    parts = {"forward and backward": times[0] - first_update, "update and EMA": first_update}
    parts |= {term: after - before for term, (before, after) in zip(terms, pairwise(times))}
    return {name: time * rows[-1]["seconds"] / times[-1] for name, time in parts.items()}


def training_precision(run: Run) -> str:
    """What the products of a training step are computed in."""
    return "bfloat16" if run.accelerator.mixed_precision == "bf16" else "float32"


def inference_precisions(run: Run) -> list[str]:
    """float32, in which encoding and generating are done unless the caller says otherwise, and training's."""
    return list(dict.fromkeys(["float32", training_precision(run)]))


def in_precision(precision: str, run: Run, work: Callable[[], object]) -> Callable[[], None]:
    """The work under autocast, where the precision is bfloat16."""

    def autocast_work() -> None:
        with torch.autocast(run.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            work()

    return autocast_work


def bench_generator(arguments: argparse.Namespace, folder: Path) -> dict:
    """A training step on made tokens, and generation in 8 steps under a condition, guided or not."""
    run = start(arguments, GeneratorConfig, folder, on_cpu=16)
    bench = Bench(run.device, arguments.repeats)
    tokenizer = tokenizer_beside(arguments.config, run.config)
    flops = count_generator(run, tokenizer)
    networks = made_generator(run, tokenizer)
    batches = [token_batch(run, tokenizer, run.micro_batch_size)] * run.accumulation
    work = partial(train_maskgit.train_step, run, networks, batches, 1)
    batch_size = run.config.training.global_batch_size
    row = bench.add("training step", work, batch_size, flops, training_precision(run))
    row |= {"kind": run.config.model.kind, "config": run.config.run.name}
    bench.add("of which the generator's update and EMA", update(run, networks.generator, networks.ema))

    config = {**networks.generator.config, "conditions": {"timeofday": ["daytime", "night"]}}
    del config["kind"]
    generator, size = MaskGIT(**config).eval().to(run.device), arguments.inference_batch_size
    night = generator.condition_indices({"timeofday": "night"})
    for name, guidance in (("generation in 8 steps", 1.0), ("generation in 8 steps, guided", 3.0)):
        generate = partial(generator.generate, conditions=night, steps=8, guidance=guidance)
        flops = count_flops(partial(generate, 1))
        for precision in inference_precisions(run):
            bench.add(name, in_precision(precision, run, partial(generate, size)), size, flops, precision)
    return {"generator": bench.result()}


def bench_loading(arguments: argparse.Namespace, folder: Path) -> dict:
    """JPEGs from disk: loaded alone, into training steps, and into tokens."""
    run = start(arguments, TokenizerConfig, folder)
    bench = Bench(run.device, arguments.repeats)
    data, size = run.config.data, run.config.model.image_size
    frames = write_frames(folder / "frames", arguments.images)
    listed = list_frames(frames, "train")
    augmentation = (data.resize, run.config.run.seed, data.random_crop, data.flip)
    dataset = FrameDataset(frames / "train", listed, size, *augmentation)
    loader = train_tokenizer.training_loader(run, dataset, run.plan(len(listed), "made for speed"))
    batches, source = iter(loader), f"JPEGs, {run.loader_workers} workers"
    batch_size = run.config.training.global_batch_size
    # How many steps the loader is ahead by what it prefetches; so many at once can't all have been there.
    ahead = math.ceil(run.loader_workers * (loader.prefetch_factor or 0) / run.accumulation) or 1
    bench.add(f"{source}: alone", lambda: [run.take(batches) for _ in range(ahead)], ahead * batch_size)

    (flops,) = count_tokenizer(run, run.config.losses)
    networks = train_tokenizer.Networks(run)
    step = partial(tokenizer_step, run, networks, run.config.losses)
    in_memory = [noise_batch(run, run.micro_batch_size)] * run.accumulation
    figures = (batch_size, flops, training_precision(run))
    alone = bench.add("training step on images in memory", lambda: step(in_memory), *figures)
    fed = bench.add(f"{source}: training step", lambda: step(run.take(batches)), *figures, warmup=2 + ahead)
    fed["busy"] = min(1.0, alone["seconds"] / fed["seconds"])
    print(f"  training from JPEGs keeps the device {fed['busy']:.1%} as busy as from memory")

    tokenizer = networks.ema.module.eval()
    save_model(tokenizer, run.folder / "model", step="0")
    flops = 2 * count_flops(partial(tokenizer.encode, one_image(run)))  # as it is, and flipped

    def tokens() -> None:
        shutil.rmtree(folder / "tokens", ignore_errors=True)
        cache = TokenCache(run.folder, frames / "train", listed, folder / "tokens")
        cached_tokens(run.accelerator, cache, arguments.inference_batch_size, run.loader_workers)

    bench.add(f"{source}: pre-tokenization", tokens, len(listed), flops, warmup=1)
    return {"loading": bench.result()}


def one_image(run: Run) -> torch.Tensor:
    """Noise, float (1, 3, H, W) in [0, 1] on the device."""
    return torch.rand(1, 3, *[run.config.model.image_size] * 2, device=run.device)


def bench_rfid(arguments: argparse.Namespace, folder: Path) -> dict:
    """evaluate.py --rfid on random features, from its start to its end."""
    run = start(arguments, TokenizerConfig, folder)
    bench = Bench(run.device, arguments.repeats)
    frames = write_frames(folder / "frames", arguments.images)
    tokenizer = build_tokenizer(run.config.model.architecture()).to(run.device)
    save_model(tokenizer, run.folder / "model", step="0")
    image, extractor = one_image(run), RandomInceptionFeatures().to(run.device)
    flops = count_flops(lambda: tokenizer.decode(tokenizer.encode(image)))
    flops += 2 * count_flops(partial(extractor, image))  # of the frame, and of what comes back
    options = ["--rfid", "--feature-extractor", "random-inception", "--workers", str(run.loader_workers)]
    options += ["--run", run.folder, "--batch-size", str(arguments.inference_batch_size)]

    def evaluation() -> None:
        for kept in (frames / ".features", run.folder / "eval"):
            shutil.rmtree(kept, ignore_errors=True)
        evaluate = [sys.executable, ROOT / "evaluate.py", *options]
        subprocess.run(evaluate, check=True, stdout=subprocess.DEVNULL)

    bench.add("rFID from start to end", evaluation, arguments.images, flops, warmup=0, child=True)
    return {"rfid": bench.result()}


def bench_all(arguments: argparse.Namespace, folder: Path) -> dict:
    """Everything, each in a folder of its own."""
    results = {}
    for measure in (bench_extract, bench_tokenizer, bench_generator, bench_loading, bench_rfid):
        options = argparse.Namespace(**vars(arguments))
        if measure is bench_generator:
            options.config, options.set = arguments.generator_config, []
        (folder / measure.__name__).mkdir()
        results |= measure(options, folder / measure.__name__)
    return results


def bench_extract(arguments: argparse.Namespace, folder: Path) -> dict:
    """From opening a file to two RGB frames in memory, against decoding all its frames, left as they are.

    Both in one process with one decoder thread, the file in the system's cache. Of a whole number of seconds
    the two frames that --frames-per-video 2 takes are often key frames: two half-way between are timed, too.
    """
    path = folder / "clip.mov"
    write_road_clip(path, arguments.seconds)

    def two_frames(shift: int) -> None:
        with Clip(path) as clip:
            list(clip.frames(index // 30 * 30 + shift for index in clip.spread(2)))

    def whole_clip() -> int:
        with av.open(path) as container:
            container.streams.video[0].codec_context.thread_count = 1
            return sum(1 for _ in container.decode(video=0))

    bench, count = Bench(torch.device("cpu"), arguments.repeats), whole_clip()
    megabytes = path.stat().st_size / 1e6
    print(f"{arguments.seconds} s of 1280x720, {megabytes:.1f} MB, H.264, B-frames, a GOP a second")
    whole = bench.add("decoding the whole clip", whole_clip, count, warmup=0)["seconds"]
    ratios = {}
    for part, shift in (("two frames", 0), ("two frames half-way between key frames", 15)):
        ratios[part] = whole / bench.add(part, partial(two_frames, shift), 2)["seconds"]
        print(f"  {ratios[part]:.1f} times faster than the whole clip")
    return {"extract": {**bench.result(), "times_faster": ratios}}


def plan(arguments: argparse.Namespace, folder: Path) -> dict:
    """What training each cell takes. Hours are FLOPs / (devices × FLOP/s in training).

    Memory is a GPU's, in bfloat16 and at the largest part of the batch that the config lets a device have.
    """
    assumed = Rate(None, "not measured")
    if arguments.mfu:
        flops = arguments.matrix_rate * 1e12 * arguments.mfu
        assumed = Rate(flops, f"assumed: {arguments.matrix_rate:g} TFLOP/s, MFU {arguments.mfu:g}")
    rates, costs = measured_rates(arguments.rates), Costs(folder)
    tokenizers, generators = arguments.config, arguments.generator_config
    if not tokenizers and not generators:
        cells = [CONFIGS / f"{cell}.yaml" for cell in cells_of("text")]
        generators = [path for path in cells if path.name.startswith("maskgit_")]
        tokenizers = [path for path in cells if path not in generators]
    paths = [(costs.of_tokenizer, path) for path in tokenizers]
    paths += [(costs.of_generator, path) for path in generators]
    header = (
        f"{'config':<30} {'steps':>8} {'images':>11} {'GFLOP/image':>12} {'EFLOP':>8} {'GB at batch':>14}"
    )
    print(f"{header} {'hours':>8}  on {arguments.devices} devices")
    cells = []
    for cost, path in paths:
        cell = cost(path)
        rate, source = rates.get(cell["kind"], assumed)
        hours = rate and cell["flops"] / (arguments.devices * rate) / 3600
        cells.append({**cell, "devices": arguments.devices, "hours": hours, "rate": source})
        print(
            f"{cell['config']:<30} {cell['steps']:>8,} {cell['images']:>11,} "
            f"{cell['flops_per_image'] / 1e9:>12.1f} {cell['flops'] / 1e18:>8.3f} "
            f"{cell['memory'] / 1e9:>6.1f} at {cell['device_batch']:>4} "
            f"{'–' if hours is None else format(hours, '.1f'):>8}  {source}"
        )
    return {"plan": cells}


if __name__ == "__main__":
    main()
