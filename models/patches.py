"""Between pixels and a grid of tokens: convolutions that see across the borders of patches, or none."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from sizes import Size, grid_of


def doublings(patch_size: int) -> int:
    """How often 4 pixels are doubled to a patch; raises ValueError where they never make one."""
    count = int(math.log2(max(1, patch_size // 4)))
    if patch_size != 4 * 2**count:
        raise ValueError(f"patch_size {patch_size} is none of 4, 8, 16, …, which convolutions need")
    return count


class ConvStem(nn.Module):
    """Images (B, 3, H, W) to tokens (B, N, embed_dim) by strided convolutions with residual blocks between.

    Early convolutions make a ViT learn faster (Xiao et al. 2021, arXiv 2106.14881). It stands where timm's
    VisionTransformer has its PatchEmbed, and takes the same arguments.
    """

    def __init__(self, img_size: Size, patch_size: int, in_chans: int, embed_dim: int, **_):
        super().__init__()
        self.grid_size = grid_of(img_size, patch_size)
        self.num_patches = math.prod(self.grid_size)
        halvings = doublings(patch_size)
        channels = embed_dim // 2**halvings
        modules = [nn.Conv2d(in_chans, channels, kernel_size=4, stride=4)]
        for _level in range(halvings):
            modules += [Residual(channels), nn.Conv2d(channels, 2 * channels, kernel_size=2, stride=2)]
            channels *= 2
        self.blocks = nn.Sequential(*modules)

    def forward(self, images: Tensor) -> Tensor:
        return rearrange(self.blocks(images), "b d h w -> b (h w) d")


class LinearHead(nn.Linear):
    """A grid (B, width, h, w) to images (B, 3, h·p, w·p): each place alone becomes its patch of pixels."""

    def __init__(self, width: int, patch_size: int):
        super().__init__(width, 3 * patch_size**2)
        self.patch_size = patch_size
        nn.init.trunc_normal_(self.weight, std=0.002)  # the first outputs are close to mid-grey
        nn.init.constant_(self.bias, 0.5)

    def forward(self, grid: Tensor) -> Tensor:
        patches = super().forward(rearrange(grid, "b d h w -> b h w d"))
        p = self.patch_size
        return rearrange(patches, "b h w (p q c) -> b c (h p) (w q)", p=p, q=p)


class ConvHead(nn.Sequential):
    """A grid (B, width, h, w) to images (B, 3, h·p, w·p) by convolutions and sub-pixel shuffles.

    Each 3×3 convolution sees the neighbours of a place (Shi et al. 2016, arXiv 1609.05158); the grid is
    doubled until a place is 4 pixels wide.
    """

    def __init__(self, width: int, patch_size: int):
        modules = []
        channels = width
        for _level in range(doublings(patch_size)):
            modules += [nn.Conv2d(channels, 2 * channels, kernel_size=3, padding=1), nn.PixelShuffle(2)]
            modules.append(nn.GELU())
            channels //= 2
        last = nn.Conv2d(channels, 3 * 4**2, kernel_size=3, padding=1)
        with torch.no_grad():
            last.weight.mul_(0.1)
        nn.init.constant_(last.bias, 0.5)
        super().__init__(*modules, last, nn.PixelShuffle(4))


HEADS = {"linear": LinearHead, "conv": ConvHead}


class Residual(nn.Module):
    """Two 3×3 convolutions beside the identity, which they are at first."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.second = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(F.gelu(self.first(F.gelu(x))))
