"""Training steps of both scripts as work to time, and their FLOPs."""

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import train_maskgit
import train_tokenizer
from benchmark.made import changed, noise_batch, token_batch
from benchmark.measuring import KeptForGradient, count_flops
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


@quiet()
def count_tokenizer(run: Run, *losses: LossSection) -> list[int]:
    """FLOPs of a training step on one image with each of the losses."""
    run = for_counting(run)
    networks, batches = train_tokenizer.Networks(run), [noise_batch(run, 1)]
    with shapes_only():
        return [count_flops(partial(tokenizer_step, run, networks, each, batches)) for each in losses]


@quiet()
def count_generator(run: Run, tokenizer: Tokenizer) -> int:
    """FLOPs of a training step on one image's tokens."""
    run = for_counting(run)
    networks, batches = made_generator(run, tokenizer), [token_batch(run, tokenizer, 1)]
    with shapes_only():
        return count_flops(partial(train_maskgit.train_step, run, networks, batches, 1))


@quiet()
def count_tokenizer_memory(run: Run) -> int:
    """What `count_memory` says of a tokenizer's training, discriminator and perceptual networks included."""
    run = for_counting(run, gradient_checkpointing=run.config.training.gradient_checkpointing)
    networks, batches = train_tokenizer.Networks(run), [noise_batch(run, run.micro_batch_size)]
    step = partial(tokenizer_step, run, networks, run.config.losses, batches)
    return count_memory(
        run, [networks.tokenizer, networks.discriminator], [networks.ema, *networks.perceptual.values()], step
    )


@quiet()
def count_generator_memory(run: Run, tokenizer: Tokenizer) -> int:
    """What `count_memory` says of a generator's training."""
    run = for_counting(run, gradient_checkpointing=run.config.training.gradient_checkpointing)
    networks, batches = made_generator(run, tokenizer), [token_batch(run, tokenizer, run.micro_batch_size)]
    for block in networks.generator.blocks:
        block.attn.attn_drop.p = 0.0  # with dropout a CPU's attention keeps its weights, a GPU's never does
    step = partial(train_maskgit.train_step, run, networks, batches, 1)
    return count_memory(run, [networks.generator], [networks.ema], step)


def count_memory(
    run: Run, trained: list[nn.Module], others: list[nn.Module], step: Callable[[], None]
) -> int:
    """Bytes that training in bfloat16 takes on a device: a step of one micro-batch.

    They are those of all weights, the trained ones' gradients and Adam's two moments, and the most that
    autograd keeps at one time; not what an operation needs for itself, nor what the allocator wastes.
    """
    trained, others = ([w for network in of for w in network.parameters()] for of in (trained, others))
    with shapes_only() as mode:
        kept = KeptForGradient(map(mode.from_tensor, [*trained, *others]))
        with kept, torch.autocast(run.device.type, torch.bfloat16):
            step()
    return sum(weight.nbytes for weight in [*trained * 4, *others]) + kept.peak


def for_counting(run: Run, **training: object) -> Run:
    """The same run with networks of which each product is seen, and done once unless `training` differs."""
    plain = {"compile": False, "gradient_checkpointing": False, **training}
    run = Run(changed(run.config, training=changed(run.config.training, **plain)))
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
