"""The study's open questions: what tokenizers' latents have in common, and what each token carries."""

import math
import textwrap
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import altair as alt
import numpy as np
import torch
from torch import Tensor

from comparison.recipes import INITS, label
from comparison.runs import Run
from comparison.texts import to_csv
from data.frames import Frame, FrameDataset, to_unit_range
from errors import UserError
from metrics.representation import ABLATED_FRAMES, Tokens, linear_cka, measure_tokens
from models.pretrained import SOURCES
from models.storage import load_tokenizer
from models.tokenizer import Tokenizer
from reporting.drawing import Figure, draw_panels, over_places, values
from sizes import height_and_width
from training.model_sections import TiTokSection
from training.starts import build_source

BATCH = 16  # images at once


class Representations(NamedTuple):
    """Tokenizers compared over the same frames."""

    num_frames: int
    names: list[str]  # of what is compared: tokenizers' latents, then the features of the encoders' sources
    cka: np.ndarray  # (n, n): linear CKA, debiased
    cka_biased: np.ndarray  # (n, n): as first published
    tokens: list[Tokens]

    def to_csv(self) -> dict[str, str]:
        """The numbers as the text of CSV files, by their names."""
        pairs = [
            (self.names[i], self.names[j], self.cka[i, j], self.cka_biased[i, j])
            for i, j in combinations(range(len(self.names)), 2)
        ]
        each_token = [
            (one.tokenizer, one.run, token, *values)
            for one in self.tokens
            for token, values in enumerate(zip(one.entropy, one.change, one.area))
        ]
        per_tokenizer = [
            (
                *(one.tokenizer, one.run, len(one.entropy), one.token_size, one.rank, one.effective_rank),
                *(one.image_rank, one.codes_used, one.entropy.mean(), one.change.mean(), one.area.mean()),
            )
            for one in self.tokens
        ]
        return {
            "representation_cka": _csv("first,second,cka_debiased,cka", pairs),
            "representation_tokens": _csv("tokenizer,run,token,entropy_bits,change,area", each_token),
            "representation_tokenizers": _csv(
                "tokenizer,run,tokens,token_size,rank,effective_rank,image_effective_rank,codes_used,"
                "mean_entropy_bits,mean_change,mean_area",
                per_tokenizer,
            ),
        }


