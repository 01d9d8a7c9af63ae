"""VQGAN: an image as a grid of discrete tokens, by convolutions (arXiv 2012.09841)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from models.quantizers import build_quantizer
from models.tokenizer import Tokenizer
from sizes import Size, as_written, grid_of

LATENT_CHANNELS = 256  # out of the encoder and into the decoder; 1×1 convolutions lead to and from tokens


class VQGAN(Tokenizer):
    """image → convolutions → grid of latents → quantizer → convolutions → pixels.

    The layout is that of the authors' ImageNet model with f = 16, but for the quantizer and its token size.
    Level i is channels * multipliers[i] wide, with `blocks` residual blocks (one more in the decoder), and
    half the height and width of the level before; attention is at the last level only. K is
    H / f · W / f, f = 2 ** (len(multipliers) - 1), of which height and width are multiples. `quantizer` holds
    the arguments of models.quantizers.build_quantizer. Raises ValueError where 32 doesn't divide `channels`.
    """

    kind = "vqgan"

    def __init__(
        self,
        image_size: Size = 256,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        quantizer: dict | None = None,
    ):
        quantizer = quantizer or {}
        grid = grid_of(image_size, 2 ** (len(multipliers) - 1))
        super().__init__(image_size, math.prod(grid), build_quantizer(**quantizer))
        self.grid = grid
        self.config = {
            "kind": self.kind,
            "image_size": as_written(image_size),
            "channels": channels,
            "multipliers": list(multipliers),
            "blocks": blocks,
            "quantizer": quantizer,
        }
        token_size = self.quantizer.token_size
        widths = [channels * multiplier for multiplier in multipliers]
        self.encoder = conv_encoder(channels, widths, blocks)
        self.to_tokens = nn.Conv2d(LATENT_CHANNELS, token_size, kernel_size=1)
        self.from_tokens = nn.Conv2d(token_size, LATENT_CHANNELS, kernel_size=1)
        self.decoder = conv_decoder(widths, blocks)
        self.to(memory_format=torch.channels_last)  # convolutions are faster so

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the convolution that makes the pixels."""
        return self.decoder[-1].weight

    def to_latents(self, images: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] to latents (B, K, token_size), the grid's rows one after another."""
        latents = self.to_tokens(self.encoder(images * 2 - 1))
        return rearrange(latents, "b d h w -> b (h w) d")

    def to_images(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, K, token_size) to images (B, 3, H, W), meant for [0, 1], not clamped."""
        grid = rearrange(quantized, "b (h w) d -> b d h w", h=self.grid[0])
        return (self.decoder(self.from_tokens(grid)) + 1) / 2


def conv_encoder(channels: int, widths: list[int], blocks: int) -> nn.Sequential:
    """Images (B, 3, H, W) in [-1, 1] to (B, LATENT_CHANNELS, h, w), one level for each of `widths`."""
    layers = [conv3x3(3, channels)]
    width = channels
    for level, level_width in enumerate(widths, start=1):
        lowest = level == len(widths)
        for _ in range(blocks):
            layers.append(ResidualBlock(width, level_width))
            width = level_width
            if lowest:
                layers.append(Attention(width))
        if not lowest:
            # as the authors pad: at the right and the bottom only
            layers += [nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(width, width, kernel_size=3, stride=2)]
    layers += [*middle(width), group_norm(width), nn.SiLU(), conv3x3(width, LATENT_CHANNELS)]
    return nn.Sequential(*layers)


def conv_decoder(widths: list[int], blocks: int) -> nn.Sequential:
    """(B, LATENT_CHANNELS, h, w) to images (B, 3, H, W) meant for [-1, 1], from the last of `widths` back."""
    width = widths[-1]
    return nn.Sequential(conv3x3(LATENT_CHANNELS, width), *middle(width), *upsampling(widths, blocks))


def upsampling(widths: list[int], blocks: int, attention: bool = True) -> list[nn.Module]:
    """(B, widths[-1], h, w) to images (B, 3, H, W), each level of twice the size of the one before.

    attention: whether the lowest level has any.
    """
    width = widths[-1]
    layers = []
    for level, level_width in enumerate(reversed(widths)):
        lowest = level == 0
        if not lowest:
            layers += [nn.Upsample(scale_factor=2, mode="nearest"), conv3x3(width, width)]
        for _ in range(blocks + 1):
            layers.append(ResidualBlock(width, level_width))
            width = level_width
            if lowest and attention:
                layers.append(Attention(width))
    return [*layers, group_norm(width), nn.SiLU(), conv3x3(width, 3)]


def middle(width: int) -> list[nn.Module]:
    """What both have at the lowest resolution, between levels and latents."""
    return [ResidualBlock(width, width), Attention(width), ResidualBlock(width, width)]


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, each after norm and SiLU, added to their input."""

    def __init__(self, width: int, out_width: int):
        super().__init__()
        self.residual = nn.Sequential(
            group_norm(width),
            nn.SiLU(),
            conv3x3(width, out_width),
            group_norm(out_width),
            nn.SiLU(),
            conv3x3(out_width, out_width),
        )
        self.shortcut = nn.Conv2d(width, out_width, kernel_size=1) if width != out_width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to (B, out_width, h, w)."""
        return self.shortcut(x) + self.residual(x)


class Attention(nn.Module):
    """Single-head self-attention over all positions, added to its input."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = group_norm(width)
        self.qkv = nn.Conv2d(width, 3 * width, kernel_size=1)
        self.out = nn.Conv2d(width, width, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, width, h, w) to the same shape."""
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (qkv d) h w -> qkv b 1 (h w) d", qkv=3)
        attended = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(rearrange(attended, "b 1 (h w) d -> b d h w", h=x.shape[2]))


def conv3x3(width: int, out_width: int) -> nn.Conv2d:
    """A 3×3 convolution that keeps height and width."""
    return nn.Conv2d(width, out_width, kernel_size=3, padding=1)


def group_norm(width: int) -> nn.GroupNorm:
    """The authors' norm. Raises ValueError where `width` is not a multiple of 32."""
    return nn.GroupNorm(32, width, eps=1e-6)
