"""Training steps of both scripts as work to time, and their FLOPs."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import train_maskgit
import train_tokenizer
from benchmark.made import changed, noise_batch, token_batch
from benchmark.measuring import count_flops
from data.frames import ImageBatch
from models.storage import build_tokenizer
from models.tokenizer import Tokenizer
from training.config import GeneratorConfig, LossSection, TokenizerConfig, load_config
from training.run import Run

TERMS = ("entropy", "lpips", "convnext", "adversarial")  # of the losses, in the order they are switched on


def terms_on(losses: LossSection) -> list[str]:
    """Those of TERMS that the config has."""
    return [name for name in TERMS if getattr(losses, name)]


def losses_one_by_one(losses: LossSection) -> dict[str, LossSection]:
    """The losses with their terms switched on one after another, up to all that the config has."""
    on = terms_on(losses)
    return {
        ", ".join(["training step: reconstruction, quantization", *on[:count]]): changed(
            losses, **dict.fromkeys(on[count:], 0.0)
        )
        for count in range(len(on) + 1)
    }


def tokenizer_step(
    run: Run, networks: train_tokenizer.Networks, losses: LossSection, batches: list[ImageBatch]
) -> None:
    """A training step with these of the networks' losses, the discriminator having joined."""
    perceptual, run.config = networks.perceptual, changed(run.config, losses=losses)
    networks.perceptual = {name: network for name, network in perceptual.items() if getattr(losses, name)}
    train_tokenizer.train_step(run, networks, batches, [], losses.adversarial_start + 1)
    networks.perceptual = perceptual


def count_tokenizer(run: Run, *losses: LossSection) -> list[int]:
    """FLOPs of a training step on one image with each of the losses."""
    run = for_counting(run)
    networks, batches = train_tokenizer.Networks(run), [noise_batch(run, 1)]
    with shapes_only():
        return [count_flops(partial(tokenizer_step, run, networks, each, batches)) for each in losses]


def count_generator(run: Run, tokenizer: Tokenizer) -> int:
    """FLOPs of a training step on one image's tokens."""
    run = for_counting(run)
    networks, batches = made_generator(run, tokenizer), [token_batch(run, tokenizer, 1)]
    with shapes_only():
        return count_flops(partial(train_maskgit.train_step, run, networks, batches, 1))


def for_counting(run: Run) -> Run:
    """The same run with networks of which each product is seen, and is done once."""
    training = changed(run.config.training, compile=False, gradient_checkpointing=False)
    run = Run(changed(run.config, training=training))
    run.plan(1, "for counting")
    return run


def shapes_only() -> FakeTensorMode:
    """Inside, nothing is computed: what operations give has a shape and no values."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def made_generator(run: Run, tokenizer: Tokenizer) -> train_maskgit.Networks:
    """The networks of a generator's run whose conditions have two values each."""
    return train_maskgit.Networks(
        run, tokenizer, {name: ["one", "another"] for name in run.config.model.conditions}
    )


def tokenizer_beside(path: Path, config: GeneratorConfig) -> Tokenizer:
    """The tokenizer that a generator's config names, by the config of that name beside it; no weights."""
    config = load_config(path.parent / f"{Path(config.tokenizer).name}.yaml", TokenizerConfig)
    with torch.device("meta"):
        return build_tokenizer(config.model.architecture())


def update(run: Run, network: nn.Module, ema: nn.Module) -> Callable[[], None]:
    """Work: what a training step does with its gradients."""
    parameters = list(network.parameters())
    gradients = [torch.zeros_like(parameter) for parameter in parameters]

    def work() -> None:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        run.clip_and_step(network, run.optimizers[0])
        ema.update(network, 1)

    return work
