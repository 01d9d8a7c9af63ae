"""Representations against numpy and scipy, and what the published definitions promise of them."""

import numpy as np
import pytest
import scipy.stats
import torch

from metrics.representation import effective_area, effective_rank, linear_cka, rank, token_entropy


@pytest.fixture
def features():
    """Two representations (50, 12) and (50, 30) with something in common."""
    rng = np.random.default_rng(0)
    common = rng.normal(size=(50, 6))
    first = common @ rng.normal(size=(6, 12)) + rng.normal(size=(50, 12))
    second = common @ rng.normal(size=(6, 30)) + rng.normal(size=(50, 30)) + 3
    return torch.from_numpy(first), torch.from_numpy(second)


def test_cka_is_the_features_formula(features):
    x, y = (part.numpy() - part.numpy().mean(axis=0) for part in features)
    expected = np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert linear_cka(*features) == pytest.approx(expected, rel=1e-12)


def test_debiased_cka_is_songs_sum_over_distinct_examples():
    """The U-statistic that his equation 5 is a short form of, written out."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(7, 3)), rng.normal(size=(7, 4))
    y[:, :3] += x

    def hsic(first, second):
        n, pairs, triples, quadruples = len(first), 0, 0, 0
        for i in range(n):
            for j in set(range(n)) - {i}:
                pairs += first[i, j] * second[i, j]
                for q in set(range(n)) - {i, j}:
                    triples += first[i, j] * second[i, q]
                    quadruples += sum(first[i, j] * second[q, r] for r in set(range(n)) - {i, j, q})
        n2, n3 = n * (n - 1), n * (n - 1) * (n - 2)
        return pairs / n2 + quadruples / (n3 * (n - 3)) - 2 * triples / n3

    first, second = x @ x.T, y @ y.T
    expected = hsic(first, second) / np.sqrt(hsic(first, first) * hsic(second, second))
    assert linear_cka(torch.from_numpy(x), torch.from_numpy(y), debiased=True) == pytest.approx(expected)


@pytest.mark.parametrize("debiased", [False, True])
def test_cka_knows_no_rotation_scale_or_shift_but_stretching(features, debiased):
    x, y = features
    value = linear_cka(x, y, debiased)
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(1).normal(size=(30, 30)))[0])
    stretch = torch.logspace(-1, 1, 30, dtype=torch.float64)
    assert linear_cka(y, x, debiased) == pytest.approx(value)
    assert linear_cka(x, y @ rotation * 5 + 2, debiased) == pytest.approx(value)
    assert linear_cka(y, y @ rotation * 5 + 2, debiased) == pytest.approx(1)
    assert linear_cka(x, y * stretch, debiased) != pytest.approx(value, rel=0.01)


def test_only_the_debiased_cka_tells_noise_from_likeness():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 100, 1000, generator=generator)
    assert linear_cka(x, y) > 0.9
    assert abs(linear_cka(x, y, debiased=True)) < 0.1


def test_ranks_of_known_spectra():
    """Centred orthogonal directions with given singular values."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(40, 8))
    directions = np.linalg.qr(directions - directions.mean(axis=0))[0]

    def with_spectrum(*values):
        matrix = directions[:, : len(values)] * values @ np.linalg.qr(rng.normal(size=(10, len(values))))[0].T
        return torch.from_numpy(matrix + 7)

    assert effective_rank(with_spectrum(2, 2, 2, 2)) == pytest.approx(4)
    assert effective_rank(with_spectrum(1, 1e-12)) == pytest.approx(1)
    values = np.array([5.0, 3.0, 1.0, 0.5])
    expected = np.exp(scipy.stats.entropy(values))
    assert effective_rank(with_spectrum(*values)) == pytest.approx(expected)
    assert rank(with_spectrum(*values)) == 4
    assert rank(with_spectrum(*values).float()) == 4


def test_token_entropies_are_scipys():
    codes = np.random.default_rng(0).zipf(1.5, size=(200, 5)).clip(max=31)
    codes[:, 2] = 4
    expected = [scipy.stats.entropy(np.bincount(token), base=2) for token in codes.T]
    assert token_entropy(torch.from_numpy(codes), 32).tolist() == pytest.approx(expected)
    assert token_entropy(torch.arange(32)[:, None], 32).item() == pytest.approx(5)


def test_areas_of_known_maps():
    maps = torch.zeros(3, 4, 8)
    maps[0] = 0.3
    maps[1, 2, 5] = 2
    maps[2, :2] = 0.1
    assert effective_area(maps).tolist() == pytest.approx([1, 1 / 32, 1 / 2])
