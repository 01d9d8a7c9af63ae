"""What makes training faster or smaller and leaves its results as they are, within rounding."""

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


def compile_blocks(network: nn.Module) -> None:
    """Compile each block with torch.compile, in place; blocks of one shape share their compiled code."""
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.compile()
