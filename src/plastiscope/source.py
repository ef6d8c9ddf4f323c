"""The saved weights of a replay: where they are, in which order of classes, and whether they fit the plan."""

import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plastiscope.build import PLACES, Plan, differences, plain, read_config
from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError, RunError
from plastiscope.formats.checkpoints import CheckpointFolder, Layout, read_class_order
from plastiscope.replay import ReplaySettings
from plastiscope.run.storage import read_json


@dataclass(frozen=True)
class Source:
    """The saved weights of a replay.

    Attributes:
        checkpoints: to walk, their outputs in the order of the run's tasks.
        walked: epochs completed of those that are looked at.
        left_out: of those whose name gives them to another task than the schedule does.
        about: run.json of the run that they are of; None for other programs' checkpoints.
    """

    checkpoints: CheckpointFolder
    walked: tuple[int, ...]
    left_out: tuple[int, ...]
    about: dict[str, Any] | None

    def identity(self, folder: Path) -> dict[str, Any]:
        """What run.json of `folder` says of it."""
        where = self.checkpoints.folder
        return {
            "folder": str(where.resolve()),
            "relative": os.path.relpath(where.resolve(), folder.resolve()),
            "layout": self.checkpoints.layout.value,
            "epochs_completed": list(self.walked),
            "left_out": list(self.left_out),
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
        RunError: they do not fit the plan's schedule; or they are of a run with other settings or data.
    """
    settings = plan.settings
    checkpoints = open_checkpoints(settings.replay, head, plan.task_shift_mode)
    walked, left_out = settings.replay.walked(checkpoints, settings.num_tasks, settings.epochs)
    for epochs in left_out:
        print(f"left out: {checkpoints.path(epochs).name}, which is named after another task", file=sys.stderr)
    run = checkpoints.folder.parent
    about = read_json(run / "run.json") if checkpoints.layout is Layout.run else None
    if about is not None:
        _check_source_config(plan, run)
        check_data(about, data, run)
    return Source(checkpoints, tuple(walked), tuple(left_out), about)


def _check_source_config(plan: Plan, run: Path) -> None:
    """Refuse weights of a run whose data, network or tasks were others.

    Raises:
        RunError: names the settings that differ.
    """
    theirs = plain(read_config(run, trust=True))  # compared as it stands; nothing that it names is imported
    keys = ("seed", "epochs", "data", "net", "task_shift_mode", "learner")
    ours = {key: _common(plan.config[key], theirs[key]) for key in keys}
    other = [key for key in differences(ours, {key: theirs[key] for key in keys}) if key not in PLACES]
    if other:
        raise RunError(
            f"{run} was trained under other settings: {', '.join(other)}. Give the same ones, "
            "or let plastiscope-analyze take them from the folder"
        )


def _common(ours: Any, theirs: Any) -> Any:
    """Our settings without those that the other, older config does not know."""
    if not isinstance(ours, dict) or not isinstance(theirs, dict):
        return ours
    return {key: _common(value, theirs[key]) for key, value in ours.items() if key in theirs}


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
