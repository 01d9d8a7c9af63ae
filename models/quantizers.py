"""The other quantizers behind VectorQuantizer's interface, and what builds any of them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.quantizer import Quantized, VectorQuantizer, straight_through


class SimVQ(VectorQuantizer):
    """A codebook that moves as a whole: a fixed random one, times one learned matrix (arXiv 2411.02038).

    `codebook` holds the fixed codes, and codes_as_used has them times `transform`.
    """

    def __init__(self, codebook_size: int = 4096, token_size: int = 16, entropy_temperature: float = 0.01):
        super().__init__(codebook_size, token_size, False, entropy_temperature)
        self.codebook.requires_grad_(False)
        self.transform = nn.Linear(token_size, token_size, bias=False)

    def codes_as_used(self) -> Tensor:
        """The codebook (codebook_size, D) in float32."""
        return F.linear(self.codebook.float(), self.transform.weight.float())


class LookupFree(VectorQuantizer):
    """Every dimension is one bit, -1 or 1 (LFQ of MAGVIT-v2, arXiv 2310.05737, section 3.1).

    There are log2(codebook_size) dimensions, a code's number has the first as its highest bit, and nothing is
    learned. Raises ValueError where codebook_size is no power of two.
    """

    def __init__(self, codebook_size: int = 4096, entropy_temperature: float = 0.01):
        bits = codebook_size.bit_length() - 1
        if codebook_size != 2**bits or bits < 1:
            raise ValueError(f"codebook_size {codebook_size} is no power of two")
        super().__init__(codebook_size, bits, False, entropy_temperature)
        del self.codebook
        places = 2 ** torch.arange(bits).flip(0)
        codes = torch.arange(codebook_size)[:, None] // places % 2 * 2.0 - 1
        self.register_buffer("codebook", codes, persistent=False)


class FiniteScalar(nn.Module):
    """Every dimension is rounded to one of its `levels` (FSQ, arXiv 2309.15505, section 3.1).

    A code is a point of that grid, scaled to about [-1, 1]; its number has the first dimension as its lowest
    digit. Nothing is learned, and the losses are 0.
    """

    def __init__(self, levels: list[int]):
        super().__init__()
        self.codebook_size = math.prod(levels)
        self.token_size = len(levels)
        sizes = torch.tensor(levels)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("places", sizes.cumprod(0) // sizes, persistent=False)

    def codes_as_used(self) -> Tensor:
        """All codes (codebook_size, D) in float32."""
        return self.lookup(torch.arange(self.codebook_size, device=self.sizes.device))

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes int64 (...) to their vectors float32 (..., D)."""
        half = self.sizes // 2
        return (codes[..., None] // self.places % self.sizes - half) / half

    def forward(self, z: Tensor, with_entropy: bool = False, entropy_images: int | None = None) -> Quantized:
        """Quantize z (B, ..., D). There is no entropy loss to ask for: the grid is used by itself."""
        with torch.autocast(z.device.type, enabled=False):
            half = self.sizes // 2
            # a little more than the levels' range, so that their ends are reached; even numbers of levels
            # have no middle one, and lie half a step lower
            bound = (self.sizes - 1) * 1.001 / 2
            offset = 0.5 * (self.sizes % 2 == 0)
            scaled = (z.float() + (offset / bound).atanh()).tanh() * bound - offset
            rounded = scaled.round()
            latents = scaled / half
            none = latents.new_zeros(())
            return Quantized(
                latents=latents,
                quantized=straight_through(latents, rounded / half),
                codes=((rounded.long() + half) * self.places).sum(dim=-1),
                codebook_loss=none,
                commitment_loss=none,
                entropy_loss=none,
            )


KINDS = {"vq": VectorQuantizer, "simvq": SimVQ, "lfq": LookupFree, "fsq": FiniteScalar}


def build_quantizer(kind: str = "vq", **options) -> VectorQuantizer | FiniteScalar:
    """The quantizer of a config's `quantizer`: of a kind among KINDS, with its class's arguments."""
    return KINDS[kind](**options)
