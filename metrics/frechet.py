"""Fréchet distance of two sets of features."""

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from errors import UserError


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Fréchet distance of the Gaussians that fit two sets of features, (n, dim) and (m, dim).

    |m1 − m2|² + Tr(C1 + C2 − 2 (C1 C2)^½) (Heusel et al. 2017, arXiv 1706.08500, equation 6), computed in
    float64 by torch-fidelity, the published reference; the covariances are unbiased, like numpy's `cov`.
    Fewer images than dimensions, whose covariance is singular, are allowed. Equal sets give 0 up to rounding,
    of either sign. Raises UserError below two images.
    """
    statistics = []
    for features in (first, second):
        if len(features) < 2:
            raise UserError(f"{len(features)} images: a Fréchet distance needs at least two in each set")
        features = features.double()
        mean, covariance = features.mean(dim=0), torch.cov(features.T)
        statistics.append({"mu": mean.cpu().numpy(), "sigma": covariance.cpu().numpy()})
    return fid_statistics_to_metric(*statistics, verbose=False)[KEY_METRIC_FID]
