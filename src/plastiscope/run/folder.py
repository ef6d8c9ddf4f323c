"""The run folder: whose it is, and who may write into it."""

import fcntl
import os
from pathlib import Path
from typing import IO

from plastiscope.error import RunError

LOCK = ".lock"
"""The file that is held."""


class FolderLock:
    """Holds a run folder for one process; the operating system lets go of it when the process dies."""

    def __init__(self, folder: Path) -> None:
        """Take the folder.

        Raises:
            RunError: another process has it, or something that is not a run lies in it.
        """
        if folder.exists() and not (folder / "run.json").exists() and not _is_unbegun(folder):
            raise RunError(f"{folder} holds files that are not a run's; choose another folder (hydra.run.dir=...)")
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[str] | None = open(folder / LOCK, "a")  # noqa: SIM115 (held until release)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            self._file = None
            raise RunError(
                f"another process is working in {folder}; wait for it, stop it, or choose another folder"
            ) from None

    def release(self) -> None:
        """Let go."""
        if self._file is not None:
            self._file.close()
            self._file = None


def is_locked(folder: Path) -> bool:
    """Whether a process on this machine holds the folder."""
    try:
        with open(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return False
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _is_unbegun(folder: Path) -> bool:
    """Whether the folder is empty but for what a run leaves that failed before it began."""
    names = {entry.name for entry in os.scandir(folder) if not entry.name.endswith(".tmp")}
    ours = {LOCK, ".processes", "status.json", "traceback.txt"}
    return names <= (ours | {"config.yaml"} if "status.json" in names else ours)
