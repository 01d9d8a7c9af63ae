"""What the study's way of loading loses: a source's exact encoder against the one as its code ran it."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metrics.representation import linear_cka
from models.encoder import LatentEncoder
from models.encoder_as_run import LOST, build_latent_encoder
from models.open_clip_weights import is_named, variant
from models.pretrained import DEPTH_ANYTHING_PATCH, load_pretrained

BATCH = 8  # images at once
COMPARED_TOKENS = 2048  # patch tokens whose likeness is measured
AS_RUN_CLIP = "open_clip:ViT-B-16/dfn2b"  # the study's CLIP, for both encoders


class LoadingLoss(NamedTuple):
    """How far the patch features of the encoder as run are from the exact one's, layer by layer."""

    init: str
    lost: tuple[str, ...]  # in words
    parameters: dict[str, list[str]]  # the ViT's, by their fate: lost, zeroed, random
    num_images: int
    error: np.ndarray  # (depth + 1,): |as run - exact| / |exact|, behind each block and the last norm
    cka: np.ndarray  # (depth + 1,): debiased linear CKA of the same tokens


def pixels_of(init: str) -> tuple[int, int]:
    """Image and patch size with which a ViT is compared as the study used it, by default."""
    return (224, DEPTH_ANYTHING_PATCH) if init == "depth_anything_v2" else (256, 16)


@torch.inference_mode()
def loading_loss(
    init: str, images: Tensor, weights: str | Path | None = None, patch_size: int = 16, **size: int
) -> LoadingLoss:
    """Measure what a source's encoder loses by the study's way of loading it, with nothing trained.

    images: float (N, 3, H, W) in [0, 1] of real frames. weights: as in models.pretrained.load_pretrained, the
    same for both encoders; by default the study's, which are DFN-2B's for clip. size: width, depth and heads.
    Neither encoder has latents here. Raises UserError where the weights can't be had.
    """
    if init == "clip" and weights is None:
        weights = AS_RUN_CLIP
    named = variant(weights) if is_named(weights) else None
    options = {"image_size": images.shape[2:], "patch_size": patch_size, "num_latents": 1, **size}
    exact = build_latent_encoder(init, "exact", variant=named, **options)
    load_pretrained(exact, init, weights)
    as_run = build_latent_encoder(init, "as_run", **options)
    loaded = load_pretrained(as_run, init, weights)
    exact, as_run = exact.to(images.device).eval(), as_run.to(images.device).eval()

    depth = len(exact.vit.blocks)
    squares = torch.zeros(2, depth + 1, dtype=torch.float64)
    tokens = ([[] for _ in range(depth + 1)], [[] for _ in range(depth + 1)])
    each = -(-COMPARED_TOKENS // len(images))  # tokens of an image
    for batch in images.split(BATCH):
        for layer, (right, other) in enumerate(zip(layers(exact, batch), layers(as_run, batch))):
            squares[0, layer] += (other - right).double().square().sum().cpu()
            squares[1, layer] += right.double().square().sum().cpu()
            chosen = torch.linspace(0, right.shape[1] - 1, min(each, right.shape[1])).long()
            for kept, features in zip(tokens, (right, other)):
                kept[layer].append(features[:, chosen].flatten(0, 1).cpu())
    pairs = [tuple(torch.cat(kept[layer]) for kept in tokens) for layer in range(depth + 1)]
    return LoadingLoss(
        init,
        LOST[init],
        {fate: list(getattr(loaded, fate)) for fate in ("lost", "zeroed", "random")},
        len(images),
        (squares[0] / squares[1]).sqrt().numpy(),
        np.array([linear_cka(*pair, debiased=True) for pair in pairs]),
    )


def layers(encoder: LatentEncoder, images: Tensor) -> Iterator[Tensor]:
    """The patch tokens (B, N, width) behind each block and behind the last norm, without latents."""
    vit = encoder.vit
    x = vit.norm_pre(vit._pos_embed(vit.patch_embed((images - encoder.mean) / encoder.std)))
    for block in vit.blocks:
        x = block(x)
        yield x[:, 1:]
    yield vit.norm(x)[:, 1:]
