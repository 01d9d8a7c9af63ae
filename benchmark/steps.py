"""Training steps of both scripts as work to time."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch
from torch import nn

import train_maskgit
import train_tokenizer
from benchmark.made import changed
from data.frames import ImageBatch
from models.storage import build_tokenizer
from models.tokenizer import Tokenizer
from training.config import GeneratorConfig, TokenizerConfig, load_config
from training.run import Run
from training.sections import LossSection

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


@contextmanager
def quiet() -> Iterator[None]:
    """Inside, nothing is printed: what a run says of itself, when it is only there to be counted."""
    with redirect_stdout(io.StringIO()):
        yield


def made_generator(run: Run, tokenizer: Tokenizer) -> train_maskgit.Networks:
    """The networks of a generator's run whose conditions have two values each."""
    return train_maskgit.Networks(
        run, tokenizer, {name: ["one", "another"] for name in run.config.model.conditions}
    )


def tokenizer_beside(path: Path, config: GeneratorConfig) -> Tokenizer:
    """The tokenizer that a generator's config names, by the config of that name beside it; no weights.

    The configs of a folder give their runs the folder's name first: best/titok_64.yaml is best_titok_64.
    """
    name = Path(config.tokenizer).name
    if not (path.parent / f"{name}.yaml").exists():
        name = name.removeprefix(f"{path.parent.name}_")
    config = load_config(path.parent / f"{name}.yaml", TokenizerConfig)
    with torch.device("meta"):
        return build_tokenizer(config.model.architecture())


def update(run: Run, network: nn.Module, ema: nn.Module) -> Callable[[], None]:
    """Work: what a training step does with its gradients."""
    parameters = list(network.parameters())
    gradients = [torch.zeros_like(parameter) for parameter in parameters]

    def work() -> None:
        for parameter, gradient in zip(parameters, gradients):
            parameter.grad = gradient
        run.clip_and_step((network, run.optimizers[0]))
        ema.update(network, 1)

    return work
