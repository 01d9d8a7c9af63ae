"""Ways of sampling a generator, at equal numbers of forward passes."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import NamedTuple

from torch import Tensor, nn

from evaluation.frames import ValidationFrames
from evaluation.generated import generated_features, key_of, num_images
from evaluation.results import save_result
from files import write_whole
from metrics.frechet import frechet_distance
from models.elastic import ElasticTiTok
from models.maskgit import MaskGIT
from models.tokenizer import Tokenizer

PASSES = (8, 16, 32, 64)
# Where the run's own sampling has none
REMASK = 0.1
GUIDANCE = 2.0


class Setting(NamedTuple):
    """A way of sampling, and how many forward passes of a network an image takes with it, at most."""

    sampler: str
    passes: int
    sampling: dict  # options of MaskGIT.fill_steps


def samplers_of(generator: MaskGIT, tokenizer: Tokenizer, sampling: dict) -> dict[str, dict]:
    """The options of each sampler that the tokens, the conditions and the guide allow.

    They are the run's own but for those that make the samplers. The order is by confidence where it isn't
    named.
    """
    plain = {"order": "confidence", "plan": "exact", "remask": 0.0, "guidance": 1.0, "guide": None}
    guided = {"guidance": GUIDANCE if sampling["guidance"] == 1 else sampling["guidance"]}
    changes = {"confidence": {}, "entropy": {"order": "entropy"}}
    if tokenizer.grid is not None:
        changes["halton"] = {"order": "halton"}
    if isinstance(tokenizer, ElasticTiTok):
        changes["coarse_first"] = {"order": "coarse_first"}
    changes["remask"] = {"remask": sampling["remask"] or REMASK}
    if sampling["guide"] is not None:
        changes["autoguidance"] = {**guided, "guide": sampling["guide"]}
    elif generator.conditions:
        changes["guidance"] = guided
    return {name: sampling | plain | change for name, change in changes.items()}


def settings_of(samplers: dict[str, dict], passes: list[int]) -> list[Setting]:
    """Every sampler at every number of passes, the cheapest first; a guided step takes two passes."""
    return [
        Setting(name, number, options | {"steps": number // (1 if options["guidance"] in (0, 1) else 2)})
        for number in sorted(set(passes))
        for name, options in samplers.items()
    ]


def measure_sweep(
    frames: ValidationFrames,
    generator: MaskGIT,
    tokenizer: Tokenizer,
    extractor: nn.Module,
    real: dict[str, Tensor],
    sampling: dict,
) -> None:
    """Measure --gfid's distance of every setting, all on as many images of the same noise and conditions.

    What is measured is kept until all is, so that an interrupted sweep goes on.
    """
    accelerator, run = frames.accelerator, frames.run
    samplers = samplers_of(generator, tokenizer, sampling)
    settings = settings_of(samplers, frames.arguments.passes or PASSES)
    kept = run.folder / "eval" / ".sweep"
    paths = [kept / f"{value_key(frames, generator, extractor, each)}.json" for each in settings]
    missing = [not path.exists() for path in paths]
    accelerator.wait_for_everyone()  # nobody writes one before all have seen which are missing
    if not all(missing):
        accelerator.print(f"{run.folder}: {missing.count(False)} of {len(missing)} settings are measured")
    for setting, path, is_missing in zip(settings, paths, missing):
        if not is_missing:
            continue
        with generated_features(frames, generator, tokenizer, [extractor], setting.sampling) as made:
            if accelerator.is_main_process:
                sides = (side[extractor.name].to(accelerator.device) for side in (made, real))
                value = frechet_distance(*sides)
                print(f"{setting.sampler}, {setting.passes} passes: {value:.4f}")
                keep(path, value)
    if accelerator.is_main_process:
        values = [json.loads(path.read_text()) for path in paths]
        save_sweep(frames, settings, values, extractor, len(real[extractor.name]))
        shutil.rmtree(kept)


def value_key(frames: ValidationFrames, generator: MaskGIT, extractor: nn.Module, setting: Setting) -> str:
    """A key of all that a setting's distance follows from: its images and the real frames."""
    made = key_of(frames, generator, [extractor], setting.sampling)
    return hashlib.sha256(f"{made} {frames.cache.content}".encode()).hexdigest()[:16]


def keep(path: Path, value: float) -> None:
    """Write a value to a file."""
    path.parent.mkdir(exist_ok=True)
    with write_whole(path) as part:
        part.write_text(json.dumps(value))


def save_sweep(
    frames: ValidationFrames,
    settings: list[Setting],
    values: list[float],
    extractor: nn.Module,
    num_real: int,
) -> None:
    """Write eval/sweep.json, and print a Markdown table: a line a sampler, a column a number of passes."""
    distance = f"fd_{extractor.suffix}" if extractor.suffix else "gfid"
    rows = []
    for setting, value in zip(settings, values):
        options = {name: option for name, option in setting.sampling.items() if name != "guide"}
        rows.append(
            {"sampler": setting.sampler, "passes": setting.passes, "value": value, "sampling": options}
        )
    result = {"value": min(values), "value_is": f"the least {distance}", "distance": distance}
    result |= {"num_real": num_real, "settings": rows}
    save_result(frames, "sweep", result, num_images(frames), extractor, biased=True)
    passes = list(dict.fromkeys(setting.passes for setting in settings))
    print(f"| {distance} |" + "".join(f" {number} passes |" for number in passes))
    print("|---|" + "---|" * len(passes))
    for name in dict.fromkeys(setting.sampler for setting in settings):
        own = (row["value"] for row in rows if row["sampler"] == name)
        print(f"| {name} |" + "".join(f" {value:.4f} |" for value in own))
