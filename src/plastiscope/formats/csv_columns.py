"""Small tables as CSV: written whole, read by column name."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.run.storage import write_atomic


def write_columns(path: Path, columns: Mapping[str, npt.ArrayLike]) -> None:
    """Write columns of one length; a float32 reads back as the same float32, NaN is an empty field."""
    arrays = [np.asarray(values) for values in columns.values()]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*map(_fields, arrays), strict=True))
    write_atomic(path, text.getvalue().encode())


def _fields(values: npt.NDArray) -> list[object]:
    if values.dtype.kind != "f":
        return values.tolist()
    return ["" if np.isnan(value) else str(value) for value in values]


def read_columns(path: Path, names: Sequence[str]) -> dict[str, npt.NDArray[np.float64]]:
    """The columns `names` as numbers; an empty field is NaN.

    Raises:
        DataError: no such file or column, a row of another length, or a field that is no number.
    """
    found = read_text_columns(path, names)
    try:
        return {name: np.array([float(text) if text else np.nan for text in found[name]]) for name in names}
    except ValueError as error:
        raise DataError(f"{path} has a field that is no number ({error}).") from None


def read_text_columns(path: Path, names: Sequence[str]) -> dict[str, list[str]]:
    """The columns `names` as text.

    Raises:
        DataError: no such file or column, or a row of another length.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file)) or [[]]
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as CSV ({error}).") from None
    header = [name.strip() for name in header]
    missing = [name for name in names if name not in header]
    if missing:
        raise DataError(f"{path} has no column {missing[0]}; it has {', '.join(header) or 'none'}.")
    for number, row in enumerate(rows, start=2):
        if len(row) != len(header):
            raise DataError(f"{path}, line {number}: {len(row)} fields, and the header has {len(header)}.")
    return {name: [row[header.index(name)].strip() for row in rows] for name in names}
