"""A float32 matrix as an .npy file that begins as NaN and is written row by row, in place."""

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

from plastiscope.error import RunError

Shape = tuple[int, int]


class MatrixFile:
    """An open matrix, to write rows into."""

    def __init__(self, path: Path, offset: int, columns: int) -> None:
        """Open `path`, whose rows of so many columns begin at `offset`."""
        self._file = open(path, "r+b")  # noqa: SIM115 (until close)
        self._offset, self._row_bytes = offset, 4 * columns

    def write(self, row: int, values: npt.NDArray[np.float32]) -> None:
        """Write a row; it may wait in memory until `flush`."""
        self._file.seek(self._offset + row * self._row_bytes)
        self._file.write(np.ascontiguousarray(values, "<f4").data)

    def flush(self) -> None:
        """Hand all rows written so far to the operating system."""
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def to_disk(paths: Iterable[Path]) -> None:
    """Wait until what was written to these files and folders is on the disk; all at once, which is much faster."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(_to_disk, paths))


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_matrix(path: Path, shape: Shape) -> None:
    """Write a matrix of NaN under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        row = np.full(shape[1], np.nan, "<f4").tobytes()
        for _ in range(shape[0]):
            file.write(row)
    os.replace(temporary, path)


def map_matrix(path: Path, shape: Shape, epochs: Sequence[int]) -> npt.NDArray[np.float32]:
    """The matrix as it lies on the disk, read only; arguments and errors as of `find_rows`."""
    offset = find_rows(path, shape, epochs)
    return np.memmap(path, "<f4", "r", offset, shape) if all(shape) else np.empty(shape, np.float32)


def find_rows(path: Path, shape: Shape, epochs: Sequence[int]) -> int:
    """Bytes before the first row.

    Args:
        path: the matrix.
        shape: that it must have.
        epochs: of its rows.

    Raises:
        RunError: the file is missing, cut short or of another shape; names it and its first lost epoch.
    """
    advice = f"Put the file back, or delete {path.stem}.* in its folder and lose all its rows"
    try:
        with open(path, "rb") as file:
            found, dtype, offset = _header(file)
    except (OSError, ValueError) as error:
        raise RunError(f"{path} cannot be read ({error}). {advice}") from None
    if found != shape or dtype != np.dtype("<f4"):
        raise RunError(f"{path} has shape {found} and type {dtype}, its folder needs {shape} and float32. {advice}")
    if (size := path.stat().st_size) < offset + 4 * shape[0] * shape[1]:
        lost = epochs[max(size - offset, 0) // (4 * shape[1])]
        raise RunError(f"{path} is cut short: the row of epoch {lost} and those after it are gone. {advice}")
    return offset


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape, type and offset of the data of an open .npy file."""
    version = npy.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"npy version {version}")
    shape, is_fortran, dtype = npy.read_array_header_1_0(file)
    if is_fortran:
        raise ValueError("column by column")
    return shape, dtype, file.tell()
