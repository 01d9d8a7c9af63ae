"""The weights that TiTok's authors published (github.com/bytedance/1d-tokenizer), as our tokenizers.

Two kinds have discrete codes. Single-stage models (`bl64_vq8k`, `bl128_vq8k`, `sl256_vq8k`) decode to pixels
and are a plain TiTok. Two-stage models (`l32`, `b64`, `s128`) decode to MaskGIT-VQGAN's codes, which its
decoder then turns into pixels; what only they need is TwoStageTiTok.
"""

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
import yaml
from einops import rearrange
from torch import Tensor, nn

from errors import UserError
from models.encoder import untransposed
from models.titok import TiTok
from models.tokenizer import Tokenizer
from sizes import Size

SIZES = {
    "small": {"width": 512, "depth": 8, "heads": 8},
    "base": {"width": 768, "depth": 12, "heads": 12},
    "large": {"width": 1024, "depth": 24, "heads": 16},
}


class TwoStageTiTok(TiTok):
    """TiTok whose ViT decoder tells MaskGIT-VQGAN's decoder what to draw (two stages, arXiv 2406.07550).

    At each place of the patch grid it gives a softmax over MaskGIT-VQGAN's 1024 codes; the grid of the mean
    codes is decoded to pixels. The arguments are TiTok's; the patch size has to be 16, the factor by which
    that decoder enlarges its grid.
    """

    kind = "two_stage_titok"

    def __init__(
        self,
        image_size: Size = 256,
        patch_size: int = 16,
        num_tokens: int = 64,
        encoder: dict | None = None,
        decoder: dict | None = None,
        quantizer: dict | None = None,
    ):
        super().__init__(image_size, patch_size, num_tokens, encoder, decoder, quantizer)
        # TiTok's decoder with another end: a place of its grid is a code's vector, not a patch of pixels.
        self.decoder.to_pixels = PixelCodes(self.config["decoder"]["width"])
        self.decoder.smooth = pixel_decoder()

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the convolution that makes the pixels."""
        return self.decoder.smooth.conv_out.weight

    def to_latents(self, images: Tensor, visible: Tensor | None = None) -> Tensor:
        """As TiTok's, of the encoder's outputs untransposed."""
        return self.to_tokens(untransposed(self.encoder(images, visible)))


class PixelCodes(nn.Module):
    """Features (B, width, h, w) to the mean (B, 256, h, w) of MaskGIT-VQGAN's 1024 codes under a softmax."""

    def __init__(self, width: int):
        super().__init__()
        self.to_logits = nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, 1024))
        self.codebook = nn.Parameter(torch.randn(1024, 256))

    def forward(self, x: Tensor) -> Tensor:
        codes = self.to_logits(rearrange(x, "b d h w -> b h w d")).softmax(dim=-1) @ self.codebook
        return rearrange(codes, "b h w d -> b d h w")


def pixel_decoder() -> nn.Sequential:
    """MaskGIT-VQGAN's decoder (arXiv 2202.04200): (B, 256, h, w) to images (B, 3, 16h, 16w).

    The modules have the authors' names, who number the levels from the finest.
    """

    def level(in_channels: int, out_channels: int, upsamples: bool = True) -> nn.Sequential:
        blocks = ResidualBlock(in_channels, out_channels), ResidualBlock(out_channels, out_channels)
        modules = OrderedDict(block=nn.Sequential(*blocks))
        if upsamples:
            modules["upsample"] = nn.Upsample(scale_factor=2)
            modules["upsample_conv"] = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1)
        return nn.Sequential(modules)

    levels = OrderedDict()
    levels["4"] = level(512, 512)
    levels["3"] = level(512, 256)
    levels["2"] = level(256, 256)
    levels["1"] = level(256, 128)
    levels["0"] = level(128, 128, upsamples=False)
    return nn.Sequential(
        OrderedDict(
            conv_in=nn.Conv2d(256, 512, kernel_size=3, padding=1),
            mid=nn.Sequential(ResidualBlock(512, 512), ResidualBlock(512, 512)),
            up=nn.Sequential(levels),
            norm_out=nn.GroupNorm(32, 128, eps=1e-6),
            activation=nn.SiLU(),
            conv_out=nn.Conv2d(128, 3, kernel_size=3, padding=1),
        )
    )


class ResidualBlock(nn.Module):
    """MaskGIT-VQGAN's residual block on (B, in_channels, h, w)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(32, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(32, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.nin_shortcut = None
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, kernel_size=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.silu(self.norm1(x)))
        y = self.conv2(F.silu(self.norm2(y)))
        # Where the number of channels changes, the published shortcut starts from the branch, not from x.
        return y + (x if self.nin_shortcut is None else self.nin_shortcut(y))


# How our names begin, and what stands there in theirs.
COMMON = {
    "encoder.latents": "latent_tokens",
    "encoder.vit.cls_token": "encoder.class_embedding",
    "encoder.vit.pos_embed": "encoder.positional_embedding",
    "encoder.vit.patch_embed.proj.": "encoder.patch_embed.",
    "encoder.vit.norm_pre.": "encoder.ln_pre.",
    "encoder.vit.blocks.": "encoder.transformer.",
    "encoder.vit.norm.": "encoder.ln_post.",
    "to_tokens.": "encoder.conv_out.",
    "quantizer.codebook": "quantize.embedding.weight",
    "decoder.from_tokens.": "decoder.decoder_embed.",
    "decoder.class_token": "decoder.class_embedding",
    "decoder.mask_token": "decoder.mask_token",
    "decoder.positions": "decoder.positional_embedding",
    "decoder.token_positions": "decoder.latent_token_positional_embedding",
    "decoder.norm_pre.": "decoder.ln_pre.",
    "decoder.blocks.": "decoder.transformer.",
    "decoder.norm.": "decoder.ln_post.",
}
SINGLE_STAGE = COMMON | {
    "decoder.to_pixels.": "decoder.ffn.0.",
    "decoder.smooth.": "decoder.conv_out.",
}
TWO_STAGE = COMMON | {
    "decoder.to_pixels.to_logits.": "decoder.ffn.",
    "decoder.to_pixels.codebook": "pixel_quantize.embedding.weight",
    "decoder.smooth.": "pixel_decoder.",
}
WITHIN_BLOCKS = {
    "norm1.": "ln_1.",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj.": "attn.out_proj.",
    "norm2.": "ln_2.",
    "mlp.fc1.": "mlp.c_fc.",
    "mlp.fc2.": "mlp.c_proj.",
}
# The one of theirs without a counterpart: a constant that they add to the latent tokens.
LATENT_POSITIONS = "encoder.latent_token_positional_embedding"


def is_original(config: dict) -> bool:
    """Whether a config.json is the authors': no `kind`, as all of ours have, but `model.vq_model`."""
    return "kind" not in config and isinstance(config.get("model"), dict) and "vq_model" in config["model"]


