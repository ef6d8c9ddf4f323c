"""Where columns of the table come from: ids, ascending and unique, and values that arrive slice by slice."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from plastiscope.run.sample_store import Ids

Array = npt.NDArray
Rows = dict[str, Array]
"""Columns of some samples, each [n]; "sample_id" among them, ascending."""

ID = "sample_id"


@dataclass(frozen=True)
class Column:
    """What a column holds.

    Attributes:
        definition: one sentence, or a formula.
        unit: of its values; "1" where they have none.
    """

    definition: str
    unit: str = "1"


@dataclass(frozen=True, eq=False, kw_only=True)
class Source:
    """Columns about samples.

    Attributes:
        name: for messages, such as "samples/" or a file.
        ids: int64 [n], ascending, unique.
        columns: what there is, by name.
        slices: gives the rows from the first to the last, some at a time.
        adds_rows: samples that the run itself does not have become rows of the table; else they only count.
        extra: samples that the source knows of and cannot name by an id; they count as unmatched.
    """

    name: str
    ids: Ids
    columns: Mapping[str, Column]
    slices: Callable[[], Iterator[Rows]]
    adds_rows: bool = True
    extra: int = 0

    def renamed(self, names: Mapping[str, str]) -> "Source":
        """The source with other names for some columns."""
        if not names:
            return self
        columns = {names.get(name, name): column for name, column in self.columns.items()}

        def slices() -> Iterator[Rows]:
            for rows in self.slices():
                yield {names.get(name, name): values for name, values in rows.items()}

        return replace(self, columns=columns, slices=slices)


def source_of(
    name: str, rows: Rows, columns: Mapping[str, Column], *, adds_rows: bool = True, extra: int = 0
) -> Source:
    """A source of arrays that are in memory, in any order; ids must be unique."""
    order = np.argsort(rows[ID], kind="stable")
    rows = {key: values[order] for key, values in rows.items()}
    return Source(
        name=name, ids=rows[ID], columns=columns, slices=lambda: iter([rows]), adds_rows=adds_rows, extra=extra
    )


class Stream:
    """Reads the slices of a source once, up to an id at a time."""

    def __init__(self, source: Source) -> None:
        """Begin at the first sample of `source`."""
        self.source = source
        self._slices = source.slices()
        self._rows: Rows | None = next(self._slices, None)
        first = self._rows or {}
        self.types = {name: first[name].dtype if name in first else np.dtype(np.float32) for name in source.columns}
        """Type of each column."""

    def until(self, last: int) -> Rows:
        """The rows not given yet whose id is at most `last`."""
        parts: list[Rows] = []
        while self._rows is not None:
            end = int(np.searchsorted(self._rows[ID], last, side="right"))
            parts.append({key: values[:end] for key, values in self._rows.items()})
            if end < len(self._rows[ID]):
                self._rows = {key: values[end:] for key, values in self._rows.items()}
                break
            self._rows = next(self._slices, None)
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]} if parts else {}
