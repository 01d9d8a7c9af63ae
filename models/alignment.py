"""Alignment of a decoder's features to a frozen source's (GigaTok, arXiv 2504.08736; VFMTok, 2507.08441)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.encoder import LatentEncoder
from models.titok import TiTok

HIDDEN_WIDTH = 2048  # of the projector, as REPA's (arXiv 2410.06940, appendix)


def projector(width: int, source_width: int) -> nn.Sequential:
    """From a decoder's features (..., width) to the source's (..., source_width)."""
    return nn.Sequential(
        nn.Linear(width, HIDDEN_WIDTH),
        nn.SiLU(),
        nn.Linear(HIDDEN_WIDTH, HIDDEN_WIDTH),
        nn.SiLU(),
        nn.Linear(HIDDEN_WIDTH, source_width),
    )


class PatchFeatures:
    """What a block of a TiTok's ViT decoder gave for the image's patches in the forward pass just done."""

    def __init__(self, tokenizer: TiTok, block: int):
        """block: counted from 1."""
        self.places = len(tokenizer.decoder.positions) - 1
        tokenizer.decoder.blocks[block - 1].register_forward_hook(self._keep)

    def _keep(self, block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        self.output = output

    def take(self) -> Tensor:
        """Features (B, N, width), once."""
        output = self.output
        del self.output
        return output[:, 1 : 1 + self.places]


@torch.no_grad()
def source_features(source: LatentEncoder, images: Tensor) -> Tensor:
    """A frozen source's features (B, N, width) of the patches of images (B, 3, H, W) in [0, 1]."""
    return source.forward_features(images)[:, 1:]


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """Scalar: 1 - the mean cosine of patches' projected features and the source's, (B, N, width) each.

    (GigaTok, section 3.2, has minus the cosine.)
    """
    return 1 - F.cosine_similarity(projected.float(), features.float(), dim=-1).mean()
