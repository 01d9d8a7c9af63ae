"""Tokenizers that are made for generation: what each has beyond the plain one that it is compared with."""

import math

from comparison.runs import Run
from training.config import TokenizerConfig
from training.model_sections import AlignmentSection
from training.sections import CorruptionSection

# Each kind of intervention: the section that holds it, its keys, and what they are in a plain tokenizer.
PLAIN = {
    "corruption": CorruptionSection().model_dump(),
    "alignment": AlignmentSection().model_dump(),
    "discriminator": {"dino": False, "dino_weights": None},
    "model": {"elastic": False},
}


def interventions(config: TokenizerConfig) -> list[str]:
    """What a tokenizer has beyond a plain one, by its keys: "corruption.noise 3", "quantizer fsq"."""
    own, found = config.model_dump(), []
    found += [f"corruption.{key} {value:g}" for key, value in own["corruption"].items() if value]
    if config.alignment.weight:
        found.append(f"aligned with {config.alignment.init}")
    if config.discriminator.dino:
        found.append("judged by DINO")
    if own["model"].get("elastic"):
        found.append("elastic")
    quantizer = own["model"]["quantizer"]
    if quantizer["kind"] != "vq":
        found.append(f"quantizer {quantizer['kind']}")
    elif quantizer["rotation"]:
        found.append("rotation")
    return found


def plain_tokenizer(run: Run, runs: list[Run]) -> Run | None:
    """Of tokenizers' runs the one without interventions that is as `run` in all else, its seed too."""
    if not interventions(run.config):
        return None
    same = (other for other in runs if _without(other.config) == _without(run.config))
    return next((other for other in same if not interventions(other.config)), None)


def plain_generator(run: Run, runs: list[Run]) -> Run | None:
    """Of generators' runs the one on the plain tokenizer of `run`'s that is the same in all else."""
    plain = plain_tokenizer(run.tokenizer, [other.tokenizer for other in runs if other.tokenizer])
    if plain is None:
        return None
    on_plain = (other for other in runs if other.tokenizer == plain)
    return next((other for other in on_plain if _settings(other) == _settings(run)), None)


def _without(config: TokenizerConfig) -> dict:
    """A tokenizer's settings as a plain one's of codes with about as many bits, and its seed."""
    settings = config.model_dump()
    settings["model"]["quantizer"] = round(math.log2(config.model.quantizer.codebook_size))
    for section, keys in PLAIN.items():
        settings[section] |= {key: value for key, value in keys.items() if key in settings[section]}
    return settings | {"run": config.run.seed}


def _settings(run: Run) -> dict:
    """A generator's settings but for its tokenizer, and its seed."""
    settings = run.config.model_dump(exclude={"tokenizer": True, "data": {"tokens"}})
    return settings | {"run": run.config.run.seed}
