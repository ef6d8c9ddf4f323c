"""A task, an immutable value, and the task shift, a pure function that gives task k."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from torch import nn

from plastiscope.data.samples import DataSet, Samples
from plastiscope.error import ConfigError
from plastiscope.measure.evaluation import Scores, score
from plastiscope.measure.loss import Loss


class NewHead(Enum):
    """What happens to the network's head when a task begins."""

    keep = "keep"
    initial = "initial"
    """Drawn anew from the network's own initialisation."""
    zeros = "zeros"
    """Weights and biases set to zero."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """One task: its samples, and how they are learnt.

    Attributes:
        index: k, from 0.
        train, validation, test: all samples of the task (validation None when there are none).
        new_train, new_test: those that entered with this task; all of them unless tasks accumulate.
        classes: classes of the data set active so far, in presentation order; output j stands for classes[j].
            Empty for regression.
        active_outputs: the loss sees the first so many outputs of the network.
        loss: what the task is trained with.
        new_head: what happens to the head when the task begins.
        numbers: what describes the shift at this task, for the log (such as the deformation's coverage).
    """

    index: int
    train: Samples
    validation: Samples | None
    test: Samples
    new_train: Samples
    new_test: Samples
    classes: tuple[int, ...]
    active_outputs: int
    loss: Loss = Loss.cross_entropy
    new_head: NewHead = NewHead.keep
    numbers: dict[str, float]


EVALUATION_BATCH = 500
"""Samples in a forward of an evaluation; the last bits of a loss depend on it."""


def evaluate(
    net: nn.Module, task: Task, samples: Samples, epochs_completed: int, active_outputs: int | None = None
) -> Scores:
    """Per-sample scores of samples of a task, in evaluation mode.

    Args:
        net: network.
        task: says the loss.
        samples: of the task; clean inputs, unless the samples carry an augmentation of their own.
        epochs_completed: by the run; key of such an augmentation.
        active_outputs: the loss sees so many outputs; those of the task by default.
    """
    batches = ((batch.inputs, batch.targets) for batch in samples.batches(EVALUATION_BATCH, epoch=epochs_completed))
    return score(net, batches, task.loss, active_outputs or task.active_outputs)


class TaskShift(ABC):
    """A sequence of tasks. `task(k)` is a pure function of (config, seed, k): asking twice gives equal bits."""

    outputs: int
    """Number of outputs the network needs for every task."""
    num_tasks_possible: int | None
    """How many tasks the data allow; None = any number."""
    limit_reason: str = ""
    """Why not more, for the error text, such as "10 classes, 2 new ones a task"."""

    @abstractmethod
    def task(self, k: int) -> Task:
        """Task k."""


class TaskShiftConfig(Protocol):
    """A component of the config group `task_shift_mode`: a dataclass of settings that makes a TaskShift."""

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data under this seed; raises ConfigError when the data do not fit."""


def check_alike(tasks: Sequence[Task]) -> None:
    """Whether one step can train on all of these tasks.

    Raises:
        ConfigError: names the task and what differs.
    """
    first = tasks[0]
    for other in tasks[1:]:
        for what, ours, theirs in (
            ("numbers of training samples", len(first.train), len(other.train)),
            ("numbers of outputs", first.active_outputs, other.active_outputs),
            ("losses", first.loss.value, other.loss.value),
            ("inputs", _shapes(first.train), _shapes(other.train)),
        ):
            if ours != theirs:
                raise ConfigError(
                    f"replicas: task {first.index} has other {what} for other seeds ({ours} and {theirs}), so the runs "
                    "cannot take the same steps; run one process per seed (-m launcher=local seed=0,1,2)"
                )


def _shapes(samples: Samples) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return samples.input_shape, tuple(samples.targets.shape[1:])
