"""What representations have in common, how many dimensions they fill, and what each token carries."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from models.editing import token_influence
from models.tokenizer import Tokenizer

ABLATED_FRAMES = 4
ALTERNATIVES = 2  # other codes in a token's place


class Tokens(NamedTuple):
    """What a tokenizer's tokens are like over a set of frames."""

    tokenizer: str
    run: str
    token_size: int  # D, the dimension of a code
    rank: int  # of all tokens' latents, at most D
    effective_rank: float  # of the same
    image_rank: float  # effective, of images' latents (N, K * D): at most N - 1
    codes_used: float  # the share of the codebook
    entropy: np.ndarray  # (K,): bits of each token's codes over the frames
    change: np.ndarray  # (K,): mean absolute change of the image, of 1, where another code is in its place
    area: np.ndarray  # (K,): the share of the image over which that change is spread


def linear_cka(first: Tensor, second: Tensor, debiased: bool = False) -> float:
    """Linear centred kernel alignment of two representations (N, D1) and (N, D2) of the same N examples.

    |Y'X|² / (|X'X| |Y'Y|), Frobenius norms of the centred features (Kornblith et al. 2019,
    arXiv 1905.00414, section 3): in [0, 1], 1 for representations that are equal up to rotation and scale.
    Computed from the Gram matrices (N, N) in float64, which is the same and small for any number of features.

    With few examples and many features that value is near 1 for anything. `debiased` puts the unbiased
    estimate of HSIC (Song et al. 2012, JMLR 13, equation 5) in each of its three places, as Nguyen et al.
    2021 (arXiv 2010.15327, equation 3) do: 0 on average for independent features, by chance a little below.
    It needs at least four examples. Features that are the same for all examples give nan.
    """
    first, second = (features.double() - features.double().mean(dim=0) for features in (first, second))
    first, second = first @ first.T, second @ second.T
    hsic = _unbiased_hsic if debiased else _hsic
    return (hsic(first, second) / (hsic(first, first) * hsic(second, second)).sqrt()).item()


def _hsic(first: Tensor, second: Tensor) -> Tensor:
    """The biased estimate, without its constant factor, from Gram matrices of centred features."""
    return (first * second).sum()


def _unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Song's estimate, without the factor 1 / n(n - 3)."""
    n = len(first)
    first, second = (gram - gram.diag().diag() for gram in (first, second))
    product = first.sum(dim=0) @ second.sum(dim=0)
    return (first * second).sum() + first.sum() * second.sum() / ((n - 1) * (n - 2)) - 2 * product / (n - 2)


def effective_rank(features: Tensor) -> float:
    """exp of the entropy of the singular values' shares in their sum, of centred features (N, D).

    Roy and Vetterli 2007 ("The effective rank", equation 4): at most the rank, which it reaches where all
    singular values are equal. In float64.
    """
    features = features.double() - features.double().mean(dim=0)
    shares = torch.linalg.svdvals(features)
    return torch.special.entr(shares / shares.sum()).sum().exp().item()


def rank(features: Tensor) -> int:
    """The rank of centred features (N, D), of which float32's rounding is no part."""
    features = features.double() - features.double().mean(dim=0)
    return int(torch.linalg.matrix_rank(features, rtol=max(features.shape) * torch.finfo(torch.float32).eps))


def token_entropy(codes: Tensor, codebook_size: int) -> Tensor:
    """The entropy in bits, float64 (K,), of each token's codes over images; codes int64 (N, K).

    At most log2 of the smaller of N and codebook_size; a sample of few images gives less than there is.
    """
    num_images, num_tokens = codes.shape
    counts = torch.zeros(num_tokens, codebook_size, dtype=torch.float64, device=codes.device)
    counts.scatter_add_(1, codes.T, torch.ones_like(codes.T, dtype=torch.float64))
    return torch.special.entr(counts / num_images).sum(dim=1) / math.log(2)


def effective_area(maps: Tensor) -> Tensor:
    """The share of the image (K,) over which each of the maps (K, H, W), not negative, is spread.

    exp of the entropy of a map's pixels' shares in its sum, over the number of pixels: 1 where it is even,
    1 / HW where it is a single pixel; nan for a map of zeros.
    """
    pixels = maps.flatten(1).double()
    shares = pixels / pixels.sum(dim=1, keepdim=True)
    return torch.special.entr(shares).sum(dim=1).exp() / pixels.shape[1]


def measure_tokens(
    name: str, run: str, tokenizer: Tokenizer, latents: Tensor, codes: Tensor, seed: int
) -> Tokens:
    """What a tokenizer of that name, of that run, makes of N images: latents (N, K, D) and codes (N, K)."""
    influences = [token_influence(tokenizer, each, ALTERNATIVES, seed) for each in codes[:ABLATED_FRAMES]]
    return Tokens(
        tokenizer=name,
        run=run,
        token_size=latents.shape[-1],
        rank=rank(latents.flatten(0, 1)),
        effective_rank=effective_rank(latents.flatten(0, 1)),
        image_rank=effective_rank(latents.flatten(1)),
        codes_used=len(codes.unique()) / tokenizer.codebook_size,
        entropy=token_entropy(codes, tokenizer.codebook_size).cpu().numpy(),
        change=torch.stack([maps.double().mean(dim=(1, 2)) for maps in influences]).mean(dim=0).cpu().numpy(),
        area=torch.stack([effective_area(maps) for maps in influences]).mean(dim=0).cpu().numpy(),
    )
