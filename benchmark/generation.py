"""Tokens that are made for generation, beside plain ones: reconstruction, and what a generator makes of them.

    python -m benchmark.generation --frames FRAMES --out OUT

trains small tokenizers, plain ones and with each intervention, and a generator on each, for equal steps, and
writes OUT/generation.md and OUT/generation.json. What is finished is not done again.
"""

import argparse
import json
from pathlib import Path

from benchmark.small import GENERATOR, TOKENIZER, evaluate, over_seeds, train, value_of
from errors import command
from options import number

TOKENS = {"model": {"num_tokens": 64}}
INTERVENTIONS = {
    "plain": {},
    "patches": {"corruption": {"patches": 0.7}},
    "tokens": {"corruption": {"tokens": 0.5}},
    "noise": {"corruption": {"noise": 3}},
    "denoised": {"corruption": {"patches": 0.7, "noise": 3}},
    "elastic": {"model": {"elastic": True}},
    "rotation": {"model": {"quantizer": {"codebook_size": 1024, "rotation": True}}},
    "simvq": {"model": {"quantizer": {"kind": "simvq", "codebook_size": 1024}}},
    "lfq": {"model": {"quantizer": {"kind": "lfq", "codebook_size": 1024}}},
    "fsq": {"model": {"quantizer": {"kind": "fsq", "levels": [8, 5, 5, 5]}}},
}
DISTANCE = "fd_efficientnet_lite0"
EXTRACTOR = ("--feature-extractor", "efficientnet-lite0")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=Path, required=True, help="folder of frames of any size and shape")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=number(1), default=240, help="of each tokenizer")
    parser.add_argument("--generator-steps", type=number(1), default=400)
    parser.add_argument("--num", type=number(2), default=512, help="images to generate for each distance")
    parser.add_argument("--seeds", type=number(0), nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--interventions", nargs="+", choices=INTERVENTIONS, default=[*INTERVENTIONS], help="by default all"
    )
    arguments = parser.parse_args()
    results = {
        name: [measured(arguments, name, seed) for seed in arguments.seeds]
        for name in dict.fromkeys(["plain", *arguments.interventions])
    }
    (arguments.out / "generation.json").write_text(json.dumps(results, indent=2) + "\n")
    text = as_markdown(results)
    (arguments.out / "generation.md").write_text(text)
    print(text)


def measured(arguments: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Train and measure a tokenizer and the generator on it."""
    frames = {"data": {"frames": str(arguments.frames)}}
    own = f"{name}_seed{seed}"
    changes = (frames, TOKENS, INTERVENTIONS[name])
    tokenizer = train(arguments.out, own, seed, arguments.steps, TOKENIZER, *changes)
    evaluate(tokenizer, ["psnr", "codebook", DISTANCE], "--psnr", "--codebook", "--rfid", *EXTRACTOR)
    on_tokenizer = {"tokenizer": str(tokenizer), "data": {"tokens": str(arguments.out / "tokens")}}
    generator = train(
        arguments.out, f"on_{own}", seed, arguments.generator_steps, GENERATOR, frames, on_tokenizer
    )
    evaluate(generator, [DISTANCE], "--gfid", *EXTRACTOR, "--num", str(arguments.num))
    return {
        "psnr": value_of(tokenizer, "psnr")["value"],
        "perplexity": value_of(tokenizer, "codebook")["perplexity"],
        "reconstruction": value_of(tokenizer, DISTANCE)["value"],
        "generation": value_of(generator, DISTANCE)["value"],
    }


def as_markdown(results: dict[str, list[dict[str, float]]]) -> str:
    """The table, each value a mean over the seeds with its deviation, differences with the same seed's."""
    lines = [
        "| tokens | PSNR in dB | beside plain | perplexity | distance of reconstructions | of generated | "
        "beside plain |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    plain = results["plain"]
    for name, each in results.items():
        psnr, perplexity, reconstruction, generation = (
            [result[key] for result in each] for key in ("psnr", "perplexity", "reconstruction", "generation")
        )
        gains = [own["psnr"] - other["psnr"] for own, other in zip(each, plain)]
        shares = [100 * (own["generation"] / other["generation"] - 1) for own, other in zip(each, plain)]
        cells = [
            over_seeds(psnr),
            over_seeds(gains),
            over_seeds(perplexity, 0),
            over_seeds(reconstruction, 1),
        ]
        cells += [over_seeds(generation, 1), f"{over_seeds(shares, 1)} %"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
