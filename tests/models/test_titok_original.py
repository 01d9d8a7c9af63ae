"""The authors' TiTok checkpoints, read from their own files, against their forward in their own layout."""

import json
import re
from collections import OrderedDict

import pytest
import torch
import yaml
from einops import rearrange
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from errors import UserError
from models import load_tokenizer, titok_original
from models.storage import save_model

TINY = {"width": 64, "depth": 2, "heads": 4}


class Layer(nn.Module):
    """Their transformer layer, on (length, batch, width)."""

    def __init__(self, width, heads):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, heads)
        c_fc, c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=nn.GELU(), c_proj=c_proj))

    def forward(self, x):
        y = self.ln_1(x)
        x = x + self.attn(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Half(nn.Module):
    """What their encoder and decoder share."""

    def __init__(self, image, patch, tokens, width, depth, heads):
        super().__init__()
        self.grid, self.width = image // patch, width
        self.class_embedding = nn.Parameter(torch.empty(1, width))
        self.positional_embedding = nn.Parameter(torch.empty(self.grid**2 + 1, width))
        self.latent_token_positional_embedding = nn.Parameter(torch.empty(tokens, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = nn.ModuleList([Layer(width, heads) for _ in range(depth)])

    def run(self, grid, tokens):
        classes = self.class_embedding.expand(len(grid), 1, self.width)
        x = torch.cat([classes, grid], dim=1) + self.positional_embedding
        x = torch.cat([x, tokens + self.latent_token_positional_embedding], dim=1)
        x = self.ln_pre(x).transpose(0, 1)
        for layer in self.transformer:
            x = layer(x)
        return x.transpose(0, 1)


class Encoder(Half):
    def __init__(self, image, patch, tokens, token_size, size):
        super().__init__(image, patch, tokens, **size)
        self.patch_embed = nn.Conv2d(3, self.width, patch, patch)
        self.conv_out = nn.Conv2d(self.width, token_size, 1)

    def forward(self, images, latent_tokens, legacy):
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)
        tokens = latent_tokens.expand(len(images), *latent_tokens.shape)
        x = self.ln_post(self.run(patches, tokens)[:, 1 + self.grid**2 :])
        x = x.reshape(len(x), self.width, -1, 1) if legacy else x.transpose(1, 2)[..., None]
        return self.conv_out(x).squeeze(3)  # (B, token_size, K)


class Decoder(Half):
    def __init__(self, image, patch, tokens, token_size, size, legacy):
        super().__init__(image, patch, tokens, **size)
        self.decoder_embed = nn.Linear(token_size, self.width)
        self.mask_token = nn.Parameter(torch.empty(1, 1, self.width))
        if legacy:
            hidden = 2 * self.width
            self.ffn = nn.Sequential(nn.Conv2d(self.width, hidden, 1), nn.Tanh(), nn.Conv2d(hidden, 1024, 1))
            self.conv_out = nn.Identity()
        else:
            self.ffn = nn.Sequential(nn.Conv2d(self.width, 3 * patch**2, 1), Unpatchify(patch))
            self.conv_out = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, quantized):
        tokens = self.decoder_embed(quantized.transpose(1, 2))
        grid = self.mask_token.repeat(len(tokens), self.grid**2, 1)
        x = self.ln_post(self.run(grid, tokens)[:, 1 : 1 + self.grid**2])
        x = x.transpose(1, 2).reshape(len(x), self.width, self.grid, self.grid)
        return self.conv_out(self.ffn(x))


class Unpatchify(nn.Module):
    def __init__(self, patch):
        super().__init__()
        self.patch = patch

    def forward(self, x):
        return rearrange(x, "b (p1 p2 c) h w -> b c (h p1) (w p2)", p1=self.patch, p2=self.patch)


class ResnetBlock(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.norm1, self.norm2 = (nn.GroupNorm(32, channels, eps=1e-6) for channels in (inside, outside))
        self.conv1 = nn.Conv2d(inside, outside, 3, padding="same", bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding="same", bias=False)
        self.changes = inside != outside
        if self.changes:
            self.nin_shortcut = nn.Conv2d(outside, outside, 1, bias=False)

    def forward(self, x):
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        return y + self.nin_shortcut(y) if self.changes else y + x


class UpsamplingBlock(nn.Module):
    def __init__(self, inside, outside, upsamples):
        super().__init__()
        self.block = nn.ModuleList([ResnetBlock(inside, outside), ResnetBlock(outside, outside)])
        self.upsamples = upsamples
        if upsamples:
            self.upsample_conv = nn.Conv2d(outside, outside, 3, padding="same")

    def forward(self, x):
        for block in self.block:
            x = block(x)
        if not self.upsamples:
            return x
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class PixelDecoder(nn.Module):
    """MaskGIT-VQGAN's decoder: 128 channels times (1, 1, 2, 2, 4), two blocks a level."""

    def __init__(self):
        super().__init__()
        widths = [128 * multiplier for multiplier in (1, 1, 2, 2, 4)]
        self.conv_in = nn.Conv2d(256, widths[-1], 3, padding="same")
        self.mid = nn.ModuleList([ResnetBlock(widths[-1], widths[-1]) for _ in range(2)])
        inside = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList([UpsamplingBlock(inside[i], widths[i], i > 0) for i in range(5)])
        self.norm_out = nn.GroupNorm(32, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding="same")

    def forward(self, x):
        x = self.conv_in(x)
        for block in [*self.mid, *reversed(self.up)]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Quantizer(nn.Module):
    def __init__(self, codebook_size, token_size):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, token_size)


class Original(nn.Module):
    """Their TiTok: `encode` gives codes, `decode` images that are not clamped."""

    def __init__(self, config, sizes):
        super().__init__()
        settings = config["model"]["vq_model"]
        self.normalizes = settings["use_l2_norm"]
        self.two_stage = settings.get("finetune_decoder", True)
        image, tokens = config["dataset"]["preprocessing"]["crop_size"], settings["num_latent_tokens"]
        token_size = settings["token_size"]
        shape = image, settings["vit_enc_patch_size"], tokens, token_size
        encoder_size, decoder_size = (sizes[settings[f"vit_{part}_model_size"]] for part in ("enc", "dec"))
        self.encoder = Encoder(*shape, encoder_size)
        self.decoder = Decoder(*shape, decoder_size, self.two_stage)
        self.latent_tokens = nn.Parameter(torch.empty(tokens, encoder_size["width"]))
        self.quantize = Quantizer(settings["codebook_size"], token_size)
        if self.two_stage:
            self.pixel_quantize = Quantizer(1024, 256)
            self.pixel_decoder = PixelDecoder()

    def codebook(self):
        weight = self.quantize.embedding.weight
        return F.normalize(weight, dim=-1) if self.normalizes else weight

    def encode(self, images):
        z = self.encoder(images, self.latent_tokens, self.two_stage).transpose(1, 2)
        if self.normalizes:
            z = F.normalize(z, dim=-1)
        return torch.cdist(z, self.codebook(), compute_mode="donot_use_mm_for_euclid_dist").argmin(dim=-1)

    def decode(self, codes):
        decoded = self.decoder(self.codebook()[codes].transpose(1, 2))
        if not self.two_stage:
            return decoded
        mixed = torch.einsum("nchw,cd->ndhw", decoded.softmax(1), self.pixel_quantize.embedding.weight)
        return self.pixel_decoder(mixed)


def published(encoder, decoder, tokens, two_stage, **changes):
    """A config as in the authors' configs/infer, where the two-stage ones leave out `is_legacy`, True."""
    settings = {
        "codebook_size": 4096 if two_stage else 8192,
        "token_size": 12 if two_stage else 64,
        "use_l2_norm": two_stage,
        "commitment_cost": 0.25,
        "vit_enc_model_size": encoder,
        "vit_dec_model_size": decoder,
        "vit_enc_patch_size": 16,
        "vit_dec_patch_size": 16,
        "num_latent_tokens": tokens,
        "finetune_decoder": two_stage,
    }
    if not two_stage:
        settings["is_legacy"] = False
    return {
        "experiment": {"tokenizer_checkpoint": "tokenizer_titok.bin", "output_dir": "titok"},
        "model": {"vq_model": settings | changes},
        "dataset": {"preprocessing": {"crop_size": 256}},
    }


def small(two_stage, **changes):
    config = published("tiny", "tiny2", 8, two_stage, codebook_size=200, **changes)
    config["dataset"]["preprocessing"]["crop_size"] = 32
    return config


SMALL_SIZES = {"tiny": TINY, "tiny2": {"width": 32, "depth": 3, "heads": 2}}


@pytest.fixture(autouse=True)
def small_sizes(monkeypatch):
    for name, size in SMALL_SIZES.items():
        monkeypatch.setitem(titok_original.SIZES, name, size)


@pytest.fixture(scope="module", params=[False, True], ids=["single-stage", "two-stage"])
def original(request):
    """Config and reference model with random weights at which all layers matter."""
    torch.manual_seed(0)
    config = small(request.param)
    model = Original(config, SMALL_SIZES).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
        else:
            nn.init.normal_(parameter, std=2 * parameter[0].numel() ** -0.5)
    return config, model


def write_folder(folder, config, state):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=4))
    save_file(state, folder / "model.safetensors")
    return folder


