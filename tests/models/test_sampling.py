"""What the sampler is made of: schedules, noise, what may be drawn, and the Halton order."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import softmax

from errors import UserError
from models.sampling import (
    GUIDANCE_SCHEDULES,
    MASK_SCHEDULES,
    GumbelNoise,
    as_run_plan,
    check_order,
    halton_order,
    keep_likeliest,
    square_of,
)
from models.titok import TiTok
from models.vqgan import VQGAN

HALVES = {"arccos": 2 / 3, "cosine": math.sqrt(0.5), "linear": 1 / 2, "square": 3 / 4}


@pytest.mark.parametrize("name", MASK_SCHEDULES)
def test_mask_schedules_fall_from_one_to_zero(name):
    values = [MASK_SCHEDULES[name](u / 10) for u in range(11)]
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(0, abs=1e-12)
    assert values == sorted(values, reverse=True)
    assert values[5] == pytest.approx(HALVES[name])


def test_guidance_is_constant_or_grows_from_none():
    scales = {name: [each(3.0, u / 4) for u in range(5)] for name, each in GUIDANCE_SCHEDULES.items()}
    assert scales == {"constant": [3.0] * 5, "linear": [1.0, 1.5, 2.0, 2.5, 3.0]}


def test_noise_is_gumbel_and_each_samples_own():
    noise = GumbelNoise(seed=3, first_index=10, num=4, device=torch.device("cpu"))
    first, second = noise.draw(50, 60), noise.draw(7)
    assert first.shape == (4, 50, 60) and second.shape == (4, 7)
    assert stats.kstest(first.flatten().numpy(), "gumbel_r").pvalue > 0.01
    assert np.abs(np.corrcoef(first.flatten(1).numpy()) - np.eye(4)).max() < 0.1
    for index in range(4):
        alone = GumbelNoise(seed=3, first_index=10 + index, num=1, device=torch.device("cpu"))
        assert torch.equal(alone.draw(50, 60)[0], first[index])
        assert torch.equal(alone.draw(7)[0], second[index])
    other = GumbelNoise(seed=4, first_index=10, num=4, device=torch.device("cpu")).draw(50, 60)
    assert np.abs(np.corrcoef(first.flatten(1).numpy(), other.flatten(1).numpy()) - np.eye(8)).max() < 0.1


def kept(logits, top_k, top_p):
    """Which codes of one row may be drawn, one code after another."""
    likeliest = sorted(logits, reverse=True)
    border = likeliest[min(top_k or len(logits), len(logits)) - 1]
    left = [value for value in likeliest if value >= border]
    shares = softmax(left)
    if top_p is not None:
        together = 0.0
        for value, share in zip(left, shares):
            border, together = value, together + share
            if together >= top_p:
                break
    return [value >= border for value in logits]


@pytest.mark.parametrize("with_ties", [False, True])
@pytest.mark.parametrize("top_k", [None, 1, 5, 30, 99])
@pytest.mark.parametrize("top_p", [None, 0.01, 0.6, 0.97, 1.0])
def test_keeps_the_likeliest(with_ties, top_k, top_p):
    logits = torch.randn(4, 6, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
    logits = logits.round() if with_ties else logits
    left = keep_likeliest(logits, top_k, top_p)
    expected = np.apply_along_axis(lambda row: kept(row, top_k, top_p), -1, logits.numpy())
    assert np.array_equal(left.isfinite().numpy(), expected)
    assert torch.equal(left[left.isfinite()], logits[left.isfinite()])  # the rest as they were


def test_equally_likely_codes_stay_together():
    logits = torch.tensor([1.0, 3.0, 1.0, 1.0, 0.0])
    assert keep_likeliest(logits, 2, None).isfinite().tolist() == [True, True, True, True, False]
    # e³ is 0.687 of the sum, and one e¹ more would make 0.78: the other two are as likely.
    assert keep_likeliest(logits, None, 0.68).isfinite().tolist() == [False, True, False, False, False]
    assert keep_likeliest(logits, None, 0.69).isfinite().tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(
    "grid", [*((side, side) for side in (1, 2, 4, 9, 12, 16, 32)), (16, 28), (5, 2), (1, 7)]
)
def test_halton_order_is_scipys(grid):
    """Halton's points from the second on, each cell where it first occurs: every cell once."""
    rows, columns = grid
    points = stats.qmc.Halton(d=2, scramble=False).random(16 * max(grid) ** 2 + 8)[1:]
    column, row = np.floor(points * (columns, rows) + 1e-9).astype(int).T
    cells, first = np.unique(row * columns + column, return_index=True)
    assert list(cells) == list(range(rows * columns))
    assert halton_order(*grid).tolist() == cells[first.argsort()].tolist()


