"""What a training step hides of its images; each draw follows from (seed, step, index) alone."""

import numpy as np
import torch
from torch import Tensor

from models.corruption import Corruption
from models.elastic import ElasticTiTok, draw_lengths, first_tokens
from models.tokenizer import Tokenizer
from training.sections import CorruptionSection


def draw_corruption(
    tokenizer: Tokenizer, section: CorruptionSection, seed: int, step: int, indices: Tensor
) -> Corruption | None:
    """What is hidden of the training images of those indices, int64 (B,), at a step; None if nothing ever is.

    Of an elastic tokenizer the last tokens are, too.
    """
    drawn, num_tokens = (seed, step, indices), tokenizer.num_tokens
    visible = noise = share = kept = None
    if section.patches:
        visible = draw_visible(tokenizer.encoder.vit.patch_embed.num_patches, section.patches, *drawn)
    if section.noise:
        noise, share = draw_noise(num_tokens, tokenizer.quantizer.token_size, section.noise, *drawn)
    if section.tokens:
        kept = draw_kept(num_tokens, section.tokens, *drawn)
    if isinstance(tokenizer, ElasticTiTok):
        first = first_tokens(draw_lengths(num_tokens, *drawn), num_tokens)
        kept = first if kept is None else first & kept
    if visible is None and noise is None and kept is None:
        return None
    return Corruption(visible, noise, share, kept)


def draw_visible(num_patches: int, most: float, seed: int, step: int, indices: Tensor) -> Tensor:
    """The patches that the encoder sees at a step, int64 (B, n).

    Of each image a share of at most `most` is hidden, at a step the same for all, and at least one is left.
    """
    hidden = round(_hidden(most, _generator(seed, step, 0, 0)) * num_patches)
    left = max(1, num_patches - hidden)
    drawn = [_generator(seed, step, index, 1).permutation(num_patches)[:left] for index in indices.tolist()]
    return torch.from_numpy(np.sort(drawn, axis=1))


def draw_kept(num_tokens: int, most: float, seed: int, step: int, indices: Tensor) -> Tensor:
    """The tokens that the decoder sees at a step, bool (B, K).

    Of each image a share of at most `most`, of its own, is hidden, and at least one is left.
    """
    kept = np.ones((len(indices), num_tokens), dtype=bool)
    for row, index in zip(kept, indices.tolist()):
        rng = _generator(seed, step, index, 2)
        hidden = min(round(_hidden(most, rng) * num_tokens), num_tokens - 1)
        row[rng.permutation(num_tokens)[:hidden]] = False
    return torch.from_numpy(kept)


def draw_noise(
    num_tokens: int, token_size: int, deviation: float, seed: int, step: int, indices: Tensor
) -> tuple[Tensor, Tensor]:
    """Gaussian noise (B, K, D) of a standard deviation, and its share (B,), even in [0, 1), at a step."""
    generators = [_generator(seed, step, index, 3) for index in indices.tolist()]
    shares = [rng.random(dtype=np.float32) for rng in generators]
    noise = [rng.standard_normal((num_tokens, token_size), dtype=np.float32) for rng in generators]
    return torch.from_numpy(np.stack(noise)) * deviation, torch.tensor(shares)


def _hidden(most: float, rng: np.random.Generator) -> float:
    """The share that is hidden, max(0, U(-0.1, most)): sometimes nothing is (l-DeTok, section 3.2)."""
    return max(0.0, rng.uniform(-0.1, most))


def _generator(seed: int, step: int, index: int, kind: int) -> np.random.Generator:
    """Random numbers of an image at a step, other ones for each kind of draw."""
    return np.random.default_rng([seed, step, index, kind])
