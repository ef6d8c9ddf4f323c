"""The saved weights of a replay: where they are, in which order of classes, and whether they fit the plan."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from plastiscope.build import PLACES, Plan, as_known_to, differences, plain, read_config
from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError, RunError
from plastiscope.formats.checkpoints import CheckpointFolder, Layout, read_class_order
from plastiscope.replay import ReplaySettings
from plastiscope.run.processes import is_first_process
from plastiscope.run.status import State, read_status
from plastiscope.run.storage import read_json
from plastiscope.selection import Selection


@dataclass(frozen=True)
class Source:
    """The saved weights of a replay.

    Attributes:
        checkpoints: to walk, their outputs in the order of the run's tasks.
        walked: epochs completed of those that are looked at.
        left_out: of those whose name gives them to another task than the schedule does.
        about: run.json of the run that they are of; None for other programs' checkpoints.
        facts: what files of results say of them: `task_end_weights` ("last step" or "selected by ..."); of noisy-label
            checkpoints also `run_idx` and `noise_level` of their names, and `label_source`, whose labels are scored.
    """

    checkpoints: CheckpointFolder
    walked: tuple[int, ...]
    left_out: tuple[int, ...]
    about: dict[str, Any] | None
    facts: dict[str, Any]

    def identity(self, folder: Path) -> dict[str, Any]:
        """What run.json of `folder` says of it."""
        where = self.checkpoints.folder
        return {
            "folder": str(where.resolve()),
            "relative": os.path.relpath(where.resolve(), folder.resolve()),
            "layout": self.checkpoints.layout.value,
            "epochs_completed": list(self.walked),
            "left_out": list(self.left_out),
            **self.facts,
        }


def open_checkpoints(settings: ReplaySettings, head: str, task_shift: Any) -> CheckpointFolder:
    """The saved weights of a replay, output j standing for the j-th class presented.

    Args:
        settings: say where they are.
        head: path of the module that gives the network's outputs.
        task_shift: of the plan, its class order known (`with_class_order`).
    """
    order = getattr(task_shift, "class_order", None)
    found = settings.open()
    return found if order is None else found.presented(head, order)


def reopen(plan: Plan, folder: Path, about: dict[str, Any], head: str) -> CheckpointFolder:
    """The saved weights that the finished replay in `folder` looked at, also if both were moved together.

    Args:
        plan: of the replay, as its folder says.
        folder: of the replay.
        about: its run.json.
        head: path of the module that gives the network's outputs.

    Raises:
        RunError: they are not there.
    """
    settings, relative = plan.settings.replay, about.get("replay_of", {}).get("relative")
    if relative is not None and not Path(str(settings.folder)).exists():
        settings = replace(settings, folder=str(folder / relative))
    return open_checkpoints(settings, head, plan.task_shift_mode)


def with_class_order(plan: Plan) -> Plan:
    """The plan of a replay, with the order of the classes that its checkpoints were trained in.

    Raises:
        ConfigError: the tasks depend on the order, and it is not known; or two orders are given.
    """
    if not hasattr(plan.task_shift_mode, "class_order"):
        return plan
    replay, given = plan.settings.replay, plan.task_shift_mode.class_order
    checkpoints = replay.open()
    beside = [file for file in checkpoints.class_order_files if file.exists()]
    files = [Path(replay.class_order)] if replay.class_order is not None else beside
    if not files and given is None and checkpoints.layout is not Layout.run:
        raise ConfigError(
            f"the order in which classes were presented is not beside {checkpoints.folder}; "
            "give replay.class_order=FILE.npy or task_shift_mode.class_order=[...]"
        )
    if not files:
        return plan
    order = read_class_order(files[0])
    if given is not None and given != order[: len(given)]:
        raise ConfigError(
            f"task_shift_mode.class_order is not the order in {files[0]}; leave one of the two out "
            "(replay.class_order names another file)"
        )
    shift = replace(plan.task_shift_mode, class_order=order)  # type: ignore[type-var]
    config = {**plan.config, "task_shift_mode": {**plan.config["task_shift_mode"], "class_order": order}}
    return replace(plan, task_shift_mode=shift, config=config)


def open_source(plan: Plan, data: DataSet, head: str) -> Source:
    """Open the saved weights of a replay, and compare the run that they are of with the plan.

    Args:
        plan: of the replay.
        data: as loaded.
        head: path of the module that gives the network's outputs.

    Raises:
        RunError: they do not fit the plan's schedule; they are of a run with other settings or data; or one of those
            that the run has saved is missing.
    """
    settings = plan.settings
    checkpoints = open_checkpoints(settings.replay, head, plan.task_shift_mode)
    walked, left_out = settings.replay.walked(checkpoints, settings.num_tasks, settings.epochs)
    for epochs in left_out:
        note(f"left out: {checkpoints.path(epochs).name}, which is named after another task")
    run = checkpoints.folder.parent
    about = read_json(run / "run.json") if checkpoints.layout is Layout.run else None
    selection = settings.selection.value
    if about is not None:
        theirs = _check_source_config(plan, run)
        check_data(about, data, run)
        first = about.get("branch_of", {}).get("first_task", 0) * settings.epochs
        check_complete(checkpoints, theirs, settings.replay, is_finished(run), first)
        selection = theirs.get("selection", selection)
    else:
        note_gaps(checkpoints, settings.replay)
    facts = _end_facts(selection) | _label_facts(plan, checkpoints)
    return Source(checkpoints, tuple(walked), tuple(left_out), about, facts)


def note(text: str) -> None:
    """Say it, once for all processes."""
    if is_first_process():
        print(text, file=sys.stderr, flush=True)


def is_finished(run: Path) -> bool:
    """Whether the run has saved all that it will save."""
    return read_status(run).get("state") == State.done.value


def check_complete(
    checkpoints: CheckpointFolder, config: dict[str, Any], replay: ReplaySettings, done: bool, first: int = 0
) -> None:
    """Refuse a run's snapshots of which one is missing within replay.start .. replay.end.

    Args:
        checkpoints: of the run.
        config: of the run.
        replay: says what is looked at.
        done: whether the run is finished; another one ends where its newest snapshot is.
        first: epochs completed as it began; more than 0 of a branch.

    Raises:
        RunError: names the first that is missing.
    """
    there = checkpoints.epochs()
    last = config["num_tasks"] * config["epochs"] if done else there[-1]
    lacking = sorted(set(saved_epochs(there, last, config["epochs"], config.get("snapshots") or {}, done)) - set(there))
    lacking = [e for e in lacking if max(replay.start or 0, first) <= e and (replay.end is None or e <= replay.end)]
    if lacking:
        raise RunError(
            f"{checkpoints.folder}/epoch_{lacking[0]:06d}.pt is missing, the weights after {lacking[0]} epochs, which "
            f"the run has saved (missing: {listed(lacking)}); put it back, or leave it out by replay.start, replay.end"
        )


def saved_epochs(there: Sequence[int], last: int, epochs: int, snapshots: dict[str, Any], done: bool) -> list[int]:
    """Epochs completed, up to `last`, of which a run keeps its weights: the first, task ends, and `snapshots.every`.

    With `snapshots.keep` the older ones within tasks are gone. A run that was stopped and went back to its checkpoint
    may have fewer of them until it has gone on, so of an unfinished one only those between two that are there count.
    """
    every, keep = snapshots.get("every"), snapshots.get("keep")
    passing = [e for e in range(every, last + 1, every) if e % epochs] if every else []
    if keep is not None and done:
        passing = passing[max(len(passing) - keep, 0) :]
    elif keep is not None:
        oldest = min((e for e in there if e in set(passing)), default=last + 1)
        passing = [e for e in passing if e >= oldest]
    return [*range(0, last + 1, epochs), *passing]


def note_gaps(checkpoints: CheckpointFolder, replay: ReplaySettings) -> None:
    """Say where checkpoints of other programs lie further apart than most; what is there is looked at."""
    there = [e for e in checkpoints.epochs() if (replay.start or 0) <= e and (replay.end is None or e <= replay.end)]
    steps = [after - before for before, after in pairwise(there)]
    if len(set(steps)) > 1:
        usual = max(sorted(set(steps)), key=steps.count)
        gaps = [f"{before} to {after}" for before, after in pairwise(there) if after - before != usual]
        note(f"checkpoints are mostly {usual} epochs apart, not so: {listed(gaps)}; those that are there are looked at")


def listed(what: Sequence[object], most: int = 10) -> str:
    """The first of them for a message."""
    return ", ".join(map(str, what[:most])) + (", ..." if len(what) > most else "")


def _end_facts(selection: str) -> dict[str, Any]:
    """Which weights the checkpoints at task ends hold; where they were selected, it is said."""
    if selection == Selection.last.value:
        return {"task_end_weights": "last step"}
    note(
        f"snapshots at task ends hold the weights selected by {selection}, not those of the last step; "
        "their rows are of the selected weights"
    )
    return {"task_end_weights": f"selected by {selection}"}


def _label_facts(plan: Plan, checkpoints: CheckpointFolder) -> dict[str, Any]:
    """Run, noise and labels of noisy-label checkpoints; nothing of others."""
    if checkpoints.layout is not Layout.noisy_cifar:
        return {}
    run_idx, noise = checkpoints.about["run"], checkpoints.about["noise"]
    source = "trained"
    if noise > 0 and getattr(plan.data, "label_noise", 0.0) > 0:
        source, said = "data.label_noise", "those that data.label_noise draws, which another program drew otherwise"
    elif noise > 0 and plan.data_name == "arrays":
        source, said = "data.file", "those in data.file, taken to be the ones of the training"
    elif noise > 0:
        source, said = "clean", "the clean ones, not those of the training; give these with data=arrays, as y_train"
    if source != "trained":
        note(f"the checkpoints are of training with noise {noise} in the labels; the labels scored are {said}")
    return {"run_idx": run_idx, "noise_level": noise, "label_source": source}


def _check_source_config(plan: Plan, run: Path) -> dict[str, Any]:
    """Refuse weights of a run whose data, network or tasks were others.

    Returns:
        The run's config.

    Raises:
        RunError: names the settings that differ.
    """
    theirs = plain(read_config(run, trust=True))  # compared as it stands; nothing that it names is imported
    keys = ("seed", "epochs", "data", "net", "task_shift_mode", "learner")
    ours = as_known_to(plan, theirs).config
    other = [d for key in keys for d in differences(ours.get(key), theirs.get(key), key) if d not in PLACES]
    if other:
        raise RunError(
            f"{run} was trained under other settings: {', '.join(other)}. Give the same ones, "
            "or let plastiscope-analyze take them from the folder"
        )
    return theirs


def check_data(stored: dict[str, Any] | None, data: DataSet, folder: Path) -> None:
    """Refuse to go on with other data than the run began with.

    Raises:
        RunError: counts, labels, ids or normalisation differ.
    """
    other = [] if stored is None else differences(json.loads(json.dumps(data.description)), stored.get("data"))
    if other:
        raise RunError(
            f"the data are not those that the run in {folder} began with (different: {', '.join(other)}); "
            "put the old files back, or start anew in another folder (hydra.run.dir=...)"
        )