def test_halton_order_by_hand():
    """(1/2, 1/3), (1/4, 2/3), (3/4, 1/9), (1/8, 4/9), (5/8, 7/9), (3/8, 2/9) on a grid of 4 × 4."""
    assert halton_order(4, 4)[:6].tolist() == [
        1 * 4 + 2,
        2 * 4 + 1,
        0 * 4 + 3,
        1 * 4 + 0,
        3 * 4 + 2,
        0 * 4 + 1,
    ]


def test_halton_order_is_even():
    """Six places after one another lie one in each of 2 × 3 parts; a quarter of all is near everything."""
    order = halton_order(12, 12)
    for start in range(0, 12):
        row, column = order[start : start + 6] // 12, order[start : start + 6] % 12
        assert len({(int(r) // 4, int(c) // 6) for r, c in zip(row, column)}) == 6
    quarter = np.stack(np.divmod(halton_order(16, 16)[:64].numpy(), 16), axis=1)
    everything = np.stack(np.divmod(np.arange(256), 16), axis=1)
    distance = np.abs(everything[:, None] - quarter).max(axis=-1).min(axis=1)
    assert distance.max() <= 2  # the best that 64 of 256 can do is 1, of the first four rows 12


def test_halton_order_is_for_grids():
    with pytest.raises(ValueError, match="12 tokens are no square grid"):
        square_of(12)
    small = {"width": 16, "depth": 1, "heads": 1}
    titok = TiTok(image_size=32, patch_size=16, num_tokens=16, encoder=small, decoder=small)
    vqgan = VQGAN(image_size=16, channels=32, multipliers=(1, 1), blocks=1)
    check_order("confidence", titok, "runs/a")
    check_order("halton", vqgan, "runs/b")
    with pytest.raises(UserError, match=r"halton.*2D grid.*runs/a \(titok\)"):
        check_order("halton", titok, "runs/a")


@pytest.mark.parametrize("schedule", ["arccos", "cosine", "linear", "square"])
@pytest.mark.parametrize("steps, num_tokens", [(12, 64), (12, 256), (8, 16), (8, 128), (1, 32), (12, 300)])
def test_the_plan_as_run_is_the_studys(schedule, steps, num_tokens):
    """Its formula: values of the schedule over their sum, times 256, rounded, at least one a step."""
    r = torch.linspace(1, 0, steps)
    values = {
        "arccos": torch.arccos(r) / (math.pi / 2),
        "cosine": torch.cos(r * math.pi / 2),
        "linear": 1 - r,
        "square": 1 - r**2,
    }[schedule]
    counts = (values / values.sum() * 256).round() if steps > 1 else torch.tensor([256.0])
    counts[counts == 0] = 1
    counts[-1] += 256 - counts.sum()
    expected, left = [], num_tokens
    for count in counts.int().tolist():
        if left:
            expected.append(min(count, left))
            left -= expected[-1]
    expected[-1] += left  # of more than 256 tokens
    assert as_run_plan(schedule, steps, num_tokens) == expected


def test_of_64_tokens_the_first_half_of_the_steps_decides_all():
    assert as_run_plan("arccos", 12, 64) == [1, 9, 13, 17, 19, 5]
