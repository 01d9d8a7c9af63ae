"""Published ViT weights into a LatentEncoder or a PixelDecoder, every key accounted for."""

import argparse
import math
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from errors import UserError
from models import open_clip_weights
from models.encoder import LatentEncoder
from models.encoder_as_run import AsRunEncoder, build_latent_encoder
from models.titok import PixelDecoder
from sizes import Size

DEPTH_ANYTHING_PATCH = 14  # pixels


class Loaded(NamedTuple):
    """What became of a file's keys."""

    path: Path
    used: list[str]  # the file's keys whose tensors were taken
    dropped: list[str]  # keys left out on purpose, and what a checkpoint holds beside the network
    filled: list[str]  # the parameters that took the used, in their order, as the ViT or the decoder has them
    # of a loading as the study ran it
    lost: Sequence[
        str
    ] = ()  # the source's parameters, by the ViT's names, that the plain ViT has no place for
    zeroed: Sequence[str] = ()  # the plain ViT's parameters that start from zero instead
    random: Sequence[str] = ()  # those that stay as they were drawn

    def summary(self) -> str:
        """One line for a log; dropped keys with a common first part are counted, the others named."""
        groups = {}
        for key in self.dropped:
            groups.setdefault(key.split(".")[0], []).append(key)
        names = [keys[0] if len(keys) == 1 else f"{first}.* ({len(keys)})" for first, keys in groups.items()]
        text = (
            f"{len(self.used)} keys of {self.path} fill {len(self.filled)} parameters; "
            f"left out: {', '.join(names) or 'nothing'}"
        )
        for fate in ("lost", "zeroed", "random"):
            if parameters := getattr(self, fate):
                text += f"; {fate} as the study's code ran: {_listed(parameters)}"
        return text


class Source(NamedTuple):
    """Where an initialisation's weights come from, and how a file's keys become the ViT's parameter names."""

    hub: dict[int, tuple[str, str]]  # Hub id and file, by the ViT's width; every head is 64 wide
    rename: Callable[[str], str]  # a key that is none of the layout's gets a name that is none of the ViT's
    dropped: tuple[str, ...]  # prefixes of keys that are left out on purpose


def _timm_names(key: str) -> str:
    """timm's names, which MAE's and DINOv2's authors have too."""
    return key


def _dino_names(key: str) -> str:
    """timm's names; in a full checkpoint below `backbone.`."""
    return key.removeprefix("backbone.")


def _depth_anything_names(key: str) -> str:
    """timm's names below `pretrained.`. Without it the file is DINOv2's, from which the ViT was trained."""
    return key.removeprefix("pretrained.") if key.startswith("pretrained.") else ""


CLIP_PARTS = {
    "class_embedding": "cls_token",
    "positional_embedding": "pos_embed",
    "conv1": "patch_embed.proj",
    "ln_pre": "norm_pre",
    "resblocks": "blocks",
    "ln_1": "norm1",
    "in_proj_weight": "qkv.weight",  # nn.MultiheadAttention stacks q, k and v as timm's qkv does
    "in_proj_bias": "qkv.bias",
    "out_proj": "proj",
    "ln_2": "norm2",
    "c_fc": "fc1",
    "c_proj": "fc2",
    "ln_post": "norm",
    "ls_1": "ls1",
    "ls_2": "ls2",
}


def _clip_names(key: str) -> str:
    """OpenAI's and open_clip's names below `visual.`, or timm's."""
    if not key.startswith("visual."):
        return key
    parts = key.removeprefix("visual.").removeprefix("transformer.").split(".")
    return ".".join(CLIP_PARTS.get(part, part) for part in parts)


CLIP_TEXT_TOWER = ("token_embedding.", "positional_embedding", "transformer.", "ln_final.", "text_projection")
CLIP_TEXT_TOWER += ("text.",)  # of open_clip's models whose text tower is a module of its own
CLIP_HEADS = ("visual.proj", "head.", "logit_scale", "logit_bias")
CLIP_ARCHIVE_SIZES = ("input_resolution", "context_length", "vocab_size")

