"""Runs written as published results: `<name>/<metric>/index-<seed>.npy`, for the published plot script."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.collect.curves import column, grouped
from plastiscope.collect.published_figures import last_layer
from plastiscope.collect.published_tree import (
    CHECKPOINT_NUMBERS,
    CLASS_ORDER,
    EPOCH_NUMBERS,
    LEARNERS,
    PER_CLASS,
    PREVIOUS,
    TASK_NUMBERS,
    config_of_index,
    our_name,
    read_class_order,
)
from plastiscope.collect.runs import CollectedRun
from plastiscope.error import PlastiscopeError, RunError
from plastiscope.figure.online import read_bins
from plastiscope.formats.content import read_vector, write_array
from plastiscope.run.storage import write_atomic

Array = npt.NDArray[Any]
NAMES = {"continual_backprop": "continual_backpropagation"} | {
    ours: theirs for theirs, ours in LEARNERS.items() if ours != "continual_backprop"
}
"""Published names of arms, by our learners."""
BATCHES = 25
"""Of a published checkpoint of the training."""


@dataclass
class Exported:
    """What was written.

    Attributes:
        folders: <out>/<name> of each arm.
        left_out: what is missing, by metric: of how many runs.
        notes: what is to be said besides.
    """

    folders: list[Path] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def export(runs: Sequence[CollectedRun], target: Path) -> Exported:
    """Write finished runs, an arm for each kind of them, an index for each seed.

    An arm has the published name of its learner; arms that only other settings tell apart have these in their names.
    What a run has not measured is left out; single values that it has not measured are NaN.

    Raises:
        RunError: no run is finished, or the folder of an arm is there already.
        ConfigError: as `grouped`.
    """
    done = [run for run in runs if _is_whole(run)]
    if not done:
        raise RunError("no run is finished, so there are no whole results to write; wait, or resume what has stopped")
    groups = grouped(done, None)
    learners = [str(group.settings.get("learner")) for group in groups]
    names = [
        NAMES.get(learner, learner) + ("" if learners.count(learner) == 1 else f"_{_plain(group.label)}")
        for learner, group in zip(learners, groups, strict=True)
    ]
    for name in names:
        if (target / name).exists():
            raise RunError(f"{target / name} is there already; choose another folder, nothing is overwritten")
    made = Exported(notes=_notes(runs, done))
    for name, group in zip(names, groups, strict=True):
        folder = target / name
        for seed, run in group.runs.items():
            looks = [look for look in runs if look is not run and _is_of(look, run)]
            _write_run(arrays_of(run, looks), seed, run, folder, made)
        write_array(folder / "experiment_indices.npy", np.array(list(group.runs), np.int64))
        made.folders.append(folder)
    return made


def _is_whole(run: CollectedRun) -> bool:
    """Whether a run makes an arm's index: one that is done, published results of this study, a look at its weights."""
    if run.rows is None or (run.replay_of and not run.is_published):
        return False
    return run.state == "done" or (run.state == "published" and run.label == f"{run.folder}/index-{run.seed}")


def _is_of(look: CollectedRun, run: CollectedRun) -> bool:
    """Whether the weights that were looked at are a run's: those of its folder, and of a tree those of its index."""
    source = run.replay_of or run.folder
    return bool(look.replay_of) and look.seed == run.seed and _tree(look.replay_of) == _tree(source)


def _tree(folder: str | Path) -> Path:
    """A folder of weights or of what holds them, as the latter."""
    place = Path(folder).resolve()
    return place.parent if place.name == "model_parameters" else place


def _plain(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "=.-_" else "_" for letter in label.replace(", ", "_"))


def _notes(runs: Sequence[CollectedRun], done: Sequence[CollectedRun]) -> list[str]:
    other = [run.label for run in runs if run not in done and not run.replay_of]
    return [f"not finished, left out: {label}" for label in other]


def _write_run(arrays: dict[str, Array], index: int, run: CollectedRun, folder: Path, made: Exported) -> None:
    for metric in (*EPOCH_NUMBERS, *CHECKPOINT_NUMBERS, *TASK_NUMBERS, CLASS_ORDER, PER_CLASS):
        if metric in arrays:
            path = folder / metric / f"index-{index}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_array(path, arrays[metric])
        else:
            made.left_out[metric] = made.left_out.get(metric, 0) + 1
    config = config_of_index(run.folder, index) if run.state == "published" else run.folder / "config.yaml"
    if config.exists():
        write_atomic(config_of_index(folder, index), config.read_bytes())


