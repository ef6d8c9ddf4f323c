"""Which samples are for validation, which are left out, and which get a wrong label: rules on label arrays."""

import numpy as np


def rank_in_class(labels: np.ndarray) -> np.ndarray:
    """For each sample the number of earlier samples of its class, int64 [n]."""
    order = np.argsort(labels, kind="stable")
    _, starts, counts = np.unique(labels[order], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, counts)
    return ranks


def validation_mask(labels: np.ndarray, share: float, per_class: int | None = None) -> np.ndarray:
    """The first samples of each class in file order, bool [n].

    Args:
        labels: int64 [n].
        share: this share of each class, rounded to the nearest count, halves up.
        per_class: so many of each class instead (50 in incremental CIFAR-100).
    """
    _, inverse, counts = np.unique(labels, return_inverse=True, return_counts=True)
    quota = np.floor(share * counts + 0.5).astype(np.int64) if per_class is None else np.full(len(counts), per_class)
    return rank_in_class(labels) < quota[inverse]


def noisy_labels(labels: np.ndarray, rate: float, num_classes: int, seed: int) -> np.ndarray:
    """Labels of which round(rate * n) are moved to another class, each other class equally likely.

    Which: RandomState(seed).choice(n, k, replace=False); where to: label + randint(1, K) modulo K, from the same state.
    """
    if rate == 0:
        return labels
    random = np.random.RandomState(seed % 2**32)
    chosen = random.choice(len(labels), round(rate * len(labels)), replace=False)
    noisy = labels.copy()
    noisy[chosen] = (labels[chosen] + random.randint(1, num_classes, size=len(chosen))) % num_classes
    return noisy
