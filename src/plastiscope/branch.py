"""A branch: a run that begins with weights that another run has saved, under another learner or on other tasks."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from plastiscope.build import PLACES, Plan, as_known_to, differences, plain, read_config
from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError, RunError
from plastiscope.replicas import folder_of, plans_of
from plastiscope.run.snapshots import Snapshots, digest
from plastiscope.run.storage import read_json
from plastiscope.settings import InitFromStart
from plastiscope.source import check_data

SEQUENCE = ("seed", "epochs", "data", "task_shift_mode")
"""Settings that say which tasks there are."""
FREE = ("net.dropout",)
"""Settings of a network that its weights do not depend on."""


@dataclass(frozen=True)
class Branch:
    """Where a run begins that branches off another one.

    Attributes:
        run: folder of the other run.
        task: the last one that its weights have learnt.
        first_task: with which the branch begins.
        weights: state dict to begin with.
        where: of these weights, for error texts.
        initial: the initialisation of the other run, if the branch goes on with its tasks and has it; else None.
        about: run.json of the other run; None where the weights come from the branch's own folder.
        identity: what run.json of the branch says of it.
    """

    run: Path
    task: int
    first_task: int
    weights: dict[str, Tensor]
    where: Path
    initial: dict[str, Tensor] | None
    about: dict[str, Any] | None
    identity: dict[str, Any]

    def check(self, data: DataSet) -> None:
        """Refuse to go on with the tasks of the other run on other data.

        Raises:
            RunError: counts, labels, ids or normalisation differ.
        """
        if self.about is not None and self.first_task > 0:
            check_data(self.about, data, self.run)


def open_branches(plan: Plan, folder: Path, stored: dict[str, Any] | None) -> list[Branch]:
    """Where a run, or each of several that advance together, begins; empty where they begin with fresh weights.

    Of several, each takes the weights of the run of its seed, if `init_from` is a group, and else all take the same.

    Args:
        plan: of the run or the group.
        folder: its own.
        stored: its run.json, if it has begun.

    Raises:
        RunError: as in `open_branch`.
        ConfigError: no task is left; or the runs would begin with different ones.
    """
    if plan.settings.init_from is None:
        return []  # before a plan is made for each of so many: whether they fit is asked later
    if plan.settings.replicas == 1:
        branch = open_branch(plan, folder, stored)
        return [] if branch is None else [branch]
    own = [(alone, folder_of(folder, alone)) for alone in plans_of(plan)]
    opened = [open_branch(alone, place, read_json(place / "run.json")) for alone, place in own]
    branches = [branch for branch in opened if branch is not None]
    if len(tasks := sorted({branch.task for branch in branches})) > 1:
        raise ConfigError(
            f"init_from={plan.settings.init_from}: its runs have learnt different numbers of tasks (the last ones are "
            f"{', '.join(map(str, tasks))}); say after which one to begin, init_from_task={tasks[0]}"
        )
    return branches


def open_branch(plan: Plan, folder: Path, stored: dict[str, Any] | None) -> Branch | None:
    """The weights that a run begins with; None where it begins with fresh ones.

    A branch that has begun takes them from its own folder, so the other run need not be there any more.

    Args:
        plan: of the branch.
        folder: of the branch.
        stored: its run.json, if it has begun.

    Raises:
        RunError: the other run, or the weights asked for, are not there; or its network or tasks are others.
        ConfigError: no task is left.
    """
    settings = plan.settings
    if settings.init_from is None or settings.replay.folder is not None:
        return None
    known = (stored or {}).get("branch_of")
    own = Snapshots(folder / "snapshots")
    if known is not None and known["first_task"] * settings.epochs in own.epochs():
        start = known["first_task"] * settings.epochs
        weights = own.load(start)
        _check_digest(weights, known, own.path(start))
        return Branch(
            Path(known["folder"]), known["task"], known["first_task"], weights, own.path(start), None, None, known
        )
    run = _run_of_seed(Path(settings.init_from), settings.seed)
    about, theirs = read_json(run / "run.json"), _config_of(run)
    saved = Snapshots(run / "snapshots")
    task = _task(saved, theirs["epochs"], settings.init_from_task if known is None else known["task"])
    goes_on = settings.init_from_start is InitFromStart.next
    _check_config(plan, theirs, run, goes_on)
    first_task = task + 1 if goes_on else 0
    if first_task >= settings.num_tasks:
        raise ConfigError(
            f"num_tasks={settings.num_tasks}: the weights of {run} have learnt tasks 0 to {task}, and the branch goes "
            f"on with task {first_task}; raise num_tasks, or begin anew with init_from_start=first"
        )
    after = (task + 1) * theirs["epochs"]
    weights = saved.load(after)
    identity = {
        "folder": str(run.resolve()),
        "relative": os.path.relpath(run.resolve(), folder.resolve()),
        "task": task,
        "epochs_completed": after,
        "first_task": first_task,
        "weights": digest(weights),
        "config_hash": (about or {}).get("config_hash"),
    }
    if known is not None:
        _check_digest(weights, known, saved.path(after))
        identity = known
    initial = saved.load(0) if goes_on and 0 in saved.epochs() else None
    return Branch(run, task, first_task, weights, saved.path(after), initial, about, identity)


def _run_of_seed(folder: Path, seed: int) -> Path:
    """Of a group of runs that advanced together, the folder of the one with this seed; else the folder itself."""
    runs = sorted(path.parent.name for path in folder.glob("seed_*/config.yaml"))
    if runs and f"seed_{seed:04d}" not in runs:
        raise RunError(
            f"init_from={folder} holds several runs that advanced together ({', '.join(runs)}), none of seed {seed}; "
            f"take one of their seeds, or begin with the weights of one of them: init_from={folder / runs[0]} "
            "init_from_start=first"
        )
    return folder / f"seed_{seed:04d}" if runs else folder


def _config_of(run: Path) -> dict[str, Any]:
    """Config of the other run, compared as it stands; nothing that it names is imported."""
    if not run.is_dir():
        raise RunError(f"init_from={run}: there is no such folder; give the folder of a run")
    return plain(read_config(run, trust=True))


def _task(saved: Snapshots, epochs: int, wanted: int | None) -> int:
    """The task after which the weights were saved: the one wanted, or the last one.

    Raises:
        RunError: there are none; says which there are.
    """
    there = [e // epochs - 1 for e in saved.epochs() if e > 0 and e % epochs == 0]
    if not there:
        raise RunError(f"init_from: {saved.folder} holds no weights of a task's end; train that run for a task first")
    if wanted is not None and wanted not in there:
        shown = ", ".join(map(str, there))
        raise RunError(f"init_from_task={wanted}: {saved.folder} has no weights of that task's end; there are: {shown}")
    return there[-1] if wanted is None else wanted


def _check_config(plan: Plan, theirs: dict[str, Any], run: Path, goes_on: bool) -> None:
    """Refuse weights of another network; and, to go on with the run's tasks, other tasks.

    Raises:
        RunError: names the settings that differ.
    """
    ours = as_known_to(plan, theirs).config
    net = [key for key in differences(ours["net"], theirs.get("net"), "net") if key not in FREE]
    if net:
        raise RunError(f"the network of {run} is another one than the config's: {', '.join(net)} differ; give the same")
    other = [d for key in SEQUENCE for d in differences(ours.get(key), theirs.get(key), key) if d not in PLACES]
    if goes_on and other:
        raise RunError(
            f"the tasks of {run} were others: {', '.join(other)} differ. Give the same ones to go on with the task "
            "after those that it has learnt, or begin with the first one of yours: init_from_start=first"
        )


def _check_digest(weights: dict[str, Tensor], known: dict[str, Any], path: Path) -> None:
    if digest(weights) != known["weights"]:
        raise RunError(f"{path} does not hold the weights that this run began with; put them back, or start anew")
