"""DINOv2 class-token features of images, for the Fréchet distance FD-DINOv2."""

import hashlib
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn

from errors import UserError
from models.encoder import LatentEncoder
from models.pretrained import SOURCES, load_pretrained

HUB_ID, HUB_FILE = SOURCES["dinov2"].hub[1024]
PATCH_SIZE, TRAINED_SIZE, SIZE = 14, 518, 224  # in pixels: a patch, DINOv2's training images, ours


class DINOv2Features(nn.Module):
    """Images to the class token of DINOv2's ViT-L/14 after its last norm.

    FD-DINOv2's features (Stein et al. 2023, arXiv 2306.04675). As in their dgm-eval: the whole image bicubic
    to 224×224 at 256 levels, ImageNet's normalisation, and the positions as DINOv2's own code resamples them.

    `weights` is the authors' file dinov2_vitl14_pretrain.pth or timm's; None takes timm's from the Hub.
    `name` ends in the file's SHA-256. width, depth, heads: of a ViT other than ViT-L.
    Raises UserError where the weights can't be had.
    """

    suffix = ""

    def __init__(
        self, weights: str | Path | None = None, width: int = 1024, depth: int = 24, heads: int = 16
    ):
        super().__init__()
        path = Path(weights) if weights else _fetch()
        if not path.is_file():
            raise UserError(f"{path}: no such file; --dinov2-weights takes the path of DINOv2's ViT-L/14")
        encoder = LatentEncoder("dinov2", TRAINED_SIZE, PATCH_SIZE, 1, width, depth, heads)
        load_pretrained(encoder, "dinov2", path)
        vit = encoder.vit
        positions = resample_positions(vit.pos_embed.detach(), SIZE // PATCH_SIZE)
        vit.patch_embed.set_input_size(img_size=(SIZE, SIZE))
        vit.pos_embed = nn.Parameter(positions)
        self.encoder = encoder.eval().requires_grad_(False)
        self.dim = width
        with open(path, "rb") as file:
            self.name = f"dinov2-vitl14-{hashlib.file_digest(file, 'sha256').hexdigest()[:8]}"

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1], rounded to the 256 levels of an image file, to float32 (B,dim)."""
        pixels = (images.float().clamp(0, 1) * 255).round()
        pixels = F.interpolate(pixels, size=(SIZE, SIZE), mode="bicubic", antialias=True)
        with torch.autocast(images.device.type, enabled=False):
            return self.encoder.forward_features(pixels.round().clamp(0, 255) / 255)[:, 0]


def resample_positions(positions: Tensor, grid: int) -> Tensor:
    """DINOv2's positions (1, 1 + n·n, dim), the class token's first, to (1, 1 + grid·grid, dim).

    As its `interpolate_pos_encoding` does: bicubic without antialiasing, and by a scale factor that is off by
    a tenth of a patch, which the weights' published results all have in them.
    """
    class_token, patches = positions[:, :1], positions[:, 1:]
    side = round(patches.shape[1] ** 0.5)
    patches = rearrange(patches, "1 (h w) d -> 1 d h w", h=side)
    patches = F.interpolate(patches, scale_factor=(grid + 0.1) / side, mode="bicubic")
    return torch.cat([class_token, rearrange(patches, "1 d h w -> 1 (h w) d")], dim=1)


def _fetch() -> Path:
    try:
        return Path(hf_hub_download(HUB_ID, HUB_FILE))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{HUB_ID}/{HUB_FILE}: neither in the Hugging Face cache nor downloadable "
            f"({type(error).__name__}); give a file with --dinov2-weights"
        ) from error
