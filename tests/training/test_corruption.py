"""training.corruption: draws follow from (seed, step, index), distributed as the papers say."""

import numpy as np
import pytest
import torch

from models.elastic import ElasticTiTok, draw_lengths, first_tokens
from models.titok import TiTok
from training.corruption import draw_corruption, draw_kept, draw_noise, draw_visible
from training.sections import CorruptionSection

SIZE = {"width": 32, "depth": 1, "heads": 2}
OPTIONS = {
    "image_size": 32,
    "patch_size": 8,
    "num_tokens": 8,
    "encoder": SIZE,
    "decoder": SIZE,
    "quantizer": {"codebook_size": 32, "token_size": 4},
}
ALL = CorruptionSection(patches=0.7, tokens=0.4, noise=3)


@pytest.mark.parametrize("kind", [TiTok, ElasticTiTok])
def test_each_image_has_its_own_whatever_batch_it_is_in(kind):
    tokenizer = kind(**OPTIONS)
    whole = draw_corruption(tokenizer, ALL, 3, 7, torch.tensor([5, 0, 9, 5]))
    part = draw_corruption(tokenizer, ALL, 3, 7, torch.tensor([9, 5]))
    for one, other in zip(whole, part, strict=True):
        assert torch.equal(one[[2, 0]], other)
        assert torch.equal(one[0], one[3]) and not torch.equal(one[0], one[2])
    for seed, step in ((4, 7), (3, 8), (3, 9)):
        other = draw_corruption(tokenizer, ALL, seed, step, torch.tensor([5]))
        assert not torch.equal(other.noise[0], whole.noise[0])


def test_what_is_off_is_not_drawn():
    tokenizer = TiTok(**OPTIONS)
    indices = torch.tensor([1, 2])
    assert draw_corruption(tokenizer, CorruptionSection(), 0, 1, indices) is None
    drawn = draw_corruption(tokenizer, CorruptionSection(tokens=0.5), 0, 1, indices)
    assert drawn.kept is not None and drawn.visible is drawn.noise is drawn.share is None
    elastic = draw_corruption(ElasticTiTok(**OPTIONS), CorruptionSection(), 0, 1, indices)
    assert elastic.kept is not None and elastic.visible is elastic.noise is None


def test_an_elastic_tokenizer_keeps_the_first_tokens_that_are_not_hidden():
    tokenizer, indices = ElasticTiTok(**OPTIONS), torch.arange(200)
    kept = draw_corruption(tokenizer, CorruptionSection(tokens=0.5), 0, 1, indices).kept
    first = first_tokens(draw_lengths(8, 0, 1, indices), 8)
    assert torch.equal(kept, first & draw_kept(8, 0.5, 0, 1, indices))
    assert not torch.equal(kept, first) and not first.all()


def expected_share(most):
    """The mean of max(0, U(-0.1, most))."""
    return most**2 / (2 * (most + 0.1))


def test_patches_are_hidden_in_the_share_of_the_step_and_evenly():
    counts, shares = np.zeros(64), []
    for step in range(1500):
        visible = draw_visible(64, 0.7, 0, step, torch.tensor([step, step + 1]))
        assert visible.shape[1] >= 64 - round(0.7 * 64)
        assert (visible.diff(dim=1) > 0).all() and visible.min() >= 0 and visible.max() < 64
        counts += np.bincount(visible.flatten(), minlength=64)
        shares.append(1 - visible.shape[1] / 64)
    assert np.mean(shares) == pytest.approx(expected_share(0.7), abs=0.02)
    assert np.mean(np.array(shares) == 0) == pytest.approx(0.1 / 0.8, abs=0.03)
    assert counts / counts.mean() == pytest.approx(1, abs=0.1)


def test_tokens_are_hidden_in_the_share_of_each_image_and_one_is_left():
    kept = draw_kept(64, 0.7, 0, 1, torch.arange(3000))
    assert (~kept).float().mean() == pytest.approx(expected_share(0.7), abs=0.02)
    assert kept.float().mean(dim=0) == pytest.approx(1 - expected_share(0.7), abs=0.04)
    assert draw_kept(2, 0.99, 0, 1, torch.arange(300)).any(dim=1).all()
    assert draw_visible(2, 0.99, 0, 3, torch.arange(3)).shape[1] >= 1


def test_noise_is_gaussian_and_its_share_even():
    noise, share = draw_noise(16, 8, 3.0, 0, 1, torch.arange(2000))
    assert noise.shape == (2000, 16, 8) and noise.dtype == share.dtype == torch.float32
    assert noise.mean() == pytest.approx(0, abs=0.02) and noise.std() == pytest.approx(3, abs=0.02)
    assert (noise.abs() < 3).float().mean() == pytest.approx(0.6827, abs=0.005)
    assert np.histogram(share, bins=4, range=(0, 1))[0] == pytest.approx(500, abs=90)
