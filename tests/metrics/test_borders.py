"""Steps across patch borders, against images whose steps are known."""

import numpy as np
import pytest
import torch

from errors import UserError
from metrics.borders import BorderSteps, border_ratio


def by_hand(image):
    """Mean steps of an image (3, H, W) across the borders of 16-pixel patches, and inside, one by one."""
    across, inside = [], []
    for channel in image.numpy():
        for lines in (channel, channel.T):
            for line in lines:
                for place in range(1, len(line)):
                    (across if place % 16 == 0 else inside).append(abs(line[place] - line[place - 1]))
    return np.mean(across), np.mean(inside)


def test_steps_of_each_image():
    images = torch.rand(3, 3, 48, 32, generator=torch.Generator().manual_seed(0))
    steps = BorderSteps()(images)
    assert steps.shape == (3, 2)
    for found, image in zip(steps, images):
        assert found.tolist() == pytest.approx(by_hand(image), rel=1e-5)


def test_a_ramp_has_none_and_flat_patches_nothing_else():
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)
    patches = torch.rand(1, 3, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3)
    mixed = 0.5 * ramp + 0.5 * patches
    ratio = border_ratio(BorderSteps()(mixed), BorderSteps()(ramp))
    assert ratio["real"] == pytest.approx(1, rel=1e-4) and ratio["value"] > 10
    with pytest.raises(UserError, match="one colour"):
        border_ratio(BorderSteps()(patches), BorderSteps()(ramp))


def test_images_without_a_border_are_refused():
    small = BorderSteps()(torch.rand(2, 3, 16, 16))
    with pytest.raises(UserError, match="smaller than 17"):
        border_ratio(small, small)
