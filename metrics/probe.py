"""How well labels are told from features: a linear probe, and nearest neighbours."""

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, recall_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

NEIGHBOURS = 20  # as DINO's evaluation has (arXiv 2104.14294, section 4.1)
C = 0.01  # of LogisticRegression, its loss over the penalty: tokens have hundreds of features and more


def probe(
    features: np.ndarray, labels: np.ndarray, others: np.ndarray, other_labels: np.ndarray
) -> dict[str, dict[str, float]]:
    """Learn labels from features (N, D), and tell those of others (M, D): "linear" and "knn", each with the
    values of `score`.

    Features have the mean 0 and the standard deviation 1 of the N. The linear probe is a multinomial logistic
    regression with an L2 penalty (Alain and Bengio 2016, arXiv 1610.01644); "knn" is a majority of the
    NEIGHBOURS nearest, or of all N where there are fewer. Labels are (N,) and (M,), the N of at least two
    classes. Nothing is random.
    """
    features, others = features.astype(np.float64), others.astype(np.float64)
    scaler = StandardScaler().fit(features)
    features, others = scaler.transform(features), scaler.transform(others)
    models = {
        "linear": LogisticRegression(C=C, max_iter=1000),
        "knn": KNeighborsClassifier(min(NEIGHBOURS, len(features))),
    }
    return {
        name: score(model.fit(features, labels).predict(others), other_labels)
        for name, model in models.items()
    }


def score(told: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy of the labels told (M,), and balanced accuracy: the mean recall of the classes in `labels`.

    A class that is never told has a recall of 0.
    """
    classes = np.unique(labels)
    return {
        "accuracy": float(accuracy_score(labels, told)),
        "balanced_accuracy": float(recall_score(labels, told, labels=classes, average="macro")),
    }


def most_frequent(labels: np.ndarray) -> str:
    """The class that most of the labels (N,) have; of several the first by name."""
    classes, counts = np.unique(labels, return_counts=True)
    return str(classes[counts.argmax()])
