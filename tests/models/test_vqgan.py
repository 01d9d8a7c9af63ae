"""VQGAN's interface, and its networks against the authors' layout written out here step by step."""

import json

import pytest
import torch
import torch.nn.functional as F

from models.vqgan import VQGAN


def small_vqgan(image_size=16, channels=64, multipliers=(1, 2), blocks=1):
    quantizer = {"codebook_size": 50, "token_size": 4}
    return VQGAN(image_size, channels, multipliers, blocks, quantizer)


@pytest.mark.parametrize(("multipliers", "num_tokens"), [((1,), 256), ((1, 2), 64), ((1, 1, 2), 16)])
def test_interface(multipliers, num_tokens):
    torch.manual_seed(0)
    tokenizer = small_vqgan(multipliers=multipliers).eval()
    images = torch.rand(2, 3, 16, 16)
    assert tokenizer.to_latents(images).shape == (2, num_tokens, 4)
    codes = tokenizer.encode(images)
    assert codes.shape == (2, num_tokens) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < tokenizer.codebook_size == 50
    restored = tokenizer.decode(codes)
    assert restored.shape == images.shape and restored.min() >= 0 and restored.max() <= 1
    torch.testing.assert_close(restored, tokenizer(images).images.clamp(0, 1))
    assert (tokenizer.num_tokens, tokenizer.image_size) == (num_tokens, 16)


def test_refuses_other_sizes():
    tokenizer = small_vqgan()
    with pytest.raises(ValueError, match="images are"):
        tokenizer.encode(torch.rand(2, 3, 16, 24))
    with pytest.raises(ValueError, match="codes are"):
        tokenizer.decode(torch.zeros(2, 63, dtype=torch.int64))
    with pytest.raises(ValueError, match="divisible"):
        small_vqgan(channels=48)


class Original:
    """The authors' operations in their order, each taking the next weights of the model."""

    def __init__(self, *modules):
        self.weights = [parameter for module in modules for parameter in module.parameters()]

    def conv(self, x, **options):
        weight, bias = self.weights.pop(0), self.weights.pop(0)
        return F.conv2d(x, weight, bias, padding=options.pop("padding", weight.shape[-1] // 2), **options)

    def norm(self, x):
        b, c, h, w = x.shape
        groups = x.reshape(b, 32, -1)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        normed = ((groups - mean) / torch.sqrt(variance + 1e-6)).reshape(b, c, h, w)
        scale, shift = self.weights.pop(0), self.weights.pop(0)
        return normed * scale[:, None, None] + shift[:, None, None]

    def norm_swish(self, x):
        x = self.norm(x)
        return x * torch.sigmoid(x)

    def residual(self, x, width):
        h = self.conv(self.norm_swish(x))
        h = self.conv(self.norm_swish(h))
        return (x if x.shape[1] == width else self.conv(x)) + h

    def attention(self, x):
        b, c, h, w = x.shape
        q, k, v = self.conv(self.norm(x)).flatten(2).split(c, dim=1)
        scores = torch.softmax(q.mT @ k / c**0.5, dim=2)  # of each query over the keys
        return x + self.conv((v @ scores.mT).reshape(b, c, h, w))

    def middle(self, x):
        width = x.shape[1]
        return self.residual(self.attention(self.residual(x, width)), width)

    def encode(self, x, widths, blocks):
        h = self.conv(x)
        for level, width in enumerate(widths):
            for _ in range(blocks):
                h = self.residual(h, width)
                if width == widths[-1]:
                    h = self.attention(h)
            if level < len(widths) - 1:
                h = self.conv(F.pad(h, (0, 1, 0, 1)), stride=2, padding=0)
        h = self.conv(self.norm_swish(self.middle(h)))
        return self.conv(h)  # to the token size

    def decode(self, z, widths, blocks):
        h = self.middle(self.conv(self.conv(z)))
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks + 1):
                h = self.residual(h, width)
                if width == widths[-1]:
                    h = self.attention(h)
            if level > 0:
                h = self.conv(h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3))
        return self.conv(self.norm_swish(h))