def write_bin(folder, config, state):
    (folder / "titok_x8.yaml").write_text(yaml.safe_dump(config))
    torch.save(state, folder / "tokenizer_titok_x8.bin")
    return folder / "tokenizer_titok_x8.bin"


@torch.no_grad()
def check_same(tokenizer, model):
    torch.manual_seed(1)
    images = 0.6 * F.interpolate(torch.rand(6, 3, 2, 2), 32) + 0.4 * torch.rand(6, 3, 32, 32)
    codes = model.encode(images)
    assert len(codes.unique()) > 10, "the codes hardly depend on the image"
    assert torch.equal(tokenizer.encode(images), codes)
    expected = model.decode(codes)
    assert (expected[0] - expected[1]).abs().mean() > 0.05, "the images hardly depend on the codes"
    torch.testing.assert_close(tokenizer.decode(codes), expected.clamp(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(tokenizer(images).images, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("write", [write_folder, write_bin])
def test_same_codes_and_images(original, tmp_path, write):
    config, model = original
    tokenizer = load_tokenizer(write(tmp_path, config, model.state_dict()))
    assert not tokenizer.training
    assert (tokenizer.num_tokens, tokenizer.codebook_size, tokenizer.image_size) == (8, 200, 32)
    check_same(tokenizer, model)


def test_our_own_folder_of_it(original, tmp_path):
    config, model = original
    save_model(load_tokenizer(write_folder(tmp_path / "a", config, model.state_dict())), tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["kind"]
    check_same(load_tokenizer(tmp_path / "b"), model)


def test_every_parameter_gets_a_gradient(original, tmp_path):
    config, model = original
    tokenizer = load_tokenizer(write_folder(tmp_path, config, model.state_dict())).train()
    output = tokenizer(torch.rand(4, 3, 32, 32), with_entropy=True)
    loss = output.images.square().mean() + output.quantized.commitment_loss + output.quantized.codebook_loss
    (loss + output.quantized.entropy_loss).backward()
    assert [name for name, p in tokenizer.named_parameters() if p.grad is None or not p.grad.any()] == []


def refusal(name):
    with pytest.raises(UserError) as caught:
        load_tokenizer(name)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_key_counts(original, tmp_path):
    config, model = original
    state = model.state_dict()
    with torch.device("meta"):
        for key in state:
            if re.search(r"\.[1-9]\.", key):
                continue  # as the first of its list
            others = {name: tensor for name, tensor in state.items() if name != key}
            with pytest.raises(UserError, match=f"^the-file: .* lacks {key}$"):
                titok_original.convert(config, others, "the-file")
    extra = state | {"quantize.embed_prob": torch.zeros(200)}
    assert refusal(write_folder(tmp_path, config, extra)).endswith("also holds quantize.embed_prob")
    wider = state | {"decoder.mask_token": torch.zeros(1, 1, 33)}
    assert refusal(write_folder(tmp_path, config, wider)).endswith("other shapes for decoder.mask_token")


def test_the_first_release_says_less():
    """Its configs have neither finetune_decoder nor is_legacy; both are True."""
    config = small(True)
    del config["model"]["vq_model"]["finetune_decoder"]
    with torch.device("meta"):
        state = Original(config, SMALL_SIZES).state_dict()
        assert isinstance(titok_original.convert(config, state, "meta"), titok_original.TwoStageTiTok)


def test_other_models_are_refused(tmp_path):
    vae = small(False, quantize_mode="vae")
    assert "continuous (VAE) TiTok" in refusal(write_folder(tmp_path, vae, {}))
    stage1 = small(True, finetune_decoder=False)
    assert "does not decode to pixels" in refusal(write_folder(tmp_path, stage1, {}))
    assert "no 'huge'" in refusal(write_folder(tmp_path, small(True, vit_enc_model_size="huge"), {}))
    generator = {"model.embeddings.word_embeddings.weight": torch.zeros(3, 3)}
    assert "lacks decoder.class_embedding" in refusal(write_folder(tmp_path, small(True), generator))


def test_bin_files_that_cannot_be_read(tmp_path):
    path = write_bin(tmp_path, small(True), {"a": torch.zeros(1)})
    (tmp_path / "titok_x8.yaml").write_text("just: this")
    assert "titok_x8.yaml: not one of the authors' TiTok configs" in refusal(path)
    (tmp_path / "titok_x8.yaml").unlink()
    assert "titok_x8.yaml: not readable" in refusal(path)
    torch.save([1, 2], path)
    assert "holds no state dict" in refusal(write_bin(tmp_path, small(True), [1, 2]))
    path.write_bytes(b"not a checkpoint")
    assert "not readable as weights" in refusal(path)
    assert "not readable as weights" in refusal(tmp_path / "tokenizer_titok_x9.bin")


@pytest.mark.parametrize(
    "encoder, decoder, tokens, two_stage, keys",
    [
        ("base", "large", 64, False, 27 + 12 * 36),
        ("base", "large", 128, False, 27 + 12 * 36),
        ("small", "large", 256, False, 27 + 12 * 32),
        ("large", "large", 32, True, 116 + 12 * 48),
        ("base", "base", 64, True, 116 + 12 * 24),
        ("small", "small", 128, True, 116 + 12 * 16),
    ],
    ids=["bl64_vq8k", "bl128_vq8k", "sl256_vq8k", "l32", "b64", "s128"],
)
def test_published_sizes(encoder, decoder, tokens, two_stage, keys):
    sizes = {
        "small": {"width": 512, "depth": 8, "heads": 8},
        "base": {"width": 768, "depth": 12, "heads": 12},
        "large": {"width": 1024, "depth": 24, "heads": 16},
    }
    config = published(encoder, decoder, tokens, two_stage)
    with torch.device("meta"):
        state = Original(config, sizes).state_dict()
        tokenizer = titok_original.convert(config, state, "meta")
    assert len(state) == keys == len(tokenizer.state_dict()) + 1  # two of theirs add up to our latents
    assert tokenizer.encoder.vit.blocks[0].attn.num_heads == sizes[encoder]["heads"]
    assert tokenizer.decoder.blocks[0].attn.num_heads == sizes[decoder]["heads"]
    if tokens == 32:
        # The published tokenizer_titok_l32.bin has 2,564,477,610 bytes: float32 weights and its table.
        weights = 4 * sum(tensor.numel() for tensor in state.values())
        assert 0 < 2_564_477_610 - weights < 500_000
