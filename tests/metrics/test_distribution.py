import numpy as np
import pytest
import torch

from errors import UserError
from metrics.distribution import inception_score, kernel_distance, precision_recall


def features(count, dim=8, shift=0.0, seed=0):
    return (np.random.default_rng(seed).normal(size=(count, dim)) + shift).astype(np.float32)


def squared_mmd(x, y):
    """The unbiased estimate, term by term (Gretton et al. 2012, equation 3), of as many x as y."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def kernel(a, b):
        return (a @ b / len(a) + 1) ** 3

    n = len(x)
    same = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j)
    across = sum(kernel(x[i], y[j]) for i in range(n) for j in range(n))
    return same / (n * (n - 1)) - 2 * across / n**2


@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_kernel_distance_of_one_subset_is_the_mmd(shift):
    """With fewer images than a subset takes, each subset is all of them."""
    made, real = features(30, shift=shift, seed=1), features(30, seed=2)
    result = kernel_distance(torch.from_numpy(made), torch.from_numpy(real))
    assert result["value"] == pytest.approx(squared_mmd(made, real), rel=1e-4, abs=1e-5)
    assert result["std"] == pytest.approx(0, abs=1e-4)
    assert (result["subsets"], result["subset_size"]) == (100, 30)


def test_kernel_distance_takes_subsets_of_the_smaller_set():
    made, real = features(25, shift=0.5, seed=1), features(60, seed=2)
    result = kernel_distance(torch.from_numpy(made), torch.from_numpy(real))
    rng = np.random.default_rng(3)
    subsets = [squared_mmd(made, real[rng.choice(60, 25, replace=False)]) for _ in range(40)]
    assert result["subset_size"] == 25
    assert result["value"] == pytest.approx(np.mean(subsets), abs=4 * np.std(subsets) / np.sqrt(40))
    assert result["std"] == pytest.approx(np.std(subsets), rel=0.4)


def covered(points, reference, neighbours=3):
    """The share of points within the reach of some reference's third-nearest other reference."""
    inside = 0
    reach = [
        sorted(np.linalg.norm(a - b) for j, b in enumerate(reference) if j != i)[neighbours - 1]
        for i, a in enumerate(reference)
    ]
    for point in points:
        inside += any(np.linalg.norm(point - each) <= radius for each, radius in zip(reference, reach))
    return inside / len(points)


def test_precision_and_recall_equal_brute_force():
    made, real = features(40, dim=3, shift=1.0, seed=1), features(50, dim=3, seed=2)
    result = precision_recall(torch.from_numpy(made), torch.from_numpy(real))
    precision, recall = covered(made, real), covered(real, made)
    assert 0.2 < recall < 1 and 0.2 < precision < 1 and recall != precision
    assert result["precision"] == pytest.approx(precision)
    assert result["recall"] == pytest.approx(recall)
    assert result["value"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_precision_and_recall_of_one_mode_of_two():
    """Half of the real images are far from anything made: precise, and half recalled."""
    real = torch.from_numpy(np.concatenate([features(20, seed=1), features(20, shift=50.0, seed=2)]))
    result = precision_recall(real[:20], real)
    assert (result["precision"], result["recall"]) == (1.0, 0.5)


def test_inception_score_equals_the_formula():
    logits = 3 * features(57, dim=12)
    shuffled = logits[np.random.RandomState(2020).permutation(57)].astype(np.float64)
    scores = []
    for split in range(10):
        part = np.exp(shuffled[split * 57 // 10 : (split + 1) * 57 // 10])
        p = part / part.sum(axis=1, keepdims=True)
        scores.append(np.exp((p * np.log(p / p.mean(axis=0))).sum(axis=1).mean()))
    result = inception_score(torch.from_numpy(logits))
    assert result["value"] == pytest.approx(np.mean(scores), rel=1e-6)
    assert result["std"] == pytest.approx(np.std(scores), rel=1e-6)
    assert result["splits"] == 10


def test_inception_score_of_fewer_images_than_splits():
    result = inception_score(torch.from_numpy(features(4)))
    assert (result["value"], result["splits"]) == (pytest.approx(1), 4)


def test_too_few_images():
    one, three = torch.zeros(1, 8), torch.zeros(3, 8)
    with pytest.raises(UserError, match=r"^1 images: a kernel distance"):
        kernel_distance(three, one)
    with pytest.raises(UserError, match=r"^3 images: precision and recall need 4"):
        precision_recall(torch.zeros(9, 8), three)
