import pytest
import torch
from torch import nn

from models.discriminator import (
    LeCam,
    PatchGAN,
    adaptive_weight,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(0)
    return tuple(2 * torch.randn(8, 1, 5, 5, generator=generator) for _ in range(2))


def test_a_map_of_logits():
    torch.manual_seed(0)
    assert PatchGAN()(torch.rand(1, 3, 256, 256)).shape == (1, 1, 30, 30)
    assert PatchGAN(channels=8, layers=2)(torch.rand(2, 3, 64, 48)).shape == (2, 1, 14, 10)


def test_black_white_and_the_middle_are_minus_one_one_and_zero():
    network = PatchGAN(channels=8)
    seen = []
    network.blocks[0].register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].unique().tolist())
    )
    for level in (0.0, 0.5, 1.0):
        network(torch.full((1, 3, 32, 32), level))
    assert seen == [[-1.0], [0.0], [1.0]]


@pytest.mark.parametrize("mode", [True, False])
def test_logits_do_not_depend_on_the_rest_of_the_batch(mode):
    torch.manual_seed(0)
    network = PatchGAN(channels=16).train(mode)
    images = torch.rand(3, 3, 64, 64)
    images[1:] *= 0.2  # other statistics
    together = network(images)
    alone = torch.cat([network(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not list(network.buffers())


def test_a_logit_sees_70_by_70_pixels():
    torch.manual_seed(0)
    network = PatchGAN(channels=16)
    for index, layer in enumerate(network.blocks):
        if isinstance(layer, nn.GroupNorm):  # its statistics are the whole image's
            network.blocks[index] = nn.Identity()
    images = torch.rand(1, 3, 128, 128, requires_grad=True)
    network.double()(images.double())[0, 0, 7, 7].backward()
    rows, columns = images.grad[0].abs().sum(dim=0).nonzero().T
    assert rows.max() - rows.min() + 1 == 70
    assert columns.max() - columns.min() + 1 == 70


def test_hinge_losses():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    discriminator = ((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(discriminator)
    assert hinge_generator_loss(fake).item() == pytest.approx(2 / 3)
    assert hinge_discriminator_loss(real.bfloat16(), fake.bfloat16()).dtype == torch.float32
    assert hinge_generator_loss(fake.bfloat16()).dtype == torch.float32


def test_lecam_penalty_and_running_means():
    lecam = LeCam(decay=0.9)
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([-2.0, 1.0])
    assert lecam.penalty(real, fake).item() == pytest.approx((4 + 0) / 2 + (4 + 0) / 2)
    lecam.update(torch.tensor(3.0), torch.tensor(-5.0))
    lecam.update(torch.tensor(1.0), torch.tensor(-1.0))
    assert lecam.real.item() == pytest.approx(0.9 * 0.3 + 0.1)
    assert lecam.fake.item() == pytest.approx(0.9 * -0.5 - 0.1)
    lecam.update(torch.tensor(torch.nan), torch.tensor(torch.inf))  # of a step that is skipped
    expected = ((2 + 0.55) ** 2 + 0) / 2 + ((0.37 + 2) ** 2 + 0) / 2
    assert lecam.penalty(real, fake).item() == pytest.approx(expected)
    assert set(lecam.state_dict()) == {"real", "fake"}


def test_lecam_penalty_adds_up_over_micro_batches(logits):
    lecam = LeCam(decay=0.5)
    lecam.update(torch.tensor(0.6), torch.tensor(-0.4))
    whole = torch.nn.Parameter(torch.stack(logits))
    lecam.penalty(*whole).backward()
    parts = torch.nn.Parameter(torch.stack(logits))
    for micro_batch in parts.split(2, dim=1):
        (lecam.penalty(*micro_batch) / 4).backward()
    torch.testing.assert_close(parts.grad, whole.grad)


def test_the_adaptive_weight_is_the_ratio_of_the_gradients_at_the_last_layer():
    """By torch.autograd on the whole losses, as VQGAN's equation 7 has it."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.SiLU(), torch.nn.Conv2d(8, 3, 3)
    )
    discriminator, targets = PatchGAN(16, 2), torch.rand(2, 3, 32, 32)
    images = network(torch.rand(2, 3, 34, 34))
    reconstruction = (images - targets).abs().mean() + 0.3 * (images - targets).square().mean()
    adversarial = hinge_generator_loss(discriminator(images))
    last = network[-1].weight
    norms = [
        torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, adversarial)
    ]
    at_images = [
        torch.autograd.grad(loss, images, retain_graph=True)[0] for loss in (reconstruction, adversarial)
    ]
    weight = adaptive_weight(images, *at_images, last)
    assert not weight.requires_grad
    assert weight.item() == pytest.approx((norms[0] / (norms[1] + 1e-4)).item(), rel=1e-4)
    assert adaptive_weight(images, at_images[0] * 1e9, at_images[1] * 1e-9, last).item() == 1e4


def test_batch_norm_is_the_originals():
    """Statistics are of the images of a call; GroupNorm's are of one image."""
    torch.manual_seed(0)
    images = torch.rand(4, 3, 32, 32)
    for norm, alike in (("group", True), ("batch", False)):
        discriminator = PatchGAN(16, 2, norm)
        alone, together = discriminator(images[:1]), discriminator(images)[:1]
        assert torch.allclose(alone, together, atol=1e-5) == alike
    layers = [layer for layer in discriminator.modules() if isinstance(layer, torch.nn.BatchNorm2d)]
    assert len(layers) == 2 and all(abs(layer.weight.mean() - 1) < 0.02 for layer in layers)
