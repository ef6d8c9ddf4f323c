"""One table of every number that many runs have logged, and one of the runs.

numbers: a row for each logged row of each run, a column for each number. It is wide, as the log of one run is, so that
`table[table.kind == "task_end"].groupby("learner")["task_test_accuracy"].mean()` is all it takes. Before the numbers
stand `run`, `seed`, `state`, `overrides` and the settings in which the runs differ.
runs: a row for each run, those that are missing or failed too, with all that is known of it and all those settings.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from plastiscope.collect.published_files import find_files, read_file, seed_of
from plastiscope.collect.published_tree import find_trees, read_tree
from plastiscope.collect.rows import PLACE
from plastiscope.collect.runs import GOING, CollectedRun, once, read_runs, unreadable
from plastiscope.collect.settings import Settings, differing, said
from plastiscope.collect.sweep import SweepReport, check_sweeps
from plastiscope.error import DataError, PlastiscopeError, RunError
from plastiscope.run.storage import plain, write_by, write_json
from plastiscope.table.file import KEY

if TYPE_CHECKING:
    import pyarrow as pa

ABOUT = ("run", "seed", "state", "overrides")
"""First columns of the numbers."""


@dataclass(frozen=True, eq=False)
class Collected:
    """All that was found.

    Attributes:
        runs: in the order of their folders, missing ones last.
        sweeps: what each sweep was to run.
    """

    runs: list[CollectedRun]
    sweeps: list[SweepReport]

    def differing(self) -> list[str]:
        """Settings in which the runs differ, and that change numbers."""
        return differing([run.settings for run in self.runs])

    def numbers(self) -> "pa.Table":
        """The table of numbers; null = not measured."""
        import pyarrow as pa

        kinds = self._kinds()
        tables = [_with_run(run, kinds) for run in self.runs if run.rows is not None and run.rows.num_rows]
        return pa.concat_tables(tables or [_about(self.runs[0], kinds, 0)], promote_options="default")

    def table_of_runs(self) -> "pa.Table":
        """The table of the runs."""
        import pyarrow as pa

        rows = [_facts(run) for run in self.runs]
        columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
        for key, kind in self._kinds().items():
            columns.setdefault(key, pa.array([_as(run.settings.get(key), kind) for run in self.runs], kind))
        return pa.table(columns)

    def _kinds(self) -> dict[str, "pa.DataType"]:
        return _kinds([run.settings for run in self.runs], self.differing())


def collect(folders: Sequence[Path], keys: Sequence[str] = (), epochs_per_task: int | None = None) -> Collected:
    """Everything at or below some folders: runs, sweeps, groups, published results; also while runs go on.

    What cannot be read has failed, and the others are collected.

    Args:
        folders: to walk.
        keys: patterns of the numbers that are wanted, such as "representation/*"; none = all.
        epochs_per_task: of published results, where they do not say it themselves.

    Raises:
        RunError: there is no such folder, or nothing to collect in them.
        DataError: nothing can be read, or the list of a sweep is damaged.
    """
    runs = read_runs(folders, keys)
    trees = once(tree for folder in folders for tree in find_trees(folder))
    published = [run for tree in trees for run in _runs_of(tree, epochs_per_task, keys)]
    published += [_run_of(path, keys) for path in once(path for folder in folders for path in find_files(folder))]
    runs, sweeps = check_sweeps(folders, runs)
    if not runs and not published:
        raise RunError(
            f"no runs below {', '.join(map(str, folders))}: give a folder that holds runs, such as outputs/<name>, or "
            "published results (<name>/<metric>/index-0.npy, or <data_dir>/<setting>/<run>)"
        )
    _check_readable([*runs, *published])
    return Collected([*runs, *published], sweeps)


def _runs_of(tree: Path, epochs_per_task: int | None, keys: Sequence[str]) -> list[CollectedRun]:
    try:
        return read_tree(tree, epochs_per_task, keys)
    except (PlastiscopeError, OSError) as error:
        return [unreadable(tree, str(tree), error)]


def _run_of(path: Path, keys: Sequence[str]) -> CollectedRun:
    try:
        return read_file(path, keys)
    except (PlastiscopeError, OSError) as error:
        return unreadable(path.parent, str(path), error, seed_of(path))


def _check_readable(runs: Sequence[CollectedRun]) -> None:
    damaged = [run for run in runs if run.is_unreadable]
    if damaged and all(run.rows is None for run in runs):
        more = f" ({len(damaged) - 1} more cannot be read either)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0].error}{more}")


def report(found: Collected) -> list[str]:
    """What is to be said: how many runs there are in which state, which are missing or failed, how they differ."""
    counts: dict[str, int] = {}
    for run in found.runs:
        counts[run.state] = counts.get(run.state, 0) + 1
    lines = [f"{len(found.runs)} runs: " + ", ".join(f"{n} {state}" for state, n in sorted(counts.items()))]
    for sweep in found.sweeps:
        here = sweep.jobs - len(sweep.missing)
        earlier = f"; {sweep.earlier} runs beside them are of earlier sweeps" if sweep.earlier else ""
        lines.append(f"{sweep.file}: {here} of {sweep.jobs} jobs have begun{earlier}")
    for run in found.runs:
        if run.state in ("failed", "missing", *GOING):
            place = " ".join(f"{key}={value}" for key, value in run.progress.items())
            what = ", ".join(part for part in (place, " ".join(run.overrides), run.error) if part)
            lines.append(f"{run.state}: {run.label} ({what})" if what else f"{run.state}: {run.label}")
    lines += dict.fromkeys(note for run in found.runs for note in run.notes)
    for key in found.differing():
        values = list(dict.fromkeys(said(run.settings[key]) for run in found.runs if key in run.settings))
        lines.append(f"runs differ in {key}: {', '.join(values[:8])}" + (", ..." if len(values) > 8 else ""))
    return lines


def write(found: Collected, target: Path, csv: bool = False) -> list[Path]:
    """Write numbers.parquet (and numbers.csv) and runs.csv into a folder.

    Returns:
        The files; numbers only if there are any.
    """
    import pyarrow.csv
    import pyarrow.parquet

    target.mkdir(parents=True, exist_ok=True)
    runs = target / "runs.csv"
    write_by(runs, lambda file: pyarrow.csv.write_csv(found.table_of_runs(), file))
    numbers = found.numbers()
    if not numbers.num_rows:
        return [runs]
    about = _said_of(found)
    schema = numbers.schema.with_metadata({KEY: json.dumps(about).encode()})
    table = numbers.replace_schema_metadata(schema.metadata)
    files = [runs, target / "numbers.parquet"]
    write_by(files[1], lambda file: pyarrow.parquet.write_table(table, file, compression="zstd"))
    if csv:
        files.append(target / "numbers.csv")
        write_by(files[2], lambda file: pyarrow.csv.write_csv(numbers, file))
        write_json(target / "numbers.json", about)
    return files


def _said_of(found: Collected) -> dict[str, Any]:
    """What the metadata say: settings that all runs share, and what the columns are."""
    keys = set(found.differing())
    some = [run.settings for run in found.runs if run.settings]
    alike = {
        key: value
        for key, value in (some[0] if some else {}).items()
        if key not in keys and all(settings.get(key) == value for settings in some)
    }
    what = {
        "run": "folder of the run",
        "state": "when it was read",
        "kind": "epoch: after each epoch; task_end: at each task's end, of the selected weights",
        "global_epoch": "epochs completed less 1",
        "settings": "columns between overrides and kind: those in which the runs differ",
        "null": "not measured",
    }
    return plain({"columns": what, "settings_of_all": alike, "runs": len(found.runs)})


def _with_run(run: CollectedRun, kinds: Mapping[str, "pa.DataType"]) -> "pa.Table":
    assert run.rows is not None
    table = _about(run, kinds, run.rows.num_rows)
    for name in (*PLACE, *(name for name in run.rows.column_names if name not in PLACE)):
        if name not in table.column_names:
            table = table.append_column(name, run.rows.column(name))
    return table


def _about(run: CollectedRun, kinds: Mapping[str, "pa.DataType"], n: int) -> "pa.Table":
    """The columns before the numbers, n times."""
    import pyarrow as pa

    first = (run.label, run.seed, run.state, " ".join(run.overrides))
    types = (pa.string(), pa.int64(), pa.string(), pa.string())
    columns = {
        name: pa.repeat(pa.scalar(value, kind), n) for name, value, kind in zip(ABOUT, first, types, strict=True)
    }
    for key, kind in kinds.items():
        value = _as(run.settings.get(key), kind)
        columns.setdefault(key, pa.repeat(pa.scalar(value, kind), n))
    return pa.table(columns)


def _kinds(settings: Sequence[Settings], keys: Sequence[str]) -> dict[str, "pa.DataType"]:
    """Type of the column of each setting: numbers, flags, or text where runs have different kinds of values."""
    import pyarrow as pa

    types = ((bool, pa.bool_()), (int, pa.int64()), (float, pa.float64()))
    found = {}
    for key in keys:
        classes = {type(s[key]) for s in settings if s.get(key) is not None}
        if classes == {int, float}:
            classes = {float}
        found[key] = next((kind for cls, kind in types if classes == {cls}), pa.string())
    return found


def _as(value: Any, kind: "pa.DataType") -> Any:
    if value is None or str(kind) == "bool":
        return value
    return said(value) if str(kind) == "string" else {"int64": int, "double": float}[str(kind)](value)


def _facts(run: CollectedRun) -> dict[str, Any]:
    return {
        "run": run.label,
        "seed": run.seed,
        "state": run.state,
        "error": run.error,
        "task_idx": run.progress.get("task_idx"),
        "epoch": run.progress.get("epoch"),
        "rows": 0 if run.rows is None else run.rows.num_rows,
        "overrides": " ".join(run.overrides),
        "replica_of": run.replica_of,
        "replay_of": run.replay_of,
    }