SOURCES = {
    "mae": Source(
        hub={
            768: ("timm/vit_base_patch16_224.mae", "model.safetensors"),
            1024: ("timm/vit_large_patch16_224.mae", "model.safetensors"),
        },
        rename=_timm_names,
        dropped=("decoder_", "mask_token"),
    ),
    "clip": Source(
        hub={
            768: ("timm/vit_base_patch16_clip_224.openai", "model.safetensors"),
            1024: ("timm/vit_large_patch14_clip_224.openai", "model.safetensors"),
        },
        rename=_clip_names,
        dropped=(*CLIP_HEADS, *CLIP_TEXT_TOWER, *CLIP_ARCHIVE_SIZES),
    ),
    "dino": Source(
        hub={
            384: ("timm/vit_small_patch16_224.dino", "model.safetensors"),
            768: ("timm/vit_base_patch16_224.dino", "model.safetensors"),
        },
        rename=_dino_names,
        dropped=("head.mlp.", "head.last_layer."),
    ),
    "dinov2": Source(
        hub={
            384: ("timm/vit_small_patch14_dinov2.lvd142m", "model.safetensors"),
            768: ("timm/vit_base_patch14_dinov2.lvd142m", "model.safetensors"),
            1024: ("timm/vit_large_patch14_dinov2.lvd142m", "model.safetensors"),
        },
        rename=_timm_names,
        dropped=("mask_token",),
    ),
    "depth_anything_v2": Source(
        hub={
            384: ("depth-anything/Depth-Anything-V2-Small", "depth_anything_v2_vits.pth"),
            768: ("depth-anything/Depth-Anything-V2-Base", "depth_anything_v2_vitb.pth"),
            1024: ("depth-anything/Depth-Anything-V2-Large", "depth_anything_v2_vitl.pth"),
        },
        rename=_depth_anything_names,
        dropped=("pretrained.mask_token", "depth_head."),
    ),
}


# The study's CLIP, as timm publishes it
AS_RUN_HUB = {"clip": {768: ("timm/vit_base_patch16_clip_224.dfn2b", "model.safetensors")}}


def build_encoder(
    init: str,
    weights: str | Path | None = None,
    image_size: Size = 256,
    patch_size: int = 16,
    num_latents: int = 64,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
    loading: str = "exact",
    prefix: str = "model.encoder.",
) -> LatentEncoder:
    """A LatentEncoder that starts from `init`'s published weights (see load_pretrained)."""
    sizes = {"image_size": image_size, "patch_size": patch_size, "num_latents": num_latents}
    sizes |= {"width": width, "depth": depth, "heads": heads}
    variant = open_clip_weights.variant(weights) if open_clip_weights.is_named(weights) else None
    encoder = build_latent_encoder(init, loading, variant=variant, **sizes)
    if init in SOURCES:
        load_pretrained(encoder, init, weights, prefix)
    return encoder


