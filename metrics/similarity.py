"""Likeness of two images, pixel by pixel: PSNR and SSIM."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor


def psnr(images: Tensor, targets: Tensor) -> Tensor:
    """Peak signal-to-noise ratios (B,) in dB of images (B,3,H,W) in [0,1]; infinite where they are equal."""
    errors = reduce((images.double() - targets.double()).square(), "b c h w -> b", "mean")
    return -10 * errors.log10().float()


def ssim(images: Tensor, targets: Tensor) -> Tensor:
    """Structural similarities (B,), at most 1, of images (B,3,H,W) in [0,1], H and W at least 11.

    Wang et al. 2004, equation 13, with their Gaussian window of 11×11 (sigma 1.5), K1 = 0.01, K2 = 0.03;
    averaged over R, G and B and over the windows that lie within the image.
    """
    # float64, for the variances below are small differences of large numbers
    x, y = (rearrange(batch.double(), "b c h w -> (b c) 1 h w") for batch in (images, targets))
    offsets = torch.arange(-5, 6, device=x.device, dtype=x.dtype)
    window = torch.softmax(-offsets.square() / (2 * 1.5**2), dim=0)

    def blur(maps: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(maps, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    mean_x, mean_y = blur(x), blur(y)
    variance_x = blur(x.square()) - mean_x.square()
    variance_y = blur(y.square()) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return reduce(luminance * structure, "(b c) 1 h w -> b", "mean", b=len(images)).float()


class MeanSimilarity:
    """The mean over images of a likeness (B,) of images (B,3,H,W) to targets, by `function`.

    `sum` and `count`, each (), are the whole state: add them up over processes.
    """

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], device: torch.device | str = "cpu"):
        self.function = function
        self.sum = torch.zeros((), dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, images: Tensor, targets: Tensor) -> None:
        """Add images (B,3,H,W), on the state's device."""
        with torch.autocast(images.device.type, enabled=False):  # in which precision the images were made
            self.sum += self.function(images.float(), targets.float()).double().sum()
        self.count += len(images)

    @property
    def mean(self) -> float:
        """Needs at least one image."""
        return (self.sum / self.count).item()
