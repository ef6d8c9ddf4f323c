"""The outer join of sources by sample id: checked one to one, counted, and given slice by slice."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from plastiscope.error import DataError
from plastiscope.run.sample_store import Ids
from plastiscope.run.sample_view import SAMPLES_AT_ONCE
from plastiscope.table.source import ID, Array, Column, Rows, Source, Stream


class JoinCount(NamedTuple):
    """How a source met the samples of the run.

    Attributes:
        source: its name.
        left: samples of the run that it does not have.
        right: samples of it that the run does not have.
        both: samples in both.
        right_kept: whether those on the right are rows of the table.
    """

    source: str
    left: int
    right: int
    both: int
    right_kept: bool

    def __str__(self) -> str:
        kept = "" if self.right == 0 else ", kept as rows" if self.right_kept else ", left out"
        return f"{self.source}: {self.both} samples in both, {self.left} only in the run, {self.right} only here{kept}"


def said_of_joins(counts: Sequence[JoinCount], samples: int) -> list[str]:
    """One sentence for all sources that have just the samples of the run, and one for each other source."""
    whole = [count.source for count in counts if count.left == count.right == 0]
    first = [f"all {samples} samples in both, none only in one: {', '.join(whole)}"] if whole else []
    return first + [str(count) for count in counts if count.left or count.right]


class Merged(NamedTuple):
    """Sources that fit together.

    Attributes:
        ids: int64 [n], all rows of the table, ascending.
        columns: by name, in order.
        counts: of each source.
        sources: with the names that their columns have in the table.
    """

    ids: Ids
    columns: dict[str, Column]
    counts: list[JoinCount]
    sources: list[Source]

    def slices(self, size: int = SAMPLES_AT_ONCE) -> Iterator[Rows]:
        """All columns of `size` samples at a time; masked arrays where a source does not have the sample."""
        streams = [Stream(source) for source in self.sources]
        for start in range(0, len(self.ids), size):
            ids = self.ids[start : start + size]
            yield {ID: ids, **{name: values for s in streams for name, values in _placed(s, ids).items()}}


def merge(base: Ids, sources: Sequence[Source]) -> Merged:
    """Join sources to the samples of the run.

    Args:
        base: int64 [n], ids of the run's samples, ascending and unique.
        sources: in the order of their columns.

    Raises:
        DataError: ids of a source repeat, or two sources have a column of one name.
    """
    counts, columns = [], {}
    for source in sources:
        _check_unique(source)
        for name, column in source.columns.items():
            if name in columns:
                raise DataError(f"{source.name} has a column {name}, and so has another source; rename one of them")
            columns[name] = column
        both = len(np.intersect1d(source.ids, base, assume_unique=True))
        right = len(source.ids) - both + source.extra
        counts.append(JoinCount(source.name, len(base) - both, right, both, source.adds_rows))
    ids = np.unique(np.concatenate([base, *(source.ids for source in sources if source.adds_rows)]))
    return Merged(ids, columns, counts, list(sources))


def _check_unique(source: Source) -> None:
    (repeats,) = np.nonzero(np.diff(source.ids) <= 0)
    if len(repeats):
        raise DataError(
            f"{source.name} has sample {source.ids[repeats[0]]} more than once; keep one row of each sample"
        )


def _placed(stream: Stream, ids: Ids) -> dict[str, Array]:
    """Columns of one source at `ids`; NaN, or masked where the type has no NaN, for samples it does not have."""
    rows = stream.until(int(ids[-1]))
    there = rows.get(ID, ids[:0])
    place = np.minimum(np.searchsorted(ids, there), len(ids) - 1)
    known = ids[place] == there
    found = {}
    for name, dtype in stream.types.items():
        column = np.ma.masked_all(len(ids), dtype)
        if len(there):
            column[place[known]] = rows[name][known]
        found[name] = column.filled(np.nan) if dtype.kind == "f" else column
    return found
