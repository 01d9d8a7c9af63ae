import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from metrics.similarity import MeanSimilarity, psnr, ssim


@pytest.fixture(scope="module")
def pairs():
    """Noise, a flat bright picture (its variances nearly vanish) and a ramp, each with a noisy target."""
    generator = torch.Generator().manual_seed(0)
    ramp = torch.linspace(0, 1, 40).expand(3, 33, 40) * torch.tensor([1.0, 0.5, 0.2]).view(3, 1, 1)
    images = torch.stack([torch.rand(3, 33, 40, generator=generator), torch.full_like(ramp, 0.98), ramp])
    noise = torch.randn(images.shape, generator=generator) * torch.tensor([0.3, 0.005, 0.1]).view(3, 1, 1, 1)
    return images, (images + noise).clamp(0, 1)


def channels_last(batch):
    return batch.double().permute(0, 2, 3, 1).numpy()


def test_psnr_equals_skimage(pairs):
    expected = [peak_signal_noise_ratio(y, x, data_range=1) for x, y in zip(*map(channels_last, pairs))]
    torch.testing.assert_close(psnr(*pairs), torch.tensor(expected).float(), rtol=0, atol=1e-4)


def test_psnr_by_hand():
    images = torch.zeros(2, 3, 4, 4)
    targets = torch.stack([torch.full((3, 4, 4), 0.1), torch.zeros(3, 4, 4)])
    assert psnr(images, targets).tolist() == [pytest.approx(20, abs=1e-4), float("inf")]


def test_ssim_equals_skimage(pairs):
    expected = [
        structural_similarity(
            x, y, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1, channel_axis=-1
        )
        for x, y in zip(*map(channels_last, pairs))
    ]
    assert max(expected) - min(expected) > 0.1
    torch.testing.assert_close(ssim(*pairs), torch.tensor(expected).float(), rtol=0, atol=1e-5)


def test_ssim_of_equal_images_is_one(pairs):
    torch.testing.assert_close(ssim(pairs[0], pairs[0]), torch.ones(3))


def test_a_mean_adds_up_over_batches_and_processes(pairs):
    images, targets = pairs
    whole, first, second = (MeanSimilarity(ssim) for _ in range(3))
    whole.update(images[:1], targets[:1])
    whole.update(images[1:], targets[1:])
    assert whole.mean == pytest.approx(ssim(images, targets).mean().item())
    first.update(images[:1], targets[:1])
    second.update(images[1:], targets[1:])
    first.sum, first.count = first.sum + second.sum, first.count + second.count
    assert first.mean == pytest.approx(whole.mean)
