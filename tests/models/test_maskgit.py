"""MaskGIT's sampler: what it keeps, how many tokens a step reveals, and samples free of their batch."""

import math

import pytest
import torch
import torch.nn.functional as F

from models.maskgit import MASK_SCHEDULES, MaskGIT, masked_token_loss


@pytest.fixture
def generator():
    torch.manual_seed(0)
    return MaskGIT(num_tokens=12, codebook_size=40, width=32, depth=2, heads=2).eval()


def test_generates_codes(generator):
    codes = generator.generate(num=5, steps=4, seed=1)
    assert codes.shape == (5, 12) and codes.dtype == torch.int64
    assert 0 <= codes.min() and codes.max() < 40
    assert torch.equal(codes, generator.generate(num=5, steps=4, seed=1))
    assert not torch.equal(codes, generator.generate(num=5, steps=4, seed=2))


def test_samples_do_not_depend_on_their_batch(generator):
    whole = generator.generate(num=5, steps=4, seed=1)
    parts = [generator.generate(num=n, steps=4, seed=1, first_index=i) for i, n in ((0, 2), (2, 1), (3, 2))]
    assert torch.equal(whole, torch.cat(parts))


@pytest.mark.parametrize("steps", [1, 3, 50])
def test_fill_keeps_what_is_known(generator, steps):
    codes = torch.randint(40, (6, 12))
    mask = torch.rand(6, 12) < torch.tensor([0.0, 0.1, 0.5, 0.5, 0.9, 1.0])[:, None]
    filled = generator.fill(codes, mask, steps=steps)
    assert torch.equal(filled[~mask], codes[~mask])
    assert filled.max() < 40
    # What was under the mask has no influence.
    assert torch.equal(filled, generator.fill(codes.masked_fill(mask, 7), mask, steps=steps))


@pytest.mark.parametrize("schedule", ["arccos", "cosine"])
def test_each_step_reveals_as_many_as_the_schedule_says(generator, schedule):
    seen = []
    generator.register_forward_pre_hook(lambda _, inputs: seen.append((inputs[0] == 40).sum(dim=1)))
    generator.generate(num=3, steps=5, schedule=schedule)
    share = {"arccos": lambda u: 2 / math.pi * math.acos(u), "cosine": lambda u: math.cos(math.pi / 2 * u)}
    wanted, unknown = [], 12
    for step in range(1, 6):
        wanted.append(unknown)
        unknown = min(math.floor(12 * share[schedule](step / 5)), unknown - 1)
    assert [counts.tolist() for counts in seen] == [[count] * 3 for count in wanted]


@pytest.mark.parametrize("name", MASK_SCHEDULES)
def test_schedules_fall_from_one_to_zero(name):
    values = [MASK_SCHEDULES[name](u / 10) for u in range(11)]
    assert values[0] == pytest.approx(1) and values[-1] == pytest.approx(0, abs=1e-12)
    assert values == sorted(values, reverse=True)


def test_sampling_follows_the_logits():
    """With one token to predict, samples have the distribution softmax(logits / temperature)."""
    generator = MaskGIT(num_tokens=1, codebook_size=4, width=8, depth=1, heads=1).eval()
    torch.nn.init.zeros_(generator.head.weight)
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0])
    generator.head.bias.data.copy_(logits)
    codes = generator.generate(num=4000, steps=1, temperature=0.7)
    shares = torch.bincount(codes.flatten(), minlength=4) / 4000
    torch.testing.assert_close(shares, (logits / 0.7).softmax(0), atol=0.03, rtol=0)


def test_confident_tokens_come_first():
    """Without noise, the step's tokens are those whose code is likeliest."""
    generator = MaskGIT(num_tokens=4, codebook_size=3, width=8, depth=1, heads=1).eval()
    logits = torch.tensor([1.0, 6.0, 2.0, 4.0])[:, None] * torch.tensor([1.0, 0.0, 0.0])
    seen = []
    generator.forward = lambda tokens: seen.append(tokens == 3) or logits[None]
    generator.generate(num=1, steps=4, schedule="cosine", randomness=0.0, temperature=0.5)
    order = [int(mask.sum()) for mask in seen]
    assert order == [4, 3, 2, 1]
    assert [mask[0].nonzero().flatten().tolist() for mask in seen[1:]] == [[0, 2, 3], [0, 2], [0]]


def test_loss_is_the_masked_cross_entropy():
    torch.manual_seed(0)
    logits, codes, mask = torch.randn(3, 5, 7), torch.randint(7, (3, 5)), torch.rand(3, 5) < 0.5
    expected = F.cross_entropy(logits[mask], codes[mask], reduction="sum", label_smoothing=0.1)
    torch.testing.assert_close(masked_token_loss(logits, codes, mask, 0.1), expected)
