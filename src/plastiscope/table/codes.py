"""The codes of the table: which column stands for which axis, and the letters of every sample."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from plastiscope.error import ConfigError
from plastiscope.measure.classification import AXES, NAMES, RULES, Classification, Rule, classify, name_of
from plastiscope.table.source import ID, Array, Rows

AXIS_COLUMNS = {
    "csl": ("csl_active_mean", "csl_mean", "online_csl_active_mean"),
    "curvature": ("input_curv_norm_mean", "input_curv_fro2_mean", "legacy_curv_mean"),
    "dormant": ("persample_strict_mean", "persample_redo_mean", "persample_rate_mean", "persample_module_mean"),
    "memorization": ("memorization",),
}
"""Which column stands for an axis of the codes: the first that there is."""


@dataclass(frozen=True, kw_only=True)
class CodeRules:
    """How codes are made.

    Attributes:
        axes: column of an axis, where it is not the usual one.
        rules: rule of an axis, where it is not the usual one.
        by: column of groups that have thresholds of their own.
        splits: of the samples that the thresholds come from; every sample gets a code.
    """

    axes: Mapping[str, str] = field(default_factory=dict)
    rules: Mapping[str, Rule] = field(default_factory=dict)
    by: str | None = None
    splits: Collection[str] = ("train",)


def axis_columns(columns: Collection[str], wanted: CodeRules | None = None) -> dict[str, str]:
    """Column of each axis that there is, in the order of the letters.

    Raises:
        ConfigError: a column that is asked for is not there, or a rule is given for an axis without a column.
    """
    wanted = wanted or CodeRules()
    for axis, column in wanted.axes.items():
        if column not in columns:
            raise ConfigError(f"axis {axis}={column}: the table has no such column")
    usual = {axis: next((name for name in AXIS_COLUMNS[axis] if name in columns), None) for axis in AXES}
    found = {axis: column for axis, column in {**usual, **wanted.axes}.items() if column is not None}
    for axis in wanted.rules:
        if axis not in found:
            raise ConfigError(f"rule {axis}: nothing of the run is measured on this axis; leave the rule out")
    return found


def classified(columns: Mapping[str, Array], axes: Mapping[str, str], wanted: CodeRules) -> Classification | None:
    """Codes from whole columns: of `axes`, `wanted.by`, and split where there is one; None without an axis."""
    if not axes:
        return None
    values = {axis: np.ma.filled(columns[column].astype(np.float64), np.nan) for axis, column in axes.items()}
    groups = None if wanted.by is None else np.ma.filled(columns[wanted.by].astype(np.int64), -1)
    split = columns.get("split")
    among = None if split is None else np.isin(np.ma.filled(split, ""), list(wanted.splits))
    return classify(values, wanted.rules, groups, among)


def with_codes(slices: Iterator[Rows], found: Classification | None) -> Iterator[Rows]:
    """The slices with the columns `code` and `code_name`."""
    start = 0
    for rows in slices:
        if found is not None:
            codes = found.codes[start : start + len(rows[ID])]
            start += len(codes)
            rows |= {"code": codes, "code_name": np.array([name_of(code) for code in codes], np.str_)}
        yield rows


def said_of(found: Classification, axes: Mapping[str, str], wanted: CodeRules) -> dict[str, Any]:
    """What the metadata say: columns, rules, thresholds, names."""
    rules = {axis: {**RULES, **wanted.rules}[axis] for axis in axes}
    return {
        "axes": dict(axes),
        "rules": {axis: {"kind": rule.kind.value, "level": rule.level} for axis, rule in rules.items()},
        "thresholds_by": wanted.by,
        "thresholds_from": sorted(wanted.splits),
        "thresholds": found.thresholds
        if wanted.by
        else {a: next(iter(t.values())) for a, t in found.thresholds.items()},
        "ties": "high",
        "names": NAMES,
    }
