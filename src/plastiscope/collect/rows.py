"""The logs of one run as columns: metrics.jsonl, and beside each row what a clock measured for it."""

import io
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastiscope.error import DataError

if TYPE_CHECKING:
    import pyarrow as pa

PLACE = ("kind", "global_epoch", "task_idx", "epoch")
"""What says where a row stands; all other columns are float64 numbers."""


def read_logs(folder: Path, keys: Sequence[str] = ()) -> "pa.Table":
    """Rows of a run: `PLACE`, then every logged number and every clock value; null = not measured.

    A last line that is being written is left out, so a running run can be read at any time.

    Args:
        folder: of the run.
        keys: patterns such as "representation/*/total/*"; only columns that fit one of them; none = all.

    Raises:
        DataError: a log is damaged.
    """
    metrics = _read(folder / "metrics.jsonl", keys)
    timings = _read(folder / "timings.jsonl", keys)
    if not timings.num_rows or not metrics.num_rows or timings.num_columns == len(PLACE):
        return metrics
    return _beside(metrics, timings)


def fits(name: str, keys: Sequence[str]) -> bool:
    """Whether a column is wanted."""
    return not keys or any(fnmatchcase(name, pattern) for pattern in keys)


def _read(path: Path, keys: Sequence[str]) -> "pa.Table":
    import pyarrow as pa
    import pyarrow.json

    content = path.read_bytes() if path.exists() else b""
    content = content[: content.rfind(b"\n") + 1]
    if not content:
        return pa.table({name: pa.array([], pa.string() if name == "kind" else pa.int64()) for name in PLACE})
    options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(content) + 1)
    try:
        return _typed(pyarrow.json.read_json(io.BytesIO(content), read_options=options), keys)
    except (pa.ArrowException, KeyError) as error:
        raise DataError(
            f"{path} is damaged ({str(error).splitlines()[0]}); resume the run, which cuts its logs back to its last "
            "checkpoint, or move its folder out of the way"
        ) from None


def _typed(rows: "pa.Table", keys: Sequence[str]) -> "pa.Table":
    """Rows with all columns of `PLACE`, and the wanted numbers as float64."""
    import pyarrow as pa

    columns: dict[str, Any] = {}
    for name in PLACE:
        kind = pa.string() if name == "kind" else pa.int64()
        there = name in rows.column_names
        if not there and name != "epoch":
            raise KeyError(f"rows have no {name}")
        columns[name] = rows.column(name).cast(kind) if there else pa.nulls(rows.num_rows, kind)
    for name in rows.column_names:
        if name not in PLACE and fits(name, keys):
            columns[name] = rows.column(name).cast(pa.float64())
    return pa.table(columns)


def _beside(metrics: "pa.Table", timings: "pa.Table") -> "pa.Table":
    """The clock values of each row; null where there are none (a running run may lack the last ones)."""
    import pyarrow.compute as pc

    def place(rows: "pa.Table") -> Any:
        return pc.binary_join_element_wise(
            rows.column("kind"), pc.cast(rows.column("global_epoch"), "string"), " "
        ).combine_chunks()

    where = pc.index_in(place(metrics), value_set=place(timings))
    known = timings.take(where)
    for name in timings.column_names:
        if name not in metrics.column_names:
            metrics = metrics.append_column(name, known.column(name))
    return metrics
