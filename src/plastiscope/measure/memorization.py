"""Memorization and influence by leaving samples out: many models, each trained on a random subset.

Source: Feldman and Zhang 2020, "What neural networks memorize and why": they train 4,000 models on CIFAR-100 (2,000 on
ImageNet), each on 70 % of the training set.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Correct = npt.NDArray[np.bool_] | npt.NDArray[np.floating]
Float64 = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int64]

SUBSET_SHARE = 0.7
"""Share of the training set that each model is trained on."""
FIRST_SEED = 5000
"""Model r draws its subset, and then its epoch orders, from RandomState(FIRST_SEED + r)."""


class Estimate(NamedTuple):
    """An estimate per training sample.

    Attributes:
        values: [n], or [n, t] for t test points; NaN where one side has no model.
        trained_with: int64 [n], models whose subset held the sample.
        trained_without: int64 [n], the others.
    """

    values: Float64
    trained_with: Counts
    trained_without: Counts


def memorization(mask: Mask, correct: Correct) -> Estimate:
    """mem[i] = mean of correct[m, i] over the models with i, less the mean over those without i, in [-1, 1].

    Args:
        mask: bool [models, n], whether sample i was in the subset of model m.
        correct: [models, n], whether (or with which probability) model m gets training sample i right.

    Raises:
        ValueError: the shapes differ, or a value of `correct` is not finite.
    """
    _check(mask, correct, mask.shape)
    hits, inside = correct.astype(np.float64), mask.sum(0)
    within = np.where(mask, hits, 0).sum(0)
    without = np.where(mask, 0, hits).sum(0)
    return _difference(within, without, inside, len(mask) - inside)


def influence(mask: Mask, correct: Correct) -> Estimate:
    """infl[i, j] = mean of correct[m, j] over the models with i, less the mean over those without i, in [-1, 1].

    Args:
        mask: bool [models, n].
        correct: [models, t], whether model m gets test point j right.

    Raises:
        ValueError: the numbers of models differ, or a value of `correct` is not finite.
    """
    _check(mask, correct, (len(mask), *correct.shape[1:]))
    hits, inside = correct.astype(np.float64), mask.sum(0)
    within = mask.T.astype(np.float64) @ hits
    return _difference(within, hits.sum(0) - within, inside[:, None], (len(mask) - inside)[:, None])


def subset_random(model: int) -> np.random.RandomState:
    """The generator of model r: its subset is drawn first, then its epoch orders."""
    return np.random.RandomState(FIRST_SEED + model)


def draw_subset(random: np.random.RandomState, n: int, share: float = SUBSET_SHARE) -> Counts:
    """Positions int64 [int(share n)] of the samples that a model is trained on, without repeats, in the order drawn."""
    return random.choice(n, int(share * n), replace=False)


def subset_mask(n: int, models: int, share: float = SUBSET_SHARE) -> Mask:
    """The mask bool [models, n] of models 0, 1, ..., as each draws its own."""
    mask = np.zeros((models, n), np.bool_)
    for model in range(models):
        mask[model, draw_subset(subset_random(model), n, share)] = True
    return mask


def _difference(within: Float64, without: Float64, inside: Counts, outside: Counts) -> Estimate:
    """Means of two sums; NaN where a side is empty."""
    with np.errstate(invalid="ignore", divide="ignore"):
        values = np.where((inside > 0) & (outside > 0), within / inside - without / outside, np.nan)
    return Estimate(values, np.ravel(inside).astype(np.int64), np.ravel(outside).astype(np.int64))


def _check(mask: Mask, correct: Correct, wanted: tuple[int, ...]) -> None:
    if mask.ndim != 2 or correct.ndim != 2 or correct.shape != wanted:
        raise ValueError(f"a mask of shape {mask.shape} needs outcomes of shape {wanted}, not {correct.shape}")
    if mask.dtype != np.bool_:
        raise ValueError(f"the mask must be bool, not {mask.dtype}")
    if not np.isfinite(correct.astype(np.float64)).all():
        raise ValueError("an outcome is not finite; leave that model out")
