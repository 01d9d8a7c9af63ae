import copy
import os
import pickle
import warnings
from pathlib import Path
from urllib.error import URLError

import lpips
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import convnext_small
from torchvision.transforms.v2 import functional as transforms

from errors import UserError
from models.perceptual import LPIPS, ConvNeXtLogits, resize


@pytest.fixture(scope="module")
def reference():
    """The authors' own LPIPS on a random VGG16, biases too."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it calls torchvision in a deprecated way
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    for parameter in network.net.parameters():
        if parameter.ndim == 1:
            nn.init.normal_(parameter, std=0.1)
    return network


@pytest.fixture(scope="module")
def vgg_file(reference, tmp_path_factory):
    """That VGG16 under torchvision's keys, with a classifier as in the published file."""
    state = {f"features.{key.split('.', 1)[1]}": value for key, value in reference.net.state_dict().items()}
    state |= {
        f"classifier.{index}.{kind}": torch.zeros(1) for index in (0, 3, 6) for kind in ("weight", "bias")
    }
    path = tmp_path_factory.mktemp("vgg") / "vgg16-397923af.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def distance(vgg_file):
    return LPIPS(vgg_file)


@pytest.fixture(scope="module")
def convnext():
    """torchvision's ConvNeXt-S, random; layer scales of 1e-6, its initial ones, would hide the blocks."""
    torch.manual_seed(1)
    network = convnext_small().eval()
    for name, parameter in network.named_parameters():
        if name.endswith("layer_scale"):
            nn.init.normal_(parameter, std=0.5)
    return network


@pytest.fixture(scope="module")
def logits_distance(convnext, tmp_path_factory):
    path = tmp_path_factory.mktemp("convnext") / "convnext_small-0c510722.pth"
    torch.save(convnext.state_dict(), path)
    return ConvNeXtLogits(path)


@pytest.fixture
def images():
    return torch.rand(2, 3, 72, 56, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def targets(images):
    noise = torch.rand(images.shape, generator=torch.Generator().manual_seed(3))
    return images.lerp(noise, torch.tensor([0.2, 0.7]).view(2, 1, 1, 1))


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """Torch hub with an empty folder and no way out; returns its checkpoints folder."""

    def unreachable(url, *args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    return tmp_path / "hub" / "checkpoints"


def test_lpips_equals_the_authors(distance, reference, images, targets):
    expected = reference(images, targets, normalize=True).flatten()
    actual = distance(images, targets)
    assert actual.shape == (2,)
    assert expected.min() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(distance(images, images), torch.zeros(2))


def test_convnext_distance_equals_torchvisions_logits(logits_distance, convnext, images, targets):
    def logits(batch):
        batch = transforms.resize(batch, [224, 224], antialias=True)
        return convnext(transforms.normalize(batch, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))

    expected = (logits(images) - logits(targets)).square().mean(dim=1)
    torch.testing.assert_close(logits_distance(images, targets), expected, rtol=1e-4, atol=0)
    logits_distance.train()
    assert not any(module.training for module in logits_distance.modules())


@pytest.mark.parametrize("fixture", ["distance", "logits_distance"])
def test_gradients_reach_images_only(fixture, request, images, targets):
    loss = request.getfixturevalue(fixture)
    images, targets = images[:1].requires_grad_(), targets[:1].requires_grad_()
    loss(images, targets).sum().backward()
    assert images.grad.abs().max() > 0
    assert targets.grad is None
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in loss.parameters())


@pytest.mark.parametrize("fixture", ["distance", "logits_distance"])
def test_autocast_leaves_distances_in_float32(fixture, request, monkeypatch, images, targets):
    loss = request.getfixturevalue(fixture)
    if fixture == "logits_distance":  # ConvNeXt takes a minute in bfloat16 on a CPU
        stand_in = nn.Sequential(nn.AdaptiveAvgPool2d(8), nn.Flatten(), nn.Linear(192, 1000))
        monkeypatch.setattr(loss, "network", stand_in)
    images, targets = images[..., :32, :32], targets[..., :32, :32]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = loss(images, targets)
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, loss(images, targets), rtol=0.05, atol=0)


