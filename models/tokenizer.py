"""What every tokenizer is: an encoder to latents, a quantizer, a decoder to pixels."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.corruption import Corruption
from models.quantizer import Quantized, VectorQuantizer
from sizes import Size, as_written, height_and_width


class Reconstruction(NamedTuple):
    """A tokenizer's forward pass: the images it gives back, and what its quantizer did."""

    images: Tensor  # (B, 3, H, W), not clamped
    quantized: Quantized


class Tokenizer(nn.Module):
    """Images to K discrete tokens and back.

    A subclass has `kind`, `config` (its constructor's arguments, as JSON holds them), `to_latents`,
    `to_images`, and `last_layer`, the weight that makes the pixels. `image_size` is one number for a square,
    otherwise height and width. A tokenizer of a `grid`, its rows and columns, reads the rows one after
    another as its K tokens; where that is None a token has no place in the image.
    """

    grid: tuple[int, int] | None = None

    def __init__(self, image_size: Size, num_tokens: int, quantizer: VectorQuantizer):
        super().__init__()
        self.image_size = as_written(image_size)
        self.num_tokens = num_tokens
        self.quantizer = quantizer
        self.codebook_size = quantizer.codebook_size

    def forward(
        self,
        images: Tensor,
        with_entropy: bool = False,
        entropy_images: int | None = None,
        corruption: Corruption | None = None,
    ) -> Reconstruction:
        """Reconstruct images (B, 3, H, W) in [0, 1], with the losses of models.quantizer.

        corruption: what is hidden on the way, in training; the losses are of the latents without noise.
        """
        if corruption is None:
            quantized = self.quantizer(self.to_latents(images), with_entropy, entropy_images)
            return Reconstruction(self.to_images(quantized.quantized), quantized)
        of_patches = {} if corruption.visible is None else {"visible": corruption.visible}
        latents = self.to_latents(images, **of_patches)
        quantized = self.quantizer(latents, with_entropy, entropy_images)
        shown = quantized.quantized
        if corruption.noise is not None:
            shown = self.quantizer(corruption.mixed(latents)).quantized
        if corruption.kept is None:
            return Reconstruction(self.to_images(shown), quantized)
        return Reconstruction(self.to_images_of(shown, corruption.kept), quantized)

    def to_images_of(self, quantized: Tensor, is_there: Tensor) -> Tensor:
        """Images (B, 3, H, W), not clamped, of quantized latents (B, K, D) that are there, bool (B, K).

        In the stead of the others are zeros.
        """
        return self.to_images(quantized * is_there[..., None])

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images float (B, 3, H, W) in [0, 1] to codes int64 (B, K). Raises ValueError on another size."""
        height, width = height_and_width(self.image_size)
        if images.shape[1:] != (3, height, width):
            raise ValueError(f"images are {tuple(images.shape)}, not (B, 3, {height}, {width})")
        return self.quantizer(self.to_latents(images)).codes

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 (B, K) to images float (B, 3, H, W) in [0, 1]. Raises ValueError on another K."""
        if codes.shape[1:] != (self.num_tokens,):
            raise ValueError(f"codes are {tuple(codes.shape)}, not (B, {self.num_tokens})")
        return self.to_images(self.quantizer.lookup(codes)).float().clamp(0, 1)
