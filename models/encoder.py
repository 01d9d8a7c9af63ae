"""A ViT that reads an image into K latent tokens, in the architecture of its initialisation's source."""

from functools import partial
from typing import NamedTuple

import torch
from einops import repeat
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.layers import LayerNorm, PatchEmbed
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.mimetic import sincos_positions, spread_positions, start_attention


class Architecture(NamedTuple):
    """What a source's ViT has of its own. Common to all: pre-norm blocks, MLP ratio 4, biased qkv."""

    mean: tuple[float, float, float]  # of the input normalisation (image - mean) / std
    std: tuple[float, float, float]
    norm_eps: float = 1e-6
    activation: type[nn.Module] = nn.GELU
    layer_scale: float | None = None  # its initial value, where each block's branches are scaled by channel
    pre_norm: bool = False  # a LayerNorm over the whole sequence before the first block
    patch_bias: bool = True

    @property
    def block_options(self) -> dict:
        """Arguments that timm's Block and VisionTransformer share."""
        return {
            "norm_layer": partial(LayerNorm, eps=self.norm_eps),
            "act_layer": self.activation,
            "init_values": self.layer_scale,
        }


IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
OPENAI_CLIP = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)

ARCHITECTURES = {
    "none": Architecture((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mimetic": Architecture((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mae": Architecture(*IMAGENET),
    "clip": Architecture(*OPENAI_CLIP, norm_eps=1e-5, activation=QuickGELU, pre_norm=True, patch_bias=False),
    "dino": Architecture(*IMAGENET),
    "dinov2": Architecture(*IMAGENET, layer_scale=1e-5),
    "depth_anything_v2": Architecture(*IMAGENET, layer_scale=1e-5),
    # The ViT of the TiTok authors' own tokenizers, which reads images in [0, 1] as they are.
    "titok": Architecture((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), norm_eps=1e-5, pre_norm=True),
}
FROM_SCRATCH = ("none", "mimetic")  # the same architecture with random weights: TiTok's, or models.mimetic's


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
        self.init = init
        architecture = ARCHITECTURES[init]
        self.vit = VisionTransformer(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=0,
            global_pool="",
            pre_norm=architecture.pre_norm,
            embed_layer=partial(_patch_embed, with_bias=architecture.patch_bias),
            **architecture.block_options,
        )
        self.latents = nn.Parameter(torch.empty(num_latents, width))
        nn.init.trunc_normal_(self.latents, std=0.02)
        if init == "mimetic":
            start_attention(self.vit.blocks)
            positions = sincos_positions(image_size // patch_size, width)
            with torch.no_grad():
                self.vit.pos_embed[0, 1:] = positions
                self.latents.copy_(spread_positions(positions, num_latents))
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

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """What a source's weights fill: the ViT, without the latents."""
        return list(self.vit.parameters())


def _patch_embed(*, bias: bool, with_bias: bool, **options) -> PatchEmbed:
    """timm's patch embedding, whose bias its VisionTransformer ties to the pre-norm; TiTok has both."""
    return PatchEmbed(bias=with_bias, **options)
