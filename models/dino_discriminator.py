"""A discriminator on the features of DINO's frozen ViT-S, beside PatchGAN (GigaTok, arXiv 2504.08736)."""

import math

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from models.encoder import LatentEncoder

BLOCKS = (3, 6, 9, 12)  # of the ViT, whose outputs are judged


class DinoDiscriminator(nn.Module):
    """Real or fake, judged patch by patch on features of four depths (StyleGAN-T, arXiv 2301.09515, 3.2).

    `source` is a frozen ViT, which reads images at their own size. It is no part of this module's parameters
    and state, but goes with it from device to device. Each depth has a head of its own: spectral norm as in
    StyleGAN-T, group norm in the stead of batch norm, so that a logit depends on its own image alone.
    """

    def __init__(self, source: LatentEncoder):
        super().__init__()
        self._source = (source.eval().requires_grad_(False),)
        width = source.vit.embed_dim
        self.heads = nn.ModuleList(DinoHead(width) for _ in BLOCKS)

    def _apply(self, function, recurse: bool = True):
        self._source[0]._apply(function, recurse)
        return super()._apply(function, recurse)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to logits (B, M), of every depth one for each patch."""
        source = self._source[0]
        places = [block - 1 for block in BLOCKS]
        features = source.vit.get_intermediate_layers(
            (images - source.mean) / source.std, places, reshape=True
        )
        return torch.cat([head(each).flatten(1) for head, each in zip(self.heads, features)], dim=1)


class DinoHead(nn.Module):
    """Features (B, width, h, w) to logits (B, 1, h, w)."""

    def __init__(self, width: int):
        super().__init__()
        self.first, self.second = _block(width, 1), _block(width, 3)
        self.to_logits = spectral_norm(nn.Conv2d(width, 1, kernel_size=1))

    def forward(self, features: Tensor) -> Tensor:
        x = self.first(features)
        return self.to_logits((x + self.second(x)) / math.sqrt(2))


class Discriminators(nn.Module):
    """Several discriminators as one, whose logits all count the same."""

    def __init__(self, *each: nn.Module):
        super().__init__()
        self.each = nn.ModuleList(each)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to all their logits (B, M)."""
        return torch.cat([network(images).flatten(1) for network in self.each], dim=1)


def _block(width: int, kernel_size: int) -> nn.Sequential:
    convolution = nn.Conv2d(width, width, kernel_size, padding=kernel_size // 2)
    return nn.Sequential(spectral_norm(convolution), nn.GroupNorm(16, width), nn.LeakyReLU(0.2))