def arrays_of(run: CollectedRun, looks: Sequence[CollectedRun] = ()) -> dict[str, Array]:
    """The published arrays of a run, as far as it has the numbers: float32, the order of the classes int64.

    Args:
        run: with its rows.
        looks: what plastiscope-analyze has found in its weights; numbers that the run itself lacks are taken from them.
    """
    assert run.rows is not None
    is_epoch = np.array(run.rows.column("kind").to_pylist()) == "epoch"
    per_epoch = {} if run.replay_of else EPOCH_NUMBERS  # a look has rows of the epochs whose weights were saved
    found: dict[str, Array] = {metric: column(run, name)[is_epoch] for metric, name in per_epoch.items()}
    tasks = int(np.nanmax(column(run, "task_idx"), initial=-1)) + 1
    for one in (*reversed([look for look in looks if look.rows is not None]), run):
        before = _before_tasks(one, tasks)
        found |= {metric: values for metric, values in before.items() if np.isfinite(values).any()}
    found |= _checkpoints(run)
    found = {metric: values.astype(np.float32) for metric, values in found.items() if np.isfinite(values).any()}
    for metric, values in ((PER_CLASS, _stored(run, looks)), (CLASS_ORDER, class_order(run))):
        if values is not None:
            found[metric] = values.astype(np.int64 if metric == CLASS_ORDER else np.float32)
    return found


def _before_tasks(run: CollectedRun, tasks: int) -> dict[str, Array]:
    """Row i of the post-run analysis, of the weights before task i: those at the end of task i - 1.

    Row 0 is of the weights as initialised, NaN unless they were looked at; the last task's end has no row.
    """
    assert run.rows is not None
    kind, task = np.array(run.rows.column("kind").to_pylist()), column(run, "task_idx")
    is_initial = column(run, "global_epoch") == -1
    row_of = np.where(is_initial, 0, np.where(kind == "task_end", task + 1, -1)).astype(np.int64)
    layers = {subset: last_layer(run, f"representation/{subset}") or "" for subset in ("next", "current")}
    found = {}
    for metric in TASK_NUMBERS:
        is_previous = metric.startswith(PREVIOUS)
        layer = layers["current" if is_previous else "next"]
        values, rows = column(run, our_name(metric, layer)), np.full(tasks, np.nan)
        known = np.isfinite(values) & (row_of >= is_previous) & (row_of < tasks)
        rows[row_of[known]] = values[known]
        if is_previous and known.any():
            rows[0] = 0.0  # as published: nothing came before the first task
        found[metric] = rows
    return found


def _checkpoints(run: CollectedRun) -> dict[str, Array]:
    """Means over 25 batches, where analysis=online has them: its bins are of so many presentations."""
    size = run.settings.get("online.bin_size")
    if run.state == "published" or size is None or size != BATCHES * run.settings.get("batch_size", 0):
        return {}
    bins = read_bins(run.folder)
    return {metric: bins[name.removeprefix("epoch_")] for metric, name in CHECKPOINT_NUMBERS.items()
            if name.removeprefix("epoch_") in bins}  # fmt: skip


def _stored(run: CollectedRun, looks: Sequence[CollectedRun]) -> Array | None:
    """The accuracy of each class, in the order of presentation, after the last task, where an analysis has left it."""
    if run.state == "published":
        paths = [run.folder / PER_CLASS / f"index-{run.seed}.npy"]
    else:
        paths = [path for one in (*looks, run) for path in sorted(one.folder.glob(f"task_*/*/{PER_CLASS}.npy"))]
    there = [path for path in paths if path.exists()]
    return read_vector(there[-1]) if there else None


def class_order(run: CollectedRun) -> Array | None:
    """Classes in the order of presentation: as its settings say, or else drawn again, which reads the data.

    None where classes do not come one after the other, or the data are not there.
    """
    if run.state == "published":
        return read_class_order(run.folder, int(run.seed or 0))
    if run.is_published:
        return read_class_order(_tree(run.replay_of), int(run.seed or 0))
    if run.settings.get("task_shift_mode") != "class_incremental":
        return None
    given = json.loads(run.settings.get("task_shift_mode.class_order") or "null")
    if given is not None:
        return np.array(given)
    from plastiscope.load import load_run

    try:
        return np.array(load_run(run.folder).shift.order)  # type: ignore[attr-defined]
    except PlastiscopeError:
        return None
