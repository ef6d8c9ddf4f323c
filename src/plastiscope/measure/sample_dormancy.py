"""Units that are dormant on one sample: rules, counts over units, and how often each unit is silent.

A unit that is silent on one sample is no dead unit but sparsity. The counts keep the two apart: `silent` of a unit is
the number of samples on which it is dormant, and a unit silent on all samples of a data set is dead on it.
"""

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

SIDE_BY_SIDE = 32
"""So many numbers that lie side by side are reduced at once."""


class Rule(Enum):
    """When a unit is dormant on a sample; h are its activations over positions."""

    persample_strict = "persample_strict"
    """max |h| <= eps."""
    persample_rate = "persample_rate"
    """The share of positions with |h| > eps is smaller than theta."""
    persample_redo = "persample_redo"
    """mean |h| <= tau times the mean of |h| over units, positions and the data set."""
    persample_module = "persample_module"
    """max h <= eps, without |.|: the published definition, read at raw outputs of convolutions and linear layers."""


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """Of the rules.

    Attributes:
        eps: largest |h| of a silent position, in the activation's own unit.
        relative: take eps times the layer's mean |h| over the data set instead (not for persample_module).
        theta: persample_rate, smallest share of active positions of a unit that is not dormant.
        tau: persample_redo, largest mean |h| of a dormant unit, relative to its layer.
    """

    eps: float = 1e-6
    relative: bool = False
    theta: float = 0.01
    tau: float = 0.025

    def need_scale(self, rule: Rule) -> bool:
        """Whether a rule needs the layer's mean |h| over the data set."""
        by_eps = rule in (Rule.persample_strict, Rule.persample_rate)
        return rule is Rule.persample_redo or (self.relative and by_eps)


NON_NEGATIVE = frozenset(("relu", "relu6", "sigmoid", "hardsigmoid", "softplus"))
"""Activations, by name, that give no negative value."""


class Dormant(NamedTuple):
    """Dormant units of a layer over a batch.

    Attributes:
        per_sample: number of dormant units of each sample, float32 [b]; NaN where an activation is not finite.
        silent: number of samples on which each unit is dormant, float32 [units].
    """

    per_sample: Tensor
    silent: Tensor


def dormant_units(
    h: Tensor,
    rules: Collection[Rule],
    thresholds: Thresholds | None = None,
    scale: float = torch.nan,
    is_non_negative: bool = False,
) -> dict[Rule, Dormant]:
    """What each rule says of a layer, from one reading of the activations.

    Args:
        h: activations [b, units, positions], in any memory format; positions = 1 in fully connected layers.
        rules: which.
        thresholds: of the rules; the published ones by default.
        scale: mean |h| of the layer over the data set, where a rule needs it (`Thresholds.need_scale`); where it is not
            finite the result is NaN.
        is_non_negative: no value is below 0, so that |h| = h and is not computed.
    """
    t = thresholds or Thresholds()
    only_finite = h.shape[2] == 1 and Rule.persample_strict not in rules  # no sign matters for whether values are
    largest = over_positions(h, torch.amax) if is_non_negative or only_finite else largest_absolute(h)
    total = largest.sum(1)
    nan_if_not_finite = total - total
    size = h if is_non_negative else None
    found = {}
    for rule in rules:
        if size is None and rule in (Rule.persample_rate, Rule.persample_redo):
            size = h.abs()
        mask = _mask(rule, h, largest, size, t, scale)
        per_sample = mask.sum(1).add_(nan_if_not_finite)
        if t.need_scale(rule) and not math.isfinite(scale):
            per_sample.fill_(torch.nan)
        found[rule] = Dormant(per_sample, mask.sum(0))
    return found


def _mask(rule: Rule, h: Tensor, largest: Tensor, size: Tensor | None, t: Thresholds, scale: float) -> Tensor:
    """1 for a dormant unit, else 0, [b, units], as floats: they are compared and summed several times faster.

    Of `largest` [b, units] and `size` [b, units, positions], max |h| and |h|.
    """
    eps = t.eps * scale if t.relative else t.eps
    if rule is Rule.persample_strict:
        return torch.le(largest, eps, out=torch.empty_like(largest))
    if rule is Rule.persample_module:
        raw = over_positions(h, torch.amax)
        return torch.le(raw, t.eps, out=torch.empty_like(raw))
    assert size is not None
    if rule is Rule.persample_redo:
        mean = over_positions(size, torch.mean)
        return torch.le(mean, t.tau * scale, out=torch.empty_like(mean))
    active = torch.gt(size, eps, out=torch.empty_like(size))
    share = over_positions(active, torch.sum)
    if h.shape[2] > 1:
        share.div_(h.shape[2])
    return torch.lt(share, t.theta, out=share)


def largest_absolute(h: Tensor) -> Tensor:
    """Largest |h| over positions, [b, units] of h [b, units, positions]; NaN where a value is."""
    if h.shape[2] == 1:
        return h.select(2, 0).abs()
    return torch.maximum(over_positions(h, torch.amax), over_positions(h, torch.amin).neg_())


def over_positions(h: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """torch.amax, amin, sum or mean over positions, [b, units] of h [b, units, positions]; a view of a single one."""
    if h.shape[2] == 1:
        return h.select(2, 0)
    return _extreme(h, reduce) if reduce in (torch.amax, torch.amin) else reduce(h, 2)


def _extreme(h: Tensor, reduce: Callable[..., Tensor]) -> Tensor:
    """torch.amax or amin over positions.

    With few units side by side in memory (channels_last) torch compares numbers one by one, 50 times slower; there some
    positions stay apart at first, so that more numbers lie side by side.
    """
    b, units, positions = h.shape
    rows = h.transpose(1, 2)
    if units >= SIDE_BY_SIDE or not rows.is_contiguous():
        return reduce(h, 2)
    apart = next((q for q in range(2, positions) if positions % q == 0 and q * units >= SIDE_BY_SIDE), 1)
    return reduce(reduce(rows.reshape(b, positions // apart, apart * units), 1).view(b, apart, units), 1)


def sum_of_absolute(h: Tensor) -> Tensor:
    """Sum of |h| of h [b, units, positions], a float64 number; over positions in the type of h, all else in float64."""
    return h.abs().sum(2).sum(dtype=torch.float64)