def _csv(header: str, rows: list[tuple]) -> str:
    lines = ([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return to_csv(header.split(","), lines)


# --- measured -----------------------------------------------------------------------------------------------


@torch.inference_mode()
def compare_representations(
    runs: list[Run], folder: Path, frames: list[Frame], device: torch.device, seed: int = 0
) -> tuple[Representations, list[str]]:
    """Compare the runs' tokenizers, and the sources that their encoders start from, over the same frames.

    folder: of the frames, all of them readable; at least four. An image's latents are those of its K tokens
    one after another, as they are quantized (K * D); a source's features are the mean of its patch tokens
    after the last norm. Also returns a line for each tokenizer or source that could not be had.
    """
    missing: list[str] = []

    @cache
    def load_images(size: tuple[int, int], resize: str) -> Tensor:
        dataset = FrameDataset(folder, frames, size, resize)
        return torch.stack([dataset[index][0] for index in range(len(frames))])

    features: dict[str, Tensor] = {}  # (N, …) by name
    tokens, sources = [], {}
    for run in runs:
        if run.is_generator:
            continue
        model = run.config.model
        if isinstance(model, TiTokSection) and model.encoder.init in SOURCES:
            sources[model.encoder.init] = run
        try:
            tokenizer = load_tokenizer(run.folder).to(device)
        except UserError as error:
            missing.append(f"representation of {run.folder}: {error}")
            continue
        images = load_images(height_and_width(tokenizer.image_size), run.config.data.resize)
        latents, codes = encode(tokenizer, images, device)
        features[label(run)] = latents.flatten(1)
        tokens.append(measure_tokens(label(run), run.name, tokenizer, latents, codes, seed))
    for init, run in sources.items():
        model = run.config.model
        try:
            images = load_images(height_and_width(model.image_size), run.config.data.resize)
            features[f"{INITS[init]} features"] = source_features(model, images, device)
        except UserError as error:
            missing.append(f"features of {init}, for the comparison of representations: {error}")

    names = list(features)
    cka, cka_biased = np.eye(len(names)), np.eye(len(names))
    for i, j in combinations(range(len(names)), 2):
        pair = features[names[i]], features[names[j]]
        cka[i, j] = cka[j, i] = linear_cka(*pair, debiased=True)
        cka_biased[i, j] = cka_biased[j, i] = linear_cka(*pair)
    return Representations(len(frames), names, cka, cka_biased, tokens), missing


def encode(tokenizer: Tokenizer, images: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """uint8 images (N, 3, H, W) to latents as quantized (N, K, D), float32 on the CPU, and codes (N, K)."""
    parts = [
        tokenizer.quantizer(tokenizer.to_latents(to_unit_range(part, device))) for part in images.split(BATCH)
    ]
    return torch.cat([part.latents for part in parts]).cpu(), torch.cat([part.codes for part in parts])


def source_features(model: TiTokSection, images: Tensor, device: torch.device) -> Tensor:
    """The mean patch token (N, width), on the CPU, of the ViT that a TiTok's encoder starts from."""
    encoder = build_source(model.encoder, model.image_size, model.patch_size).to(device)
    parts = [encoder.forward_features(to_unit_range(part, device)) for part in images.split(BATCH)]
    return torch.cat([part[:, 1:].mean(dim=1) for part in parts]).cpu()


# --- drawn --------------------------------------------------------------------------------------------------


def draw_representations(found: Representations) -> list[Figure]:
    """A heatmap of CKA where there are two representations, and what the tokens of each tokenizer carry."""
    figures = []
    if len(found.names) > 1:
        caption = (
            f"Linear CKA over {found.num_frames} validation frames, debiased, so that representations "
            "without anything in common have 0; equal ones, up to rotation and scale, have 1. Latents are an "
            "image's tokens one after another; features are the mean patch token of the published model that "
            "an encoder starts from."
        )
        figures.append(Figure("representation_cka", "Likeness of representations", caption, draw_cka(found)))
    if found.tokens:
        caption = (
            f"Left, the entropy of each token's code over {found.num_frames} validation frames, which is at "
            f"most {math.log2(found.num_frames):.1f} bits for so many. Middle, how much the image changes, "
            f"on average over pixels, channels and {ABLATED_FRAMES} frames, where a random other code stands "
            "in the token's place. Right, over which share of the image that change is spread. Each is "
            "sorted, from the token with the most."
        )
        drawing = draw_tokens(found.tokens)
        figures.append(Figure("representation_tokens", "What each token carries", caption, drawing))
    return figures


def draw_cka(found: Representations) -> alt.LayerChart:
    """CKA of each pair, as colour and as number."""
    names = [textwrap.fill(name, 22) for name in found.names]
    rows = [
        {
            "first": names[i],
            "second": names[j],
            "cka": float(found.cka[i, j]),
            "biased": float(found.cka_biased[i, j]),
        }
        for i, j in np.ndindex(found.cka.shape)
    ]
    axis = alt.Axis(labelExpr="split(datum.label, '\\n')", labelPadding=5, ticks=False, domain=False)
    pair = alt.Chart().encode(
        x=alt.X("second:N", title=None, sort=names, axis=axis),
        y=alt.Y("first:N", title=None, sort=names, axis=axis),
        tooltip=[
            *(alt.Tooltip(f"{field}:N", title=field) for field in ("first", "second")),
            alt.Tooltip("cka:Q", title="CKA, debiased", format=".4f"),
            alt.Tooltip("biased:Q", title="as first published", format=".4f"),
        ],
    )
    colours = alt.Scale(scheme="cividis", reverse=True, domain=[0, 1], clamp=True)
    ink = alt.condition("datum.cka > 0.5", alt.value("#ffffff"), alt.value("#000000"))
    return (
        alt.layer(
            pair.mark_rect().encode(color=alt.Color("cka:Q", scale=colours, legend=None)),
            pair.mark_text().encode(text=alt.Text("cka:Q", format=".2f"), color=ink),
            data=values(rows),
        )
        .transform_filter("isValid(datum.cka)")
        .properties(width=alt.Step(36), height=alt.Step(36))
    )


def draw_tokens(tokens: list[Tokens]) -> alt.FacetChart:
    """Three panels with a curve for each tokenizer, its tokens sorted from the largest value."""

    fields = {"entropy (bits)": "entropy", "change (of pixels in [0, 1])": "change"}
    fields |= {"area (share of the image)": "area"}
    panels = {
        title: [
            over_places(each.tokenizer, look, each.run, np.sort(getattr(each, field))[::-1])
            for look, each in enumerate(tokens)
        ]
        for title, field in fields.items()
    }
    return draw_panels(panels, "token, sorted", log_x=True)