def load_pretrained(
    encoder: LatentEncoder, init: str, weights: str | Path | None = None, prefix: str = "model.encoder."
) -> Loaded:
    """Fill every parameter of the encoder's ViT from `weights`; the latents are left as they are.

    `init` is a key of SOURCES, `weights` one of these files; without it the source's file is fetched from
    the Hub. For clip it may also be open_clip:<model>/<pretrained tag or file>, of any ViT that open_clip
    publishes; the encoder then has to have the variant of models.open_clip_weights. `prefix` is what
    a config's keys of the encoder begin with, for messages.
    - mae: the authors' `{"model": …}` with or without the decoder, a pre-training checkpoint, timm's;
    - clip: OpenAI's TorchScript archive or its state dict, open_clip's file or checkpoint, timm's;
    - dino: the authors' backbone or full checkpoint, of which the teacher is taken, timm's;
    - dinov2: the authors' backbone without registers, timm's;
    - depth_anything_v2: the authors' relative depth models.

    Weights of any precision become float32. Positions and patch kernels are resampled to the encoder's image
    and patch size, bicubic with antialiasing, by the pseudo-inverse for the kernels (FlexiViT,
    arXiv 2212.08013, section 3.4).

    Some things a file can't tell. A CLIP file named by its path is taken for OpenAI's, with QuickGELU;
    open_clip's own trainings (LAION, DataComp) mostly have GELU, and their files look the same: name them by
    open_clip:…, or they load, but are not what they were. MAE's and DINO's backbones have the same keys and
    shapes.

    An encoder as the study's code ran it (models.encoder_as_run.AsRunEncoder) takes from the same files what
    its plain ViT has a place for. It is DFN-2B's CLIP that is fetched then, and Depth Anything v2 needs
    patches of 14 pixels, as its file has them. What it returns names what is lost, zeroed and random.

    Raises UserError where keys are missing, left over or of another shape, all named in one line, or where
    the weights can't be had; ValueError where the encoder was built for another `init`.
    """
    if encoder.init != init:
        raise ValueError(f"the encoder has the architecture of {encoder.init}, not of {init}")
    vit = encoder.vit
    wanted, heads = vit.state_dict(), vit.blocks[0].attn.num_heads
    if not isinstance(encoder, AsRunEncoder):
        state, loaded = _read_source(prefix, init, weights, wanted, heads, vit.patch_embed.grid_size)
        vit.load_state_dict(state)
        return loaded

    pixels, grid = vit.patch_embed.img_size, vit.patch_embed.grid_size
    sizes = {"patch_size": vit.patch_embed.patch_size[0], "width": vit.embed_dim, "depth": len(vit.blocks)}
    variant = open_clip_weights.variant(weights) if open_clip_weights.is_named(weights) else None
    with torch.device("meta"):
        exact = LatentEncoder(init, pixels, num_latents=1, heads=heads, variant=variant, **sizes)
    state, loaded = _read_source(
        prefix,
        init,
        weights,
        exact.vit.state_dict(),
        heads,
        grid,
        hub=AS_RUN_HUB.get(init, SOURCES[init].hub),
    )
    if init == "depth_anything_v2" and sizes["patch_size"] != DEPTH_ANYTHING_PATCH:
        raise UserError(
            f"model.patch_size {sizes['patch_size']}: the study's code takes Depth Anything's file as it is, "
            f"for patches of {DEPTH_ANYTHING_PATCH} pixels; set that and image_size 224, or loading: exact"
        )
    fate = encoder.take(state)
    keys = dict(zip(loaded.filled, loaded.used))
    return loaded._replace(
        used=[keys[name] for name in fate["filled"]],
        dropped=[*loaded.dropped, *(keys[name] for name in keys if name not in fate["filled"])],
        filled=fate["filled"],
        lost=fate["dropped"],
        zeroed=fate["zeroed"],
        random=fate["random"],
    )


def load_pretrained_decoder(decoder: PixelDecoder, init: str, weights: str | Path | None = None) -> Loaded:
    """Fill the decoder's blocks, norms, class token and positions from `weights`, as in load_pretrained.

    The decoder has `init`'s architecture. What has no counterpart in the source stays as it is: token
    projection and positions, mask token, pixels. The file's patch kernel is dropped.
    """
    if decoder.init != init:
        raise ValueError(f"the decoder has the architecture of {decoder.init}, not of {init}")
    own = decoder.state_dict()
    names = {"cls_token": "class_token", "pos_embed": "positions"}
    names |= {name: name for name in own if name.startswith(("norm_pre.", "blocks.", "norm."))}
    wanted = {name: own[own_name] for name, own_name in names.items()}
    wanted["cls_token"], wanted["pos_embed"] = own["class_token"][None, None], own["positions"][None]
    heads = decoder.blocks[0].attn.num_heads
    unused = ("patch_embed.proj.",)
    state, loaded = _read_source("model.decoder.", init, weights, wanted, heads, decoder.grid, unused)
    state = {names[name]: tensor.view(own[names[name]].shape) for name, tensor in state.items()}
    decoder.load_state_dict(own | state)
    return loaded._replace(filled=[names[name] for name in loaded.filled])


