"""InceptionV3 features of images, with the published weights or with fixed random ones."""

import hashlib
import io
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from models.perceptual import load_published


class _Network(FeatureExtractorInceptionV3):
    """torch-fidelity's InceptionV3 up to its pool features, without weights.

    The constructor would unpickle all of a file; it gets an empty one, and loads nothing from it.
    """

    def __init__(self):
        empty = io.BytesIO()
        torch.save({}, empty)
        empty.seek(0)
        self.load_state_dict = lambda state: None
        super().__init__("inception-v3", ["2048"], feature_extractor_weights_path=empty)
        del self.load_state_dict  # the class's own from here on, strict


class _Features(nn.Module):
    """Images to InceptionV3's 2048 pool features, by torch-fidelity's network."""

    dim = 2048

    def __init__(self):
        super().__init__()
        self.network = _Network()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1], rounded to the 256 levels of an image file, to float32 (B,2048)."""
        pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8)
        with torch.autocast(images.device.type, enabled=False):
            (features,) = self.network(pixels)
        return features

    def logits(self, features: Tensor) -> Tensor:
        """The pool features (n,2048) to logits (n,1008) without the last layer's bias, those of IS."""
        return features @ self.network.fc.weight.T


class InceptionFeatures(_Features):
    """The features of FID (Heusel et al. 2017, arXiv 1706.08500), with torch-fidelity's published weights.

    `weights` is the file weights-inception-2015-12-05-6726825d.pth; None takes it from torch hub's folder,
    downloading it if need be. `name` ends in the file's SHA-256. Raises UserError where it can't be had.
    """

    suffix = ""  # a metric has its own name

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        path = load_published(self.network, URL_INCEPTION_V3, weights, option="--inception-weights")
        with open(path, "rb") as file:
            self.name = f"inception-v3-fid-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"


class RandomInceptionFeatures(_Features):
    """The same network with fixed random weights: no file needed, and distances that are not FID.

    He's initialisation (2015, arXiv 1502.01852) with every filter centred (Brock et al. 2021, arXiv
    2101.08692, equation 4): the positive means behind each ReLU would else add up until all images looked
    alike. Batch norm is left at identity. The weights follow from `seed` alone.
    """

    suffix = "random"

    def __init__(self, seed: int = 0):
        super().__init__()
        self.name = f"random-inception-seed{seed}"
        generator = torch.Generator().manual_seed(seed)
        gain = math.sqrt(2 / (1 - 1 / math.pi))  # of a ReLU, when filters no longer see its mean
        for module in self.network.modules():
            if isinstance(module, nn.Conv2d):
                weight = module.weight  # (out, in, height, width)
                fan_in = weight[0].numel()
                nn.init.normal_(weight, std=gain / math.sqrt(fan_in), generator=generator)
                weight -= weight.mean(dim=(1, 2, 3), keepdim=True)
