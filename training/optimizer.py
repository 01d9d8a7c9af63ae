"""Optimizers as both training scripts build them."""

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from training.sections import TrainingSection


def build_optimizer(
    network: nn.Module,
    training: TrainingSection,
    pretrained: Iterable[nn.Parameter] = (),
    pretrained_rate: float = 1.0,
    rate: float = 1.0,
    betas: tuple[float, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) on the network's parameters; norms and biases don't decay.

    The learning rate is `rate` times the training's, that of the `pretrained` parameters is, besides,
    `pretrained_rate` times the others'. betas: the training's by default. Parameters that take no gradient
    are left out.
    """
    pretrained = {id(parameter) for parameter in pretrained}
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = []
    for started, own_rate in ((False, rate), (True, rate * pretrained_rate)):
        of_rate = [p for p in trained if (id(p) in pretrained) == started]
        groups.append({"params": [p for p in of_rate if p.ndim > 1], "rate": own_rate})
        groups.append({"params": [p for p in of_rate if p.ndim <= 1], "rate": own_rate, "weight_decay": 0.0})
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=training.learning_rate,
        betas=betas or training.betas,
        weight_decay=training.weight_decay,
        fused=True,
    )


def learning_rate_at(step: int, last_step: int, training: TrainingSection) -> float:
    """The rate of a step counted from 1.

    Linear warm-up from 0 over `warmup_steps`, then constant, or a cosine to 0 at the last step.
    """
    if step <= training.warmup_steps:
        return training.learning_rate * step / training.warmup_steps
    if training.schedule == "constant":
        return training.learning_rate
    done = (step - training.warmup_steps) / max(1, last_step - training.warmup_steps)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, the network's parameters take no gradients; those of its input pass through it."""
    network.requires_grad_(False)
    yield
    network.requires_grad_(True)
