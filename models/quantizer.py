"""Vector quantization: latents to the nearest of a learned set of codes."""

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

CHUNK = 8192  # latents whose distances to all codes are in memory at once
LEAST_LOG = -87.0  # of a probability: an exponential below is no normal float32, at which CPUs are slow


class Quantized(NamedTuple):
    """What the quantizer makes of latents z."""

    latents: Tensor  # (..., D): z in float32, L2-normalised where the quantizer normalises
    quantized: Tensor  # (..., D): the nearest codes, with a gradient for `latents`
    codes: Tensor  # (...,) int64
    codebook_loss: Tensor  # scalar: moves the codes towards the latents
    commitment_loss: Tensor  # scalar: moves the latents towards their codes
    entropy_loss: Tensor  # scalar: sharp for each latent, even over all of them; 0 where not asked for


class VectorQuantizer(nn.Module):
    """Nearest-code quantizer (VQ-VAE, arXiv 1711.00937, eq. 1-3) over `codebook_size` codes of `token_size`.

    With `l2_normalize` latents and codes lie on the unit sphere (ViT-VQGAN, arXiv 2110.04627, section 3.2).
    `entropy_temperature` divides the negative squared distances in the softmax of the entropy loss.
    The codebook is normalised where it is used, and its gradient with it; `normalize_in_place` writes the
    normalised codes back instead, at each forward pass in training, as the study's code does.
    With `rotation` gradients come back turned and scaled as codes are from their latents (the rotation trick,
    arXiv 2410.06424), otherwise as they are (straight-through). All distances are computed in float32
    whatever the autocast.
    """

    def __init__(
        self,
        codebook_size: int = 4096,
        token_size: int = 16,
        l2_normalize: bool = True,
        entropy_temperature: float = 0.01,
        normalize_in_place: bool = False,
        rotation: bool = False,
    ):
        super().__init__()
        self.codebook_size = codebook_size
        self.token_size = token_size
        self.l2_normalize = l2_normalize
        self.entropy_temperature = entropy_temperature
        self.normalize_in_place = normalize_in_place
        self.rotation = rotation
        self.codebook = nn.Parameter(torch.randn(codebook_size, token_size) * token_size**-0.5)

    def codes_as_used(self) -> Tensor:
        """The codebook (codebook_size, D) in float32, L2-normalised where the quantizer normalises."""
        if self.l2_normalize and self.normalize_in_place and self.training:
            self.codebook.data = F.normalize(self.codebook.data, dim=-1)
            return self.codebook.float()
        codebook = self.codebook.float()
        return F.normalize(codebook, dim=-1) if self.l2_normalize else codebook

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes int64 (...) to their vectors float32 (..., D)."""
        return F.embedding(codes, self.codes_as_used())

    def forward(self, z: Tensor, with_entropy: bool = False, entropy_images: int | None = None) -> Quantized:
        """Quantize z (B, ..., D). `with_entropy` adds the entropy loss, the costliest part, in training.

        entropy_images: so many images at a time, a divisor of B, have an entropy loss of their own, of which
        this is the mean; by default all of the batch, on all processes, have one.
        """
        with torch.autocast(z.device.type, enabled=False):
            codebook = self.codes_as_used()
            latents = F.normalize(z.float(), dim=-1) if self.l2_normalize else z.float()
            flat = rearrange(latents, "... d -> (...) d")

            with torch.no_grad():
                # a program for any batch can't know how many chunks there are
                chunks = [flat] if torch.compiler.is_exporting() else flat.split(CHUNK)
                codes = [squared_distances(chunk, codebook).argmin(dim=1) for chunk in chunks]
                codes = torch.cat(codes).view(latents.shape[:-1])
            nearest = F.embedding(codes, codebook)

            entropy = latents.new_zeros(())
            if with_entropy and entropy_images:
                parts = [rearrange(part, "... d -> (...) d") for part in latents.split(entropy_images)]
                alone = [entropy_loss(part, codebook, self.entropy_temperature, False) for part in parts]
                entropy = torch.stack(alone).mean()
            elif with_entropy:
                entropy = entropy_loss(flat, codebook, self.entropy_temperature)
            return Quantized(
                latents=latents,
                quantized=rotated(latents, nearest) if self.rotation else straight_through(latents, nearest),
                codes=codes,
                codebook_loss=F.mse_loss(nearest, latents.detach()),
                commitment_loss=F.mse_loss(latents, nearest.detach()),
                entropy_loss=entropy,
            )


def straight_through(latents: Tensor, codes: Tensor) -> Tensor:
    """The codes of latents (..., D), whose gradient is the latents' as it is."""
    return latents + (codes - latents).detach()


