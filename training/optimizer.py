"""Optimizers as both training scripts build them."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from training.config import TrainingSection


def build_optimizer(network: nn.Module, training: TrainingSection) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) on the network's parameters; norms and biases don't decay."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    kept = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed}, {"params": kept, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups, lr=training.learning_rate, betas=training.betas, weight_decay=training.weight_decay
    )


@contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Inside, the network's parameters take no gradients; those of its input pass through it."""
    network.requires_grad_(False)
    yield
    network.requires_grad_(True)
