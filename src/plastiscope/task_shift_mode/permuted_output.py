"""A new permutation of the labels in every task."""

from dataclasses import dataclass

import numpy as np

from plastiscope.data.samples import DataSet
from plastiscope.measure.keyed import named_seed
from plastiscope.task_shift_mode.task import Task, TaskShift
from plastiscope.task_shift_mode.views import classes_of, presented, task_of_all


@dataclass(kw_only=True)
class PermutedOutput:
    """All samples in every task, with permuted labels; the permutations of the tasks are independent."""

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data."""
        return PermutedOutputTasks(data, seed)


class PermutedOutputTasks(TaskShift):
    """Any number of permutations."""

    num_tasks_possible = None

    def __init__(self, data: DataSet, seed: int) -> None:
        """Tasks of `data`."""
        self.data, self.seed, self.outputs = data, seed, len(classes_of(data))

    def task(self, k: int) -> Task:
        """Task k: output j stands for class classes[j]."""
        rng = np.random.default_rng(named_seed(self.seed, "permuted_output", k))
        classes = tuple(rng.permutation(self.outputs).tolist())
        return task_of_all(
            self.data, k, lambda s: presented(s, classes, classes), classes=classes, outputs=self.outputs
        )
