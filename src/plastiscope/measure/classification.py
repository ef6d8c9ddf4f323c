"""Codes of four letters for training samples: CSL, Curvature, Dormant, Memorization, each high or low.

A letter is H where the value is at or above the axis' threshold (ties go to H), L below, `?` where there is no value,
and `-` where the axis was not measured at all. `HLLH` is a sample with a high CSL, low curvature, few dormant units and
high memorization.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.floating]
Groups = npt.NDArray[np.integer]
Codes = npt.NDArray[np.str_]

AXES = ("csl", "curvature", "dormant", "memorization")
"""The axes in the order of the letters."""

NAMES = {
    "HHHH": "most problematic",
    "HLLH": "difficult but stable",
    "LHHL": "easy but plasticity-impaired",
    "LH-L": "easy but potentially disruptive",
    "LLLL": "ideal for training",
}
"""What some codes are called; the other codes are their own names."""

EVERYONE = -1
"""The group of a threshold that holds for all samples."""


class RuleKind(Enum):
    """Where a threshold comes from."""

    quantile = "quantile"
    """The quantile `level` of the finite values, linear between neighbours."""
    absolute = "absolute"
    """`level` itself."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """How an axis is cut.

    Attributes:
        kind: quantile or absolute.
        level: the quantile in [0, 1], or the value.
    """

    kind: RuleKind = RuleKind.quantile
    level: float = 0.5

    def threshold(self, values: Values) -> float:
        """The threshold for values [n], in float64; a quantile of nothing is NaN."""
        finite = values[np.isfinite(values)].astype(np.float64)
        if self.kind is RuleKind.absolute:
            return self.level
        return float(np.quantile(finite, self.level)) if len(finite) else float("nan")


RULES = {axis: Rule() for axis in AXES[:3]} | {"memorization": Rule(kind=RuleKind.absolute, level=0.25)}
"""The rules unless others are given: medians, and 0.25 for memorization (Feldman and Zhang)."""


@dataclass(frozen=True, eq=False)
class Classification:
    """What `classify` gives.

    Attributes:
        codes: [n], four letters each.
        thresholds: by axis and group; the group is EVERYONE unless groups were given.
    """

    codes: Codes
    thresholds: Mapping[str, Mapping[int, float]] = field(default_factory=dict)


def classify(
    axes: Mapping[str, Values],
    rules: Mapping[str, Rule] | None = None,
    groups: Groups | None = None,
    among: npt.NDArray[np.bool_] | None = None,
) -> Classification:
    """The code of each sample.

    Args:
        axes: values [n] by axis (of AXES); an axis that is left out was not measured.
        rules: by axis; RULES where none is given.
        groups: int [n], such as the class or the entry task: each group has thresholds of its own.
        among: bool [n], the samples whose values the thresholds come from; None = all. Where a threshold is NaN,
            because there are none, the letter is `?`.

    Raises:
        ValueError: an axis that does not exist, no axis, or lengths that differ.
    """
    lengths = {len(values) for values in axes.values()} | ({len(groups)} if groups is not None else set())
    if not axes or set(axes) - set(AXES) or len(lengths) != 1:
        raise ValueError(f"axes {sorted(axes)} of lengths {sorted(lengths)}: must be of {AXES}, of one length")
    (n,) = lengths
    letters, thresholds = np.full((len(AXES), n), "-"), {}
    group = np.full(n, EVERYONE, np.int64) if groups is None else groups
    known = np.full(n, True) if among is None else among
    for place, axis in enumerate(AXES):
        if axis in axes:
            rule = (rules or {}).get(axis, RULES[axis])
            thresholds[axis] = {int(g): rule.threshold(axes[axis][known & (group == g)]) for g in np.unique(group)}
            letters[place] = _letters(axes[axis], group, thresholds[axis])
    return Classification(np.ascontiguousarray(letters.T).view(f"U{len(AXES)}")[:, 0], thresholds)


def name_of(code: str) -> str:
    """What the code is called: "ideal for training" for LLLL; the code itself where it has no name."""
    return NAMES.get(code, code)


def _letters(values: Values, group: Groups, thresholds: Mapping[int, float]) -> Codes:
    """H, L or ? of each value."""
    names, place = np.unique(group, return_inverse=True)
    limit = np.array([thresholds[int(g)] for g in names])[place]
    return np.where(np.isfinite(values) & ~np.isnan(limit), np.where(values.astype(np.float64) >= limit, "H", "L"), "?")
