"""TiTok: an image as K discrete tokens in a 1D sequence (arXiv 2406.07550)."""

import math

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from models.conv_decoder import ConvDecoder
from models.encoder import ARCHITECTURES, FROM_SCRATCH
from models.encoder_as_run import build_latent_encoder
from models.mimetic import nearness, sincos_positions, spread_positions, start_attention
from models.patches import HEADS
from models.quantizers import build_quantizer
from models.tokenizer import Tokenizer
from sizes import Size, as_written, grid_of


class TiTok(Tokenizer):
    """image → patches ⊕ K latents → ViT → the K outputs → quantizer → ⊕ mask tokens → ViT → pixels.

    `encoder` and `decoder` are sizes, `{"width", "depth", "heads"}`; `init` in either names the source whose
    architecture it has (models.encoder), none if absent; models.pretrained loads the source's weights. An
    encoder's `loading` is "exact" or "as_run" (models.encoder_as_run); `stem`, `head` and `mixing` are
    LatentEncoder's and PixelDecoder's. A decoder of `kind` "conv" is a models.conv_decoder.ConvDecoder.
    `quantizer` holds the arguments of models.quantizers.build_quantizer.
    """

    kind = "titok"

    def __init__(
        self,
        image_size: Size = 256,
        patch_size: int = 16,
        num_tokens: int = 64,
        encoder: dict | None = None,
        decoder: dict | None = None,
        quantizer: dict | None = None,
    ):
        vit_b = {"width": 768, "depth": 12, "heads": 12}
        encoder = {"init": "none", "loading": "exact", **(encoder or vit_b)}
        decoder = {"kind": "vit", **(decoder or vit_b)}
        if decoder["kind"] == "vit":
            decoder = {"init": "none", **decoder}
        quantizer = quantizer or {}
        super().__init__(image_size, num_tokens, build_quantizer(**quantizer))
        self.config = {
            "kind": self.kind,
            "image_size": as_written(image_size),
            "patch_size": patch_size,
            "num_tokens": num_tokens,
            "encoder": encoder,
            "decoder": decoder,
            "quantizer": quantizer,
        }
        token_size = self.quantizer.token_size
        self.encoder = build_latent_encoder(
            **encoder, image_size=image_size, patch_size=patch_size, num_latents=num_tokens
        )
        self.to_tokens = nn.Linear(encoder["width"], token_size)
        common = {"image_size": image_size, "num_tokens": num_tokens, "token_size": token_size}
        options = {name: value for name, value in decoder.items() if name != "kind"}
        if decoder["kind"] == "conv":
            self.decoder = ConvDecoder(**common, **options)
        else:
            self.decoder = PixelDecoder(**common, patch_size=patch_size, **options)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the convolution that makes the pixels."""
        return self.decoder.last_layer

    def to_latents(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """Images (B, 3, H, W) to latents (B, K, token_size), before quantization.

        visible: the patches that count, in training (LatentEncoder).
        """
        return self.to_tokens(self.encoder(images, visible))

    def to_images(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, K, token_size) to images (B, 3, H, W), not clamped."""
        return self.decoder(quantized)


class PixelDecoder(nn.Module):
    """ViT from K quantized tokens and one mask token repeated over the patch grid to pixels.

    The sequence is [class token, grid of mask tokens, K tokens]; a `head`, a key of models.patches.HEADS,
    makes pixels of the grid's outputs, and a 3×3 convolution smooths over the patches' borders. With `mixing`
    each place of the grid begins with a learned mix of all tokens besides (models.mimetic.nearness). `init`,
    a key of models.encoder.ARCHITECTURES, gives the ViT that source's LayerScale, activation, norm epsilon
    and pre-norm; a decoder from scratch has a pre-norm too, TiTok's.
    """

    def __init__(
        self,
        image_size: Size,
        patch_size: int,
        num_tokens: int,
        token_size: int,
        width: int,
        depth: int,
        heads: int,
        init: str = "none",
        head: str = "linear",
        mixing: bool = False,
    ):
        super().__init__()
        self.init = init
        architecture = ARCHITECTURES[init]
        from_scratch = init in FROM_SCRATCH
        norm_eps = 1e-5 if from_scratch else architecture.norm_eps
        pre_norm = from_scratch or architecture.pre_norm
        self.grid = grid_of(image_size, patch_size)
        places = math.prod(self.grid)
        self.from_tokens = nn.Linear(token_size, width)
        self.class_token = nn.Parameter(torch.zeros(width))
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(1 + places, width))
        self.token_positions = nn.Parameter(torch.zeros(num_tokens, width))
        self.norm_pre = nn.LayerNorm(width, eps=norm_eps) if pre_norm else nn.Identity()
        self.blocks = nn.Sequential(
            *[Block(width, heads, **architecture.block_options) for _ in range(depth)]
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.smooth = nn.Conv2d(3, 3, kernel_size=3, padding=1)

        for parameter in (self.class_token, self.mask_token, self.positions, self.token_positions):
            nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        self.to_pixels = HEADS[head](width, patch_size)
        nn.init.dirac_(self.smooth.weight)  # at first nothing is smoothed
        nn.init.zeros_(self.smooth.bias)
        if init == "mimetic":
            start_attention(self.blocks)
            nn.init.xavier_uniform_(self.from_tokens.weight)
            positions = sincos_positions(self.grid, width)
            with torch.no_grad():
                self.positions[1:] = positions
                self.token_positions.copy_(spread_positions(positions, num_tokens))
        if mixing:
            self.mixing = nn.Parameter(nearness(self.grid, num_tokens).T.softmax(dim=1))  # (N, K)

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the convolution that makes the pixels."""
        return self.smooth.weight

    def forward(self, quantized: Tensor) -> Tensor:
        """Quantized latents (B, K, token_size) to images (B, 3, H, W), meant for [0, 1] but not clamped."""
        tokens = self.from_tokens(quantized)
        return self.draw(tokens, tokens + self.token_positions)

    def draw(self, tokens: Tensor, placed: Tensor) -> Tensor:
        """Images of tokens (B, K, width) as they are mixed into places, and as they stand in the sequence."""
        places = math.prod(self.grid)
        grid = repeat(self.mask_token, "d -> n d", n=places)
        grid = torch.cat([self.class_token[None], grid]) + self.positions
        grid = repeat(grid, "n d -> b n d", b=len(tokens))
        if hasattr(self, "mixing"):
            grid = grid + F.pad(self.mixing @ tokens, (0, 0, 1, 0))  # not to the class token
        x = torch.cat([grid, placed], dim=1)
        x = self.norm(self.blocks(self.norm_pre(x)))[:, 1 : 1 + places]
        return self.smooth(self.to_pixels(rearrange(x, "b (h w) d -> b d h w", h=self.grid[0])))

    def pretrained_parameters(self) -> list[nn.Parameter]:
        """What a source's weights fill: the ViT, without the tokens' side and the pixels'."""
        parts = (self.norm_pre, self.blocks, self.norm)
        return [self.class_token, self.positions, *(p for part in parts for p in part.parameters())]
