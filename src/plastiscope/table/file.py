"""The table as a file: Parquet with its definitions in the metadata, or CSV with them beside it."""

import json
from collections.abc import Collection, Iterator, Mapping
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from plastiscope.error import DataError
from plastiscope.run.storage import plain, read_json, write_json
from plastiscope.table.source import Array, Rows

if TYPE_CHECKING:
    import pyarrow as pa

KEY = b"plastiscope"
"""Under which a Parquet file has what is said of it: definitions and units, counts of the joins, thresholds."""


class TableWriter:
    """Writes a table a row group at a time; the file gets its name when it is whole."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        """Write `path` (.parquet or .csv).

        Args:
            path: the file.
            about: what is said of it, in Parquet's metadata or <name>.json.
        """
        self.path, self.about = path, plain(about)
        self._temporary = path.with_name(f".{path.name}.tmp")
        self._writer: Any = None

    def write(self, rows: Rows) -> None:
        """Append columns [n]; each must have the same types as before. Masked values become null."""
        batch = _batch(rows, nan_is_null=self.path.suffix == ".csv")
        if self._writer is None:
            self._writer = self._open(batch.schema)
        self._writer.write_batch(batch)

    def _open(self, schema: "pa.Schema") -> Any:
        import pyarrow.csv
        import pyarrow.parquet

        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.suffix == ".csv":
            return pyarrow.csv.CSVWriter(self._temporary, schema)
        schema = schema.with_metadata({KEY: json.dumps(self.about).encode()})
        return pyarrow.parquet.ParquetWriter(self._temporary, schema, compression="zstd")

    def __enter__(self) -> "TableWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
        if kind is not None:
            self._temporary.unlink(missing_ok=True)
            return
        if self.path.suffix == ".csv":
            write_json(self.path.with_suffix(".json"), self.about)
        self._temporary.replace(self.path)


def _batch(rows: Rows, nan_is_null: bool) -> "pa.RecordBatch":
    import pyarrow as pa

    arrays = {}
    for name, values in rows.items():
        mask = np.ma.getmaskarray(values) if isinstance(values, np.ma.MaskedArray) else None
        arrays[name] = pa.array(np.ma.getdata(values), mask=mask, from_pandas=nan_is_null)
    return pa.RecordBatch.from_pydict(arrays)


class Table:
    """A written table, read a column at a time.

    Attributes:
        path: the file.
        names: of its columns, in order.
        numbers: those of them that hold numbers or flags.
        about: what was said of it when it was written; empty for a table from elsewhere.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`.

        Raises:
            DataError: it is missing, or no table.
        """
        import pyarrow as pa
        import pyarrow.csv
        import pyarrow.parquet

        self.path = path
        self._held: pa.Table | None = None
        self._file: pyarrow.parquet.ParquetFile | None = None
        self._kept: Array | None = None
        try:
            if path.suffix == ".csv":
                self._held = pyarrow.csv.read_csv(path)
                schema, self.about = self._held.schema, read_json(path.with_suffix(".json")) or {}
            else:
                self._file = pyarrow.parquet.ParquetFile(path)  # stays open: to open it takes longer than a column does
                schema = self._file.schema_arrow
                self.about = json.loads((schema.metadata or {}).get(KEY, b"{}"))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read as a table ({str(error).splitlines()[0]})") from None
        self.names: list[str] = schema.names
        kinds = (pa.types.is_floating, pa.types.is_integer, pa.types.is_boolean)
        self.numbers = [field.name for field in schema if any(is_kind(field.type) for is_kind in kinds)]

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def only(self, splits: Collection[str]) -> "Table":
        """The table of which `column` gives the samples of some splits; all of them where it has no column split.

        Raises:
            DataError: no sample is of these splits.
        """
        if "split" not in self.names:
            return self
        found, split = copy(self), self.column("split")
        kept = np.array([value in splits for value in split.tolist()], np.bool_)
        if len(kept) and not kept.any():
            there = ", ".join(sorted({value for value in split.tolist() if isinstance(value, str) and value})) or "none"
            raise DataError(
                f"{self.path} has no samples of split {', '.join(splits)} (there are: {there}); give --splits"
            )
        found._kept = kept
        return found

    def column(self, name: str) -> Array:
        """Values [n] of a column; null is NaN in columns of numbers.

        Raises:
            DataError: there is none of this name; says which there are.
        """
        if name not in self.names:
            raise DataError(f"{self.path} has no column {name}; there are: {', '.join(self.names)}")
        held = self._held if self._file is None else self._file.read([name])
        assert held is not None
        values = held.column(name).to_pandas().to_numpy()
        return values if self._kept is None else values[self._kept]

    def slices(self) -> Iterator[Rows]:
        """All columns, a row group at a time; null stays masked."""
        assert self._file is not None
        for group in range(self._file.num_row_groups):
            rows = self._file.read_row_group(group)
            yield {name: _masked(rows.column(name)) for name in self.names}


def _masked(column: "pa.ChunkedArray") -> Array:
    if column.null_count == 0:
        return column.to_numpy()
    mask = column.is_null().to_numpy()
    nothing = {"string": "", "bool": False}.get(str(column.type), 0)
    return np.ma.MaskedArray(column.fill_null(nothing).to_numpy(), mask)
