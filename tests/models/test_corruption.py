"""models.corruption: what is hidden of an image changes nothing, and what is left is as it was."""

import pytest
import torch

from models.corruption import Corruption
from models.storage import build_tokenizer
from models.titok import TiTok

SIZE = {"width": 32, "depth": 2, "heads": 2}
CONV = {"kind": "conv", "width": 32, "channels": 32, "multipliers": [1, 1], "blocks": 1, "attention": False}
COMMON = {"image_size": 32, "quantizer": {"codebook_size": 32, "token_size": 4}}
TITOK = COMMON | {"kind": "titok", "patch_size": 8, "num_tokens": 8, "encoder": SIZE, "decoder": SIZE}
MIXING = {part: SIZE | {"init": "mimetic", "mixing": True} for part in ("encoder", "decoder")}
KINDS = {
    "titok": TITOK,
    "mixing": TITOK | MIXING,
    "as run": TITOK | {"encoder": SIZE | {"init": "none", "loading": "as_run"}},
    "two stages": TITOK | {"kind": "two_stage_titok", "encoder": SIZE | {"init": "titok"}},
    "conv decoder": TITOK | {"patch_size": 16, "decoder": CONV},
    "vqgan": COMMON | {"kind": "vqgan", "channels": 32, "multipliers": [1, 1, 1], "blocks": 1},
}


def built(kind):
    torch.manual_seed(0)
    tokenizer = build_tokenizer(KINDS[kind]).eval()
    for parameter in tokenizer.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return tokenizer


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def without_patches(images, hidden, side):
    """Black where patches of images are hidden, a list for each image."""
    images = images.clone()
    for image, places in zip(images, hidden):
        for place in places:
            row, column = divmod(place, 32 // side)
            image[:, row * side : (row + 1) * side, column * side : (column + 1) * side] = 0
    return images


@pytest.mark.parametrize("kind", ["titok", "mixing", "as run", "two stages"])
@torch.no_grad()
def test_hidden_patches_change_nothing_and_the_others_do(kind, images):
    tokenizer = built(kind)
    visible = torch.tensor([[0, 5, 7, 15], [1, 2, 3, 4], [3, 8, 9, 10]])
    hidden = [sorted(set(range(16)) - set(row.tolist())) for row in visible]
    seen = tokenizer.to_latents(images, visible)
    assert torch.equal(tokenizer.to_latents(without_patches(images, hidden, 8), visible), seen)
    other = without_patches(images, [row[-1:].tolist() for row in visible], 8)
    assert ((tokenizer.to_latents(other, visible) - seen).abs().amax(dim=(1, 2)) > 1e-4).all()
    everything = torch.arange(16).expand(3, 16)
    torch.testing.assert_close(tokenizer.to_latents(images, everything), tokenizer.to_latents(images))


@torch.no_grad()
def test_the_encoder_runs_on_the_visible_patches_as_timms_blocks_do(images):
    tokenizer = built("titok")
    encoder, vit = tokenizer.encoder, tokenizer.encoder.vit
    visible = torch.tensor([[2, 3, 11], [0, 1, 2], [13, 14, 15]])
    patches = vit.patch_embed((images - 0.5) / 0.5) + vit.pos_embed[:, 1:]
    first = (vit.cls_token + vit.pos_embed[:, :1])[0]
    for image, row, latents in zip(patches, visible, encoder(images, visible)):
        sequence = torch.cat([first, image[row], encoder.latents])[None]
        torch.testing.assert_close(vit.norm(vit.blocks(sequence))[0, -8:], latents, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_mix_of_few_patches_has_the_size_of_one_of_all():
    tokenizer = built("mixing")
    encoder = tokenizer.encoder
    entering = []
    encoder.vit.blocks.register_forward_pre_hook(lambda module, inputs: entering.append(inputs[0][:, -8:]))
    encoder.mixing.fill_(1 / 16)
    encoder.vit.pos_embed.zero_()
    even = torch.full((1, 3, 32, 32), 0.3)  # every patch is the same
    encoder(even), encoder(even, torch.tensor([[1, 6, 9]]))
    torch.testing.assert_close(entering[0], entering[1], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_decoder_sees_the_codes_of_noisy_latents_and_the_losses_are_of_clean_ones(kind, images):
    tokenizer = built(kind)
    with torch.no_grad():
        latents = tokenizer.to_latents(images)
    noise, share = torch.randn(latents.shape), torch.tensor([0.0, 0.5, 0.9])
    size = (latents**2).mean(dim=2, keepdim=True) ** 0.5
    mixed = torch.stack([(1 - t) * z + t * s * e for z, s, e, t in zip(latents, size, noise, share)])
    corruption = Corruption(noise=noise, share=share)
    torch.testing.assert_close(corruption.mixed(latents), mixed)
    with torch.no_grad():
        out, clean = tokenizer(images, corruption=corruption), tokenizer(images)
        noisy = tokenizer.to_images(tokenizer.quantizer(mixed).quantized)
    torch.testing.assert_close(out.images, noisy)
    assert torch.equal(out.quantized.codes, clean.quantized.codes)
    assert torch.equal(out.quantized.commitment_loss, clean.quantized.commitment_loss)
    torch.testing.assert_close(out.images[0], clean.images[0])  # its share is 0
    assert (out.images[2] - clean.images[2]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_tokens_change_no_pixel_and_learn_nothing_of_them(kind, images):
    tokenizer = built(kind)
    num_tokens = tokenizer.num_tokens
    kept = torch.rand(3, num_tokens, generator=torch.Generator().manual_seed(2)) < 0.5
    kept[:, 0], kept[:, 1] = True, False
    latents = tokenizer.to_latents(images).detach().requires_grad_()
    tokenizer.to_latents = lambda _: latents
    out = tokenizer(images, corruption=Corruption(kept=kept)).images
    out.square().sum().backward()
    assert torch.equal(latents.grad.abs().sum(dim=2) > 0, kept)
    other = latents.detach().where(kept[..., None], torch.randn(latents.shape))
    tokenizer.to_latents = lambda _: other
    assert torch.equal(tokenizer(images, corruption=Corruption(kept=kept)).images, out)
    assert not torch.allclose(tokenizer(images).images, out, atol=1e-3)


def test_everything_at_once_goes_through(images):
    tokenizer = TiTok(**{name: value for name, value in TITOK.items() if name != "kind"})
    corruption = Corruption(
        visible=torch.tensor([[1, 2]] * 3),
        noise=torch.randn(3, 8, 4),
        share=torch.rand(3),
        kept=torch.ones(3, 8, dtype=torch.bool),
    ).to(torch.device("cpu"))
    tokenizer(images, True, corruption=corruption).images.sum().backward()
    assert tokenizer.encoder.latents.grad.abs().sum() > 0
