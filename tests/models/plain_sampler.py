"""MaskGIT's sampler as its papers tell it, one sample and one token after another."""

import math

import numpy as np
import torch
from scipy import stats

from models.sampling import GumbelNoise

SHARES = {
    "arccos": lambda u: 2 / math.pi * math.acos(u),
    "cosine": lambda u: math.cos(math.pi / 2 * u),
    "linear": lambda u: 1 - u,
    "square": lambda u: 1 - u * u,
}


def allowed(row, top_k, top_p):
    """Which of a row of logits may be drawn."""
    ordered = np.sort(row)[::-1]
    if top_k is not None:
        ordered = ordered[ordered >= ordered[top_k - 1]]
    if top_p is not None:
        shares = np.exp(ordered - ordered[0])
        ordered = ordered[: 1 + np.searchsorted(np.cumsum(shares / shares.sum()), top_p)]
    return row >= ordered[-1]


def plain_fill(
    generator,
    codes,
    mask,
    conditions,
    steps,
    seed,
    schedule="arccos",
    temperature=1.0,
    randomness=4.5,
    top_k=None,
    top_p=None,
    order="confidence",
    guidance=1.0,
    guidance_schedule="constant",
    remask=0.0,
    guide=None,
):
    """The sampler as its papers tell it, one sample and one token after another.

    Step by step, sample i takes the next (K, V + 1) of its noise: V for a token's codes, 1 for its place.
    """
    num, length = codes.shape
    noise = GumbelNoise(seed, 0, num, torch.device("cpu"))
    codes, unknown, to_predict = codes.numpy().copy(), mask.numpy().copy(), mask.numpy().sum(axis=1)
    side = math.isqrt(length)
    points = (stats.qmc.Halton(d=2, scramble=False).random(500)[1:] * side).astype(int)
    halton = list(dict.fromkeys(int(row * side + column) for column, row in points))
    for step in range(1, steps + 1):
        if remask and step > 1:
            again = np.exp(-np.exp(-noise.draw(length).numpy().astype(np.float64))) < remask
            unknown |= again & mask.numpy()
        drawn = noise.draw(length, generator.codebook_size + 1).numpy()
        tokens = torch.from_numpy(np.where(unknown, generator.mask_token, codes))
        with torch.no_grad():
            told = generator(tokens, conditions).numpy().astype(np.float64)
            untold = guide(tokens, conditions) if guide else generator(tokens)
            untold = untold.numpy().astype(np.float64)
        scale = guidance
        if guidance_schedule == "linear":
            scale = 1 + (guidance - 1) * (step - 1) / max(1, steps - 1)
        logits = (untold + scale * (told - untold)) / temperature
        for sample in range(num):
            confidence = {}
            for place in np.flatnonzero(unknown[sample]):
                row = logits[sample, place]
                may = allowed(row, top_k, top_p)
                code = np.where(may, row + drawn[sample, place, :-1], -np.inf).argmax()
                codes[sample, place] = code
                probability = np.exp(row[code]) / np.exp(row[may]).sum()
                annealed = randomness * (1 - step / steps)
                sure = np.log(probability)
                if order == "entropy":
                    shares = np.exp(row[may]) / np.exp(row[may]).sum()
                    sure = (shares * np.log(shares)).sum()
                confidence[place] = sure + annealed * drawn[sample, place, -1]
            if order == "halton":
                confidence = {place: -halton.index(place) for place in confidence}
            elif order == "coarse_first":
                confidence = {place: -place for place in confidence}
            stay = math.floor(to_predict[sample] * SHARES[schedule](step / steps) + 1e-6)
            stay = max(0, min(stay, len(confidence) - 1))
            unknown[sample] = False
            unknown[sample, sorted(confidence, key=confidence.get)[:stay]] = True
    return codes
