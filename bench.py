"""Measure how fast the parts are on this machine, and count what training the study's cells takes.

Each part's line has images a second (the median of the repeats, after a warm-up), the peak of memory, the
model's FLOPs for an image, and MFU: their share of the device's own rate of matrix products, measured in the
same run. Weights are random and images made, neither of which changes the speed.
"""

import argparse
import gc
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from benchmark.cost import Costs, Rate, measured_rates
from benchmark.parts import (
    measure_extract,
    measure_generator,
    measure_loading,
    measure_rfid,
    measure_tokenizer,
    measure_vqgan,
)
from benchmark.table import as_markdown
from errors import UserError, command
from files import write_whole
from options import number
from training.cells import CONFIGS, cells_of

BEST = CONFIGS / "best"
# Every part, and where `all` has another config for it than the tokenizer's
PARTS = {
    measure_extract: None,
    measure_tokenizer: None,
    measure_vqgan: "vqgan_config",
    measure_generator: "generator_config",
    measure_loading: None,
    measure_rfid: None,
}


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
        write(arguments.json, json.dumps(results, indent=1) + "\n")
    if arguments.measure is not plan and arguments.markdown:
        write(arguments.markdown, as_markdown(results, torch.cuda.is_available()))


def write(path: Path, text: str) -> None:
    """Write a file, in a folder that may not be there yet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as part:
        part.write_text(text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="what")

    def add(name: str, run: Callable, text: str) -> argparse.ArgumentParser:
        options = commands.add_parser(name, help=text, description=text)
        options.set_defaults(measure=run)
        options.add_argument("--json", type=Path, help="file to write the figures to as well")
        return options

    def add_part(name: str, parts: tuple, text: str, config: str | None = None) -> argparse.ArgumentParser:
        options = add(name, measure, text)
        options.set_defaults(parts=parts)
        options.add_argument("--markdown", type=Path, help="file to write a page of them to")
        options.add_argument(
            "--repeats", type=number(1), default=5, help="to take the median of (default: 5)"
        )
        if measure_extract in parts:
            options.add_argument(
                "--seconds", type=number(1), default=40, help="length of the clip (default: 40)"
            )
        if config:
            add_config(options, "--config", config)
            options.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
            options.add_argument(
                "--batch-size",
                type=number(1),
                help="of a step (default: the config's; CPU: 4, VQGAN 1, generator 16)",
            )
            options.add_argument(
                "--inference-batch-size", type=number(1), help="of all else (default: 256; CPU: 4)"
            )
            options.add_argument("--images", type=number(1), help="frames on disk (default: 4096; CPU: 16)")
        return options

    def add_config(options: argparse.ArgumentParser, name: str, config: str) -> None:
        options.add_argument(name, type=Path, default=BEST / config, help=f"default: configs/best/{config}")

    titok, vqgan, maskgit = "titok_64.yaml", "vqgan.yaml", "maskgit_titok_64.yaml"
    add_part("extract", (measure_extract,), "two frames of a clip, against decoding all of it")
    add_part("tokenizer", (measure_tokenizer,), "a tokenizer's training step by loss, and coding", titok)
    add_part("vqgan", (measure_vqgan,), "a VQGAN's training step with all its losses", vqgan)
    add_part("generator", (measure_generator,), "a generator's training step, and generation", maskgit)
    add_part("loading", (measure_loading,), "JPEGs: alone, into training steps, into tokens", titok)
    add_part("rfid", (measure_rfid,), "evaluate.py --rfid from start to end, once", titok)
    everything = add_part("all", tuple(PARTS), "all of the above", titok)
    add_config(everything, "--vqgan-config", vqgan)
    add_config(everything, "--generator-config", maskgit)

    costs = add("plan", plan, "steps, FLOPs and hours of the study's cells, or of other configs")
    costs.add_argument("--config", type=Path, action="append", default=[], help="a tokenizer's; repeatable")
    costs.add_argument(
        "--generator-config", type=Path, action="append", default=[], help="a generator's; repeatable"
    )
    costs.add_argument("--rates", type=Path, action="append", default=[], help="a file of --json, repeatable")
    costs.add_argument(
        "--matrix-rate", type=number(1e-3, kind=float), help="TFLOP/s, assumed where --rates has none"
    )
    costs.add_argument("--mfu", type=number(1e-3, 1, float), help="the share of it in use, likewise")
    costs.add_argument("--devices", type=number(1), default=1, help="at work together, each at that rate")
    arguments = parser.parse_args()
    if arguments.measure is plan and (arguments.matrix_rate is None) != (arguments.mfu is None):
        parser.error("--matrix-rate and --mfu go together")
    return arguments


def measure(arguments: argparse.Namespace, folder: Path) -> dict:
    """The figures of the command line's parts, each in a folder of its own. All FLOPs are counted first."""
    parts, figures = [], {}
    for part in arguments.parts:
        options = argparse.Namespace(**vars(arguments))
        if len(arguments.parts) > 1 and PARTS[part]:
            options.config, options.set = getattr(arguments, PARTS[part]), []
        (folder / part.__name__).mkdir()
        parts.append(part(options, folder / part.__name__))
    for part in parts:
        next(part)
    gc.freeze()  # what there is by now needn't be looked through before each line
    for part in parts:
        figures |= next(part)
        part.close()  # and what it holds on the device goes
    gc.unfreeze()
    return figures


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
