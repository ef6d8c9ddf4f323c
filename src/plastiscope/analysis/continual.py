"""What a run remembers and how fast it learns: accuracy on each task after each task, and learning curves.

Cell [i, j] of the matrix is the accuracy on the test samples that entered with task j, rebuilt as it was, after
training on task i, among the classes active at i. A cell is NaN where it was not measured, where the outputs do not
exist yet, and where the head has been reset in between: its outputs mean something else. In regression minus the loss
takes the accuracy's place, under names that say so.

accuracy_per_class_in_order.npy of a task, float32 [active outputs]: the accuracy on the task's test samples class by
class, in the order in which classes were presented; NaN of a class without such samples. None in regression.
"""

import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.analysis.analysis import Analysis
from plastiscope.error import require
from plastiscope.event import Context, Numbers
from plastiscope.measure import continual
from plastiscope.measure.continual import CellMean
from plastiscope.measure.loss import Loss
from plastiscope.run.storage import write_by, write_json
from plastiscope.task_shift_mode.task import NewHead, Task, evaluate

NAN = float("nan")


@dataclass(kw_only=True)
class Continual(Analysis):
    """Accuracy matrix, average accuracy, forgetting, backward and forward transfer, learning curves."""

    max_tasks: int | None = 20
    """Of more tasks than this only every n-th is tested again after it (and each right after it); null = all."""
    threshold: float = 0.9
    """Accuracy (regression: minus the loss) that a task's learning curve is to reach."""

    name = "continual"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(
            self.max_tasks is None or self.max_tasks >= 1, "max_tasks", self.max_tasks, "must be 1 or more, or null"
        )
        self._matrix = torch.empty(0, 0, dtype=torch.float64)
        self._before = torch.empty(0, dtype=torch.float64)
        self._curve: list[float] = []
        self._head_since = 0
        self._first_head = True
        self._tasks_begun = 0

    def on_task_begin(self, context: Context) -> None:
        """Note a new head, start the task's learning curve, and look at the task with the network's first weights."""
        self._begin(context)
        before = torch.tensor([self._before_training(context)], dtype=torch.float64)
        self._before = torch.cat([_widened(self._before, context.task_idx), before])

    def on_epoch_end(self, context: Context) -> None:
        """One more point of the learning curve; NaN in epochs without evaluation, or without saved weights."""
        self._begin(context)
        row = context.epoch_row
        value = row.get("test_accuracy", -row.get("test_loss", NAN))
        self._curve = [*self._curve, *[NAN] * (context.epoch - len(self._curve)), value]

    def on_task_end(self, context: Context) -> Numbers:
        """One more row of the matrix, and all that follows from it."""
        i = context.task_idx
        is_due = self.is_due(i + 1)
        missing = torch.full((max(i - len(self._matrix), 0), self._matrix.shape[1]), NAN, dtype=torch.float64)
        self._matrix = torch.cat([self._matrix, missing])  # of tasks that a replay has no weights of
        self._matrix = _with_row(self._matrix, self._row(context) if is_due else {}, i + 2)
        metrics = self._metrics(i) if is_due else {}
        numbers = {name: mean.value for name, mean in metrics.items()}
        if _is_complete(context):
            numbers |= self._curve_numbers(self._curve)
        self._save(context, metrics)
        if is_due:
            _save_by_class(context, self.name)
        is_regression = context.current_task.loss is Loss.mse
        return {self.key("test", "total", _renamed(n, is_regression)): value for n, value in numbers.items()}

    def state_dict(self) -> dict[str, Any]:
        """The matrix so far, the accuracies before training, and the task's learning curve."""
        return {
            "matrix": self._matrix,
            "before": self._before,
            "curve": self._curve,
            "head_since": self._head_since,
            "first_head": self._first_head,
            "tasks_begun": self._tasks_begun,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._matrix, self._before = state["matrix"], state["before"]
        self._curve, self._head_since, self._first_head = state["curve"], state["head_since"], state["first_head"]
        self._tasks_begun = state["tasks_begun"]

    def _begin(self, context: Context) -> None:
        """Once a task: note new heads, also of tasks that a replay passes over, and start the learning curve."""
        if self._tasks_begun > context.task_idx:
            return
        for k in range(self._tasks_begun, context.task_idx + 1):
            if _has_new_head(context, context.shift.task(k)):
                self._head_since, self._first_head = k, False
        self._curve, self._tasks_begun = [], context.task_idx + 1

    def _before_training(self, context: Context) -> float:
        """Accuracy on the current task before any training; NaN if its outputs meant something else then."""
        task, first = context.current_task, context.shift.task(0)
        is_asked = task.index % self._stride(context) == 0 and task.active_outputs <= first.active_outputs
        if not is_asked or not self._first_head or 0 not in context.snapshots.epochs():
            return NAN
        untrained = copy.deepcopy(context.net)
        untrained.load_state_dict(context.snapshots.load(0))
        return self._score(context, untrained, task, first.active_outputs)

    def _stride(self, context: Context) -> int:
        return 1 if self.max_tasks is None else -(-context.num_tasks // self.max_tasks)

    def _row(self, context: Context) -> dict[int, float]:
        """Accuracy by task: the current one, earlier ones and the next one (of which forward transfer is made)."""
        i, current = context.task_idx, context.current_task
        row = {i: self._score(context, context.net, current, current.active_outputs)}
        possible = context.shift.num_tasks_possible
        for j in range(0, i + 2 if possible is None else min(i + 2, possible), self._stride(context)):
            if j != i and j >= self._head_since:
                task = context.shift.task(j)
                has_its_head = j < i or not _has_new_head(context, task)
                if has_its_head and task.active_outputs <= current.active_outputs:
                    row[j] = self._score(context, context.net, task, current.active_outputs)
        return row

    def _score(self, context: Context, net: nn.Module, task: Task, active_outputs: int) -> float:
        if len(task.new_test) == 0:
            return NAN
        scores = evaluate(net, task, task.new_test, context.epochs_completed, active_outputs)
        return -scores.loss if scores.accuracy is None else scores.accuracy

    def _metrics(self, i: int) -> dict[str, CellMean]:
        """What the matrix says at the end of task i, with the number of cells it rests on."""
        a, b = self._matrix[:, : i + 1], _widened(self._before, i + 1)[: i + 1]
        return {
            "current_accuracy": CellMean(a[i, i].item(), 1),
            "average_accuracy": continual.average_accuracy(a),
            "forgetting": continual.forgetting(a),
            "backward_transfer": continual.backward_transfer(a),
            "forward_transfer": continual.forward_transfer(a, b),
            "learning_accuracy": continual.learning_accuracy(a),
            "average_incremental_accuracy": continual.average_incremental_accuracy(a),
        }

    def _curve_numbers(self, curve: list[float]) -> Numbers:
        """Of the task's learning curve; where epochs were not evaluated, the straight line between its neighbours."""
        values = np.array(curve)
        measured = np.flatnonzero(np.isfinite(values))
        if len(measured) == 0:
            return {}
        epochs = np.arange(measured[0], measured[-1] + 1)
        line = torch.from_numpy(np.interp(epochs, measured, values[measured]))
        first, is_reached = continual.epochs_to_threshold(torch.from_numpy(values), self.threshold)
        return {
            "learning_curve_auc": continual.learning_curve_auc(line),
            "epochs_to_threshold": first,
            "threshold_reached": float(is_reached),
        }

    def _save(self, context: Context, metrics: dict[str, CellMean]) -> None:
        """The task's row and learning curve; with the last task the matrix (with each it would be T^3 numbers)."""
        folder, is_regression = context.folder(self.name), context.current_task.loss is Loss.mse
        what = "negative_loss" if is_regression else "accuracy"
        matrix = _widened(self._matrix, context.num_tasks)[:, : context.num_tasks]
        _write_array(folder / f"{what}_row.npy", matrix[-1])
        _write_array(folder / "learning_curve.npy", torch.tensor(self._curve, dtype=torch.float64))
        if context.task_idx == context.num_tasks - 1:
            _write_array(folder / f"{what}_matrix.npy", matrix)
            _write_array(folder / f"{what}_before_training.npy", self._before)
        summary = {_renamed(name, is_regression): mean._asdict() for name, mean in metrics.items()}
        write_json(folder / "summary.json", {"settings": dataclasses.asdict(self), "metrics": summary})


def _save_by_class(context: Context, name: str) -> None:
    """Accuracies of the task's classes; output j stands for the j-th class presented."""
    task = context.current_task
    if len(task.test) == 0 or task.test.targets.is_floating_point():
        return
    correct = evaluate(context.net, task, task.test, context.epochs_completed).correct
    if correct is not None:
        classes = continual.accuracy_by_class(correct, task.test.targets, task.active_outputs)
        _write_array(context.folder(name) / "accuracy_per_class_in_order.npy", classes.float().cpu())


def _write_array(path: Path, values: Tensor) -> None:
    write_by(path, lambda file: np.save(file, values.numpy()))


def _has_new_head(context: Context, task: Task) -> bool:
    """Whether the head is another one from this task on."""
    return task.new_head is not NewHead.keep or (task.index > 0 and context.learner_resets_head)


def _is_complete(context: Context) -> bool:
    """Whether every epoch of the task is looked at; in a replay some weights may not have been saved."""
    return len([e for e in context.epochs_of_task() if e > 0]) == context.epochs


def _with_row(matrix: Tensor, row: dict[int, float], columns: int) -> Tensor:
    """The matrix with one more row, and at least so many columns; NaN where nothing is known."""
    new = torch.full((1, columns), NAN, dtype=torch.float64)
    for j, value in row.items():
        new[0, j] = value
    return torch.cat([_widened(matrix, columns), new])


def _widened(values: Tensor, columns: int) -> Tensor:
    """Values [..., c] with NaN columns added, if they are fewer than `columns`."""
    return torch.nn.functional.pad(values, (0, max(columns - values.shape[-1], 0)), value=NAN)


def _renamed(name: str, is_regression: bool) -> str:
    """In regression "accuracy" becomes "negative_loss", and the other names get "_loss"."""
    if not is_regression or name == "threshold_reached":
        return name
    return name.replace("accuracy", "negative_loss") if "accuracy" in name else f"{name}_loss"
