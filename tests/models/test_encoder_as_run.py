"""Encoders as the study's code ran them: against timm's plain ViT filled with strict=False, as it did."""

import pytest
import torch
from timm.models.vision_transformer import checkpoint_filter_fn

from errors import UserError
from models.encoder_as_run import LOST, AsRunScratchEncoder, build_latent_encoder
from models.pretrained import build_encoder, load_pretrained
from tests.models.source_files import (
    LAYOUTS,
    PATCH,
    PIXELS,
    SIZE,
    original_state,
    save_file_of,
    timm_vit,
)
from tests.models.study_networks import PlainViT

LATENTS = 5
# What becomes of a ViT's parameters that the plain one has no place for, or lacks
FATES = {
    "mae": (set(), set()),
    "dino": (set(), set()),
    "clip": ({"norm_pre.weight", "norm_pre.bias"}, {"patch_embed.proj.bias"}),
    "dinov2": ({f"blocks.{block}.ls{branch}.gamma" for block in (0, 1) for branch in (1, 2)}, set()),
}
FATES["depth_anything_v2"] = FATES["dinov2"]


@pytest.mark.parametrize("init", LOST)
@torch.no_grad()
def test_the_latents_are_those_of_the_studys_loading(tmp_path, init):
    layout = {"clip": "open_clip"}.get(init, "authors")
    assert (init, layout) in LAYOUTS
    path = tmp_path / ("weights.safetensors" if layout == "open_clip" else "weights.pth")
    save_file_of(init, layout, path)
    pixels, patch = (56, 14) if init == "depth_anything_v2" else (64, 16)

    torch.manual_seed(0)
    options = {"image_size": pixels, "patch_size": patch, "num_latents": LATENTS, **SIZE}
    encoder = build_latent_encoder(init, "as_run", **options)
    drawn = {name: tensor.clone() for name, tensor in encoder.vit.state_dict().items()}
    loaded = load_pretrained(encoder, init, path)
    encoder.eval()

    # As its code did: timm resamples the patches' kernel, positions become zeros, the rest is dropped.
    study = PlainViT(pixels, patch, 64, 2, 2, LATENTS)
    state = original_state(init)
    if init == "clip":
        state = checkpoint_filter_fn(state, timm_vit("clip"))
    else:
        state = checkpoint_filter_fn(state, timm_vit(init, img_size=pixels, patch_size=patch))
    state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    state["pos_embed"] = torch.zeros(1, 1 + LATENTS + (pixels // patch) ** 2, 64)
    missing, unexpected = study.load_state_dict(state, strict=False)
    for key in set(missing) - {"prompt_tokens", "head.weight", "head.bias"}:
        study.get_parameter(key).copy_(drawn[key])  # the same random numbers
    study.eval()

    # Once as loaded, and once with latents and positions that are no zeros any more
    images = torch.rand(2, 3, pixels, pixels)
    torch.testing.assert_close(encoder(images), study(2 * images - 1), rtol=1e-4, atol=1e-5)
    for parameter in (study.pos_embed, study.prompt_tokens):
        parameter.copy_(0.3 * torch.randn(parameter.shape))
    places = 1 + (pixels // patch) ** 2
    encoder.latents.copy_(study.prompt_tokens[0])
    encoder.vit.pos_embed.copy_(study.pos_embed[:, :places])
    encoder.latent_positions.copy_(study.pos_embed[0, places:])
    torch.testing.assert_close(encoder(images), study(2 * images - 1), rtol=1e-4, atol=1e-5)

    lost, random = FATES[init]
    assert set(loaded.lost) == lost == set(unexpected)
    assert set(loaded.random) == random and loaded.zeroed == ["pos_embed"]
    assert set(loaded.filled) == set(encoder.vit.state_dict()) - random - {"pos_embed"}
    assert len(loaded.used) == len(loaded.filled) and "\n" not in loaded.summary()
    for word in ("lost", "random") if lost and random else ():
        assert f"{word} as the study's code ran" in loaded.summary()


def test_depth_anythings_file_fits_its_own_patches_only(tmp_path):
    save_file_of("depth_anything_v2", "authors", tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"patch_size 16: .* patches of 14 pixels"):
        build_encoder("depth_anything_v2", tmp_path / "weights.pth", 64, 16, 4, loading="as_run", **SIZE)


def test_another_sources_file_is_refused_as_ever(tmp_path):
    save_file_of("dinov2", "authors", tmp_path / "weights.pth")
    with pytest.raises(UserError, match="not the mae weights"):
        build_encoder("mae", tmp_path / "weights.pth", 64, 16, 4, loading="as_run", **SIZE)
    with pytest.raises(ValueError, match="no titok encoder"):
        build_latent_encoder("titok", "as_run", **SIZE)


def test_what_each_source_loses_is_said_for_all_of_them():
    assert LOST.keys() == PIXELS.keys() == PATCH.keys()
    for init, (lost, _) in FATES.items():
        assert ("LayerScale" in LOST[init]) == any("ls" in name for name in lost)
        assert any("before the first block" in each for each in LOST[init]) == ("norm_pre.bias" in lost)


@torch.no_grad()
def test_outputs_are_read_as_rows_of_features():
    """K outputs of D numbers, one after another in memory, as D rows of K; each latent takes a column."""
    torch.manual_seed(0)
    scratch = AsRunScratchEncoder("none", 32, 8, 6, 64, 1, 1).eval()
    images = torch.rand(2, 3, 32, 32)
    numbers = super(AsRunScratchEncoder, scratch).forward(images).flatten(1)
    wanted = torch.stack([numbers[:, latent::6] for latent in range(6)], dim=1)
    assert torch.equal(scratch(images), wanted)


def test_the_scratch_encoder_starts_as_the_studys():
    """Its forward is compared in test_study_checkpoints."""
    torch.manual_seed(0)
    encoder = AsRunScratchEncoder("none", 64, 8, 200, 128, 1, 2)
    for drawn in (encoder.latents, encoder.latent_positions):
        assert drawn.std().item() == pytest.approx(128**-0.5, rel=0.05)
    assert encoder.vit.cls_token.std().item() == pytest.approx(128**-0.5, rel=0.3)
    block, patches = encoder.vit.blocks[0], encoder.vit.patch_embed.proj
    assert block.attn.qkv.bias is None and isinstance(block.mlp.act, torch.nn.Tanh)
    # Xavier's uniform distribution over inputs and outputs, those of a patch's kernel in one
    for layer, inputs, outputs in (
        (block.mlp.fc1, 128, 512),
        (block.mlp.fc2, 512, 128),
        (block.attn.qkv, 128, 384),
        (block.attn.proj, 128, 128),
        (patches, 3 * 8**2, 128),
    ):
        bound = (6 / (inputs + outputs)) ** 0.5
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=1e-2)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not any(layer.bias.any() for layer in (block.mlp.fc1, block.mlp.fc2, block.attn.proj))
    assert patches.bias.abs().max().item() == pytest.approx((3 * 8**2) ** -0.5, rel=0.05)  # PyTorch's own
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 3 and all(norm.eps == 1e-5 for norm in norms)
    assert encoder.vit.pos_embed.requires_grad and encoder.vit.pos_embed.shape == (1, 64, 128)
    # place (row 2, column 5): sines and cosines of the column in the first half, of the row in the second
    angles = 10_000.0 ** (-torch.arange(32) / 32)
    wanted = torch.cat([(angles * 5).sin(), (angles * 5).cos(), (angles * 2).sin(), (angles * 2).cos()])
    torch.testing.assert_close(encoder.vit.pos_embed[0, 2 * 8 + 5], wanted, rtol=0, atol=1e-5)
