"""What makes training faster or smaller and leaves its results as they are, within rounding."""

import ctypes
import os
import shutil
from functools import partial

import torch
from timm.models.vision_transformer import Block
from torch import nn
from torch.utils.checkpoint import checkpoint

from models.vqgan import ResidualBlock

BLOCKS = (Block, ResidualBlock)  # of TiTok and MaskGIT, of VQGAN
WORTH_COMPILING = 5000  # images


def checkpoint_blocks(network: nn.Module) -> None:
    """Keep only each block's input for the gradient, and compute its inside again (arXiv 1604.06174).

    Compiled blocks stay so, if that was done before.
    """
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.forward = partial(checkpoint, block.forward, use_reentrant=False)


def may_compile(device: torch.device) -> bool:
    """Whether compiling is worth it, and possible: on a GPU, where there is a C compiler for Triton."""
    return device.type == "cuda" and any(map(shutil.which, ("cc", "gcc", "clang")))


def compile_network(network: nn.Module) -> None:
    """Compile with torch.compile, in place: each block, or all of a network that has none.

    Blocks of one shape share their compiled code; every shape has its own.
    """
    torch._dynamo.config.recompile_limit = 64  # a VQGAN's blocks are of one class and many shapes
    torch._dynamo.config.optimize_ddp = False  # it would split blocks where gradients travel, one by one
    for module in [module for module in network.modules() if isinstance(module, BLOCKS)] or [network]:
        module.forward = torch.compile(module.forward, dynamic=False)


def compile_for(images: int, *networks: nn.Module) -> None:
    """Compile networks that so many images will go through, where that is worth the minute it takes."""
    for network in networks:
        if images >= WORTH_COMPILING and may_compile(next(network.parameters()).device):
            compile_network(network)


def make_deterministic(wanted: bool) -> None:
    """Have a GPU compute the same to the bit each time, or as fast as it can.

    On a CPU it does so anyway. What costs is cuDNN's search for the fastest convolutions, and the gradients
    of attention and of some sums, which are otherwise added up in whatever order they come.
    """
    torch.backends.cudnn.benchmark = not wanted
    torch.use_deterministic_algorithms(wanted)
    if wanted:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it


def keep_freed_memory() -> None:
    """Let freed memory stay with the process, for the next step's tensors; glibc only, else nothing.

    On a CPU a step would give gigabytes back to the system, and then wait while it gets them anew as zeros.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
        libc.mallopt(-4, 0)  # M_MMAP_MAX: nothing has a mapping of its own, which would go when it is freed
