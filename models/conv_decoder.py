"""TiTok's decoder as the study's own code has it: VQGAN's convolutions over a sequence of tokens."""

import math

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from models.vqgan import conv3x3, middle, upsampling
from sizes import Size, grid_of


class ConvDecoder(nn.Module):
    """K quantized tokens and one mask token repeated over a grid, through convolutions to pixels.

    The sequence [class token, grid of mask tokens, K tokens], each with a learned position, is read as an
    image of width 1. A 3×3 convolution and what VQGAN has at its lowest level (residual block, attention,
    residual block) mix it; then its grid goes up VQGAN's levels (github.com/sejal-0502/1d-tokenizer). Only
    that one attention, of a single head, and the norms' statistics bring the tokens to the whole grid.

    `width` is the tokens', `channels`, `multipliers` and `blocks` are VQGAN's; the grid has a
    place for each square of 2 ** (len(multipliers) - 1) pixels, and with `attention` its level has some, too.
    """

    def __init__(
        self,
        image_size: Size,
        num_tokens: int,
        token_size: int,
        width: int = 768,
        channels: int = 128,
        multipliers: tuple[int, ...] = (1, 1, 2, 2, 4),
        blocks: int = 2,
        attention: bool = True,
    ):
        super().__init__()
        self.grid = grid_of(image_size, 2 ** (len(multipliers) - 1))
        places = math.prod(self.grid)
        widths = [channels * multiplier for multiplier in multipliers]

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(width**-0.5 * torch.randn(*shape))

        self.from_tokens = nn.Linear(token_size, width)
        self.class_token = drawn(width)
        self.mask_token = drawn(width)
        self.positions = drawn(1 + places, width)
        self.token_positions = drawn(num_tokens, width)
        self.mix = nn.Sequential(conv3x3(width, widths[-1]), *middle(widths[-1]))
        self.levels = nn.Sequential(*upsampling(widths, blocks, attention))
        self.to(memory_format=torch.channels_last)  # convolutions are faster so

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the convolution that makes the pixels."""
        return self.levels[-1].weight

    def forward(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, K, token_size) to images (B, 3, H, W), meant for [0, 1] but not clamped."""
        tokens = self.from_tokens(quantized) + self.token_positions
        places = math.prod(self.grid)
        grid = repeat(self.mask_token, "d -> n d", n=places)
        grid = torch.cat([self.class_token[None], grid]) + self.positions
        x = torch.cat([repeat(grid, "n d -> b n d", b=len(tokens)), tokens], dim=1)
        x = self.mix(rearrange(x, "b n d -> b d n 1"))[:, :, 1 : 1 + places]
        return (self.levels(rearrange(x, "b d (h w) 1 -> b d h w", h=self.grid[0])) + 1) / 2
