"""Fréchet distance of two sets of features."""

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric

from errors import UserError


class FeatureStatistics:
    """Mean and covariance of features (n, dim), gathered batch by batch in float64.

    `count` (), `sum` (dim,) and `outer` (dim, dim), the sum of the features' outer products with themselves,
    are the whole state: add each up over processes.
    """

    def __init__(self, dim: int, device: torch.device | str = "cpu"):
        self.count = torch.zeros((), dtype=torch.int64, device=device)
        self.sum = torch.zeros(dim, dtype=torch.float64, device=device)
        self.outer = torch.zeros(dim, dim, dtype=torch.float64, device=device)

    def update(self, features: Tensor) -> None:
        """Add features (B, dim), on the state's device."""
        features = features.double()
        self.count += len(features)
        self.sum += features.sum(dim=0)
        self.outer += features.T @ features

    @property
    def mean(self) -> Tensor:
        """(dim,), float64."""
        return self.sum / self.count

    @property
    def covariance(self) -> Tensor:
        """(dim, dim), float64, unbiased like numpy's `cov`. Raises UserError below two images."""
        if self.count < 2:
            raise UserError(f"{self.count.item()} images: a Fréchet distance needs at least two in each set")
        return (self.outer - self.count * torch.outer(self.mean, self.mean)) / (self.count - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """Fréchet distance of two Gaussians with means (dim,) and covariances (dim, dim).

    |m1 − m2|² + Tr(C1 + C2 − 2 (C1 C2)^½) (Heusel et al. 2017, arXiv 1706.08500, equation 6), computed in
    float64 by torch-fidelity, the published reference. Singular covariances, of fewer images than dimensions,
    are allowed. Equal sets give 0 up to rounding, of either sign.
    """
    first, second = (
        {"mu": mean.double().cpu().numpy(), "sigma": cov.double().cpu().numpy()}
        for mean, cov in ((mean1, cov1), (mean2, cov2))
    )
    return fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]