def test_is_the_original_layout():
    torch.manual_seed(0)
    tokenizer = small_vqgan(image_size=24, channels=32, multipliers=(1, 2, 4), blocks=2).double()
    for parameter in tokenizer.parameters():  # norms and biases away from ones and zeros
        parameter.data += 0.1 * torch.randn_like(parameter)
    widths, grid = [32, 64, 128], 6
    cells = [(row, column) for row in range(grid) for column in range(grid)]
    images, quantized = torch.rand(2, 3, 24, 24).double(), torch.randn(2, grid**2, 4).double()

    with torch.no_grad():
        original = Original(tokenizer.encoder, tokenizer.to_tokens)
        z = original.encode((images - 0.5) / 0.5, widths, blocks=2)
        assert not original.weights
        expected = torch.stack([z[:, :, row, column] for row, column in cells], dim=1)
        assert relative_error(tokenizer.to_latents(images), expected) < 1e-12

        original = Original(tokenizer.from_tokens, tokenizer.decoder)
        z = torch.empty(2, 4, grid, grid).double()
        for token, (row, column) in enumerate(cells):
            z[:, :, row, column] = quantized[:, token]
        expected = original.decode(z, widths, blocks=2) * 0.5 + 0.5
        assert not original.weights
        assert relative_error(tokenizer.to_images(quantized), expected) < 1e-12


def relative_error(value, expected):
    assert value.shape == expected.shape
    return ((value - expected).norm() / expected.norm()).item()


def test_default_is_the_size_of_the_authors_f16_model():
    def conv(inputs, outputs, kernel=3):
        return inputs * outputs * kernel**2 + outputs

    def block(inputs, outputs):
        shortcut = conv(inputs, outputs, 1) if inputs != outputs else 0
        return 2 * inputs + conv(inputs, outputs) + 2 * outputs + conv(outputs, outputs) + shortcut

    attention = 2 * 512 + 4 * conv(512, 512, 1)
    middle = 2 * block(512, 512) + attention
    # ch 128, ch_mult 1 1 2 2 4, num_res_blocks 2, attn_resolutions 16, z_channels 256: level by level
    encoder = (
        conv(3, 128)
        + 2 * block(128, 128)
        + conv(128, 128)
        + 2 * block(128, 128)
        + conv(128, 128)
        + block(128, 256)
        + block(256, 256)
        + conv(256, 256)
        + 2 * block(256, 256)
        + conv(256, 256)
        + block(256, 512)
        + block(512, 512)
        + 2 * attention
        + middle
        + 2 * 512
        + conv(512, 256)
    )
    decoder = (
        conv(256, 512)
        + middle
        + 3 * block(512, 512)
        + 3 * attention
        + conv(512, 512)
        + block(512, 256)
        + 2 * block(256, 256)
        + conv(256, 256)
        + 3 * block(256, 256)
        + conv(256, 256)
        + block(256, 128)
        + 2 * block(128, 128)
        + conv(128, 128)
        + 3 * block(128, 128)
        + 2 * 128
        + conv(128, 3)
    )
    assert (encoder, decoder) == (29_298_176, 42_449_795)  # also what diffusers' VQModel of this layout has

    with torch.device("meta"):
        tokenizer = VQGAN()
    assert count(tokenizer.encoder) == encoder and count(tokenizer.decoder) == decoder
    projections = conv(256, 16, 1) + conv(16, 256, 1)
    assert count(tokenizer) == encoder + decoder + projections + 4096 * 16 == 71_821_971
    assert tokenizer.num_tokens == 256 and tokenizer.codebook_size == 4096


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_config_is_json_and_rebuilds_the_model():
    torch.manual_seed(0)
    tokenizer = small_vqgan().eval()
    config = json.loads(json.dumps(tokenizer.config))
    assert config == tokenizer.config and config["kind"] == "vqgan"
    rebuilt = VQGAN(**{key: value for key, value in config.items() if key != "kind"}).eval()
    rebuilt.load_state_dict(tokenizer.state_dict())
    images = torch.rand(2, 3, 16, 16)
    assert torch.equal(rebuilt(images).images, tokenizer(images).images)


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    tokenizer = small_vqgan()
    output = tokenizer(torch.rand(4, 3, 16, 16), with_entropy=True)
    loss = output.images.square().mean() + output.quantized.commitment_loss + output.quantized.codebook_loss
    (loss + output.quantized.entropy_loss).backward()
    gradients = {name: parameter.grad.norm().item() for name, parameter in tokenizer.named_parameters()}
    assert {name: norm for name, norm in gradients.items() if norm < 1e-5} == {}


def test_learns_four_images():
    torch.manual_seed(0)
    tokenizer = small_vqgan(channels=32)
    images = F.interpolate(torch.rand(4, 3, 4, 4), size=16, mode="bilinear")
    optimizer = torch.optim.Adam(tokenizer.parameters(), lr=1e-3)
    errors = []
    for _ in range(30):
        output = tokenizer(images)
        error = F.mse_loss(output.images, images)
        errors.append(error.item())
        optimizer.zero_grad()
        (error + output.quantized.codebook_loss + 0.25 * output.quantized.commitment_loss).backward()
        optimizer.step()
    assert errors[0] > images.var()
    assert errors[-1] < images.var() / 3  # a third of what the best flat colour leaves
