"""What training takes: a config's steps, images and FLOPs, and hours at a rate."""

import json
from pathlib import Path
from typing import NamedTuple

from benchmark.counting import (
    count_generator,
    count_generator_memory,
    count_tokenizer,
    count_tokenizer_memory,
)
from benchmark.made import changed, for_speed
from benchmark.steps import quiet, tokenizer_beside
from errors import UserError
from training.config import GeneratorConfig, TokenizerConfig, load_config
from training.run import Run
from training.sections import Section


class Rate(NamedTuple):
    """How fast a device trains a kind of network."""

    flops: float  # a second, as a model's are counted
    source: str


def measured_rates(files: list[Path]) -> dict[str, Rate]:
    """Rates by the kind of network, from files that bench.py wrote. Raises UserError on another file."""
    rates = {}
    for file in files:
        try:
            for result in json.loads(file.read_text()).values():
                for row in result.get("rows", ()):
                    if "kind" in row:
                        flops = row["flops_per_image"] * row["images_per_second"]
                        rates[row["kind"]] = Rate(flops, f"measured: {row['config']} on {result['device']}")
        except (OSError, ValueError, AttributeError, TypeError, KeyError) as error:
            raise UserError(f"{file}: not a file that bench.py wrote with --json ({error})") from error
    return rates


class Costs:
    """Costs of configs. Networks alike are counted once."""

    def __init__(self, folder: Path):
        self.folder = folder  # for the runs whose steps are counted
        self.counted: dict[str, list[int]] = {}

    @quiet()
    def of_tokenizer(self, path: Path) -> dict:
        """What training a tokenizer takes, the discriminator joining when the config says."""
        config = load_config(path, TokenizerConfig)
        run, images = self._run(path, config)
        start, batch_size = config.losses.adversarial_start, config.training.global_batch_size
        before = changed(run.config.losses, adversarial=0.0)
        key = f"{run.config.model} {run.config.losses} {run.config.discriminator} {self._memory_key(run)}"
        if key not in self.counted:
            flops = count_tokenizer(run, before, run.config.losses)
            self.counted[key] = [*flops, count_tokenizer_memory(run)]
        alone, with_adversary, memory = self.counted[key]
        early = min(images, start * batch_size)
        flops = early * alone + (images - early) * with_adversary
        return self._cost(run, images, with_adversary, flops, memory)

    @quiet()
    def of_generator(self, path: Path) -> dict:
        """What training a generator takes, its tokens being there."""
        config = load_config(path, GeneratorConfig)
        run, images = self._run(path, config)
        tokenizer = tokenizer_beside(path, config)
        key = f"{config.model} {tokenizer.num_tokens} {tokenizer.codebook_size} {self._memory_key(run)}"
        if key not in self.counted:
            self.counted[key] = [count_generator(run, tokenizer), count_generator_memory(run, tokenizer)]
        flops, memory = self.counted[key]
        return self._cost(run, images, flops, images * flops, memory)

    def _run(self, path: Path, config: Section) -> tuple[Run, int]:
        """The config's run, for counting, and how many images its steps take."""
        if config.data.train.count is None:
            raise UserError(f"{path}: data.train.count says how many frames an epoch has; plan needs it")
        run = Run(for_speed(config, self.folder))
        run.plan(config.data.train.count, "counted only")
        return run, run.last_step * config.training.global_batch_size

    @staticmethod
    def _memory_key(run: Run) -> str:
        return f"{run.micro_batch_size} {run.config.training.gradient_checkpointing}"

    @staticmethod
    def _cost(run: Run, images: int, flops_per_image: int, flops: int, memory: int) -> dict:
        config = run.config
        return {
            "config": config.run.name,
            "kind": config.model.kind,
            "steps": run.last_step,
            "images": images,
            "flops_per_image": flops_per_image,
            "flops": flops,
            "device_batch": run.micro_batch_size,
            "memory": memory,  # bytes
        }
