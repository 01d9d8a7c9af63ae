"""Stem, head and mixing of a TiTok: shapes, what each sees, and what they are at first."""

import pytest
import torch
from torch import nn

from errors import UserError
from models.mimetic import nearness
from models.patches import ConvHead, ConvStem, LinearHead
from models.storage import build_tokenizer
from models.titok import PixelDecoder, TiTok
from training.config import TokenizerConfig, load_config

SIZE = {"width": 32, "depth": 1, "heads": 2}
CONV = {
    "encoder": {**SIZE, "stem": "conv", "mixing": True},
    "decoder": {**SIZE, "head": "conv", "mixing": True},
}


@pytest.mark.parametrize("patch", [4, 8, 16, 32])
def test_stem_and_head_have_a_token_for_each_patch(patch):
    images = torch.rand(2, 3, 3 * patch, 3 * patch)
    tokens = ConvStem(3 * patch, patch, 3, 64)(images)
    assert tokens.shape == (2, 9, 64)
    grid = tokens.transpose(1, 2).reshape(2, 64, 3, 3)
    made = ConvHead(64, patch)(grid)
    assert made.shape == images.shape and abs(made.mean().item() - 0.5) < 0.1


def reach(head):
    """Which pixels of 64×64 a change in the middle place of a 4×4 grid moves."""
    grid = torch.randn(1, 32, 4, 4)
    other = grid.clone()
    other[:, :, 1, 1] += 1
    return (head(other) - head(grid)).abs().sum(dim=(0, 1)) > 0


def test_convolutions_see_across_borders():
    alone, across = reach(LinearHead(32, 16)), reach(ConvHead(32, 16))
    assert alone[16:32, 16:32].all() and alone.sum() == 16 * 16
    assert across[16:32, 16:32].all() and across[8:40, 8:40].sum() > 2 * 16 * 16


def test_mixing_begins_with_what_is_near_and_is_nothing_at_zero():
    for grid, count in ((8, 64), (8, 16), (6, 64), (4, 6), (1, 1)):
        shares = nearness((grid, grid), count).softmax(dim=1)
        assert shares.shape == (count, grid**2) and (shares.amax(dim=1) > 0.24).all()
        rows = shares @ torch.arange(grid).repeat_interleave(grid).float()
        assert (rows.diff() > -1e-4).all() and abs(rows.mean().item() - (grid - 1) / 2) < 0.2

    torch.manual_seed(0)
    plain = PixelDecoder(32, 8, num_tokens=6, token_size=4, **SIZE)
    mixed = PixelDecoder(32, 8, num_tokens=6, token_size=4, **SIZE, mixing=True)
    mixed.load_state_dict(plain.state_dict(), strict=False)
    tokens = torch.randn(2, 6, 4)
    assert not torch.allclose(mixed(tokens), plain(tokens))
    nn.init.zeros_(mixed.mixing)
    torch.testing.assert_close(mixed(tokens), plain(tokens))

    plain, mixed = (TiTok(32, 8, 6, {**SIZE, "mixing": each}, SIZE).encoder for each in (False, True))
    mixed.load_state_dict(plain.state_dict(), strict=False)
    images = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(mixed(images), plain(images))
    nn.init.zeros_(mixed.mixing)
    torch.testing.assert_close(mixed(images), plain(images))


def test_all_of_it_learns_and_is_built_again_from_its_config():
    torch.manual_seed(0)
    tokenizer = TiTok(32, 8, 6, CONV["encoder"], CONV["decoder"], {"codebook_size": 16, "token_size": 4})
    images = torch.rand(2, 3, 32, 32)
    (tokenizer.to_images(tokenizer.to_latents(images)) - images).square().mean().backward()
    assert all(
        parameter.grad is not None
        for name, parameter in tokenizer.named_parameters()
        if "codebook" not in name
    )
    again = build_tokenizer(tokenizer.config)
    again.load_state_dict(tokenizer.state_dict())
    assert torch.equal(again.encode(images), tokenizer.encode(images))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("patch_size: 24, encoder: {stem: conv}", "patch_size 24 is none of 4, 8, 16"),
        ("encoder: {stem: conv, init: mae}", "stem: conv is for an encoder from scratch"),
        ("kind: two_stage_titok, decoder: {head: conv}", "a two-stage TiTok has its own"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, model, words):
    path = tmp_path / "tok.yaml"
    path.write_text(f"data: {{frames: f}}\nmodel: {{image_size: 240, {model}}}\ntraining: {{max_steps: 1}}\n")
    with pytest.raises(UserError, match=words):
        load_config(path, TokenizerConfig)
