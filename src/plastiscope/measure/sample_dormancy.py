"""Units that are dormant on one sample: rules, counts over units, and how often each unit is silent.

A unit that is silent on one sample is no dead unit but sparsity. The counts keep the two apart: `silent` of a unit is
the number of samples on which it is dormant, and a unit silent on all samples of a data set is dead on it.
"""

import math
from collections.abc import Callable, Iterable
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


class Dormant(NamedTuple):
    """Dormant units of a layer over a batch.

    Attributes:
        per_sample: number of dormant units of each sample, float32 [b]; NaN where an activation is not finite.
        silent: number of samples on which each unit is dormant, float32 [units].
    """

    per_sample: Tensor
    silent: Tensor


def dormant_units(
    h: Tensor, rules: Iterable[Rule], thresholds: Thresholds | None = None, scale: float = torch.nan
) -> dict[Rule, Dormant]:
    """What each rule says of a layer, from one reading of the activations.

    Args:
        h: activations [b, units, positions], in any memory format; positions = 1 in fully connected layers.
        rules: which.
        thresholds: of the rules; the published ones by default.
        scale: mean |h| of the layer over the data set, where a rule needs it (`Thresholds.need_scale`); where it is not
            finite the result is NaN.
    """
    t = thresholds or Thresholds()
    largest = largest_absolute(h)
    total = largest.sum(1)
    nan_if_not_finite = total - total
    dormant = _masks(h, largest, frozenset(rules), t, scale)
    found = {}
    for rule, mask in dormant.items():
        per_sample = mask.sum(1).add_(nan_if_not_finite)
        if t.need_scale(rule) and not math.isfinite(scale):
            per_sample.fill_(torch.nan)
        found[rule] = Dormant(per_sample, mask.sum(0))
    return found


def _masks(h: Tensor, largest: Tensor, rules: frozenset[Rule], t: Thresholds, scale: float) -> dict[Rule, Tensor]:
    """1 for a dormant unit, else 0, [b, units], as floats: they are compared and summed several times faster."""
    eps = t.eps * scale if t.relative else t.eps
    masks = {}
    if Rule.persample_strict in rules:
        masks[Rule.persample_strict] = torch.le(largest, eps, out=torch.empty_like(largest))
    if Rule.persample_module in rules:
        raw = largest_over_positions(h)
        masks[Rule.persample_module] = torch.le(raw, t.eps, out=torch.empty_like(raw))
    if rules & {Rule.persample_redo, Rule.persample_rate}:
        size = h.abs()
        if Rule.persample_redo in rules:
            mean = size.mean(2)
            masks[Rule.persample_redo] = torch.le(mean, t.tau * scale, out=mean)
        if Rule.persample_rate in rules:
            active = torch.gt(size, eps, out=size).sum(2).div_(h.shape[2])
            masks[Rule.persample_rate] = torch.lt(active, t.theta, out=active)
    return masks


def largest_absolute(h: Tensor) -> Tensor:
    """Largest |h| over positions, [b, units] of h [b, units, positions]; NaN where a value is."""
    if h.shape[2] == 1:
        return h[:, :, 0].abs()
    return torch.maximum(largest_over_positions(h), _extreme(h, torch.amin).neg_())


def largest_over_positions(h: Tensor) -> Tensor:
    """Largest h over positions, [b, units] of h [b, units, positions]; NaN where a value is."""
    return h[:, :, 0] if h.shape[2] == 1 else _extreme(h, torch.amax)


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
