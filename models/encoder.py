"""A ViT that reads an image into K latent tokens, in the architecture of its initialisation's source."""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from timm.layers import LayerNorm, PatchEmbed
from timm.layers.activations import QuickGELU
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from models.mimetic import nearness, sincos_positions, spread_positions, start_attention
from models.patches import ConvStem
from sizes import Size, grid_of, height_and_width

ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU, "tanh": nn.Tanh}


class Architecture(NamedTuple):
    """What a source's ViT has of its own. Common to all: pre-norm blocks, MLP ratio 4."""

    mean: tuple[float, float, float]  # of the input normalisation (image - mean) / std
    std: tuple[float, float, float]
    norm_eps: float = 1e-6
    activation: str = "gelu"  # of the MLPs, a key of ACTIVATIONS
    layer_scale: float | None = None  # its initial value, where each block's branches are scaled by channel
    pre_norm: bool = False  # a LayerNorm over the whole sequence before the first block
    patch_bias: bool = True
    qkv_bias: bool = True
    class_position: bool = True  # whether the class token has a position, as the patches do

    @property
    def block_options(self) -> dict:
        """Arguments that timm's Block and VisionTransformer share."""
        return {
            "norm_layer": partial(LayerNorm, eps=self.norm_eps),
            "act_layer": ACTIVATIONS[self.activation],
            "init_values": self.layer_scale,
            "qkv_bias": self.qkv_bias,
        }


IMAGENET = (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
OPENAI_CLIP = (OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)

ARCHITECTURES = {
    "none": Architecture((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mimetic": Architecture((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "mae": Architecture(*IMAGENET),
    "clip": Architecture(
        *OPENAI_CLIP, norm_eps=1e-5, activation="quick_gelu", pre_norm=True, patch_bias=False
    ),
    "dino": Architecture(*IMAGENET),
    "dinov2": Architecture(*IMAGENET, layer_scale=1e-5),
    "depth_anything_v2": Architecture(*IMAGENET, layer_scale=1e-5),
    # The ViT of the TiTok authors' own tokenizers, which reads images in [0, 1] as they are.
    "titok": Architecture((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), norm_eps=1e-5, pre_norm=True),
}
FROM_SCRATCH = ("none", "mimetic")  # the same architecture with random weights: TiTok's, or models.mimetic's


class LatentEncoder(nn.Module):
    """[class token, patches, K learned latents] through a ViT; the K outputs are what is kept.

    `init` is a key of ARCHITECTURES; `variant` has the fields in which the weights at hand differ from it, as
    open_clip's many CLIPs do. Images are of `image_size`, in [0, 1]; the source's normalisation happens
    inside. A `stem` "conv" makes patches by models.patches.ConvStem. With `mixing` each latent begins with a
    learned mix of all patches besides (models.mimetic.nearness).
    """

    def __init__(
        self,
        init: str = "none",
        image_size: Size = 256,
        patch_size: int = 16,
        num_latents: int = 64,
        width: int = 768,
        depth: int = 12,
        heads: int = 12,
        variant: dict | None = None,
        stem: str = "linear",
        mixing: bool = False,
    ):
        super().__init__()
        self.init = init
        architecture = self.architecture(init, variant or {})
        self.vit = VisionTransformer(
            img_size=height_and_width(image_size),
            patch_size=patch_size,
            embed_dim=width,
            depth=depth,
            num_heads=heads,
            num_classes=0,
            global_pool="",
            pre_norm=architecture.pre_norm,
            no_embed_class=not architecture.class_position,
            embed_layer=ConvStem
            if stem == "conv"
            else partial(_patch_embed, with_bias=architecture.patch_bias),
            **architecture.block_options,
        )
        self.latents = nn.Parameter(torch.empty(num_latents, width))
        nn.init.trunc_normal_(self.latents, std=0.02)
        if init == "mimetic":
            start_attention(self.vit.blocks)
            positions = sincos_positions(grid_of(image_size, patch_size), width)
            with torch.no_grad():
                self.vit.pos_embed[0, 1:] = positions
                self.latents.copy_(spread_positions(positions, num_latents))
        if mixing:
            near = nearness(grid_of(image_size, patch_size), num_latents)
            self.mixing = nn.Parameter(near.softmax(dim=1))  # (K, N)
        self.register_buffer("mean", torch.tensor(architecture.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(architecture.std).view(3, 1, 1), persistent=False)

    @staticmethod
    def architecture(init: str, variant: dict) -> Architecture:
        """That of the ViT."""
        return ARCHITECTURES[init]._replace(**variant)

    def placed_latents(self) -> Tensor:
        """The learned latents (K, width) as they enter the ViT."""
        return self.latents

    def forward(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, K, width) after the last norm.

        visible: of each image the patches int64 (B, n) that go through the ViT, by default all N; the mix of
        those that a latent begins with is N / n times itself, as with dropout.
        """
        vit = self.vit
        patches = vit._pos_embed(vit.patch_embed((images - self.mean) / self.std))
        if visible is not None:
            places = F.pad(visible + 1, (1, 0))  # the class token is always there
            patches = patches.gather(1, repeat(places, "b n -> b n d", d=patches.shape[2]))
        latents = repeat(self.placed_latents(), "k d -> b k d", b=len(images))
        if hasattr(self, "mixing"):
            mixing = self.mixing
            if visible is not None:
                of_each = rearrange(mixing[:, visible], "k b n -> b k n")
                mixing = of_each * (mixing.shape[1] / visible.shape[1])
            latents = latents + mixing @ patches[:, 1:]
        x = vit.norm_pre(torch.cat([patches, latents], dim=1))
        return vit.norm(vit.blocks(x)[:, -len(self.latents) :])

    def forward_features(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to class and patch tokens (B, 1 + N, width), as without latents."""
        return self.vit.forward_features((images - self.mean) / self.std)

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """What a source's weights fill: the ViT, without the latents."""
        return list(self.vit.parameters())


def untransposed(outputs: Tensor) -> Tensor:
    """Outputs (B, K, D) whose memory is read as (B, D, K): each of the K then mixes several outputs.

    The early TiTok code did so before its projection to tokens, and whatever has its weights does.
    """
    flat = rearrange(outputs, "b k d -> b (k d)")
    return rearrange(flat, "b (d k) -> b k d", k=outputs.shape[1])


def _patch_embed(*, bias: bool, with_bias: bool, **options) -> PatchEmbed:
    """timm's patch embedding, whose bias its VisionTransformer ties to the pre-norm; TiTok has both."""
    return PatchEmbed(bias=with_bias, **options)
