import numpy as np
import pytest
import torch

from metrics.codebook import CodebookUsage


def test_statistics_equal_numpys():
    codes = np.random.default_rng(0).zipf(1.5, size=(40, 16)).clip(max=60)
    counts = np.bincount(codes.flatten(), minlength=64)
    used = counts[counts > 0] / counts.sum()

    statistics = CodebookUsage(64)
    for part in np.array_split(codes, 7):
        statistics.update(torch.from_numpy(part))
    assert statistics.counts.dtype == torch.int64
    assert statistics.counts.tolist() == counts.tolist()
    assert statistics.usage() == pytest.approx(np.count_nonzero(counts) / 64)
    assert statistics.perplexity() == pytest.approx(np.exp(-(used * np.log(used)).sum()))


def test_even_use_and_a_single_code():
    even, single = CodebookUsage(8), CodebookUsage(8)
    even.update(torch.arange(8).view(2, 4))
    single.update(torch.full((2, 4), 3))
    assert (even.usage(), even.perplexity()) == (1.0, pytest.approx(8))
    assert (single.usage(), single.perplexity()) == (1 / 8, pytest.approx(1))


def test_counts_add_up_over_processes():
    codes = torch.randint(32, (10, 6), generator=torch.Generator().manual_seed(0))
    whole, first, second = (CodebookUsage(32) for _ in range(3))
    whole.update(codes)
    first.update(codes[:4])
    second.update(codes[4:])
    first.counts += second.counts
    assert first.usage() == whole.usage() and first.perplexity() == whole.perplexity()


def test_a_code_beyond_the_codebook_is_an_error():
    with pytest.raises(RuntimeError):
        CodebookUsage(8).update(torch.tensor([[1, 8]]))
