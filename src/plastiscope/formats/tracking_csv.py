"""Tables of single presentations: sample_tracking_data<suffix>.csv, and orders of epochs as other programs keep them.

    sample_id, memo_score, true_label, class_id, epoch_num, batch_num, task_num

one row a presentation, in order. true_label is the one-hot row over the classes active in the task, in presentation
order, as text; class_id its position there, not the class of the data set. epoch_num counts the epochs of the run,
batch_num the batches of the epoch, both from 0.

Known defect of published files: the id that they give was looked up at the sample's position among the samples of the
active classes, so that as long as some classes are missing it names another sample. Such rows are marked
`filtered_position`. Their memo_score was looked up by the same id, and 0.0 stood for unknown.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.formats.content import check_ids, read_content, whole_number
from plastiscope.formats.memorization import Memorization, read_memorization
from plastiscope.run.presentation_log import PresentedTask, presented_tasks
from plastiscope.run.storage import read_json, write_json

COLUMNS = ("sample_id", "memo_score", "true_label", "class_id", "epoch_num", "batch_num", "task_num")
ROWS_AT_ONCE = 65_536
"""Rows that an export or an import holds."""

Ids = npt.NDArray[np.int64]


def export_tracking(
    run_folder: Path | str,
    suffix: str = "",
    scores: Memorization | Path | str | None = None,
    folder: Path | str | None = None,
    name: str = "tracking",
) -> Path:
    """Write sample_tracking_data<suffix>.csv, and beside it a .json that says what its columns mean.

    Args:
        run_folder: of a run with analysis=tracking; its whole tasks are written.
        suffix: of the file's name.
        scores: memorization by sample id, or a file of it; what is not known stays empty.
        folder: where to write; the run folder by default.
        name: of the analysis in the run.

    Returns:
        The CSV.

    Raises:
        RunError: no task is recorded, or a file of the record is damaged.
        DataError: the scores cannot be read.
    """
    tasks = presented_tasks(Path(run_folder), name)
    if scores is not None and not isinstance(scores, Memorization):
        scores = read_memorization(scores)
    path = Path(run_folder if folder is None else folder) / f"sample_tracking_data{suffix}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", newline="") as file:
            file.write(",".join(COLUMNS) + "\n")
            counts = [_write_task(file, task, scores) for task in tasks]
            file.flush()
            os.fsync(file.fileno())
        write_json(_companion(path), _meaning(tasks, counts))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _companion(path: Path) -> Path:
    return path.with_suffix(".json")


def _meaning(tasks: list[PresentedTask], counts: list[int]) -> dict[str, Any]:
    return {
        "columns": list(COLUMNS),
        "id_kind": "sample_id",
        "true_label": "one-hot over the classes of the task in presentation order; other targets: their values",
        "class_id": "position of the class in the presentation order",
        "epoch_num": "epoch of the run, from 0",
        "batch_num": "batch of the epoch, from 0",
        "memo_score": "empty = unknown",
        "rows": sum(task.epochs * len(task.ids) for task in tasks),
        "tasks": [
            {
                "task": task.task,
                "classes": task.about["classes"],
                "batch_size": task.about["batch_size"],
                "samples": len(task.ids),
                "samples_with_score": count,
            }
            for task, count in zip(tasks, counts, strict=True)
        ],
    }


def _write_task(file: IO[str], task: PresentedTask, scores: Memorization | None) -> int:
    """Write the rows of a task; returns how many of its samples have a score."""
    ids, size, first, k = task.ids, int(task.about["batch_size"]), int(task.about["first_epoch"]), task.task
    known = None if scores is None else scores.join(ids).scores
    label = _label_texts(task)
    for epoch in range(task.epochs):
        order = task.order(epoch)
        for start in range(0, len(order), ROWS_AT_ONCE):
            rows = order[start : start + ROWS_AT_ONCE]
            numbers = ids[rows].tolist()
            memo = [""] * len(rows) if known is None else [_text(score) for score in known[rows].tolist()]
            batches = ((start + np.arange(len(rows))) // size).tolist()
            columns = zip(numbers, memo, label(rows), batches, strict=True)
            file.writelines(f"{i},{m},{text},{first + epoch},{batch},{k}\n" for i, m, text, batch in columns)
    return 0 if known is None else int((~np.isnan(known)).sum())


def _text(score: float) -> str:
    return "" if score != score else repr(score)


def _label_texts(task: PresentedTask) -> Callable[[npt.NDArray[Any]], list[str]]:
    """Rows -> their two columns true_label and class_id."""
    targets = task.targets
    if targets.ndim == 1:
        outputs = int(task.about["active_outputs"])
        texts = [f'"{[float(i == j) for j in range(outputs)]}",{i}' for i in range(outputs)]
        return lambda rows: [texts[i] for i in targets[rows].tolist()]
    return lambda rows: [f'"{values}",' for values in targets[rows].tolist()]


@dataclass(frozen=True, eq=False, kw_only=True)
class TrackedRows:
    """Some rows of a table of presentations, in its order.

    Attributes:
        sample_ids: int64 [n]; not to be joined with where `is_filtered_position`.
        is_filtered_position: bool [n], the id is one of the defect that the module describes.
        memo_scores: float64 [n], NaN = unknown.
        positions: int64 [n], of the class in the presentation order.
        classes: int64 [n], the class of the data set.
        active: int64 [n], classes active in the row's task.
        epochs, batches, tasks: int64 [n].
    """

    sample_ids: Ids
    is_filtered_position: npt.NDArray[np.bool_]
    memo_scores: npt.NDArray[np.float64]
    positions: Ids
    classes: Ids
    active: Ids
    epochs: Ids
    batches: Ids
    tasks: Ids

    @property
    def id_kind(self) -> str:
        """sample_id, filtered_position, or mixed."""
        share = self.is_filtered_position
        return "sample_id" if not share.any() else "filtered_position" if share.all() else "mixed"


def read_tracking_csv(
    path: Path | str,
    class_order: Sequence[int] | npt.NDArray[Any] | None = None,
    zero_is_unknown: bool = True,
    rows_at_once: int = ROWS_AT_ONCE,
) -> Iterator[TrackedRows]:
    """The rows of a table, some at a time.

    Args:
        path: sample_tracking_data<suffix>.csv. If the .json that `export_tracking` wrote lies beside it, ids are sample
            ids and the class orders are known; else it is taken for a published one.
        class_order: classes of the data set in the order of presentation, all of them; of a published file.
        zero_is_unknown: in a published file, read a memo_score of 0.0 as unknown (NaN).
        rows_at_once: rows in each part.

    Raises:
        DataError: other columns, a row whose true_label and class_id do not fit, or no class order.
    """
    import pandas as pd

    path = Path(path)
    about = read_json(_companion(path))
    own = {int(task["task"]): list(task["classes"]) for task in about["tasks"]} if isinstance(about, dict) else None
    if own is None and class_order is None:
        raise DataError(
            f"{path} says positions of classes only; give class_order=..., the classes in the order of presentation "
            "(class_order/index-<i>.npy of the experiment)."
        )
    order = None if class_order is None else check_ids(np.asarray(class_order), Path("class_order"))
    try:
        with pd.read_csv(path, chunksize=rows_at_once, dtype={"true_label": str}) as parts:
            for part in parts:
                yield _checked(path, part, own, order, zero_is_unknown)
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (ValueError, KeyError, pd.errors.ParserError) as error:
        raise DataError(f"{path} is no table of presentations ({error}).") from None


def _checked(
    path: Path, part: Any, own: dict[int, list[int]] | None, order: Ids | None, zero_is_unknown: bool
) -> TrackedRows:
    """Columns of a part of the table; classes from the class order."""
    import pandas as pd

    if tuple(part.columns) != COLUMNS:
        raise DataError(f"{path} has the columns {', '.join(map(str, part.columns))}; {', '.join(COLUMNS)} are needed.")
    codes, texts = pd.factorize(part["true_label"])
    told = np.array([_one_hot(text) for text in texts], np.int64).reshape(-1, 2)[codes]
    positions, active = told[:, 0], told[:, 1]
    class_ids = part["class_id"].fillna(-1).to_numpy()
    if (positions != class_ids).any():
        row = int((positions != class_ids).argmax())
        raise DataError(
            f"{path}: in row {part.index[row] + 2} class_id is {class_ids[row]:g} and true_label says {positions[row]}."
        )
    tasks = check_whole(part["task_num"].to_numpy(), path)
    classes = _classes(path, positions, tasks, own, order)
    is_filtered = np.zeros(len(part), np.bool_) if order is None or own is not None else active < len(order)
    scores = part["memo_score"].to_numpy(np.float64)
    if own is None and zero_is_unknown:
        scores = np.where(scores == 0.0, np.nan, scores)
    ids, epochs, batches = (
        check_whole(part[name].to_numpy(), path) for name in ("sample_id", "epoch_num", "batch_num")
    )
    return TrackedRows(
        sample_ids=ids,
        is_filtered_position=is_filtered,
        memo_scores=scores,
        positions=positions,
        classes=classes,
        active=active,
        epochs=epochs,
        batches=batches,
        tasks=tasks,
    )


def _one_hot(text: str) -> tuple[int, int]:
    """(position of the one, how many there are); (-1, 0) of what is no one-hot row."""
    try:
        row = np.array(json.loads(text), np.float64)
    except (ValueError, TypeError):
        return -1, 0
    is_one_hot = row.ndim == 1 and np.isin(row, (0, 1)).all() and row.sum() == 1
    return (int(row.argmax()), len(row)) if is_one_hot else (-1, 0)


def _classes(path: Path, positions: Ids, tasks: Ids, own: dict[int, list[int]] | None, order: Ids | None) -> Ids:
    """Classes of the data set at positions of each row's task; -1 where there are none."""
    classes = np.full(len(positions), -1, np.int64)
    for task in np.unique(tasks):
        here = (tasks == task) & (positions >= 0)
        names = order if own is None else np.array(own.get(int(task), []), np.int64)
        if names is None or (here.any() and positions[here].max() >= len(names)):
            raise DataError(
                f"{path} has the class position {positions[here].max()} in task {task}; class_order is short."
            )
        classes[here] = names[positions[here]]
    return classes


