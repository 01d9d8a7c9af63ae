import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models.vision_transformer import VisionTransformer

import metrics.dinov2
from errors import UserError
from metrics.dinov2 import DINOv2Features, resample_positions

SIZE = {"width": 48, "depth": 2, "heads": 3}


def vit(image_size):
    """timm's DINOv2, small."""
    return VisionTransformer(
        img_size=image_size,
        patch_size=14,
        embed_dim=48,
        depth=2,
        num_heads=3,
        init_values=1e-5,
        num_classes=0,
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in the authors' layout, which has a mask token beside timm's keys."""
    torch.manual_seed(0)
    state = vit(518).state_dict()
    state = {key: value + 0.1 * torch.randn_like(value) for key, value in state.items()}
    path = tmp_path_factory.mktemp("dinov2") / "dinov2_vitl14_pretrain.pth"
    torch.save(state | {"mask_token": torch.zeros(1, 48)}, path)
    return path


def photographs(count=3, size=64):
    coarse = np.random.default_rng(0).integers(256, size=(count, 8, 8, 3), dtype=np.uint8)
    return [Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC) for each in coarse]


@pytest.mark.parametrize("size", [64, 256])
def test_features_equal_timms_on_pillows_images(weights, size):
    """PIL resizes, timm's own network reads; only the positions are resampled here."""
    pictures = photographs(size=size)
    reference = vit(224)
    state = torch.load(weights, weights_only=True)
    state["pos_embed"] = resample_positions(state["pos_embed"], 16)
    del state["mask_token"]
    reference.load_state_dict(state)
    resized = np.stack([np.asarray(each.resize((224, 224), Image.Resampling.BICUBIC)) for each in pictures])
    pixels = (resized / 255 - IMAGENET_DEFAULT_MEAN) / IMAGENET_DEFAULT_STD
    with torch.no_grad():
        pixels = torch.from_numpy(pixels).float().permute(0, 3, 1, 2)
        expected = reference.eval().forward_features(pixels)[:, 0]

    images = torch.from_numpy(np.stack(pictures)).float().permute(0, 3, 1, 2) / 255
    extractor = DINOv2Features(weights, **SIZE)
    actual = extractor(images)
    assert actual.shape == (3, 48) and extractor.dim == 48
    assert expected.std(dim=0).mean() > 0.01
    assert (actual - expected).abs().max() < 0.05 * expected.std(dim=0).mean()
    assert extractor.name.startswith("dinov2-vitl14-") and not extractor.suffix


def test_positions_are_resampled_as_the_authors_do():
    """Cubic convolution (a = -0.75) at the places that a scale of (16 + 0.1) / 37 gives, by hand."""
    positions = torch.randn(1, 1 + 37 * 37, 2, generator=torch.Generator().manual_seed(0))

    def weight(x):
        x = np.abs(x)
        near = (1.25 * x - 2.25) * x**2 + 1
        far = -0.75 * (((x - 5) * x + 8) * x - 4)
        return np.where(x <= 1, near, np.where(x < 2, far, 0.0))

    places = (np.arange(16) + 0.5) * 37 / 16.1 - 0.5
    matrix = np.zeros((16, 37))
    for row, place in enumerate(places):
        for column in range(int(np.floor(place)) - 1, int(np.floor(place)) + 3):
            matrix[row, min(max(column, 0), 36)] += weight(place - column)
    grid = positions[0, 1:].numpy().reshape(37, 37, 2)
    expected = np.einsum("ih,jw,hwd->ijd", matrix, matrix, grid).reshape(256, 2)

    actual = resample_positions(positions, 16)[0]
    assert torch.equal(actual[0], positions[0, 0])
    np.testing.assert_allclose(actual[1:].numpy(), expected, atol=1e-4)


def test_the_published_network_is_timms():
    """Of the size that the default weights have, by timm's own definition of it."""
    with torch.device("meta"):
        published = timm.create_model("vit_large_patch14_dinov2.lvd142m")
    assert published.embed_dim == 1024 and len(published.blocks) == 24
    assert published.blocks[0].attn.num_heads == 16
    assert published.patch_embed.img_size == (518, 518) and published.patch_embed.patch_size == (14, 14)


def test_weights_that_cannot_be_had(weights, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"nowhere\.pth: no such file; --dinov2-weights"):
        DINOv2Features(tmp_path / "nowhere.pth")

    def unreachable(*names):
        raise OSError("no route to host")

    monkeypatch.setattr(metrics.dinov2, "hf_hub_download", unreachable)
    with pytest.raises(UserError, match=r"vit_large_patch14_dinov2.*--dinov2-weights"):
        DINOv2Features()
    state = torch.load(weights, weights_only=True)
    del state["norm.weight"]
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(UserError, match=r"less\.pth: .*norm\.weight"):
        DINOv2Features(tmp_path / "less.pth", **SIZE)
