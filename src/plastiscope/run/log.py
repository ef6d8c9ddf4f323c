"""Append-only logs of numbers, one JSON object a line, that can be cut back to a checkpoint."""

import json
import os
from pathlib import Path
from typing import Any

from plastiscope.run.storage import plain


class NumberLog:
    """One JSON-lines file. Numbers that are not finite are written as null and read as NaN."""

    def __init__(self, path: Path) -> None:
        """Append to `path`, which need not exist."""
        self.path = path
        self._file = open(path, "ab")  # noqa: SIM115 (stays open for the run)

    def append(self, row: dict[str, Any]) -> None:
        """Write one row and hand it to the operating system."""
        self._file.write((json.dumps(plain(row)) + "\n").encode())
        self._file.flush()

    def size(self) -> int:
        """Bytes safely on the disk; what `cut_back` takes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.path.stat().st_size

    def cut_back(self, size: int) -> None:
        """Forget all rows after the first `size` bytes."""
        self._file.truncate(size)
        self._file.seek(0, os.SEEK_END)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; a last line cut short by a kill is left out."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines(keepends=True):
            if line.endswith(b"\n"):
                rows.append({k: float("nan") if v is None else v for k, v in json.loads(line).items()})
    return rows
