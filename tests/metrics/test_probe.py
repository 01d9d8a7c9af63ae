"""Probes, against their formulas written out."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import log_softmax
from sklearn.dummy import DummyClassifier
from sklearn.metrics import balanced_accuracy_score

from metrics.probe import NEIGHBOURS, C, most_frequent, probe, score

CLASSES = np.array(["clear", "partly cloudy", "rainy"])


def make(count, apart, seed, scale=1.0, classes=3):
    """Features (count, 6), of which the classes' means lie so far apart, and labels."""
    rng = np.random.default_rng(seed)
    places = rng.integers(classes, size=count)
    features = rng.normal(size=(count, 6)) + apart * np.eye(6)[places]
    return (features * scale + 3).astype(np.float32), CLASSES[places]


def test_separate_classes_are_told_and_noise_is_not():
    apart = probe(*make(300, 50, 0), *make(200, 50, 1))
    assert apart == {name: {"accuracy": 1, "balanced_accuracy": 1} for name in ("linear", "knn")}
    for scores in probe(*make(900, 0, 0), *make(900, 0, 1)).values():
        assert scores["accuracy"] == pytest.approx(1 / 3, abs=0.06)
        assert scores["balanced_accuracy"] == pytest.approx(1 / 3, abs=0.06)


@pytest.mark.parametrize("scale", [1.0, np.array([1, 1000, 1, 1, 0.01, 1])])
def test_as_the_formulas_say(scale):
    """Of standardised features: penalised softmax regression, and a vote of the nearest."""
    (train, labels), (val, other_labels) = make(120, 1.5, 0, scale), make(400, 1.5, 1, scale)
    mean, std = train.mean(axis=0, dtype=float), train.std(axis=0, dtype=float)
    train, val = (train - mean) / std, (val - mean) / std
    truth = (labels[:, None] == CLASSES).argmax(axis=1)

    def loss(parameters):
        weight, bias = parameters[:18].reshape(6, 3), parameters[18:]
        log_p = log_softmax(train @ weight + bias, axis=1)
        return -C * log_p[np.arange(120), truth].sum() + 0.5 * (weight**2).sum()

    best = minimize(loss, np.zeros(21), tol=1e-10).x
    linear = CLASSES[(val @ best[:18].reshape(6, 3) + best[18:]).argmax(axis=1)]
    distances = ((val[:, None] - train) ** 2).sum(axis=2)
    nearest = truth[distances.argsort(axis=1)[:, :NEIGHBOURS]]
    neighbours = CLASSES[[np.bincount(row).argmax() for row in nearest]]

    found = probe(*make(120, 1.5, 0, scale), *make(400, 1.5, 1, scale))
    for name, told in (("linear", linear), ("knn", neighbours)):
        assert 0.5 < found[name]["accuracy"] < 0.95
        assert found[name]["accuracy"] == pytest.approx((told == other_labels).mean(), abs=1 / 400)
        expected = balanced_accuracy_score(other_labels, told)
        assert found[name]["balanced_accuracy"] == pytest.approx(expected, abs=0.01)


def test_scores_by_hand():
    told = np.array(["clear", "clear", "clear", "rainy", "clear", "clear"])
    labels = np.array(["clear", "clear", "clear", "rainy", "rainy", "foggy"])
    assert score(told, labels) == {"accuracy": 4 / 6, "balanced_accuracy": (1 + 1 / 2 + 0) / 3}
    assert score(labels[:5], labels[:5]) == {"accuracy": 1, "balanced_accuracy": 1}
    # what is told but is no label of these counts by its frames alone
    told = np.array(["partly cloudy", "clear"])
    assert score(told, np.array(["clear", "clear"])) == {"accuracy": 0.5, "balanced_accuracy": 0.5}


def test_a_class_that_training_lacks_is_wrong():
    val, labels = make(300, 50, 1)
    share = {name: (labels == name).mean() for name in CLASSES}
    for scores in probe(*make(300, 50, 0, classes=2), val, labels).values():
        assert scores["accuracy"] == pytest.approx(1 - share["rainy"])
        assert scores["balanced_accuracy"] == pytest.approx(2 / 3)


def test_fewer_frames_than_neighbours():
    """All of them vote, and the first class wins where they are even."""
    features, labels = np.array([[0.0], [1.0], [10.0], [11.0]]), CLASSES[[0, 0, 1, 1]]
    found = probe(features, labels, features, labels)
    assert found["linear"]["accuracy"] == 1 and found["knn"]["accuracy"] == 0.5


def test_the_most_frequent_class():
    _, labels = make(50, 0, 3)
    dummy = DummyClassifier(strategy="most_frequent").fit(labels, labels)
    assert most_frequent(labels) == dummy.predict(labels)[0]
    assert most_frequent(np.array(["rainy", "clear", "rainy", "clear"])) == "clear"