@dataclass(frozen=True, eq=False, kw_only=True)
class EpochOrders:
    """Ids in the order of their presentation, by epoch of the run.

    Attributes:
        orders: epoch -> int64 [n].
        samples: presentations of an epoch in which all classes are active.
    """

    orders: dict[int, Ids]
    samples: int

    def is_filtered_position(self, epoch: int) -> bool:
        """Whether the ids of an epoch are those of the defect that the module describes: some classes are missing."""
        return len(self.orders[epoch]) < self.samples


def read_epoch_orders(path: Path | str, samples: int | None = None) -> EpochOrders:
    """epoch_sample_orders_task_<T>.npz, or the .pkl beside it.

    The file of task T holds all epochs of the run up to its end, and epochs are counted by the run.

    Args:
        path: the file.
        samples: training samples of all classes (45,000); the longest epoch of the file by default, which is right
            where its last task has all classes.

    Raises:
        DataError: no such file, or it holds anything but data.
    """
    path = Path(path)
    content = read_content(path)
    found = content.get("epoch_sample_orders", content) if isinstance(content, dict) else {}
    orders = {}
    for key, ids in found.items():
        epoch = whole_number(str(key).removeprefix("epoch_"))
        if epoch is None:
            raise DataError(f"{path} holds {key}, and orders of epochs, epoch_<E>, are needed.")
        orders[epoch] = check_whole(np.asarray(ids), path)
    if not orders:
        raise DataError(f"{path} holds no orders of epochs.")
    return EpochOrders(orders=orders, samples=samples or max(map(len, orders.values())))


def check_whole(values: npt.NDArray[Any], path: Path) -> Ids:
    """Integers int64 [n]; numbers such as 1234.0 are taken as 1234.

    Raises:
        DataError: other numbers.
    """
    whole = values.astype(np.int64) if values.dtype.kind in "iuf" and np.isfinite(values).all() else None
    if values.ndim != 1 or whole is None or not (whole == values).all():
        raise DataError(f"{path} holds ids or counts that are no integers.")
    return whole
