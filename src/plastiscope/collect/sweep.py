"""What a sweep was to run, from the multirun.yaml that Hydra leaves in its folder, against what is there.

The file is of the last sweep that was started in the folder; runs of earlier ones are told apart by their overrides.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastiscope.collect.runs import CollectedRun, once
from plastiscope.error import DataError

if TYPE_CHECKING:
    from plastiscope.build import SweepJob


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

    A job is found by its folder, which Hydra names by the hash of the overrides, or by the overrides in its run.json:
    below the sweep's folder, or elsewhere, as where a sweep over experiments has runs of several names.

    Raises:
        DataError: a multirun.yaml is damaged.
    """
    from plastiscope.build import sweep_jobs

    files = once(file for folder in folders for file in _files(folder))
    if not files:
        return runs, []
    jobs = {file: sweep_jobs(*_asked(file)) for file in files}
    places = {run.label: run.folder.resolve() for run in runs}
    inside = {file: [run for run in runs if places[run.label].is_relative_to(file.parent.resolve())] for file in files}
    found = {file: _jobs_among(inside[file], jobs[file]) for file in files}
    taken = {label for labels in found.values() for some in labels for label in some}
    for file in files:
        beside = file.parent.resolve().parent
        free = [run for run in runs if run.label not in taken or places[run.label].is_relative_to(beside)]
        elsewhere = _jobs_among(free, jobs[file])
        found[file] = [here or there for here, there in zip(found[file], elsewhere, strict=True)]
    taken = {label for labels in found.values() for some in labels for label in some}
    reports: list[SweepReport] = []
    overrides: dict[str, tuple[str, ...]] = {}
    for file in files:
        pairs = list(zip(jobs[file], found[file], strict=True))
        overrides |= {label: job.overrides for job, labels in pairs for label in labels}
        missing = [_missing(file, job.overrides, job.folder) for job, labels in pairs if not labels]
        earlier = sum(run.label not in taken for run in inside[file])
        reports.append(SweepReport(file, len(pairs), missing, earlier))
    runs = [run if run.overrides else _named(run, overrides.get(run.label, ())) for run in runs]
    return runs + [run for report in reports for run in report.missing], reports


def _files(folder: Path) -> list[Path]:
    """The multirun.yaml of a folder, or of those one and two levels below: outputs/<name>/multirun.yaml."""
    return [path for levels in ("", "*/", "*/*/") for path in folder.glob(f"{levels}multirun.yaml")]


def _jobs_among(runs: Sequence[CollectedRun], jobs: "Sequence[SweepJob]") -> list[list[str]]:
    """The runs of each job, by their labels; several are a group of seeds."""
    places: dict[str | tuple[str, ...], list[str]] = {}
    for run in runs:
        parts: list[str | tuple[str, ...]] = [*run.folder.parts, run.overrides]
        for part in parts:
            places.setdefault(part, []).append(run.label)
    return [places.get(job.folder) or places.get(job.overrides) or [] for job in jobs]


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
