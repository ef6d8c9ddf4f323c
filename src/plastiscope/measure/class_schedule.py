"""Which classes a class-incremental run has seen after so many epochs: the masks of active-class losses."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from plastiscope.error import require


@dataclass(frozen=True, kw_only=True)
class ClassSchedule:
    """`initial` classes at first, `more` with each further task of `epochs_per_task` epochs, at most `maximum`.

    Classes are counted by position in the order of presentation; epochs by how many are completed. Weights after a
    task's last epoch are saved before the head is extended, so they have seen the classes of that task only. The
    defaults are those of incremental CIFAR-100 (Dohare et al. 2024).
    """

    epochs_per_task: int = 200
    initial: int = 5
    more: int = 5
    maximum: int = 100

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("epochs_per_task", "initial", "more"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be 1 or more")
        require(self.maximum >= self.initial, "maximum", self.maximum, "must be as large as initial, or larger")

    def classes_seen(self, epochs_completed: int) -> int:
        """Classes in training up to this epoch: initial + more (max(1, ceil(E / epochs_per_task)) - 1), capped."""
        tasks = max(1, -(-epochs_completed // self.epochs_per_task))
        return min(self.maximum, self.initial + self.more * (tasks - 1))

    def classes_next(self, epochs_completed: int) -> int:
        """Classes in training from the next epoch on: initial + more floor(E / epochs_per_task), capped."""
        return min(self.maximum, self.initial + self.more * (epochs_completed // self.epochs_per_task))

    def entry_epoch(self, positions: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Epochs completed when the class at each position enters, int64, of the shape of `positions`."""
        late = np.asarray(positions, np.int64) - self.initial
        return self.epochs_per_task * np.where(late < 0, 0, late // self.more + 1)

    def age(self, positions: npt.ArrayLike, epochs_completed: int) -> npt.NDArray[np.int64]:
        """Epochs in which the class at each position has been trained on; 0 or less: not yet."""
        return epochs_completed - self.entry_epoch(positions)

    def is_active(self, positions: npt.ArrayLike, epochs_completed: int) -> npt.NDArray[np.bool_]:
        """Whether the class at each position has been seen by these weights."""
        return np.asarray(positions) < self.classes_seen(epochs_completed)
