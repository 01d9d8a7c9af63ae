"""The study's open questions: what tokenizers' latents have in common, and what each token carries."""

import csv
import io
import math
import textwrap
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter
from torch import Tensor

from data.frames import Frame, FrameDataset, to_unit_range
from errors import UserError
from metrics.representation import effective_area, effective_rank, linear_cka, rank, token_entropy
from models.editing import token_influence
from models.pretrained import SOURCES, build_encoder
from models.storage import load_tokenizer
from models.tokenizer import Tokenizer
from reporting.charts import STYLE, curve_look
from reporting.figures import WIDTH, Picture
from reporting.runs import Run
from reporting.study import INITS, label
from training.model_sections import TiTokSection

BATCH = 16  # images at once
ABLATED_FRAMES = 4
ALTERNATIVES = 2  # other codes in a token's place


class Tokens(NamedTuple):
    """What a tokenizer's tokens are like over a set of frames."""

    tokenizer: str
    run: str
    token_size: int  # D, the dimension of a code
    rank: int  # of all tokens' latents, at most D
    effective_rank: float  # of the same
    image_rank: float  # effective, of images' latents (N, K * D): at most N - 1
    codes_used: float  # the share of the codebook
    entropy: np.ndarray  # (K,): bits of each token's codes over the frames
    change: np.ndarray  # (K,): mean absolute change of the image, of 1, where another code is in its place
    area: np.ndarray  # (K,): the share of the image over which that change is spread


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
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    return file.getvalue()


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
    def load_images(size: int, resize: str) -> Tensor:
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
        latents, codes = encode(tokenizer, load_images(tokenizer.image_size, run.config.data.resize), device)
        features[label(run)] = latents.flatten(1)
        tokens.append(measure_tokens(run, tokenizer, latents, codes, seed))
    for init, run in sources.items():
        model = run.config.model
        try:
            images = load_images(model.image_size, run.config.data.resize)
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
    size = model.encoder
    encoder = build_encoder(
        size.init,
        size.weights,
        model.image_size,
        model.patch_size,
        num_latents=1,
        width=size.width,
        depth=size.depth,
        heads=size.heads,
    )
    encoder.to(device).eval()
    parts = [encoder.forward_features(to_unit_range(part, device)) for part in images.split(BATCH)]
    return torch.cat([part[:, 1:].mean(dim=1) for part in parts]).cpu()


def measure_tokens(run: Run, tokenizer: Tokenizer, latents: Tensor, codes: Tensor, seed: int) -> Tokens:
    """A tokenizer's Tokens from latents (N, K, D) and codes (N, K) of images."""
    influences = [token_influence(tokenizer, each, ALTERNATIVES, seed) for each in codes[:ABLATED_FRAMES]]
    return Tokens(
        tokenizer=label(run),
        run=run.name,
        token_size=latents.shape[-1],
        rank=rank(latents.flatten(0, 1)),
        effective_rank=effective_rank(latents.flatten(0, 1)),
        image_rank=effective_rank(latents.flatten(1)),
        codes_used=len(codes.unique()) / tokenizer.codebook_size,
        entropy=token_entropy(codes, tokenizer.codebook_size).cpu().numpy(),
        change=torch.stack([maps.double().mean(dim=(1, 2)) for maps in influences]).mean(dim=0).cpu().numpy(),
        area=torch.stack([effective_area(maps) for maps in influences]).mean(dim=0).cpu().numpy(),
    )


# --- drawn --------------------------------------------------------------------------------------------------


def draw_representations(found: Representations) -> list[Picture]:
    """A heatmap of CKA where there are two representations, and what the tokens of each tokenizer carry."""
    pictures = []
    if len(found.names) > 1:
        title = "Likeness of representations"
        caption = (
            f"Linear CKA over {found.num_frames} validation frames, debiased, so that representations "
            "without anything in common have 0; equal ones, up to rotation and scale, have 1. Latents are an "
            "image's tokens one after another; features are the mean patch token of the published model that "
            "an encoder starts from."
        )
        pictures.append(Picture("representation_cka", title, caption, draw_cka(title, found)))
    if found.tokens:
        title = "What each token carries"
        caption = (
            f"Left, the entropy of each token's code over {found.num_frames} validation frames, which is at "
            f"most {math.log2(found.num_frames):.1f} bits for so many. Middle, how much the image changes, "
            f"on average over pixels, channels and {ABLATED_FRAMES} frames, where a random other code stands "
            "in the token's place. Right, over which share of the image that change is spread. Each is "
            "sorted, from the token with the most."
        )
        pictures.append(Picture("representation_tokens", title, caption, draw_tokens(title, found.tokens)))
    return pictures


def draw_cka(title: str, found: Representations) -> Figure:
    """CKA of each pair, as colour and as number."""
    count = len(found.names)
    names = [textwrap.fill(name, 20) for name in found.names]
    with matplotlib.style.context(STYLE):
        side = min(WIDTH, 2.2 + 0.55 * count)
        figure = Figure((side, side + 0.3))
        figure.suptitle(title, x=0.01, ha="left")
        axes = figure.add_subplot()
        axes.imshow(found.cka, cmap="cividis_r", vmin=0, vmax=1)
        size = 7 if count <= 12 else 5
        for i, j in np.ndindex(count, count):
            value = found.cka[i, j]
            colour = "white" if value > 0.5 else "black"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=size, color=colour)
        axes.set_xticks(range(count), names, rotation=90, fontsize=size)
        axes.set_yticks(range(count), names, fontsize=size)
        axes.grid(visible=False)
    return figure


def draw_tokens(title: str, tokens: list[Tokens]) -> Figure:
    """Three panels with a curve for each tokenizer, its tokens sorted from the largest value."""
    panels = {
        "entropy": "entropy (bits)",
        "change": "change (of pixels in [0, 1])",
        "area": "area (share of the image)",
    }
    with matplotlib.style.context(STYLE):
        in_a_row = max(1, 120 // (max(len(each.tokenizer) for each in tokens) + 9))
        figure = Figure((WIDTH, 2.9 + 0.17 * math.ceil(len(tokens) / in_a_row)))
        figure.suptitle(title, x=0.01, ha="left")
        for axes, (name, text) in zip(figure.subplots(1, 3), panels.items()):
            for look, each in enumerate(tokens):
                values = np.sort(getattr(each, name))[::-1]
                axes.plot(
                    np.arange(1, len(values) + 1),
                    values,
                    **curve_look(look),
                    markevery=[2**power - 1 for power in range(len(values).bit_length())],
                    label=each.tokenizer,
                )
            axes.set_title(text, fontsize=8.5)
            axes.set_xlabel("token, sorted")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.set_ylim(bottom=0)
        handles, names = axes.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower left", ncols=in_a_row)
    return figure
