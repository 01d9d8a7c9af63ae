"""Tokens of any length and of the whole frame, beside models trained for one length and one shape.

    python -m benchmark.lengths --frames FRAMES --out OUT

trains small networks for equal steps and writes OUT/lengths.md and OUT/lengths.json: PSNR at each length, of
frames with lengths of their own, and of the whole frame's middle. What is finished is not done again.
"""

import argparse
import json
from pathlib import Path

import torch

from benchmark.small import HEIGHT, TOKENIZER, evaluate, over_seeds, train, value_of
from data.frames import FrameDataset, collate_images, list_frames, to_unit_range
from errors import command
from metrics.similarity import psnr
from models.storage import load_tokenizer
from options import number
from training.finished import read_run

LENGTHS = (8, 16, 32, 64)
BATCH = 16
MEASURED = {"psnr": "PSNR in dB", "fd_efficientnet_lite0": "fd_efficientnet_lite0"}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, required=True, help="folder of frames of any size and shape")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=number(1), default=240)
    parser.add_argument("--seeds", type=number(0), nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--wide", type=number(HEIGHT, 4096), default=224, help="pixels of the whole frame's width"
    )
    arguments = parser.parse_args()
    results = [one_seed(arguments, seed) for seed in arguments.seeds]
    arguments.out.mkdir(parents=True, exist_ok=True)
    (arguments.out / "lengths.json").write_text(json.dumps(results, indent=2) + "\n")
    text = as_markdown(results, arguments)
    (arguments.out / "lengths.md").write_text(text)
    print(text)


def one_seed(arguments: argparse.Namespace, seed: int) -> dict:
    """Train and measure every model of a seed."""

    def trained(name: str, **model: object) -> Path:
        changes = {"data": {"frames": str(arguments.frames)}, "model": model}
        return train(arguments.out, f"{name}_seed{seed}", seed, arguments.steps, TOKENIZER, changes)

    alone = {length: trained(f"titok_{length}", num_tokens=length) for length in LENGTHS}
    longest = LENGTHS[-1]
    elastic = trained("elastic", num_tokens=longest, elastic=True)
    asked = [word for length in LENGTHS[:-1] for word in ("--num-tokens", str(length))]
    measures = ("--psnr", "--rfid", "--feature-extractor", "efficientnet-lite0")
    for run in alone.values():
        evaluate(run, [*MEASURED], *measures)
    evaluate(elastic, [*MEASURED, "adaptive"], *measures, "--adaptive", *asked)
    adaptive = read_run(elastic).folder / "eval" / "adaptive.json"
    shape = [HEIGHT, arguments.wide]
    tokens = round(longest * arguments.wide / HEIGHT)
    wide = trained("wide", num_tokens=tokens, image_size=shape)
    square = alone[longest]
    return {
        "seed": seed,
        **{
            name: {
                "alone": {length: value_of(run, name)["value"] for length, run in alone.items()},
                "elastic": {
                    int(key): value for key, value in value_of(elastic, name)["by_num_tokens"].items()
                },
            }
            for name in MEASURED
        },
        "adaptive": json.loads(adaptive.read_text())["budgets"],
        "seconds": {
            "alone": seconds_of(square, arguments.steps),
            "elastic": seconds_of(elastic, arguments.steps),
        },
        "square_on_middle": middle_psnr(square, arguments.frames),
        "wide_on_middle": middle_psnr(wide, arguments.frames),
        "wide_tokens": tokens,
    }


def seconds_of(run: Path, steps: int) -> float:
    """The median seconds of a step, by what the run logged."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rates = sorted(line["train/images_per_second"] for line in lines if "train/images_per_second" in line)
    return TOKENIZER["training"]["global_batch_size"] / rates[len(rates) // 2]


@torch.inference_mode()
def middle_psnr(run: Path, frames: Path) -> float:
    """Mean PSNR in dB over the validation frames of a model's middle square, which every shape sees."""
    tokenizer = load_tokenizer(run)
    listed = list_frames(frames, "val")
    dataset = FrameDataset(frames / "val", listed, tokenizer.image_size)
    values = []
    for start in range(0, len(listed), BATCH):
        batch = collate_images([dataset[place] for place in range(start, min(start + BATCH, len(listed)))])
        images = to_unit_range(batch.images, torch.device("cpu"))
        restored = tokenizer.decode(tokenizer.encode(images))
        left = (images.shape[3] - HEIGHT) // 2
        values.append(psnr(restored[..., left : left + HEIGHT], images[..., left : left + HEIGHT]))
    return torch.cat(values).mean().item()


def as_markdown(results: list[dict], arguments: argparse.Namespace) -> str:
    """The tables, each value a mean over the seeds with its deviation."""
    lines = []
    for name, shown in MEASURED.items():
        lines += [f"| {shown}, of tokens | trained for that length | one elastic model | difference |"]
        lines += ["|---:|---:|---:|---:|"]
        for length in LENGTHS:
            alone, elastic = ([each[name][kind][length] for each in results] for kind in ("alone", "elastic"))
            gains = [one - other for one, other in zip(elastic, alone)]
            lines.append(f"| {length} | {over_seeds(alone)} | {over_seeds(elastic)} | {over_seeds(gains)} |")
        lines.append("")
    cost = [result["seconds"]["elastic"] / result["seconds"]["alone"] for result in results]
    lines.append(
        f"{arguments.steps} steps each. A step of the elastic model takes {over_seeds(cost)} times one of the"
    )
    lines += [f"model of {LENGTHS[-1]} tokens.", ""]
    lines += ["| tokens on average | as many for each frame | each what it needs |", "|---:|---:|---:|"]
    for rows in zip(*(result["adaptive"] for result in results)):
        fixed, chosen = ([row[key] for row in rows] for key in ("psnr_of_one_length", "psnr"))
        lines.append(f"| {rows[0]['at_most']:g} | {over_seeds(fixed)} | {over_seeds(chosen)} |")
    square, wide = ([result[f"{kind}_on_middle"] for result in results] for kind in ("square", "wide"))
    lines += ["", "| pixels | tokens | PSNR of the middle square |", "|---|---:|---:|"]
    lines.append(f"| {HEIGHT}×{HEIGHT} | {LENGTHS[-1]} | {over_seeds(square)} |")
    lines.append(f"| {arguments.wide}×{HEIGHT} | {results[0]['wide_tokens']} | {over_seeds(wide)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
