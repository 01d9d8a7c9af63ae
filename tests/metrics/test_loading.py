"""What loading lost: errors and likeness against a by-hand computation, with nothing trained."""

import numpy as np
import pytest
import torch

from metrics.loading import loading_loss
from metrics.representation import linear_cka
from models.encoder_as_run import LOST
from models.pretrained import build_encoder
from tests.models.source_files import SIZE, save_file_of


def hooked(encoder, images):
    """The patch tokens behind each block and the norm, of forward_features."""
    kept = []
    for module in (*encoder.vit.blocks, encoder.vit.norm):
        module.register_forward_hook(lambda _, __, output: kept.append(output[:, 1:]))
    encoder.eval().forward_features(images)
    return kept


@pytest.mark.parametrize("init", LOST)
@torch.no_grad()
def test_errors_and_likeness_are_those_of_the_features(tmp_path, init):
    layout, suffix = ("open_clip", "safetensors") if init == "clip" else ("authors", "pth")
    file = tmp_path / f"weights.{suffix}"
    save_file_of(init, layout, file)
    torch.manual_seed(0)
    patch = 14 if init == "depth_anything_v2" else 16
    images = torch.rand(5, 3, 4 * patch, 4 * patch)
    torch.manual_seed(1)  # of what stays random
    loss = loading_loss(init, images, file, patch, **SIZE)
    right = build_encoder(init, file, 4 * patch, patch, 1, **SIZE)
    torch.manual_seed(1)
    build_encoder(init, file, 4 * patch, patch, 1, **SIZE)
    other = build_encoder(init, file, 4 * patch, patch, 1, loading="as_run", **SIZE)
    pairs = list(zip(hooked(right, images), hooked(other, images)))
    assert loss.error.shape == loss.cka.shape == (SIZE["depth"] + 1,)
    errors = [((b - a).norm() / a.norm()).item() for a, b in pairs]
    cka = [linear_cka(a.flatten(0, 1), b.flatten(0, 1), debiased=True) for a, b in pairs]
    tolerance = 0.2 if init == "clip" else 1e-4  # whose random bias is drawn after another encoder's start
    np.testing.assert_allclose(loss.error, errors, rtol=tolerance)
    np.testing.assert_allclose(loss.cka, cka, atol=tolerance)
    assert (loss.error > 0.01).all() and loss.num_images == 5 and loss.lost == LOST[init]
