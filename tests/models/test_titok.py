"""TiTok's shapes and interface, its encoder against timm's own forward."""

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from models.encoder import LatentEncoder
from models.titok import TiTok

SMALL = {"width": 32, "depth": 2, "heads": 2}


def small_titok(num_tokens=6, **options):
    return TiTok(
        image_size=32,
        patch_size=8,
        num_tokens=num_tokens,
        encoder={"init": "none", **SMALL},
        decoder=SMALL,
        quantizer={"codebook_size": 50, "token_size": 4},
        **options,
    )


@pytest.mark.parametrize("num_tokens", [1, 6, 1024])
def test_interface(num_tokens):
    torch.manual_seed(0)
    tokenizer = small_titok(num_tokens).eval()
    images = torch.rand(2, 3, 32, 32)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, num_tokens) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < tokenizer.codebook_size == 50
    restored = tokenizer.decode(codes)
    assert restored.shape == images.shape and restored.min() >= 0 and restored.max() <= 1
    torch.testing.assert_close(restored, tokenizer(images).images.clamp(0, 1))
    assert (tokenizer.num_tokens, tokenizer.image_size) == (num_tokens, 32)


def test_refuses_other_sizes():
    tokenizer = small_titok()
    with pytest.raises(ValueError, match="images are"):
        tokenizer.encode(torch.rand(2, 3, 40, 32))
    with pytest.raises(ValueError, match="codes are"):
        tokenizer.decode(torch.zeros(2, 7, dtype=torch.int64))


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    tokenizer = small_titok()
    output = tokenizer(torch.rand(4, 3, 32, 32), with_entropy=True)
    loss = output.images.square().mean() + output.quantized.commitment_loss + output.quantized.codebook_loss
    (loss + output.quantized.entropy_loss).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_vit_b_is_the_size_of_the_study():
    with torch.device("meta"):
        tokenizer = TiTok()
    vit_b = 85_798_656 + (256 - 196) * 768  # without a head, positions for 16×16 patches
    assert sum(p.numel() for p in tokenizer.encoder.vit.parameters()) == vit_b
    blocks = sum(p.numel() for p in tokenizer.decoder.blocks.parameters())
    assert blocks == sum(p.numel() for p in tokenizer.encoder.vit.blocks.parameters())
    assert tokenizer.codebook_size == 4096 and tokenizer.quantizer.codebook.shape == (4096, 16)


def test_forward_features_are_timms_own():
    torch.manual_seed(0)
    encoder = LatentEncoder("none", image_size=32, patch_size=8, num_latents=5, **SMALL).eval()
    vit = VisionTransformer(32, 8, embed_dim=32, depth=2, num_heads=2, num_classes=0, global_pool="").eval()
    vit.load_state_dict(encoder.vit.state_dict())
    images = torch.rand(3, 3, 32, 32)
    torch.testing.assert_close(encoder.forward_features(images), vit((images - 0.5) / 0.5))


def test_latents_read_the_image_and_each_other():
    """The latents are part of the sequence: timm's blocks on [class, patches, latents] give the same."""
    torch.manual_seed(0)
    encoder = LatentEncoder("mae", image_size=32, patch_size=8, num_latents=5, **SMALL).eval()
    images = torch.rand(3, 3, 32, 32)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    vit = encoder.vit
    patches = vit.patch_embed.proj((images - mean.view(3, 1, 1)) / std.view(3, 1, 1)).flatten(2).mT
    sequence = torch.cat([vit.cls_token.expand(3, 1, 32), patches], dim=1) + vit.pos_embed
    sequence = torch.cat([sequence, encoder.latents.expand(3, 5, 32)], dim=1)
    for block in vit.blocks:
        sequence = block(sequence)
    torch.testing.assert_close(encoder(images), vit.norm(sequence)[:, -5:])
