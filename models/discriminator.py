"""The adversary: a patch discriminator, its hinge losses and LeCam regularisation."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PatchGAN(nn.Module):
    """Real or fake, judged patch by patch (Isola et al. 2017, arXiv 1611.07004, section 3.2).

    `layers` halvings of the image, then two convolutions at that size; with 3 layers a logit sees 70×70
    pixels. `norm` is "group", with which a logit depends on its own image alone, however the batch is split,
    or "batch", the original's, over the images of a call. `channels`, the first layer's width, is a multiple
    of 8.
    """

    def __init__(self, channels: int = 64, layers: int = 3, norm: str = "group"):
        super().__init__()
        blocks = [nn.Conv2d(3, channels, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        width = channels
        for layer in range(1, layers + 1):
            wider = channels * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            blocks += [
                nn.Conv2d(width, wider, kernel_size=4, stride=stride, padding=1, bias=False),
                # it only ever trains, so that running means would be for nobody
                nn.BatchNorm2d(wider, track_running_stats=False)
                if norm == "batch"
                else nn.GroupNorm(16, wider),
                nn.LeakyReLU(0.2),
            ]
            width = wider
        self.blocks = nn.Sequential(*blocks, nn.Conv2d(width, 1, kernel_size=4, padding=1))
        self.apply(_initialise)
        self.to(memory_format=torch.channels_last)  # convolutions are faster so

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1] to logits (B,1,h,w), high where real; 256×256 pixels give 30×30."""
        return self.blocks(images * 2 - 1)


def _initialise(module: nn.Module) -> None:
    # Radford et al. 2016 (DCGAN, arXiv 1511.06434), section 4, as every PatchGAN since
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, mean=0.0, std=0.02)
    elif isinstance(module, nn.GroupNorm | nn.BatchNorm2d):
        nn.init.normal_(module.weight, mean=1.0, std=0.02)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)


def hinge_discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Scalar hinge loss (Lim and Ye 2017, arXiv 1705.02894), its two halves averaged as in VQGAN."""
    real = F.relu(1 - real_logits.float()).mean()
    fake = F.relu(1 + fake_logits.float()).mean()
    return (real + fake) / 2


def hinge_generator_loss(fake_logits: Tensor) -> Tensor:
    """Scalar: minus the mean logit of the generator's images."""
    return -fake_logits.float().mean()


def adaptive_weight(
    images: Tensor, reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor
) -> Tensor:
    """How much the adversarial loss is to weigh beside the reconstruction's (VQGAN, arXiv 2012.09841, eq. 7).

    It is the ratio of their gradients' norms at the weight of the layer that made the images, a scalar
    without a gradient, at most 10,000 and with 1e-4 in its denominator as in the authors' code.
    reconstruction, adversarial: the two losses' gradients at the images (B, 3, H, W).
    """
    norms = [
        torch.autograd.grad(images, last_layer, gradient, retain_graph=True)[0].float().norm()
        for gradient in (reconstruction, adversarial)
    ]
    return (norms[0] / (norms[1] + 1e-4)).clamp(max=1e4)


class LeCam(nn.Module):
    """LeCam regularisation of the discriminator (Tseng et al. 2021, arXiv 2104.03310, equation 5).

    Holds running means of the logits of real and of fake images (its buffers), zero at first, and pulls each
    kind's logits towards the other kind's mean. The authors' code squares only what is on the far side of
    that mean, which we follow.
    """

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("fake", torch.zeros(()))

    def penalty(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """Scalar penalty of logits of any shape.

        A mean over single logits, as in the paper, not a function of the batch's mean logits, so that the
        mean over micro-batches of one size is the penalty of the whole batch.
        """
        real = F.relu(real_logits.float() - self.fake).square().mean()
        fake = F.relu(self.real - fake_logits.float()).square().mean()
        return real + fake

    @torch.no_grad()
    def update(self, real_mean: Tensor, fake_mean: Tensor) -> None:
        """Move the running means towards a whole step's mean logits (scalars over all processes).

        One that is not finite leaves its mean as it is.
        """
        for running, mean in ((self.real, real_mean.float()), (self.fake, fake_mean.float())):
            running.lerp_(mean.where(mean.isfinite(), running), 1 - self.decay)
