"""The parts of the work that bench.py measures.

Each takes the command line's arguments and a folder for its files. As a generator, it counts its FLOPs and
yields, so that those of all parts are counted before the first has the device; then it measures, and yields
its figures.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import av
import torch

import train_maskgit
import train_tokenizer
from benchmark.counting import (
    count_coding,
    count_generation,
    count_generator,
    count_inception,
    count_tokenizer,
)
from benchmark.made import changed, for_speed, noise_batch, token_batch, write_frames, write_road_clip
from benchmark.measuring import Bench
from benchmark.steps import (
    losses_one_by_one,
    made_generator,
    terms_on,
    tokenizer_beside,
    tokenizer_step,
    update,
)
from data.frames import FrameDataset, ImageBatch, list_frames
from data.video import Clip
from metrics.inception import RandomInceptionFeatures
from models.maskgit import MaskGIT
from models.storage import build_tokenizer, save_model
from models.tokenizer import Tokenizer
from sizes import height_and_width
from training.config import GeneratorConfig, TokenizerConfig, load_config, save_config
from training.precision import computing_in
from training.run import Run
from training.sections import Section
from training.speed import compile_for
from training.tokens import TokenBatch, TokenCache, cached_tokens

ROOT = Path(__file__).parents[1]
OPTIONS = {"float32": "fp32", "bfloat16": "bf16"}  # --precision of the scripts
MANY = 100_000  # images to code or generate, for which the scripts compile
SMALL_DEVICE = 32  # images at once in a step whose memory counts
CONDITIONS = {"timeofday": ["daytime", "night"]}


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


def training_precision(run: Run) -> str:
    """What the products of a training step are computed in."""
    return "bfloat16" if run.accelerator.mixed_precision == "bf16" else "float32"


def inference_precisions(run: Run) -> list[str]:
    """float32, in which encoding and generating are done unless the caller says otherwise, and training's."""
    return list(dict.fromkeys(["float32", training_precision(run)]))


def in_precision(precision: str, run: Run, work: Callable[[], object]) -> Callable[[], None]:
    """The work in a precision, as a script does it that is told so."""

    def precise_work() -> None:
        with computing_in(OPTIONS[precision], run.device):
            work()

    return precise_work


def noise_batches(run: Run) -> list[ImageBatch]:
    """A step's micro-batches, which are the same."""
    return [noise_batch(run, run.micro_batch_size)] * run.accumulation


def fitting_networks(run: Run) -> train_tokenizer.Networks:
    """A tokenizer's networks, of whose steps the run knows how much of a batch the device can take."""
    networks = train_tokenizer.Networks(run)
    run.fit(partial(train_tokenizer.try_step, run, networks))
    return networks


def take_several(run: Run, batches: Iterator[ImageBatch], steps: int) -> None:
    """Take the micro-batches of some steps."""
    for _ in range(steps):
        run.take(batches)


def on_meta(run: Run) -> Tokenizer:
    """The run's tokenizer without weights, to be counted."""
    with torch.device("meta"):
        return build_tokenizer(run.config.model.architecture())


def of_training(run: Run) -> dict[str, str]:
    """What a row of a whole training step has besides, which `bench.py plan` goes by."""
    return {"kind": run.config.model.kind, "config": run.config.run.name}


