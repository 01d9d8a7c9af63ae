"""Published ViT weights into a LatentEncoder, every key accounted for."""

from pathlib import Path
from typing import NamedTuple

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors.torch import load_file
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor

from errors import UserError
from models.encoder import LatentEncoder


class Source(NamedTuple):
    """Where an initialisation's weights come from, and which of a file's keys are no part of the ViT."""

    hub_ids: dict[int, str]  # by the ViT's width
    dropped: tuple[str, ...]  # prefixes of keys that are left out on purpose


SOURCES = {
    "mae": Source(
        hub_ids={768: "timm/vit_base_patch16_224.mae", 1024: "timm/vit_large_patch16_224.mae"},
        dropped=("decoder_", "mask_token"),
    ),
}


def build_encoder(
    init: str,
    weights: str | Path | None = None,
    image_size: int = 256,
    patch_size: int = 16,
    num_latents: int = 64,
    width: int = 768,
    depth: int = 12,
    heads: int = 12,
) -> LatentEncoder:
    """A LatentEncoder that starts from `init`'s published weights (see load_pretrained)."""
    encoder = LatentEncoder(init, image_size, patch_size, num_latents, width, depth, heads)
    if init != "none":
        load_pretrained(encoder, init, weights)
    return encoder


def load_pretrained(encoder: LatentEncoder, init: str, weights: str | Path | None = None) -> list[str]:
    """Fill the encoder's ViT from `weights`, a file of the original authors or of timm, by default timm's.

    Positions and patch kernels are resampled to the encoder's image and patch size (FlexiViT's
    pseudo-inverse for the kernels, arXiv 2212.08013, section 3.4). Returns the names of the keys that were
    dropped on purpose. Raises UserError where a key is missing, left over or of another shape, or where the
    weights can't be had.
    """
    source = SOURCES[init]
    vit = encoder.vit
    path = Path(weights) if weights else _fetch(source, init, vit.embed_dim)
    state = _read(path)
    dropped = sorted(key for key in state if key.startswith(source.dropped))
    state = {key: tensor for key, tensor in state.items() if key not in dropped}
    if "patch_embed.proj.weight" in state:
        state = checkpoint_filter_fn(state, vit)

    wanted = vit.state_dict()
    missing = sorted(wanted.keys() - state.keys())
    left_over = sorted(state.keys() - wanted.keys())
    misshapen = sorted(key for key in wanted.keys() & state.keys() if wanted[key].shape != state[key].shape)
    for problem, keys in (("lacks", missing), ("also holds", left_over), ("has other shapes for", misshapen)):
        if keys:
            names = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
            raise UserError(f"{path}: not the {init} weights of this encoder: it {problem} {names}")
    vit.load_state_dict(state)
    return dropped


def _fetch(source: Source, init: str, width: int) -> Path:
    if width not in source.hub_ids:
        widths = ", ".join(map(str, source.hub_ids))
        raise UserError(f"model.encoder.width {width}: {init} weights are published for widths {widths}")
    hub_id = source.hub_ids[width]
    try:
        return Path(hf_hub_download(hub_id, "model.safetensors"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            f"{hub_id}/model.safetensors: the {init} weights are neither in the Hugging Face cache nor "
            f"downloadable ({type(error).__name__}); give a file with model.encoder.weights"
        ) from error


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"model.encoder.weights: {path} is not a file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{path}: not readable as weights ({type(error).__name__})") from error
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{path}: holds no state dict")
    return state
