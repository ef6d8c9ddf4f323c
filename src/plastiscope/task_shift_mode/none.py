"""No shift: every task is the same."""

from dataclasses import dataclass

from plastiscope.data.samples import DataSet
from plastiscope.task_shift_mode.task import Task, TaskShift
from plastiscope.task_shift_mode.views import any_classes_of, task_of_all, unchanged


@dataclass(kw_only=True)
class NoShift:
    """All samples of all classes, again in every task."""

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data."""
        return NoShiftTasks(data)


class NoShiftTasks(TaskShift):
    """Any number of repetitions of one task."""

    num_tasks_possible = None

    def __init__(self, data: DataSet) -> None:
        """Tasks of `data`."""
        self.data, self.classes = data, any_classes_of(data)
        self.outputs = data.outputs

    def task(self, k: int) -> Task:
        """Task k."""
        return task_of_all(self.data, k, unchanged, classes=self.classes, outputs=self.outputs)