def _read_source(
    prefix: str,
    init: str,
    weights: str | Path | None,
    wanted: dict[str, Tensor],
    heads: int,
    grid: tuple[int, int],
    unused: tuple[str, ...] = (),
    hub: dict[int, tuple[str, str]] | None = None,
) -> tuple[dict[str, Tensor], Loaded]:
    """A tensor of the file for each of `wanted`, by the ViT's names.

    prefix: of a config's keys of what is filled, for messages. grid: of its positions. unused: prefixes
    of ViT names that it lacks. hub: where the file is fetched from, the source's own by default.
    """
    source = SOURCES[init]
    width = wanted["cls_token"].shape[-1]
    if width in source.hub and heads != width // 64:
        raise UserError(f"{prefix}heads {heads}: {init}'s ViT of width {width} has {width // 64} heads")
    if open_clip_weights.is_named(weights):
        path = open_clip_weights.fetch(weights)
    elif weights and not Path(weights).is_file():
        raise UserError(f"{prefix}weights: {weights} is not a file")
    else:
        path = Path(weights) if weights else _fetch(prefix, init, width, hub or source.hub)
    file, dropped = _read(path)

    keys, left_over = {}, []
    for key in file:
        name = source.rename(key)
        if key.startswith(source.dropped) or name.startswith(unused):
            dropped.append(key)
        elif name in wanted and name not in keys:
            keys[name] = key
        else:
            left_over.append(key)
    state = {name: _resample(name, file[key].float(), wanted[name], grid) for name, key in keys.items()}

    problems = {
        "lacks": sorted(wanted.keys() - keys.keys()),
        "also holds": left_over,
        "has other shapes for": [keys[name] for name in state if state[name].shape != wanted[name].shape],
    }
    if any(problems.values()):
        found = "; ".join(f"{problem} {_listed(names)}" for problem, names in problems.items() if names)
        part = prefix.rstrip("._").split(".")[-1]
        raise UserError(
            f"{path}: not the {init} weights of this {part}, check its init, width and depth: it {found}"
        )
    return state, Loaded(path, list(keys.values()), dropped, list(keys))


def _listed(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _resample(name: str, tensor: Tensor, like: Tensor, grid: tuple[int, int]) -> Tensor:
    """Positions on a grid, a patch kernel of `like`'s size; anything else as it is."""
    if name in ("cls_token", "pos_embed"):
        tensor = tensor[(None,) * (like.ndim - tensor.ndim)]  # CLIP's lack the leading axes
    if name == "pos_embed" and tensor.ndim == 3 and len(tensor) == 1:
        side = math.isqrt(max(tensor.shape[1] - 1, 0))  # the sources saw squares
        if side > 0 and tensor.shape[1] == 1 + side**2:
            return resample_abs_pos_embed(tensor, grid, (side, side))
    if name == "patch_embed.proj.weight" and tensor.ndim == 4:
        return resample_patch_embed(tensor, like.shape[2:])
    return tensor


def _fetch(prefix: str, init: str, width: int, hub: dict[int, tuple[str, str]]) -> Path:
    if width not in hub:
        widths = ", ".join(map(str, hub))
        raise UserError(f"{prefix}width {width}: {init} weights are published for widths {widths}")
    hub_id, file = hub[width]
    try:
        return Path(hf_hub_download(hub_id, file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{hub_id}/{file}: the {init} weights are neither in the Hugging Face cache nor "
            f"downloadable ({type(error).__name__}); give a file with {prefix}weights"
        ) from error


def _read(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """A file's state dict, without distributed training's `module.`, and what is beside it."""
    try:
        checkpoint = _unpickled(path)
    except Exception as error:
        raise UserError(f"{path}: not readable as weights ({type(error).__name__})") from error
    state, others = checkpoint, []
    for name in ("model", "teacher", "state_dict"):  # MAE's, DINO's and open_clip's checkpoints
        if isinstance(checkpoint, dict) and name in checkpoint:
            state, others = checkpoint[name], [key for key in checkpoint if key != name]
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no state dict")
    return {key.removeprefix("module."): value for key, value in state.items()}, others


def _unpickled(path: Path):
    if path.suffix == ".safetensors":
        return load_file(path)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            is_torchscript = any(name.endswith("/constants.pkl") for name in archive.namelist())
        if is_torchscript:
            return torch.jit.load(path, map_location="cpu").state_dict()
    with torch.serialization.safe_globals([argparse.Namespace]):  # the authors' training options
        return torch.load(path, map_location="cpu", weights_only=True)
