"""What a sweep was to run, from the multirun.yaml that Hydra leaves in its folder, against what is there.

The file is of the last sweep that was started in the folder; runs of earlier ones are told apart by their overrides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from plastiscope.collect.runs import CollectedRun
from plastiscope.error import DataError


@dataclass(frozen=True)
class SweepReport:
    """One sweep.

    Attributes:
        file: its multirun.yaml.
        jobs: how many it has.
        missing: those that have left nothing.
        earlier: runs in its folder that it does not have.
    """

    file: Path
    jobs: int
    missing: list[CollectedRun]
    earlier: int


def check_sweeps(folders: Sequence[Path], runs: list[CollectedRun]) -> tuple[list[CollectedRun], list[SweepReport]]:
    """The runs, those that failed before they began with the overrides they were to have, and a report of each sweep.

    A job is found by its folder, which Hydra names by the hash of the overrides, or by the overrides in its run.json.

    Raises:
        DataError: a multirun.yaml is damaged.
    """
    files = sorted({file for folder in folders for file in _files(folder)})
    reports = []
    for file in files:
        runs, report = _check(file, runs)
        reports.append(report)
    return runs, reports


def _files(folder: Path) -> list[Path]:
    """The multirun.yaml of a folder, or of those one and two levels below: outputs/<name>/multirun.yaml."""
    return [path for levels in ("", "*/", "*/*/") for path in folder.glob(f"{levels}multirun.yaml")]


def _check(file: Path, runs: list[CollectedRun]) -> tuple[list[CollectedRun], SweepReport]:
    from plastiscope.build import sweep_jobs

    jobs = sweep_jobs(*_asked(file))
    inside = [run for run in runs if run.folder.is_relative_to(file.parent)]
    missing = []
    overrides: dict[str, tuple[str, ...]] = {}
    places: dict[str | tuple[str, ...], list[str]] = {}
    for run in inside:
        parts: list[str | tuple[str, ...]] = [*run.folder.relative_to(file.parent).parts, run.overrides]
        for part in parts:
            places.setdefault(part, []).append(run.label)
    for job in jobs:
        found = places.get(job.folder) or places.get(job.overrides)  # several: a group of seeds
        if found is None:
            missing.append(_missing(file, job.overrides, job.folder))
        overrides |= dict.fromkeys(found or (), job.overrides)
    runs = [run if run.overrides else _named(run, overrides.get(run.label, ())) for run in runs]
    return runs + missing, SweepReport(file, len(jobs), missing, len(inside) - len(overrides))


def _named(run: CollectedRun, overrides: tuple[str, ...]) -> CollectedRun:
    """A run that failed before it could say what it is."""
    return replace(run, overrides=overrides, seed=_seed(overrides) if run.seed is None else run.seed)


def _seed(overrides: tuple[str, ...]) -> int | None:
    seeds = [value.removeprefix("seed=") for value in overrides if value.startswith("seed=")]
    return int(seeds[-1]) if seeds and seeds[-1].isdigit() else None


def _missing(file: Path, overrides: tuple[str, ...], name: str) -> CollectedRun:
    return CollectedRun(
        folder=file.parent / "*" / "sweep" / name,
        label=f"{file.parent}/*/sweep/{name}",
        state="missing",
        seed=_seed(overrides),
        overrides=overrides,
        error="has left nothing" + _logs(file.parent),
    )


def _logs(folder: Path) -> str:
    logs = folder / ".submitit"
    return f"; the launcher's logs are in {logs}" if logs.is_dir() else ""


def _asked(file: Path) -> tuple[list[str], dict[str, Any]]:
    """Overrides of the sweep, and how its jobs' folders are named."""
    import yaml

    try:
        hydra = yaml.load(file.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))["hydra"]
        return [str(override) for override in hydra["overrides"]["task"]], hydra["job"]["config"]["override_dirname"]
    except (yaml.YAMLError, OSError, UnicodeDecodeError, KeyError, TypeError):
        raise DataError(f"{file} is damaged; put it back, or delete it to do without the list of the sweep") from None