def rotated(latents: Tensor, codes: Tensor) -> Tensor:
    """The codes of latents (..., D), made of them by a rotation and a scale that take no gradient themselves.

    With u and w the directions of a latent and of its code, and r that of u + w, the rotation of u to w in
    their plane is x - 2 r (r·x) + 2 w (u·x) (arXiv 2410.06424, section 4.2).
    """
    codes = codes.detach()
    u, w = (F.normalize(each, dim=-1) for each in (latents.detach(), codes))
    r = F.normalize(u + w, dim=-1)
    turned = (
        latents - 2 * r * (r * latents).sum(-1, keepdim=True) + 2 * w * (u * latents).sum(-1, keepdim=True)
    )
    scale = codes.norm(dim=-1, keepdim=True) / latents.detach().norm(dim=-1, keepdim=True).clamp_min(1e-6)
    return turned * scale


def squared_distances(latents: Tensor, codebook: Tensor) -> Tensor:
    """Squared Euclidean distances (N, codebook_size) of latents (N, D) to codes (codebook_size, D)."""
    norms = latents.square().sum(dim=1, keepdim=True) + codebook.square().sum(dim=1)
    return torch.addmm(norms, latents, codebook.T, alpha=-2)


def entropy_loss(
    latents: Tensor, codebook: Tensor, temperature: float, over_processes: bool = True
) -> Tensor:
    """E[H(p)] - H(E[p]) in nats (MAGVIT-v2, arXiv 2310.05737, eq. 5), a scalar.

    p is the softmax over the codes of the negative squared distances of latents (N, D) to codebook
    (codebook_size, D), divided by the temperature. With `over_processes` the outer mean E[p] spans the
    latents of all processes of a torch.distributed job: its value is the mean over processes, its gradient
    the local one, so that gradients averaged over processes (as DDP does) are those of the whole batch. The
    distances are computed chunk by chunk, and again for the gradient, so that not all of them are ever in
    memory.
    """
    sums = [
        checkpoint(_entropy_sums, chunk, codebook, temperature, use_reentrant=False, preserve_rng_state=False)
        for chunk in latents.split(CHUNK)
    ]
    sum_of_entropies, sum_of_p = map(sum, zip(*sums))
    entropy_of_each = sum_of_entropies / len(latents)
    mean_p = sum_of_p / len(latents)
    if over_processes and dist.is_available() and dist.is_initialized():
        whole = mean_p.detach().clone()
        dist.all_reduce(whole)
        whole /= dist.get_world_size()
        mean_p = mean_p + (whole - mean_p).detach()
    entropy_of_mean = torch.special.entr(mean_p.clamp_min(torch.finfo(mean_p.dtype).tiny)).sum()
    return entropy_of_each - entropy_of_mean


def _entropy_sums(latents: Tensor, codebook: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Over latents, the sums of H(p), a scalar, and of p, (codebook_size,)."""
    log_p = (-squared_distances(latents, codebook) / temperature).log_softmax(dim=1)
    p = log_p.clamp_min(LEAST_LOG).exp()
    return -(p * log_p).sum(), p.sum(dim=0)
