"""Whether one sees the patches of which an image was made: pixel steps across their borders."""

import torch
from torch import Tensor, nn

from errors import UserError

PATCH = 16  # pixels, of the study's networks


class BorderSteps(nn.Module):
    """How large an image's steps from pixel to pixel are, across the borders of patches and inside them."""

    name, dim, suffix = f"borders-{PATCH}", 2, ""

    def forward(self, images: Tensor) -> Tensor:
        """Images (B,3,H,W) in [0,1] to the mean absolute steps across borders, and inside: (B,2)."""
        sides = []
        for steps in (images.diff(dim=-1), images.diff(dim=-2).transpose(-1, -2)):
            is_border = torch.arange(1, steps.shape[-1] + 1, device=images.device) % PATCH == 0
            sides.append((steps[..., is_border].abs(), steps[..., ~is_border].abs()))
        means = [torch.cat([each.flatten(1) for each in side], dim=1).mean(dim=1) for side in zip(*sides)]
        return torch.stack(means, dim=1)


def border_ratio(made: Tensor, real: Tensor) -> dict:
    """Steps across borders over those inside, of sets (n, 2) of BorderSteps: `value`, and `real` beside it.

    It is 1 where patches don't show. Raises UserError for images without a border or of one colour.
    """
    ratios = [(steps[:, 0].mean() / steps[:, 1].mean()).item() for steps in (made.double(), real.double())]
    if not all(0 <= ratio < float("inf") for ratio in ratios):
        raise UserError(f"no steps to compare: images of one colour, or smaller than {PATCH + 1} pixels")
    return {"value": ratios[0], "real": ratios[1]}
