"""What the study's way of loading loses: a source's exact encoder against the one as its code ran it."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from metrics.representation import linear_cka
from models.encoder import LatentEncoder
from models.encoder_as_run import LOST, build_latent_encoder
from models.open_clip_weights import is_named, variant
from models.pretrained import DEPTH_ANYTHING_PATCH, load_pretrained
from reporting.charts import STYLE, curve_look
from reporting.figures import WIDTH, Picture
from reporting.study import INITS

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

    @property
    def name(self) -> str:
        """The source's."""
        return INITS[self.init]


def pixels_of(init: str) -> tuple[int, int]:
    """Image and patch size with which a ViT is compared as the study used it, by default."""
    return (224, DEPTH_ANYTHING_PATCH) if init == "depth_anything_v2" else (256, 16)


@torch.inference_mode()
def loading_loss(
    init: str, images: Tensor, weights: str | Path | None = None, patch_size: int = 16, **size: int
) -> LoadingLoss:
    """Measure what a source's encoder loses by the study's way of loading it, with nothing trained.

    images: float (N, 3, H, H) in [0, 1] of real frames. weights: as in models.pretrained.load_pretrained, the
    same for both encoders; by default the study's, which are DFN-2B's for clip. size: width, depth and heads.
    Neither encoder has latents here. Raises UserError where the weights can't be had.
    """
    if init == "clip" and weights is None:
        weights = AS_RUN_CLIP
    named = variant(weights) if is_named(weights) else None
    options = {"image_size": images.shape[-1], "patch_size": patch_size, "num_latents": 1, **size}
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


def loading_to_csv(losses: list[LoadingLoss]) -> str:
    """A line for each source and layer; the last layer of a source is that of its last norm."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["source", "layer", "relative_error", "cka_debiased"])
    for each in losses:
        for layer, (error, cka) in enumerate(zip(each.error, each.cka), start=1):
            writer.writerow([each.init, layer, f"{error:.6g}", f"{cka:.6g}"])
    return file.getvalue()


def draw_loading(losses: list[LoadingLoss]) -> Picture:
    """Relative error and CKA by layer, a curve for each source."""
    title = "What loading lost"
    panels = {"error": "relative error", "cka": "linear CKA, debiased"}
    with matplotlib.style.context(STYLE):
        figure = Figure((WIDTH, 3.2))
        figure.suptitle(title, x=0.01, ha="left")
        for axes, (name, text) in zip(figure.subplots(1, 2), panels.items()):
            for look, each in enumerate(losses):
                values = getattr(each, name)
                axes.plot(
                    np.arange(1, len(values) + 1),
                    values,
                    **curve_look(look),
                    label=each.name,
                )
            axes.set_title(text, fontsize=8.5)
            axes.set_xlabel("block; the last point is behind the norm")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            shown = np.concatenate([getattr(each, name) for each in losses])
            axes.set_ylim(min(0, shown.min()), 1.06 * shown.max())  # or a likeness of 1 would be cut off
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower left", ncols=len(losses))
    caption = (
        f"Patch features of {losses[0].num_images} validation frames: each source's encoder with its weights "
        "as they are, against the study's plain ViT with what fits of them. Left, the norm of the "
        "difference over that of the exact features; right, how alike they are up to rotation and scale. "
        "Nothing was trained."
    )
    return Picture("loading", title, caption, figure)