def test_lpips_gradient_is_finite_where_features_vanish(distance, targets):
    unbiased = copy.deepcopy(distance)
    for parameter in unbiased.slices.parameters():
        if parameter.ndim == 1:
            parameter.zero_()
    images = ((unbiased.shift + 1) / 2).expand_as(targets).clone().requires_grad_()
    unbiased(images, targets).sum().backward()
    assert images.grad.isfinite().all()


@pytest.mark.parametrize(
    "loss, name, option",
    [
        (LPIPS, "vgg16-397923af.pth", "losses.lpips_weights"),
        (ConvNeXtLogits, "convnext_small-0c510722.pth", "losses.convnext_weights"),
    ],
)
def test_weights_that_cannot_be_had(no_network, tmp_path, loss, name, option):
    with pytest.raises(UserError) as caught:
        loss()
    message = str(caught.value)
    assert all(part in message for part in (name, str(no_network), option, "no route to host"))
    assert "\n" not in message

    with pytest.raises(UserError, match=r"elsewhere\.pth: no such file") as caught:
        loss(tmp_path / "elsewhere.pth")
    assert name in str(caught.value) and option in str(caught.value)


def test_evaluation_names_its_own_option(no_network):
    with pytest.raises(UserError, match="--lpips-weights"):
        LPIPS(option="--lpips-weights")


def test_weights_in_torch_hubs_folder_are_found(no_network, vgg_file, distance, images, targets):
    no_network.mkdir(parents=True)
    os.symlink(vgg_file, no_network / vgg_file.name)
    torch.testing.assert_close(LPIPS()(images, targets), distance(images, targets))


class Intruder:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_broken_and_foreign_files(vgg_file, tmp_path):
    path = tmp_path / "weights.pth"
    whole = vgg_file.read_bytes()
    state = torch.load(vgg_file, weights_only=True)
    fewer = {key: value for key, value in state.items() if key != "features.28.bias"}
    intrusion = tmp_path / "intrusion"

    def write_state(content):
        torch.save(content, path)

    cases = [
        (lambda: path.write_bytes(b"<html>not found</html>"), "not readable"),
        (lambda: path.write_bytes(whole[: len(whole) // 2]), "not readable"),
        (lambda: path.write_bytes(b""), "not readable"),
        (lambda: path.write_bytes(pickle.dumps(Intruder(intrusion), protocol=2)), "not readable"),
        (lambda: write_state(fewer), "features.28.bias"),
        (lambda: write_state(state | {"features.99.bias": torch.zeros(1)}), "features.99.bias"),
        (lambda: write_state(state | {"features.0.bias": torch.zeros(3)}), "features.0.bias"),
        (lambda: write_state({"model": state}), "not the weights of vgg16-397923af.pth"),
        (lambda: write_state([1, 2]), "not the weights of vgg16-397923af.pth"),
    ]
    for write, complaint in cases:
        write()
        with pytest.raises(UserError) as caught:
            LPIPS(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ") and complaint in message and "losses.lpips_weights" in message
        assert "\n" not in message and len(message) < 500
    assert not intrusion.exists()


@pytest.mark.parametrize("shape", [(256, 256), (72, 56), (448, 224)])
def test_resizing_is_torchs_own(shape):
    """And so is its gradient."""
    images = torch.rand(2, 3, *shape, requires_grad=True)
    theirs = F.interpolate(images, size=(224, 224), mode="bilinear", antialias=True)
    weights = torch.rand(2, 3, 224, 224)
    results = [
        [each, *torch.autograd.grad((each * weights).sum(), images)] for each in (resize(images, 224), theirs)
    ]
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)
