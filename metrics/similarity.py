"""Likeness of two images, pixel by pixel: PSNR and SSIM."""

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
