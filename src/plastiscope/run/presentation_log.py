"""Which sample a task presented when: one permutation an epoch.

    task_0003_<arch>/tracking/
        order.npy      uint32 [epochs, n]: row e, place j holds the sample of presentation j; a row of ids.npy
        ids.npy        int64 [n]
        targets.npy    int64 [n], the output that stands for the sample's class; other targets: float32 [n, k]
        summary.json   task, first epoch of the run, batch size, classes in presentation order, how the order was made

Presentation j of an epoch is in batch j // batch_size. summary.json is written last: without it the task is not whole.
"""

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.error import RunError
from plastiscope.run.storage import read_json, write_by, write_json

Order = npt.NDArray[np.uint32]


def write_order(folder: Path, epoch: int, epochs: int, order: npt.NDArray[Any]) -> None:
    """Write the order [n] of an epoch of the task, of `epochs`; it is on the disk afterwards."""
    path = folder / "order.npy"
    if not path.exists() or np.load(path, mmap_mode="r").shape != (epochs, len(order)):
        _make(path, (epochs, len(order)))
    if len(order):
        rows = np.load(path, mmap_mode="r+")
        rows[epoch] = order
        rows.flush()


def _make(path: Path, shape: tuple[int, int]) -> None:
    """Zeros, under a temporary name until they are there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<u4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 4 * shape[0] * shape[1])
    os.replace(temporary, path)


def finish(folder: Path, ids: npt.NDArray[np.int64], targets: npt.NDArray[Any], about: dict[str, Any]) -> None:
    """Write what the orders are about, last of all `about` (summary.json)."""
    write_by(folder / "ids.npy", lambda file: np.save(file, ids))
    write_by(folder / "targets.npy", lambda file: np.save(file, targets))
    write_json(folder / "summary.json", about)


@dataclass(frozen=True, eq=False)
class PresentedTask:
    """The presentations of one task, read only.

    Attributes:
        folder: task_XXXX_<arch>/tracking.
        about: content of summary.json.
    """

    folder: Path
    about: dict[str, Any]

    @property
    def task(self) -> int:
        """Its index."""
        return int(self.about["task"])

    @property
    def epochs(self) -> int:
        """Its epochs."""
        return int(self.about["epochs"])

    @cached_property
    def ids(self) -> npt.NDArray[np.int64]:
        """Ids int64 [n], in the order of the task's training samples."""
        return self._array("ids", 1)

    @cached_property
    def targets(self) -> npt.NDArray[Any]:
        """int64 [n], position of the class in `about["classes"]`; or float32 [n, k]."""
        return self._array("targets", None)

    def order(self, epoch: int) -> Order:
        """Rows of `ids` in the order of their presentation in an epoch of the task (from 0), uint32 [n].

        Raises:
            RunError: the file is damaged; names it and the epoch.
        """
        row: Order = self._orders[epoch]
        if not np.array_equal(np.sort(row), np.arange(len(self.ids))):
            raise RunError(
                f"{self.folder}/order.npy is damaged: the row of epoch {epoch} of the task is no permutation"
            )
        return row

    @cached_property
    def _orders(self) -> npt.NDArray[np.uint32]:
        orders = self._array("order", 2)
        if orders.shape != (self.epochs, len(self.ids)):
            raise RunError(f"{self.folder}/order.npy has shape {orders.shape}, summary.json says ({self.epochs}, n)")
        return orders

    def _array(self, name: str, dimensions: int | None) -> npt.NDArray[Any]:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r" if dimensions == 2 else None, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise RunError(f"{path} cannot be read ({error})") from None
        if dimensions is not None and array.ndim != dimensions:
            raise RunError(f"{path} has shape {array.shape}")
        return array


def presented_tasks(run_folder: Path, name: str = "tracking") -> list[PresentedTask]:
    """The tasks of a run whose presentations are whole, in order.

    Args:
        run_folder: of the run.
        name: of the analysis that recorded them.

    Raises:
        RunError: there is none.
    """
    found = []
    for path in run_folder.glob(f"task_*/{name}/summary.json"):
        about = read_json(path)
        if isinstance(about, dict) and (path.parent / "order.npy").exists():
            found.append(PresentedTask(path.parent, about))
    if not found:
        raise RunError(f"{run_folder} has no whole record of presentations; was the run made with analysis=[{name}]?")
    return sorted(found, key=lambda presented: presented.task)
