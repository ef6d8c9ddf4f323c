"""Mean, standard deviation and number of every quantity in each group of samples: class, coarse class, entry task."""

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plastiscope.table.file import Table
from plastiscope.table.source import ID, Array

if TYPE_CHECKING:
    import pandas as pd

GROUPINGS = ("label", "coarse_class", "entry_task")
"""By what samples are grouped unless it is said: class before label noise, coarse class, task of entry."""
IDENTITY = ("run_id", ID, "label", "label_trained", "coarse_class", "split", "entry_task")
"""Columns that say who a sample is."""


def quantities(table: Table) -> list[str]:
    """Columns of numbers or flags that measure something."""
    return [name for name in table.numbers if name not in IDENTITY]


def group_table(table: Table, by: str, wanted: list[str] | None = None) -> "pd.DataFrame":
    """One row for each group and quantity: group, quantity, n, mean, std.

    n counts the finite values, mean is in float64, std divides by n - 1 (NaN for a single value); a group without a
    value has n = 0. Samples without a group (NaN) are left out.

    Args:
        table: of samples.
        by: column of the groups.
        wanted: quantities; all by default.
    """
    import pandas as pd

    groups, place = _groups(table.column(by))
    frames = []
    for name in wanted or [name for name in quantities(table) if name != by]:
        n, mean, std = group_statistics(table.column(name), place, len(groups))
        frames.append(pd.DataFrame({by: groups, "quantity": name, "n": n, "mean": mean, "std": std}))
    return (
        pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=[by, "quantity", "n", "mean", "std"])
    )


def group_statistics(
    values: Array, place: npt.NDArray[np.int64], groups: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Number of finite values, mean, and standard deviation (n - 1) of each group.

    Args:
        values: [n].
        place: int64 [n], the group of each value from 0; -1 = none.
        groups: how many there are.
    """
    x = values.astype(np.float64)
    keep = np.isfinite(x) & (place >= 0)
    x, place = x[keep], place[keep]
    n = np.bincount(place, minlength=groups)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.bincount(place, x, groups) / n
        squares = np.bincount(place, (x - mean[place]) ** 2, groups)
        std = np.sqrt(np.where(n > 1, squares / (n - 1), np.nan))
    return n, mean, std


def _groups(values: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """The groups in order, and the place of each sample among them; -1 where it has none."""
    import pandas as pd

    place, groups = pd.factorize(pd.Series(values), sort=True)
    groups = np.asarray(groups)
    is_whole = groups.dtype.kind == "f" and bool((groups == groups.astype(np.int64)).all())
    return groups.astype(np.int64) if is_whole else groups, place.astype(np.int64)
