"""Classes come in groups, a group a task.

Output j stands for the j-th class presented, and the loss sees the outputs of the classes presented so far. Published:
CIFAR-100, 5 classes and 5 more a task, 20 tasks, cumulative (Dohare et al. 2024, "Loss of plasticity in deep continual
learning").
"""

from dataclasses import dataclass

from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError, require
from plastiscope.task_shift_mode.task import Task, TaskShift
from plastiscope.task_shift_mode.views import presentation_order, presented


@dataclass(kw_only=True)
class ClassIncremental:
    """Each task brings new classes; the head has an output for every class of the data from the start."""

    classes_per_task: int = 2
    """New classes a task."""
    initial_classes: int | None = None
    """Classes of the first task; null = classes_per_task."""
    cumulative: bool = True
    """Train on the classes of earlier tasks too; the validation and test samples are those of all classes so far."""
    class_order: list[int] | None = None
    """Classes in the order of presentation, all or some; null = all, in an order drawn from the seed."""

    def __post_init__(self) -> None:
        require(self.classes_per_task > 0, "classes_per_task", self.classes_per_task, "must be 1 or more")
        require(self._initial > 0, "initial_classes", self.initial_classes, "must be 1 or more, or null")

    @property
    def _initial(self) -> int:
        return self.classes_per_task if self.initial_classes is None else self.initial_classes

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data; ConfigError when they have too few classes for the first task."""
        order = presentation_order(self.class_order, data, seed)
        if self._initial > len(order):
            raise ConfigError(
                f"task_shift_mode: the first task needs {self._initial} classes, there are {len(order)}; "
                "lower initial_classes or classes_per_task"
            )
        return ClassIncrementalTasks(data, order, self._initial, self.classes_per_task, self.cumulative)


class ClassIncrementalTasks(TaskShift):
    """Task k has the first initial + k * more classes of `order`."""

    num_tasks_possible: int

    def __init__(self, data: DataSet, order: tuple[int, ...], initial: int, more: int, cumulative: bool) -> None:
        """Tasks of `data` whose classes come in `order`, `initial` at first and `more` with each further task."""
        self.data, self.order, self.initial, self.more, self.cumulative = data, order, initial, more, cumulative
        self.outputs = data.num_classes
        self.num_tasks_possible = 1 + (len(order) - initial) // more
        at_first = "" if initial == more else f"{initial} at first, then "
        self.limit_reason = f"{len(order)} classes, {at_first}{more} new ones a task"

    def task(self, k: int) -> Task:
        """Task k; ConfigError when the classes do not suffice for it."""
        if not 0 <= k < self.num_tasks_possible:
            raise ConfigError(f"there is no task {k}, only {self.num_tasks_possible} tasks: {self.limit_reason}")
        num_active = self.initial + k * self.more
        active = self.order[:num_active]
        new = active if k == 0 else active[-self.more :]
        data = self.data
        return Task(
            index=k,
            train=presented(data.train, active if self.cumulative else new, active),
            validation=None if data.validation is None else presented(data.validation, active, active),
            test=presented(data.test, active, active),
            new_train=presented(data.train, new, active),
            new_test=presented(data.test, new, active),
            classes=active,
            active_outputs=num_active,
            numbers={},
        )
