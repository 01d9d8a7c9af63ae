"""What makes training faster or smaller and leaves its results as they are, within rounding."""

import ctypes
from functools import partial

from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.vqgan import ResidualBlock

BLOCKS = (Block, ResidualBlock)  # of TiTok and MaskGIT, of VQGAN


def checkpoint_blocks(network: nn.Module) -> None:
    """Keep only each block's input for the gradient, and compute its inside again (arXiv 1604.06174)."""
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def compile_network(network: nn.Module) -> None:
    """Compile with torch.compile, in place: each block, or all of a network that has none.

    Blocks of one shape share their compiled code.
    """
    blocks = [module for module in network.modules() if isinstance(module, BLOCKS)]
    for module in blocks or [network]:
        module.compile()


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, for the next step's tensors; glibc only, else nothing.

    On a CPU a step would give gigabytes back to the system, and then wait while it gets them anew as zeros.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing has a mapping of its own, which would go when it is freed
