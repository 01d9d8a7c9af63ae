"""The study's decoder of convolutions: against the same in functions of PyTorch, with q, k and v apart.

Under the study's own names and in its own order it is compared in test_study_checkpoints.
"""

import pytest
import torch
import torch.nn.functional as F

from models.conv_decoder import ConvDecoder

SIZES = {
    "attention over the grid": {"multipliers": (1, 2, 2), "blocks": 1, "attention": True},
    "none": {"multipliers": (1, 1, 2), "blocks": 2, "attention": False},
    "one level": {"multipliers": (2,), "blocks": 1, "attention": True},
}


def built(options, image_size=16, num_tokens=5, token_size=4, width=24):
    """A decoder of random parameters, none of them 0 or 1."""
    torch.manual_seed(0)
    decoder = ConvDecoder(image_size, num_tokens, token_size, width, channels=32, **options)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return decoder


def norm(x, state, name):
    return F.group_norm(x, 32, state[f"{name}.weight"], state[f"{name}.bias"], eps=1e-6)


def conv(x, state, name, padding=1):
    return F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], padding=padding)


def residual(x, state, name):
    y = conv(F.silu(norm(x, state, f"{name}.residual.0")), state, f"{name}.residual.2")
    y = conv(F.silu(norm(y, state, f"{name}.residual.3")), state, f"{name}.residual.5")
    return y + (conv(x, state, f"{name}.shortcut", 0) if f"{name}.shortcut.weight" in state else x)


def attention(x, state, name):
    """Of one head, between all places of an image."""
    y = norm(x, state, f"{name}.norm")
    weights, biases = state[f"{name}.qkv.weight"].chunk(3), state[f"{name}.qkv.bias"].chunk(3)
    q, k, v = (F.conv2d(y, weight, bias).flatten(2) for weight, bias in zip(weights, biases))
    scores = q.transpose(1, 2) @ k / q.shape[1] ** 0.5
    y = v @ scores.softmax(dim=-1).transpose(1, 2)
    return x + conv(y.view(x.shape), state, f"{name}.out", 0)


def decode(quantized, state, grid, multipliers, blocks, with_attention):
    """Quantized latents (B, K, token_size) to images for [-1, 1], level by level from the lowest."""
    tokens = F.linear(quantized, state["from_tokens.weight"], state["from_tokens.bias"])
    masks = torch.stack([state["class_token"], *[state["mask_token"]] * grid**2]) + state["positions"]
    batch = masks.expand(len(tokens), -1, -1)
    sequence = torch.cat([batch, tokens + state["token_positions"]], dim=1)
    x = conv(sequence.mT[:, :, :, None], state, "mix.0")
    assert x.shape[2:] == (1 + grid**2 + quantized.shape[1], 1)
    x = residual(attention(residual(x, state, "mix.1"), state, "mix.2"), state, "mix.3")
    x = x[:, :, 1 : 1 + grid**2, 0].unflatten(2, (grid, grid))
    place = 0
    for level in range(len(multipliers)):
        if level:
            enlarged = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            x = conv(enlarged, state, f"levels.{place + 1}")
            place += 2
        for _ in range(blocks + 1):
            x = residual(x, state, f"levels.{place}")
            place += 1
            if with_attention and level == 0:
                x = attention(x, state, f"levels.{place}")
                place += 1
    x = F.silu(norm(x, state, f"levels.{place}"))
    assert f"levels.{place + 3}.weight" not in state
    return conv(x, state, f"levels.{place + 2}")


@pytest.mark.parametrize("kind", SIZES)
@torch.no_grad()
def test_images_are_those_of_the_description(kind):
    options = SIZES[kind]
    decoder = built(options)
    grid = 16 // 2 ** (len(options["multipliers"]) - 1)
    assert decoder.grid == (grid, grid)
    quantized = torch.randn(3, 5, 4)
    wanted = decode(
        quantized, decoder.state_dict(), grid, options["multipliers"], options["blocks"], options["attention"]
    )
    images = decoder(quantized)
    assert images.shape == (3, 3, 16, 16) and wanted.std() > 0.05
    torch.testing.assert_close(images, (wanted + 1) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(decoder(quantized[1:2]), images[1:2], rtol=1e-4, atol=1e-5)


def test_it_starts_as_the_studys():
    torch.manual_seed(0)
    decoder = ConvDecoder(64, 200, 4, width=96, channels=32, multipliers=(1, 1, 1))
    for drawn in (decoder.positions, decoder.token_positions, decoder.mask_token, decoder.class_token):
        assert drawn.requires_grad and drawn.std().item() == pytest.approx(96**-0.5, rel=0.25)
    assert decoder.positions.std().item() == pytest.approx(96**-0.5, rel=0.02)
    assert decoder.positions.shape == (1 + 16**2, 96) and decoder.token_positions.shape == (200, 96)
    # PyTorch's own for a convolution: uniform up to the inverse root of its inputs
    assert decoder.mix[0].weight.abs().max().item() == pytest.approx((9 * 96) ** -0.5, rel=0.01)


def test_the_last_layer_makes_the_pixels_and_all_parameters_are_in_use():
    decoder = built(SIZES["attention over the grid"])
    assert decoder.last_layer.shape == (3, 32, 3, 3)
    decoder(torch.randn(2, 5, 4)).square().mean().backward()
    unused = [name for name, each in decoder.named_parameters() if each.grad is None or not each.grad.any()]
    assert unused == []


def test_at_full_size_its_grid_is_the_patches():
    with torch.device("meta"):
        decoder = ConvDecoder(256, 64, 16)
        small = ConvDecoder(224, 64, 16, attention=False)
    assert (decoder.grid, small.grid) == ((16, 16), (14, 14))
    lowest = 3 * (2 * 512 + 4 * 512 * (512 + 1))  # three attentions' norms, q, k, v and projections
    places = 768 * (16**2 - 14**2)
    count = [sum(each.numel() for each in network.parameters()) for network in (decoder, small)]
    assert count[0] - count[1] == lowest + places
