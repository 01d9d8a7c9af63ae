"""CLIPs by open_clip's names: open_clip:<model>/<pretrained tag>, and what their configs say of the ViT."""

import logging
from functools import cache
from pathlib import Path
from typing import NamedTuple

from errors import UserError

PREFIX = "open_clip:"
WIDTHS = (384, 768, 1024)  # of ViT-S, B and L
# Fields of a vision tower's config that this ViT can follow; another that is set makes it another network.
FOLLOWED = {"layers", "width", "head_width", "patch_size", "image_size", "ls_init_value", "no_ln_pre"}
FOLLOWED |= {"norm_kwargs", "patch_dropout", "output_tokens"}  # the last two don't change a ViT's tokens
FOLLOWED |= {"pool_type", "final_ln_after_pool"}  # of behind the blocks, where a tokenizer has something else


class Named(NamedTuple):
    """What open_clip's tables say of a model and its weights."""

    model: dict  # the model's config
    weights: dict | None  # the pretrained tag's config; None where the name has no tag of open_clip's
    tag: str  # or the path of a file


def is_named(weights: str | Path | None) -> bool:
    """Whether a config's `weights` is such a name."""
    return isinstance(weights, str) and weights.startswith(PREFIX)


@cache
def look_up(weights: str) -> Named:
    """Look a name up in open_clip's tables. Raises UserError naming what there is instead."""
    import open_clip  # takes seconds, and few need it

    name, slash, tag = weights.removeprefix(PREFIX).partition("/")
    model = open_clip.get_model_config(name)
    if model is None or not slash:
        close = [each for each in open_clip.list_models() if each.startswith(name[:6]) and name]
        raise UserError(
            f"{weights}: write open_clip:<model>/<pretrained tag>, where the model is one of open_clip's, as "
            f"{', '.join(close[:6]) or 'ViT-B-16'}"
        )
    vision = model["vision_cfg"]
    other = [key for key, value in vision.items() if value and key not in FOLLOWED]
    if other or vision.get("width") not in WIDTHS:
        reason = f"its vision tower has {other[0]}" if other else f"its width is {vision.get('width')}"
        raise UserError(f"{weights}: no plain ViT-S, B or L, which this takes ({reason})")
    return Named(model, open_clip.get_pretrained_cfg(name, tag) or None, tag)


def variant(weights: str) -> dict:
    """How the ViT differs from OpenAI's CLIP: the fields of models.encoder.Architecture, as JSON holds them.

    Which GELU the MLPs have is what a tag's weights were trained with, and of a file what the model's config
    says.
    """
    model, tag, _ = look_up(weights)
    vision = model["vision_cfg"]
    quick = (tag or model).get("quick_gelu", False)
    differs = {
        "activation": "quick_gelu" if quick else "gelu",
        "norm_eps": vision.get("norm_kwargs", {}).get("eps", 1e-5),
        "layer_scale": vision.get("ls_init_value"),
        "pre_norm": not vision.get("no_ln_pre", False),
    }
    if tag:
        differs |= {"mean": list(tag["mean"]), "std": list(tag["std"])}
    return differs


def fetch(weights: str) -> Path:
    """The weights' file, downloaded by open_clip where it isn't in its cache. Raises UserError."""
    _, found, tag = look_up(weights)
    from open_clip.pretrained import download_pretrained, list_pretrained_tags_by_model

    name = weights.removeprefix(PREFIX).partition("/")[0]
    if not found:
        if Path(tag).is_file():
            return Path(tag)
        tags = ", ".join(list_pretrained_tags_by_model(name)) or "none"
        raise UserError(
            f"{weights}: {tag} is no file, and no tag of open_clip's, which has for {name}: {tags}"
        )
    logging.getLogger("open_clip").setLevel(logging.ERROR)
    try:
        return Path(download_pretrained(found))
    except Exception as error:  # of whichever client it uses
        raise UserError(
            f"{weights}: the weights are neither in the Hugging Face cache nor downloadable "
            f"({type(error).__name__}); give their file as {PREFIX}{name}/FILE"
        ) from error