def measure_tokenizer(arguments: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """A training step with one loss after another, what its update takes, encode and decode."""
    run = start(arguments, TokenizerConfig, folder)
    steps = losses_one_by_one(run.config.losses)
    counted, (encoding, decoding) = count_tokenizer(run, *steps.values()), count_coding(on_meta(run))
    yield {}

    bench = Bench(run.device, arguments.repeats)
    networks = fitting_networks(run)
    batches, batch_size = noise_batches(run), run.config.training.global_batch_size
    for (name, losses), flops in zip(steps.items(), counted):
        work = partial(tokenizer_step, run, networks, losses, batches)
        row = bench.add(name, work, batch_size, flops, training_precision(run))
    row |= of_training(run)
    own = bench.add("of which the tokenizer's update and EMA", update(run, networks.tokenizer, networks.ema))
    parts = parts_of_a_step(bench.rows[:-1], own, terms_on(run.config.losses))
    shares = (f"{name} {value:.4f} s ({value / row['seconds']:.1%})" for name, value in parts.items())
    print(f"  a step's {row['seconds']:.4f} s: {', '.join(shares)}")
    if run.device.type == "cuda":
        work = partial(tokenizer_step, run, networks, run.config.losses, [noise_batch(run, SMALL_DEVICE)])
        small = f"training step with all losses, {SMALL_DEVICE} images on the device"
        bench.add(small, work, SMALL_DEVICE, flops, training_precision(run))

    tokenizer, size = networks.ema.module.eval(), arguments.inference_batch_size
    compile_for(MANY, tokenizer)
    images = torch.rand(size, 3, *height_and_width(tokenizer.image_size), device=run.device)
    codes = tokenizer.encode(images[:1]).expand(size, -1)
    for name, code, flops in (
        ("encode", partial(tokenizer.encode, images), encoding),
        ("decode", partial(tokenizer.decode, codes), decoding),
    ):
        for precision in inference_precisions(run):
            bench.add(name, in_precision(precision, run, code), size, flops, precision)
    yield {"tokenizer": {**bench.result(), "parts": parts}}


def parts_of_a_step(rows: list[dict], own: dict, terms: list[str]) -> dict[str, float]:
    """What each part of a step takes of its seconds; a row has one of `terms` more than the row before.

    Rows are compared by their time at one rate of matrix products, should that have drifted between them.
    """
    times = [row["flops_per_image"] / row["mfu"] for row in rows]
    first_update = times[0] * own["seconds"] / rows[0]["seconds"]
    parts = {"forward and backward": times[0] - first_update, "update and EMA": first_update}
    parts |= {term: after - before for term, (before, after) in zip(terms, pairwise(times))}
    return {name: time * rows[-1]["seconds"] / times[-1] for name, time in parts.items()}


def measure_vqgan(arguments: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """A VQGAN's training step with all its losses."""
    run = start(arguments, TokenizerConfig, folder, on_cpu=1)
    (flops,) = count_tokenizer(run, run.config.losses)
    yield {}

    bench = Bench(run.device, arguments.repeats)
    networks = fitting_networks(run)
    work = partial(tokenizer_step, run, networks, run.config.losses, noise_batches(run))
    batch_size = run.config.training.global_batch_size
    row = bench.add("VQGAN: training step with all losses", work, batch_size, flops, training_precision(run))
    row |= of_training(run)
    yield {"vqgan": bench.result()}


def measure_generator(arguments: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """A training step on made tokens, and generation in 8 steps under a condition, guided or not."""
    run = start(arguments, GeneratorConfig, folder, on_cpu=16)
    tokenizer = tokenizer_beside(arguments.config, run.config)
    flops = count_generator(run, tokenizer)
    sizes = {"num_tokens": tokenizer.num_tokens, "codebook_size": tokenizer.codebook_size}
    config = {**run.config.model.architecture(), **sizes, "conditions": CONDITIONS}
    del config["kind"]
    ways = {"generation in 8 steps": 1.0, "generation in 8 steps, guided": 3.0}
    with torch.device("meta"):
        generator = MaskGIT(**config)
    counted = count_generation(generator, 8, *ways.values())
    yield {}

    bench = Bench(run.device, arguments.repeats)
    networks = made_generator(run, tokenizer)

    def step(batches: list[TokenBatch]) -> None:
        train_maskgit.train_step(run, networks, batches, 1)

    def batches() -> list[TokenBatch]:
        return [token_batch(run, tokenizer, run.micro_batch_size)] * run.accumulation

    run.fit(lambda: step(batches()))
    work = partial(step, batches())
    batch_size = run.config.training.global_batch_size
    row = bench.add("training step", work, batch_size, flops, training_precision(run))
    row |= of_training(run)
    bench.add("of which the generator's update and EMA", update(run, networks.generator, networks.ema))

    generator, size = MaskGIT(**config).eval().to(run.device), arguments.inference_batch_size
    compile_for(MANY, generator)
    night = generator.condition_indices({"timeofday": "night"})
    for (name, guidance), flops in zip(ways.items(), counted):
        work = partial(generator.generate, size, night, steps=8, guidance=guidance)
        for precision in inference_precisions(run):
            bench.add(name, in_precision(precision, run, work), size, flops, precision)
    yield {"generator": bench.result()}


def measure_loading(arguments: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """JPEGs from disk: loaded alone, into training steps without the slow losses, and into tokens."""
    run = start(arguments, TokenizerConfig, folder)
    losses = changed(run.config.losses, lpips=0.0, convnext=0.0, adversarial=0.0)
    run.config = changed(run.config, losses=losses)
    (flops,), (encoding, _) = count_tokenizer(run, losses), count_coding(on_meta(run))
    yield {}

    bench = Bench(run.device, arguments.repeats)
    data, size = run.config.data, run.config.model.image_size
    frames = write_frames(folder / "frames", arguments.images)
    listed = list_frames(frames, "train")
    augmentation = (data.resize, run.config.run.seed, data.random_crop, data.flip)
    dataset = FrameDataset(frames / "train", listed, size, *augmentation)
    sampler = run.plan(len(listed), "made for speed")
    networks = fitting_networks(run)
    loader = train_tokenizer.training_loader(run, dataset, sampler)
    batches, source = iter(loader), f"JPEGs, {run.loader_workers} workers"
    batch_size = run.config.training.global_batch_size
    # How many steps the loader is ahead by what it prefetches; so many at once can't all have been there, and
    # one that is slower than the steps has to fall behind before they are timed.
    ahead = math.ceil(run.loader_workers * (loader.prefetch_factor or 0) / run.accumulation) or 1
    loading = partial(take_several, run, batches, ahead)
    lone = bench.add(f"{source}: alone", loading, ahead * batch_size)

    step, in_memory = partial(tokenizer_step, run, networks, losses), noise_batches(run)
    figures = (batch_size, flops, training_precision(run))
    alone = bench.add("training step on images in memory", lambda: step(in_memory), *figures)
    warmup = None if lone["seconds"] / ahead < alone["seconds"] / 2 else 2 + ahead
    fed = bench.add(f"{source}: training step", lambda: step(run.take(batches)), *figures, warmup=warmup)
    fed["busy"] = min(1.0, alone["seconds"] / fed["seconds"])
    print(f"  training from JPEGs keeps the device {fed['busy']:.1%} as busy as from memory")

    save_model(networks.ema.module, run.folder / "model", step="0")

    for precision in inference_precisions(run):
        options = {"resize": data.resize, "precision": OPTIONS[precision]}
        cache = TokenCache(run.folder, frames / "train", listed, folder / "tokens", **options)
        sizes = (arguments.inference_batch_size, run.loader_workers)
        work = partial(cached_tokens, run.accelerator, cache, *sizes)
        name, flops = f"{source}: pre-tokenization, once", 2 * encoding  # of an image as it is, and flipped
        bench.add(name, work, len(listed), flops, precision, once=True)
    yield {"loading": bench.result()}


def measure_rfid(arguments: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """evaluate.py --rfid on random features, from its start to its end, once; and its Inception network."""
    run = start(arguments, TokenizerConfig, folder)
    size = run.config.model.image_size
    of_inception = count_inception(size)
    flops = sum(count_coding(on_meta(run))) + 2 * of_inception  # of the frame, and of what comes back
    yield {}

    bench = Bench(run.device, arguments.repeats)
    images = torch.rand(arguments.inference_batch_size, 3, *height_and_width(size), device=run.device)
    inception = partial(RandomInceptionFeatures().to(run.device), images)
    bench.add("Inception features", inception, len(images), of_inception)

    write_frames(folder / "frames", arguments.images)
    tokenizer = build_tokenizer(run.config.model.architecture())
    save_model(tokenizer, run.folder / "model", step="0")
    save_config(run.config, run.folder / "config.yaml")
    options = ["--rfid", "--feature-extractor", "random-inception", "--workers", str(run.loader_workers)]
    options += ["--run", run.folder, "--batch-size", str(arguments.inference_batch_size)]

    evaluate = [sys.executable, ROOT / "evaluate.py", *options]
    evaluation = partial(subprocess.run, evaluate, check=True, stdout=subprocess.DEVNULL)
    bench.add("rFID from start to end, once", evaluation, arguments.images, flops, once=True, child=True)
    yield {"rfid": bench.result()}


def measure_extract(arguments: argparse.Namespace, folder: Path) -> Iterator[dict]:
    """From opening a file to two RGB frames in memory, against decoding all its frames, left as they are.

    Both in one process with one decoder thread, the file in the system's cache. Of a whole number of seconds
    the two frames that --frames-per-video 2 takes are often key frames: two half-way between are timed, too.
    """
    yield {}
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
    yield {"extract": {**bench.result(), "times_faster": ratios}}
