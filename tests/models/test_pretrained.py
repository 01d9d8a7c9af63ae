"""Published weights into the encoder: exact against timm's own forward, and every key accounted for."""

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import checkpoint_filter_fn

from errors import UserError
from models.pretrained import build_encoder

SIZE = {"width": 96, "depth": 2, "heads": 3}
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def timm_mae(**options):
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_224.mae", embed_dim=96, depth=2, num_heads=3, **options).eval()
    for parameter in vit.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return vit


@pytest.fixture(scope="module")
def mae_file(tmp_path_factory):
    """The authors' layout: {"model": …}, with the decoder that is dropped."""
    state = dict(timm_mae().state_dict())
    state |= {"mask_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.zeros(64, 96)}
    path = tmp_path_factory.mktemp("mae") / "mae_pretrain_vit_base.pth"
    torch.save({"model": state}, path)
    return path


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("layout", ["authors", "timm"])
def test_same_features_at_the_source_size(mae_file, tmp_path, layout):
    if layout == "timm":
        mae_file = tmp_path / "model.safetensors"
        save_file(timm_mae().state_dict(), mae_file)
    encoder = build_encoder("mae", mae_file, image_size=224, patch_size=16, num_latents=8, **SIZE).eval()
    images = torch.rand(2, 3, 224, 224)
    normalised = (images - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    expected = timm_mae().forward_features(normalised)
    assert relative_error(encoder.forward_features(images), expected) < 1e-5
    assert encoder(images).shape == (2, 8, 96)


def test_same_features_as_timms_resampled_model(mae_file):
    encoder = build_encoder("mae", mae_file, image_size=128, patch_size=8, num_latents=8, **SIZE).eval()
    resampled = timm_mae(img_size=128, patch_size=8)
    resampled.load_state_dict(checkpoint_filter_fn(dict(timm_mae().state_dict()), resampled))
    images = torch.rand(2, 3, 128, 128)
    expected = resampled.forward_features((images - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1))
    assert relative_error(encoder.forward_features(images), expected) < 1e-5


def test_wrong_files_are_refused(mae_file, tmp_path):
    def refused(state, size=SIZE):
        torch.save(state, tmp_path / "weights.pth")
        with pytest.raises(UserError) as caught:
            build_encoder("mae", tmp_path / "weights.pth", **size)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    state = torch.load(mae_file, weights_only=True)["model"]
    assert "lacks blocks.1.attn.qkv.bias" in refused(
        {"model": {key: value for key, value in state.items() if key != "blocks.1.attn.qkv.bias"}}
    )
    assert "also holds fc_norm.weight" in refused({"model": state | {"fc_norm.weight": torch.ones(96)}})
    assert "other shapes" in refused({"model": state}, {"width": 64, "depth": 2, "heads": 2})
    assert "no state dict" in refused([1, 2])
    (tmp_path / "weights.pth").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="not readable as weights"):
        build_encoder("mae", tmp_path / "weights.pth", **SIZE)
    with pytest.raises(UserError, match="is not a file"):
        build_encoder("mae", tmp_path / "missing.pth", **SIZE)
