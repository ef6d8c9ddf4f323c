"""status.json: what a run is doing, for people and for plastiscope-status."""

import os
import socket
import time
from enum import Enum
from pathlib import Path
from typing import Any

from plastiscope.error import RunError
from plastiscope.run.folder import is_locked
from plastiscope.run.heartbeat import SILENT_AFTER_S, silence
from plastiscope.run.storage import read_json, write_json

LOST, SILENT = "lost", "lost?"
"""What is said of a run whose process is no longer there, or is perhaps no longer there."""


class State(Enum):
    """States of a run."""

    running = "running"
    done = "done"
    failed = "failed"
    preempted = "preempted"


def write_status(folder: Path, state: State, **facts: Any) -> None:
    """Replace status.json; `started` and facts of before that are not given again stay."""
    known = read_json(folder / "status.json") or {}
    known.setdefault("started", time.time())
    if state is not State.failed:
        known.pop("error", None)
    where = {"host": socket.gethostname(), "process": os.getpid()}
    write_json(folder / "status.json", {**known, **facts, **where, "state": state.value, "updated": time.time()})


def read_status(folder: Path) -> dict[str, Any]:
    """Contents of status.json, with another state where it says running and that cannot be.

    "lost": no process of this host, on which it ran, holds the folder; "lost?": it ran on another host, and has given
    no sign of life for `SILENT_AFTER_S`.
    """
    status: dict[str, Any] = read_json(folder / "status.json") or {"state": "unknown"}
    if status["state"] != State.running.value:
        return status
    if status.get("host") == socket.gethostname():
        if not is_locked(folder):
            status["state"] = LOST
    elif silence(folder, status.get("updated", 0.0)) > SILENT_AFTER_S:
        status["state"] = SILENT
    return status


def find_runs(folders: list[Path]) -> list[Path]:
    """All run folders at or below `folders`, sorted.

    Raises:
        RunError: a folder that does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder; give one that holds runs, such as outputs")
    return sorted({path.parent for folder in folders for path in folder.rglob("status.json")})


def table(folders: list[Path]) -> str:
    """One line per run: state, tasks and epochs done, last numbers, folder, and the error of a failed one."""
    rows = [("state", "task", "epoch", "numbers", "folder")]
    for folder in find_runs(folders):
        status = read_status(folder)
        known = {key: value for key, value in status.get("numbers", {}).items() if value is not None}
        numbers = " ".join(f"{key}={value:.4g}" for key, value in known.items())
        error = f"  ({status['error']})" if status.get("error") else ""
        place = [str(status.get(key, "-")) for key in ("task_idx", "epoch")]
        rows.append((status["state"], *place, numbers or "-", f"{folder}{error}"))
    if len(rows) == 1:
        return f"no runs below {', '.join(map(str, folders))}"
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join("  ".join([*(row[c].ljust(widths[c]) for c in range(4)), row[4]]) for row in rows)
