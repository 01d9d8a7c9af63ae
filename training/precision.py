"""In which precision products are computed: the one place that decides it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

Precision = Literal["fp32", "tf32", "bf16"]
PRECISIONS = get_args(Precision)


def set_precision(precision: Precision) -> None:
    """Have products of float32 computed as such, and with "tf32" by a GPU's faster, rounded ones.

    PyTorch's default is TF32 in convolutions and none in matrix products.
    """
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def computing_in(precision: Precision, device: torch.device) -> Iterator[None]:
    """Inside, products are computed so; with "bf16" those in which that is safe."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    set_precision(precision)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def has_bf16() -> bool:
    """Whether training is on a GPU that computes in bfloat16 as fast as it should."""
    on_gpu = torch.cuda.is_available() and os.environ.get("ACCELERATE_USE_CPU", "false").lower() != "true"
    return on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
