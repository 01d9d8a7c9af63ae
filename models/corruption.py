"""What training hides of an image from a tokenizer, which has to give back all of it all the same.

Generators make images of tokens that are partly masked or wrong. A tokenizer that was trained so reconstructs
from such ones, too (MAETok, arXiv 2502.03444; l-DeTok, arXiv 2507.15856).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Corruption(NamedTuple):
    """What is hidden of a batch; None is nothing."""

    visible: Tensor | None = None  # int64 (B, n): the patches that the encoder sees, of N, in their order
    noise: Tensor | None = None  # float (B, K, D): in units of a latent's root mean square
    share: Tensor | None = None  # float (B,): of the noise in each image's latents, the rest are themselves
    kept: Tensor | None = None  # bool (B, K): the tokens that the decoder sees

    def to(self, device: torch.device) -> "Corruption":
        """The same on a device."""
        return Corruption(*(None if each is None else each.to(device, non_blocking=True) for each in self))

    def mixed(self, latents: Tensor) -> Tensor:
        """Latents (B, K, D) with noise, float32: (1 - share) latents + share noise (l-DeTok, eq. 1).

        Noise has the size of each latent that it is mixed with, as quantizers that normalise set none.
        """
        latents, share = latents.float(), self.share[:, None, None]
        size = latents.detach().square().mean(dim=-1, keepdim=True).sqrt()
        return (1 - share) * latents + share * size * self.noise
