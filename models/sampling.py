"""How masked tokens are sampled: schedules, the tokens' order, what may be drawn, and each sample's noise."""

import math
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from errors import UserError
from models.elastic import ElasticTiTok
from models.tokenizer import Tokenizer

# The share of tokens masked at u in [0, 1], falling from 1 to 0; u is uniform in training and the share of
# steps done in sampling (MaskGIT, arXiv 2202.04200, section 3.3).
MASK_SCHEDULES = {
    "arccos": lambda u: math.acos(u) * 2 / math.pi,
    "cosine": lambda u: math.cos(u * math.pi / 2),
    "linear": lambda u: 1 - u,
    "square": lambda u: 1 - u**2,
}

AS_RUN_TOKENS = 16 * 16  # for which the study's sampler plans its steps

# The scale of guidance at u in [0, 1], the share of steps done before this one, up to `guidance`. The linear
# one leaves the first tokens free (Muse, arXiv 2301.00704, section 2.7).
GUIDANCE_SCHEDULES = {
    "constant": lambda guidance, u: guidance,
    "linear": lambda guidance, u: 1 + (guidance - 1) * u,
}


class GumbelNoise:
    """Standard Gumbel noise, an independent stream for each sample index, the same in any batch."""

    def __init__(self, seed: int, first_index: int, num: int, device: torch.device):
        self.device = device
        self.generators = []
        for index in range(first_index, first_index + num):
            stream = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> 1)
            self.generators.append(torch.Generator(device).manual_seed(stream))

    def draw(self, *shape: int) -> Tensor:
        """The next noise of every stream: float (num, *shape)."""
        noise = torch.empty(len(self.generators), *shape, device=self.device)
        for sample, generator in zip(noise, self.generators):
            sample.exponential_(generator=generator)
        return -noise.log()


def keep_likeliest(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (..., V) with -inf for codes that are not to be drawn.

    top_k keeps the k likeliest codes; top_p the fewest likeliest whose probabilities reach p together
    (nucleus sampling, arXiv 1904.09751, section 3.1), of those that top_k left. Equally likely ones at the
    border all stay.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered = logits.sort(dim=-1, descending=True).values
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        smallest = ordered.masked_fill(before >= top_p, torch.inf).amin(dim=-1, keepdim=True)
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    return logits


def as_run_plan(schedule: str, steps: int, num_tokens: int) -> list[int]:
    """How many tokens each step of the study's sampler decides, up to the one that decides the last.

    They are in proportion to the schedule's values at `steps` evenly spaced u from 1 to 0, and add up to
    16 × 16 whatever the sequence has (github.com/sejal-0502/Maskgit): of 64 tokens the first few steps decide
    all. What 256 leaves of a longer sequence, the last step decides.
    """
    values = [MASK_SCHEDULES[schedule](1 - step / max(1, steps - 1)) for step in range(steps)]
    whole = sum(values) or 1  # a single step has 0
    counts = [max(1, round(value / whole * AS_RUN_TOKENS)) for value in values]
    plan = []
    while sum(plan) < num_tokens and len(plan) < steps - 1:
        plan.append(min(counts[len(plan)], num_tokens - sum(plan)))
    return plan if sum(plan) == num_tokens else [*plan, num_tokens - sum(plan)]


def check_order(order: str, tokenizer: Tokenizer, name: str) -> None:
    """Raise UserError where the tokens of the tokenizer called `name` can't be sampled in an order."""
    if order == "coarse_first" and not isinstance(tokenizer, ElasticTiTok):
        raise UserError(
            f"sampling.order coarse_first: it is for elastic tokens, and those of {name} ({tokenizer.kind}) "
            f"carry as much one as another; use confidence"
        )
    if order == "halton" and tokenizer.grid is None:
        raise UserError(
            f"sampling.order halton: it is for tokens of a 2D grid, and those of {name} ({tokenizer.kind}) "
            f"have no place in the image; use confidence"
        )


def places_in_order(order: str, num_tokens: int, grid: tuple[int, int] | None) -> Tensor | None:
    """The places of tokens in the order in which they are decided, (num_tokens,); None where confidence says.

    grid: rows and columns, for "halton"; a square where that is None.
    """
    if order == "halton":
        return halton_order(*(grid or square_of(num_tokens)))
    return torch.arange(num_tokens) if order == "coarse_first" else None


def square_of(num_tokens: int) -> tuple[int, int]:
    """Rows and columns of as many tokens in a square. Raises ValueError where they make none."""
    side = math.isqrt(num_tokens)
    if side**2 != num_tokens:
        raise ValueError(f"{num_tokens} tokens are no square grid, which the Halton order is for")
    return side, side


def halton_order(rows: int, columns: int) -> Tensor:
    """The places 0 … rows * columns - 1 of a grid, read row by row, in an order that spreads evenly.

    It is that of the Halton points in bases 2 (columns) and 3 (rows) from the first on, each cell at the
    first point in it (the Halton scheduler of arXiv 2503.17076).
    """
    order = {}  # a dict for its order
    point = 1
    while len(order) < rows * columns:
        column = int(columns * radical_inverse(point, 2))
        order.setdefault(int(rows * radical_inverse(point, 3)) * columns + column)
        point += 1
    return torch.tensor(list(order))


def radical_inverse(number: int, base: int) -> Fraction:
    """The number's digits in a base, mirrored at the point: 6 = 110 in base 2 becomes 0.011 = 3/8."""
    numerator, denominator = 0, 1
    while number:
        number, digit = divmod(number, base)
        numerator, denominator = numerator * base + digit, denominator * base
    return Fraction(numerator, denominator)