def convert(config: dict, state: dict[str, Tensor], source: str | Path) -> Tokenizer:
    """The tokenizer of the authors' config and state dict; `source` is what messages call them.

    Raises UserError where the model has no discrete codes or no pixels, or where a key is missing, left over
    or of another shape.
    """
    tokenizer = _build(config, source)
    parameters = tokenizer.state_dict()
    prefixes = TWO_STAGE if isinstance(tokenizer, TwoStageTiTok) else SINGLE_STAGE
    names = {name: _original_name(name, prefixes) for name in parameters}

    wanted = {names[name]: parameter.shape for name, parameter in parameters.items()}
    wanted[LATENT_POSITIONS] = parameters["encoder.latents"].shape
    _check_keys(state, wanted, source)

    filled = {name: state[names[name]].reshape(parameters[name].shape) for name in parameters}
    filled["encoder.latents"] = filled["encoder.latents"] + state[LATENT_POSITIONS]
    tokenizer.load_state_dict(filled)
    return tokenizer


def read_bin(path: str | Path) -> tuple[dict, dict[str, Tensor]]:
    """Config and state dict of a `.bin` file; its config is the authors' YAML, as they name it, beside it.

    `tokenizer_titok_l32.bin` has `titok_l32.yaml`. Raises UserError where one of them can't be read.
    """
    path = Path(path)
    config_path = path.with_name(path.stem.removeprefix("tokenizer_") + ".yaml")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not readable as weights ({type(error).__name__})") from error
    try:
        config = yaml.safe_load(config_path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(
            f"{config_path}: not readable ({type(error).__name__}); put the config of {path.name} there, "
            "from configs/ of the 1d-tokenizer repository"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no state dict")
    if not isinstance(config, dict) or not is_original(config):
        raise UserError(f"{config_path}: not one of the authors' TiTok configs (no model.vq_model)")
    return config, state


def _build(config: dict, source: str | Path) -> TiTok:
    settings = config["model"]["vq_model"]
    if settings.get("quantize_mode", "vq") != "vq":
        raise UserError(f"{source}: a continuous (VAE) TiTok, which has no codes; take one of the VQ models")
    two_stage, legacy = settings.get("finetune_decoder", True), settings.get("is_legacy", True)
    if two_stage != legacy:
        raise UserError(
            f"{source}: a TiTok with finetune_decoder {two_stage} and is_legacy {legacy} does not decode to "
            "pixels; take a single-stage (both False) or a two-stage (both True) model"
        )
    try:
        arguments = {
            "image_size": config["dataset"]["preprocessing"]["crop_size"],
            "patch_size": settings["vit_enc_patch_size"],
            "num_tokens": settings["num_latent_tokens"],
            "encoder": {"init": "titok", **SIZES[settings["vit_enc_model_size"]]},
            "decoder": {"init": "titok", **SIZES[settings["vit_dec_model_size"]]},
            "quantizer": {
                "codebook_size": settings["codebook_size"],
                "token_size": settings["token_size"],
                "l2_normalize": settings["use_l2_norm"],
            },
        }
    except KeyError as error:
        raise UserError(f"{source}: not one of the authors' TiTok configs: no {error}") from error
    return TwoStageTiTok(**arguments) if two_stage else TiTok(**arguments)


def _original_name(name: str, prefixes: dict[str, str]) -> str:
    prefix = next(prefix for prefix in prefixes if name.startswith(prefix))
    rest = name.removeprefix(prefix)
    if prefix.endswith("blocks."):
        for ours, theirs in WITHIN_BLOCKS.items():
            rest = rest.replace(ours, theirs)
    return prefixes[prefix] + rest


def _check_keys(state: dict[str, Tensor], wanted: dict[str, torch.Size], source: str | Path) -> None:
    """Raise UserError unless `state` has the wanted keys and shapes, whatever axes of length 1 it has."""

    def without_ones(shape: torch.Size) -> list[int]:
        return [length for length in shape if length != 1]

    shared = wanted.keys() & state.keys()
    problems = {
        "lacks": wanted.keys() - state.keys(),
        "also holds": state.keys() - wanted.keys(),
        "has other shapes for": {
            key for key in shared if without_ones(wanted[key]) != without_ones(state[key].shape)
        },
    }
    for problem, keys in problems.items():
        if keys:
            names = ", ".join(sorted(keys)[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            raise UserError(f"{source}: not the TiTok weights of its config: it {problem} {names}")
