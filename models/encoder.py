"""A ViT that reads an image into K latent tokens, in the architecture of its initialisation's source."""

from typing import NamedTuple

import torch
from einops import repeat
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


class Architecture(NamedTuple):
    """What a source's ViT has of its own: input normalisation, and arguments of timm's VisionTransformer."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    vit: dict


ARCHITECTURES = {
    "none": Architecture((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), {}),
    "mae": Architecture(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, {}),
}


class LatentEncoder(nn.Module):
    """[class token, patches, K learned latents] through a ViT; the K outputs are what is kept.

    `init` is a key of ARCHITECTURES. Images are (B, 3, image_size, image_size) in [0, 1]; the source's
    normalisation happens inside.
    """

    def __init__(
        self,
        init: str = "none",
        image_size: int = 256,
        patch_size: int = 16,
        num_latents: int = 64,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
    ):
        super().__init__()
        architecture = ARCHITECTURES[init]
        self.vit = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=0,
            global_pool="",
            **architecture.vit,
        )
        self.latents = nn.Parameter(torch.empty(num_latents, width))
        nn.init.trunc_normal_(self.latents, std=0.02)
        self.register_buffer("mean", torch.tensor(architecture.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(architecture.std).view(3, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, K, width) after the last norm."""
        vit = self.vit
        patches = vit._pos_embed(vit.patch_embed((images - self.mean) / self.std))
        latents = repeat(self.latents, "k d -> b k d", b=len(images))
        x = vit.norm_pre(torch.cat([patches, latents], dim=1))
        return vit.norm(vit.blocks(x)[:, -len(self.latents) :])

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to class and patch tokens (B, 1 + N, width), as without latents."""
        return self.vit.forward_features((images - self.mean) / self.std)
