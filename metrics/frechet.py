"""Fréchet distance of two sets of features."""

import torch
from torch import Tensor

from errors import UserError

# Fréchet distances that are not FID, each of the features of another network
OTHER_DISTANCES = {
    "fd_efficientnet_lite0": "EfficientNet-Lite0, trained on ImageNet",
    "fd_random": "an InceptionV3 with fixed random weights",
}


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of the Gaussians that fit two sets of features, (n, dim) and (m, dim).

    |m1 − m2|² + Tr(C1 + C2 − 2 (C1 C2)^½) (Heusel et al. 2017, arXiv 1706.08500, equation 6), computed in
    float64 on the features' device; the covariances are unbiased, like numpy's `cov`. With factors C = RᵀR,
    (C1 C2)^½ has the trace of the singular values of R1 R2ᵀ, which is exact, too, where there are fewer
    images than dimensions and the covariance is singular. Equal sets give 0 up to rounding, of either sign.
    Raises UserError below two images.
    """
    means, factors = [], []
    for features in (first, second):
        if len(features) < 2:
            raise UserError(f"{len(features)} images: a Fréchet distance needs at least two in each set")
        features = features.double()
        means.append(features.mean(dim=0))
        centred = (features - means[-1]) / (len(features) - 1) ** 0.5
        factors.append(torch.linalg.qr(centred, mode="r").R)  # RᵀR is centredᵀ centred
    traces = sum(factor.square().sum() for factor in factors)
    cross = torch.linalg.svdvals(factors[0] @ factors[1].T).sum()
    return ((means[0] - means[1]).square().sum() + traces - 2 * cross).item()
