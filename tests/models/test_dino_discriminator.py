"""models.dino_discriminator: features of timm's own ViT, heads that learn, a source that doesn't."""

import math

import pytest
import timm
import torch
from torch.nn import functional as F

from models.dino_discriminator import BLOCKS, DinoDiscriminator, Discriminators
from models.discriminator import PatchGAN
from models.encoder import LatentEncoder
from training.optimizer import frozen

SIZE = {"width": 48, "depth": 12, "heads": 2}


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(0)
    return LatentEncoder("dino", 64, 16, 1, **SIZE)


@pytest.fixture
def images():
    return torch.rand(2, 3, 64, 48 + 16, generator=torch.Generator().manual_seed(1))


def normalised(convolution, x, padding):
    """A convolution whose matrix is divided by its largest singular value."""
    weight = convolution.parametrizations.weight.original
    largest = torch.linalg.matrix_norm(weight.flatten(1), ord=2)
    return F.conv2d(x, weight / largest, convolution.bias, padding=padding)


def test_logits_are_the_heads_of_timms_features(source, images):
    torch.manual_seed(0)
    network = DinoDiscriminator(source)
    for _ in range(30):  # of the power iteration, until it is exact
        network(images)
    vit = timm.create_model(
        "vit_base_patch16_224.dino", num_classes=0, img_size=64, embed_dim=48, depth=12, num_heads=2
    )
    vit.load_state_dict(source.vit.state_dict())
    outputs = []
    for block in vit.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        vit.eval().forward_features((images - mean.view(3, 1, 1)) / std.view(3, 1, 1))
        logits = network.eval()(images)
        expected = []
        for head, number in zip(network.heads, (3, 6, 9, 12), strict=True):
            x = outputs[number - 1][:, 1:].transpose(1, 2).reshape(2, 48, 4, 4)
            x = F.leaky_relu(head.first[1](normalised(head.first[0], x, 0)), 0.2)
            y = F.leaky_relu(head.second[1](normalised(head.second[0], x, 1)), 0.2)
            expected.append(normalised(head.to_logits, (x + y) / math.sqrt(2), 0).flatten(1))
    torch.testing.assert_close(logits, torch.cat(expected, dim=1), atol=1e-3, rtol=1e-3)


def test_the_source_is_frozen_and_in_no_state(source, images):
    network = DinoDiscriminator(source)
    names = [name for name, _ in network.named_parameters()]
    assert all(name.startswith("heads.") for name in names)
    assert all(name.startswith("heads.") for name in network.state_dict())
    images.requires_grad_()
    with frozen(network):
        network(images).sum().backward()
    assert images.grad.abs().sum() > 0 and all(p.grad is None for p in network.parameters())
    network(images.detach()).sum().backward()
    assert all(p.grad is not None for p in network.parameters())
    assert all(p.grad is None and not p.requires_grad for p in source.parameters())
    assert not source.training
    network.double()
    assert source.vit.cls_token.dtype == torch.float64
    network.float()


def test_each_image_is_judged_alone_and_beside_patch_gan(source, images):
    torch.manual_seed(0)
    patch_gan, dino = PatchGAN(16, 2), DinoDiscriminator(source)
    both = Discriminators(patch_gan, dino).eval()
    with torch.no_grad():
        logits = both(images)
        assert logits.shape == (2, 14 * 14 + len(BLOCKS) * 16)
        torch.testing.assert_close(logits[:, :196], patch_gan(images).flatten(1))
        torch.testing.assert_close(logits[1:], both(images[1:]), atol=1e-5, rtol=1e-5)
