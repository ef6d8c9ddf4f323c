"""The run folder: whose it is, and who may write into it."""

import os
from pathlib import Path

from plastiscope.error import RunError
from plastiscope.run.lock import is_held, take

LOCK = ".lock"
"""The file that is held."""


class FolderLock:
    """Holds a run folder for one process; the operating system lets go of it when the process dies."""

    def __init__(self, folder: Path) -> None:
        """Take the folder.

        Raises:
            RunError: another process has it, or something that is not a run lies in it.
            OSError: it cannot be made or written into.
        """
        if folder.exists() and not (folder / "run.json").exists() and not _is_unbegun(folder):
            raise RunError(f"{folder} holds files that are not a run's; choose another folder (hydra.run.dir=...)")
        self._file = take(folder / LOCK)
        if self._file is None:
            raise in_use(folder)

    def release(self) -> None:
        """Let go."""
        if self._file is not None:
            self._file.close()
            self._file = None


def in_use(folder: Path) -> RunError:
    """What to tell someone who wants to work in a folder in which another process works."""
    return RunError(f"another process is working in {folder}; wait for it, stop it, or choose another folder")


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder; also true where that cannot be asked, in a folder of someone else's."""
    try:
        return is_held(folder / LOCK)
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _is_unbegun(folder: Path) -> bool:
    """Whether the folder is empty but for what a run leaves that failed before it began."""
    names = {entry.name for entry in os.scandir(folder) if not entry.name.endswith(".tmp")}
    ours = {LOCK, ".processes", "status.json", "traceback.txt"}
    return names <= (ours | {"config.yaml"} if "status.json" in names else ours)
