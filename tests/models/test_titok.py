"""TiTok's shapes and interface, its encoder against timm's own forward."""

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import nn
from torch.nn.functional import layer_norm

from models.encoder import LatentEncoder
from models.titok import PixelDecoder, TiTok

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


class ReferenceBlock(nn.Module):
    """A block of the TiTok authors' ViT: nn.MultiheadAttention, GELU, LayerNorms at torch's epsilon."""

    def __init__(self, block, width, heads):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.attention.in_proj_weight, self.attention.in_proj_bias = (
            block.attn.qkv.weight,
            block.attn.qkv.bias,
        )
        self.attention.out_proj = block.attn.proj
        self.mlp[0], self.mlp[2] = block.mlp.fc1, block.mlp.fc2
        for norm, own in zip(self.norms, (block.norm1, block.norm2)):
            norm.weight, norm.bias = own.weight, own.bias

    def forward(self, x):
        y = self.norms[0](x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.norms[1](x))


def disturb(module):
    """No parameter is 0 or 1 as it is after construction; activations are small, so that epsilons show."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.05)
    return module.eval()


@torch.no_grad()
def test_the_authors_titok_architecture():
    """`titok`: images as they are, biased patches, one norm over class token, patches and latents, GELU."""
    torch.manual_seed(0)
    encoder = disturb(LatentEncoder("titok", image_size=32, patch_size=8, num_latents=5, **SMALL))
    images, vit = torch.rand(3, 3, 32, 32), encoder.vit
    patches = nn.functional.conv2d(images, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=8)
    sequence = torch.cat([vit.cls_token.expand(3, 1, 32), patches.flatten(2).mT], dim=1) + vit.pos_embed
    sequence = torch.cat([sequence, encoder.latents.expand(3, 5, 32)], dim=1)
    sequence = layer_norm(sequence, (32,), vit.norm_pre.weight, vit.norm_pre.bias)
    for block in vit.blocks:
        sequence = ReferenceBlock(block, 32, 2)(sequence)
    expected = layer_norm(sequence, (32,), vit.norm.weight, vit.norm.bias)[:, -5:]
    torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("init", ["none", "titok"])
def test_decoder_is_titoks(init):
    """Norms have torch's epsilon, but in the blocks of `none`, which are timm's."""
    torch.manual_seed(0)
    decoder = disturb(PixelDecoder(32, 8, num_tokens=6, token_size=4, **SMALL, init=init))
    quantized = torch.randn(3, 6, 4)
    grid = decoder.mask_token.expand(3, 16, 32) + decoder.positions[1:]
    first = (decoder.class_token + decoder.positions[0]).expand(3, 1, 32)
    tokens = decoder.from_tokens(quantized) + decoder.token_positions
    sequence = torch.cat([first, grid, tokens], dim=1)
    sequence = layer_norm(sequence, (32,), decoder.norm_pre.weight, decoder.norm_pre.bias)
    for block in decoder.blocks:
        if init == "titok":
            reference = ReferenceBlock(block, 32, 2)
        else:
            reference = Block(32, 2, qkv_bias=True)
            reference.load_state_dict(block.state_dict())
        sequence = reference(sequence)
    sequence = layer_norm(sequence, (32,), decoder.norm.weight, decoder.norm.bias)
    linear = decoder.to_pixels
    patches = F.linear(sequence[:, 1:17], linear.weight, linear.bias).view(3, 4, 4, 8, 8, 3)
    images = patches.permute(0, 5, 1, 3, 2, 4).reshape(3, 3, 32, 32)
    torch.testing.assert_close(decoder(quantized), decoder.smooth(images), rtol=1e-5, atol=1e-6)


def test_decoder_of_none_is_the_default():
    """Configs of saved models without a decoder's `init` mean the same model as before, to its seed."""
    torch.manual_seed(0)
    default = small_titok()
    torch.manual_seed(0)
    options = {"encoder": {"init": "none", **SMALL}, "quantizer": {"codebook_size": 50, "token_size": 4}}
    named = TiTok(32, 8, 6, decoder={**SMALL, "init": "none"}, **options)
    assert default.config == named.config
    assert default.state_dict().keys() == named.state_dict().keys()
    for name, tensor in default.state_dict().items():
        assert torch.equal(tensor, named.state_dict()[name])


def test_decoder_of_another_source():
    """dinov2 has LayerScale and no pre-norm; with it every parameter still gets a gradient."""
    torch.manual_seed(0)
    decoder = PixelDecoder(32, 8, num_tokens=6, token_size=4, **SMALL, init="dinov2")
    names = {name for name, _ in decoder.named_parameters()}
    assert "blocks.1.ls2.gamma" in names and "norm_pre.weight" not in names
    decoder(torch.randn(2, 6, 4)).square().mean().backward()
    assert [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_mimetic_start_looks_nearby():
    """A patch of the image moves the latent of its place most, and a token the pixels around its own."""
    torch.manual_seed(0)
    size = {"width": 64, "depth": 2, "heads": 2, "init": "mimetic"}
    titok = TiTok(64, 8, 16, size, size, {"codebook_size": 16, "token_size": 8}).eval()
    places = torch.linspace(0, 63, 16).round().long()
    image, tokens = torch.full((1, 3, 64, 64), 0.5), torch.randn(1, 16, 8)
    grey, picture = titok.encoder(image), titok.to_images(tokens)
    distances = []
    for token in range(16):
        row, column = divmod(int(places[token]), 8)
        changed = image.clone()
        changed[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = 1
        moved = (titok.encoder(changed) - grey).norm(dim=2)[0]
        assert moved.argmax() == token
        other = tokens.clone()
        other[0, token] = -other[0, token]
        pixels = (titok.to_images(other) - picture).abs().sum(dim=1)[0]
        here, there = divmod(int(torch.nn.functional.avg_pool2d(pixels[None], 8).argmax()), 8)
        distances.append(max(abs(here - row), abs(there - column)))
    assert sum(distance <= 1 for distance in distances) >= 12, distances


def test_mimetic_width_must_hold_positions():
    size = {"width": 30, "depth": 1, "heads": 2, "init": "mimetic"}
    with pytest.raises(ValueError, match="no multiple of 4"):
        TiTok(32, 8, 4, size, size)
