"""Runs below some folders: single runs, sweeps, groups of seeds that advance together, published results."""

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastiscope.collect.rows import read_logs
from plastiscope.collect.settings import read_settings
from plastiscope.error import PlastiscopeError, RunError
from plastiscope.run.status import read_status
from plastiscope.run.storage import read_json

if TYPE_CHECKING:
    import pyarrow as pa

OWN = frozenset({"checkpoint", "snapshots", "samples", "figures", "tables", "parts", "wandb", ".processes"})
"""Folders in a run's folder that hold no other run."""
PUBLISHED_LAYOUT = "incremental_cifar"
"""What run.json of a look calls published snapshots."""
GOING = ("running", "preempted", "lost", "lost?")
"""States of a run that has begun and is not over."""


@dataclass(frozen=True, eq=False)
class CollectedRun:
    """One run, or one that should be there.

    Attributes:
        folder: of the run, of its place if it is missing; of published results, <folder>/<name>.
        label: what stands for it in the table; the folder, for published results with their index.
        state: done, running, preempted, lost, failed; missing: a sweep or a group should have it; published.
        seed: None if not known.
        settings: by dotted key; of published results what their names say.
        overrides: as on the command line.
        error: of a failed one, or why it cannot be read.
        progress: the last whole task and epoch, from its status.
        replica_of, replay_of: folder of the group, and of the run whose weights were looked at; "" = none.
        is_published: the weights that were looked at are those of a published tree.
        rows: logged numbers.
        bins: of published results, means of what each presentation gave; those of our runs lie in their folders.
        notes: what is to be said of it.
    """

    folder: Path
    label: str
    state: str
    seed: int | None
    settings: dict[str, Any] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    error: str = ""
    progress: dict[str, Any] = field(default_factory=dict)
    replica_of: str = ""
    replay_of: str = ""
    is_published: bool = False
    rows: "pa.Table | None" = None
    bins: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def is_unreadable(self) -> bool:
        """Whether there are results that cannot be read; a run of ours that failed has its rows so far."""
        return self.state == "failed" and self.rows is None


def unreadable(
    folder: Path, label: str, error: Exception, seed: int | None = None, settings: dict[str, Any] | None = None
) -> CollectedRun:
    """What stands for a run with a damaged file: failed, with what is wrong, so that the others can be read."""
    return CollectedRun(folder, label, "failed", seed, settings or {}, error=str(error))


def run_folders(folders: Sequence[Path]) -> list[Path]:
    """Every folder of a run at or below `folders`, groups too, sorted; what lies inside a run's parts is not walked.

    A folder that is given twice, relative and absolute or by a link, gives its runs once.

    Raises:
        RunError: a folder that does not exist.
    """
    for folder in folders:
        if not folder.is_dir():
            raise RunError(f"{folder} is not a folder; give one that holds runs, such as outputs")
    return once(path for folder in folders for path in _walk(folder))


def once(paths: Iterable[Path]) -> list[Path]:
    """Paths that lead to different places, sorted; of several to one place the first one that was given."""
    found: dict[Path, Path] = {}
    for path in paths:
        found.setdefault(path.resolve(), path)
    return sorted(found.values())


def _walk(folder: Path) -> Iterator[Path]:
    for place, below, files in os.walk(folder):
        if "status.json" in files or "run.json" in files:
            yield Path(place)
            below[:] = [name for name in below if name not in OWN and not name.startswith("task_")]


def read_runs(folders: Sequence[Path], keys: Sequence[str] = ()) -> list[CollectedRun]:
    """Runs at or below `folders` with their logs, in the order of their folders; groups give their members.

    Runs whose config or log is damaged have failed, and the others are read.

    Raises:
        RunError: a folder that does not exist.
    """
    found = []
    for folder in run_folders(folders):
        try:
            found += _read_folder(folder, keys)
        except (PlastiscopeError, OSError) as error:
            found.append(unreadable(folder, str(folder), error))
    return sorted(found, key=lambda run: run.label)


def _read_folder(folder: Path, keys: Sequence[str]) -> list[CollectedRun]:
    """The run of a folder; of a group, what it lacks."""
    about, settings = read_json(folder / "run.json") or {}, read_settings(folder)
    if settings.get("replicas", 1) > 1:
        return _members_that_lack(folder, settings, about)
    return [_read(folder, settings, about, keys)]


def _read(folder: Path, settings: dict[str, Any], about: dict[str, Any], keys: Sequence[str]) -> CollectedRun:
    status, looked_at = read_status(folder), about.get("replay_of", {})
    is_of_tree = looked_at.get("layout") == PUBLISHED_LAYOUT
    if is_of_tree:  # its index is the seed, ours only draws samples; and each index has an order of classes of its own
        settings = {key: value for key, value in settings.items() if key != "task_shift_mode.class_order"}
    return CollectedRun(
        folder=folder,
        label=str(folder),
        state=status.get("state", "unknown"),
        seed=settings.get("replay.index" if is_of_tree else "seed"),
        settings=settings,
        overrides=tuple(about.get("overrides", ())),
        error=str(status.get("error") or ""),
        progress={key: status[key] for key in ("task_idx", "epoch") if key in status},
        replica_of=about.get("replica_of", ""),
        replay_of=str(looked_at.get("folder", "")),
        is_published=is_of_tree,
        rows=read_logs(folder, keys),
    )


def _members_that_lack(group: Path, settings: dict[str, Any], about: dict[str, Any]) -> list[CollectedRun]:
    """Runs of a group whose folder is not there, as when the group failed before they began."""
    first, status = settings["seed"], read_status(group)
    places = [(seed, group / f"seed_{seed:04d}") for seed in range(first, first + settings["replicas"])]
    return [
        CollectedRun(
            folder=place,
            label=str(place),
            state="missing",
            seed=seed,
            settings={**settings, "seed": seed, "replicas": 1},
            overrides=tuple(about.get("overrides", ())),
            error=str(status.get("error") or f"its group is {status.get('state', 'unknown')}"),
            replica_of=str(group),
        )
        for seed, place in places
        if not (place / "status.json").exists()
    ]
