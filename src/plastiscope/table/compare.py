"""How well one quantity of the samples agrees with another, or with the same one in another run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from plastiscope.error import DataError
from plastiscope.measure.classification import RULES
from plastiscope.measure.comparison import Agreement, auroc, cosine, finite_pairs, pearson, shuffled, spearman
from plastiscope.table.file import Table
from plastiscope.table.merge import JoinCount
from plastiscope.table.source import ID, Array

if TYPE_CHECKING:
    import pandas as pd

Measure = Callable[[Array, Array], Agreement]
SHUFFLES = 20
"""A single shuffle of a skewed score is far off now and then."""


def compare(
    table: Table,
    xs: Sequence[str],
    y: str | None = None,
    other: Table | None = None,
    by: str | None = None,
    threshold: float | None = None,
) -> "pd.DataFrame":
    """One row for each x (and group): n, pearson, spearman, cosine, auroc, and what the first three are by chance.

    Positives of the AUROC are the samples with y at or above the threshold; `pearson_shuffled` and `cosine_shuffled`
    are the means over SHUFFLES shuffles of x, the floor that chance alone gives.

    Args:
        table: of samples.
        xs: columns of it.
        y: column of `other`, or else of `table`; None = the same column as x.
        other: table of another run; samples are joined by id.
        by: column of `table`: each of its groups apart, after all of them together.
        threshold: None = as `positives` says.

    Raises:
        DataError: no such column, no numbers, no y, or labels of the two tables that differ.
    """
    import pandas as pd

    if y is None and other is None:
        raise DataError("compare needs --y COLUMN, or --with another run to compare the same column")
    ours, theirs = _matched(table, other)
    groups = {"all": slice(None), **_groups(table, by, ours)}
    rows = []
    for x in xs:
        first = _numbers(table, x)[ours]
        second = _numbers(other or table, y or x)[theirs]
        limit = default_threshold(y or x, second) if threshold is None else threshold
        for group, where in groups.items():
            about = {"x": x, "y": y or x, **({by: group} if by else {})}
            rows.append({**about, **_agreement(first[where], second[where], limit)})
    return pd.DataFrame(rows)


def join_count(table: Table, other: Table) -> JoinCount:
    """How many samples the two have in common."""
    ours, theirs = table.column(ID), other.column(ID)
    both = len(np.intersect1d(ours, theirs))
    return JoinCount(str(other.path), len(ours) - both, len(theirs) - both, both, False)


def default_threshold(name: str, values: Array) -> float:
    """From which value a sample is positive: 1 for flags, 0.25 for memorization, else the median."""
    finite = values[np.isfinite(values)]
    if set(np.unique(finite[:1000])) <= {0, 1} and set(np.unique(finite)) <= {0, 1}:
        return 1.0
    if name == "memorization":
        return RULES["memorization"].level
    return float(np.median(finite)) if len(finite) else float("nan")


def _agreement(x: Array, y: Array, threshold: float) -> dict[str, Any]:
    x, y = finite_pairs(x, y)
    separation = auroc(x, y >= threshold)
    return {
        "n": len(x),
        "pearson": pearson(x, y).value,
        "spearman": spearman(x, y).value,
        "cosine": cosine(x, y).value,
        "auroc": separation.value,
        "positives": separation.positives,
        "threshold": threshold,
        "pearson_shuffled": _floor(pearson, x, y),
        "cosine_shuffled": _floor(cosine, x, y),
    }


def _floor(measure: Measure, x: Array, y: Array) -> float:
    return float(np.mean([shuffled(measure, x, y, seed).value for seed in range(SHUFFLES)]))


def _numbers(table: Table, name: str) -> Array:
    values = table.column(name)
    if name not in table.numbers:
        raise DataError(f"{table.path}: {name} does not hold numbers; choose of {', '.join(table.numbers)}")
    return values.astype(np.float64)


def _matched(table: Table, other: Table | None) -> tuple[Array, Array]:
    """Positions of the samples that both have; all of them if there is no other."""
    if other is None:
        everyone = np.arange(len(table.column(ID)))
        return everyone, everyone
    for one in (table, other):
        ids = one.column(ID)
        if len(np.unique(ids)) < len(ids):
            raise DataError(f"{one.path} has a sample more than once; keep one row of each")
    _, ours, theirs = np.intersect1d(table.column(ID), other.column(ID), assume_unique=True, return_indices=True)
    if "label" in table and "label" in other:
        differ = np.flatnonzero(table.column("label")[ours] != other.column("label")[theirs])
        if len(differ):
            raise DataError(
                f"{other.path} gives {len(differ)} of {len(ours)} samples another label, first sample "
                f"{table.column(ID)[ours[differ[0]]]}; the two runs do not have the same data"
            )
    return ours, theirs


def _groups(table: Table, by: str | None, ours: Array) -> dict[str, Array]:
    if by is None:
        return {}
    values = table.column(by)[ours]
    return {str(value): np.flatnonzero(values == value) for value in np.unique(values[values == values])}
