"""Optimizers as both training scripts build them."""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from training.sections import TrainingSection

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # a, b, c of a·X + (b·A + c·A²)·X with A = X·Xᵀ (Jordan et al.)
MOMENTUM = 0.95


class Muon(torch.optim.AdamW):
    """Muon for the groups that are `orthogonal`, of matrices; AdamW for the others.

    A matrix moves by its momentum with all singular values made about 1 (Jordan et al. 2024, "Muon: an
    optimizer for hidden layers in neural networks"), times 0.2 √(its longer side), with which learning rates
    and decays are AdamW's (Liu et al. 2025, arXiv 2502.16982, eq. 4).
    """

    @torch.no_grad()
    def step(self) -> None:
        """Update from the gradients, or nothing where `found_inf` is 1; matrices have none afterwards."""
        skip = getattr(self, "found_inf", torch.zeros(()))
        for group in self.param_groups:
            alike = defaultdict(list)
            for matrix in group["params"] if group["orthogonal"] else ():
                if matrix.grad is not None:
                    alike[matrix.shape].append(matrix)
            for shape, matrices in alike.items():
                rate, scale = group["lr"] * (1 - skip), 0.2 * math.sqrt(max(shape))
                moves = orthogonal(torch.stack([self._with_momentum(matrix, skip) for matrix in matrices]))
                for matrix, move in zip(matrices, moves):
                    matrix.mul_(1 - rate * group["weight_decay"]).sub_(rate * scale * move)
                    matrix.grad = None  # AdamW passes over it
        super().step()

    def _with_momentum(self, matrix: Tensor, skip: Tensor) -> Tensor:
        """A matrix's gradient and its momentum, which that updates, together (Nesterov)."""
        state = self.state[matrix]
        if not state:
            state["momentum"] = torch.zeros_like(matrix)
        gradient = matrix.grad.where(skip == 0, 0)  # or it would leave NaN behind
        state["momentum"].lerp_(gradient, (1 - MOMENTUM) * (1 - skip))
        return gradient.lerp(state["momentum"], MOMENTUM)


def orthogonal(matrices: Tensor) -> Tensor:
    """Matrices (n, A, B) with their singular values brought near 1, by five Newton-Schulz iterations.

    In bfloat16 on a GPU, as the authors do.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    x = x.bfloat16() if x.is_cuda else x
    for _ in range(5):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.mT).to(matrices.dtype)


def build_optimizer(
    network: nn.Module,
    training: TrainingSection,
    pretrained: Iterable[nn.Parameter] = (),
    pretrained_rate: float = 1.0,
    rate: float = 1.0,
    betas: tuple[float, float] | None = None,
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) on the network's parameters; norms and biases don't decay.

    With `training.optimizer` muon the weights of linear layers in transformer blocks are Muon's. The learning
    rate is `rate` times the training's, that of the `pretrained` parameters is, besides, `pretrained_rate`
    times the others'. betas: the training's by default. Parameters that take no gradient are left out.
    """
    pretrained = {id(parameter) for parameter in pretrained}
    muon = training.optimizer == "muon"
    groups = defaultdict(list)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            of_block = parameter.ndim == 2 and ".blocks." in f".{name}"
            groups[id(parameter) in pretrained, parameter.ndim <= 1, muon and of_block].append(parameter)
    groups = [
        {
            "params": parameters,
            "rate": rate * pretrained_rate if started else rate,
            "weight_decay": 0.0 if is_vector else training.weight_decay,
            "orthogonal": by_muon,
        }
        for (started, is_vector, by_muon), parameters in sorted(groups.items())
    ]
    return (Muon if muon else torch.optim.AdamW)(
        groups,
        lr=training.learning_rate,
        betas=betas or training.betas,
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
