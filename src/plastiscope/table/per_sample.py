"""The table of a run: every per-sample quantity, joined by id, a row for each (run_id, sample_id).

- tables/per_sample.parquet: written a row group at a time, definitions and counts in the metadata
- tables/per_sample.json: the same definitions and counts
- tables/by_<group>.parquet: n, mean and std of each quantity by class, coarse class and entry task
- tables/probabilities.npy: float32 [n, K] from the final weights, with probabilities_ids.npy
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError, DataError, RunError
from plastiscope.load import LoadedRun
from plastiscope.run.sample_store import SPLITS, SampleStore
from plastiscope.run.storage import read_json, write_json
from plastiscope.table.codes import CodeRules, axis_columns, classified, said_of, with_codes
from plastiscope.table.definitions import IDENTITY_COLUMNS, classification_columns
from plastiscope.table.dynamics import dynamics_sources
from plastiscope.table.file import Table, TableWriter
from plastiscope.table.groups import GROUPINGS, group_table
from plastiscope.table.merge import Merged, merge, said_of_joins
from plastiscope.table.outside import file_source, memorization_source
from plastiscope.table.probabilities import write_probabilities
from plastiscope.table.source import ID, Array, Column, Rows, Source
from plastiscope.table.standing import Standing, standings
from plastiscope.table.store import Identities, identities, metric_sources
from plastiscope.table.tracking import tracking_sources


@dataclass(kw_only=True)
class Request:
    """What the table is made of, and how.

    Attributes:
        beside: folders of analyses of the same run.
        memorization: file of published scores.
        joins: files with a column sample_id.
        codes: how the codes are made; the group tables are of the same splits.
        unfinished: take what there is of a run that is not done.
        needs_data: read the data set, for coarse classes, names and probabilities.
        first_epochs: H of the column csl_first_<H>.
        suffix: of the tables, .parquet or .csv.
    """

    beside: Sequence[Path] = ()
    memorization: Path | None = None
    joins: Sequence[Path] = ()
    codes: CodeRules = field(default_factory=CodeRules)
    unfinished: bool = False
    needs_data: bool = True
    first_epochs: int | None = None
    suffix: str = ".parquet"


@dataclass(frozen=True)
class Made:
    """What was made: the files, and sentences on what was joined and what could not be had."""

    files: list[Path]
    notes: list[str]


def make_tables(run: LoadedRun, out: Path, request: Request) -> Made:
    """Write the table of a run, its group tables and its probabilities into `out`.

    Raises:
        RunError: the run has no per-sample values, or it (or a folder beside it) is not done and not `unfinished`.
        DataError, ConfigError: a source that does not fit, or a rule for what is not there.
    """
    stood, notes = standings(run, [_existing(folder) for folder in request.beside], request.unfinished)
    data = _data(run, notes) if request.needs_data else None
    samples, merged = collect(run, request, data)
    notes = [*said_of_joins(merged.counts, len(samples.ids)), *notes]
    path = out / f"per_sample{request.suffix}"
    coarse = None if data is None or data.coarse_classes is None else data.coarse_classes.cpu().numpy()
    about = write_table(path, run_id(run.folder), samples, merged, request.codes, coarse, stood)
    write_json(out / "per_sample.json", about)
    table = Table(path).only(request.codes.splits)
    files = [path, *write_groups(table, [by for by in GROUPINGS if by in table], data)]
    if data is not None:
        files += _probabilities(run, data, out, notes)
    return Made(files, notes)


def run_id(folder: Path) -> str:
    """Of a run: the last three parts of its folder, <name>/<arch>/<time>."""
    return "/".join(folder.resolve().parts[-3:])


def collect(run: LoadedRun, request: Request, data: DataSet | None = None) -> tuple[Identities, Merged]:
    """The samples of the run, and all columns about them.

    Raises:
        RunError: there are no per-sample values.
        DataError: sources that do not fit.
    """
    stores = {f"{run.folder.name}/samples": run.sample_store}
    stores |= {f"{folder.name}/samples": SampleStore(_existing(folder) / "samples") for folder in request.beside}
    samples = identities(list(stores.values()))
    if len(samples.ids) == 0:
        raise RunError(
            f"{run.folder} has no per-sample values; train with analysis=[csl], or score its snapshots with "
            "plastiscope-analyze and name that folder too"
        )
    sources: list[Source] = []
    for folder in (run.folder, *request.beside):
        sources += [_renamed(source, folder, sources) for source in tracking_sources(folder, samples.ids)]
    is_tracked = bool(sources)
    for (name, store), folder in zip(stores.items(), (run.folder, *request.beside), strict=True):
        with_presentations = folder == run.folder and not is_tracked
        found = dynamics_sources(
            store,
            name,
            request.first_epochs,
            with_presentations=with_presentations,
            unfinished=request.unfinished,
        )
        sources += [_renamed(source, folder, sources) for source in (*found, *metric_sources(store, name))]
    if request.memorization is not None:
        names = None if data is None else _file_names(data)
        sources.append(memorization_source(request.memorization, samples, names, _rows_of_data(run.folder)))
    sources += [file_source(path, samples) for path in request.joins]
    return samples, merge(samples.ids, sources)


def write_table(
    path: Path,
    own_id: str,
    samples: Identities,
    merged: Merged,
    rules: CodeRules,
    coarse: Array | None = None,
    stood: Mapping[str, Standing] | None = None,
) -> dict[str, Any]:
    """Write the table, a row group at a time; returns what is said of it.

    The columns go to a file beside it first: thresholds need all of them, and only the few columns of the axes are
    held in memory.

    Args:
        path: of the table, .parquet or .csv.
        own_id: of the run.
        samples: of the run.
        merged: all columns about them.
        rules: of the codes.
        coarse: coarse class of each class, or None.
        stood: how far the run and the folders beside it had got; `standings` of what is said.

    Raises:
        ConfigError: rules for what is not there.
    """
    axes = axis_columns(merged.columns, rules)
    wanted = (*axes.values(), "split", *([rules.by] if rules.by else []))
    kept: dict[str, list[Array]] = {column: [] for column in wanted}
    stage = path.with_name(f".{path.stem}.stage.parquet")
    with TableWriter(stage, {}) as writer:
        for rows in merged.slices():
            full = {"run_id": np.full(len(rows[ID]), own_id), **_identity(rows, samples, coarse), **rows}
            if rules.by is not None and (rules.by not in full or full[rules.by].dtype.kind not in "iub"):
                whole = [name for name, values in full.items() if values.dtype.kind in "iub"]
                raise ConfigError(f"thresholds by {rules.by}: must be a column of groups, such as {', '.join(whole)}")
            for column, parts in kept.items():
                parts.append(full[column])
            writer.write(full)
    found = classified({name: np.ma.concatenate(parts) for name, parts in kept.items()}, axes, rules)
    about = _about(own_id, merged, coarse is not None) | {"standings": dict(stood or {})}
    if found is not None:
        about["classification"] = said_of(found, axes, rules)
        about["columns"] |= _said(classification_columns(axes))
    with TableWriter(path, about) as writer:
        for rows in with_codes(Table(stage).slices(), found):
            writer.write(rows)
    stage.unlink()
    return about


def write_groups(table: Table, groupings: Sequence[str], data: DataSet | None = None) -> list[Path]:
    """Write by_<group> beside the table for each column of groups; returns the files."""
    written = []
    for by in groupings:
        frame = group_table(table, by)
        if by == "label" and data is not None and data.class_names:
            frame.insert(1, "class_name", [data.class_names[int(label)] for label in frame[by]])
        path = table.path.with_name(f"by_{by}{table.path.suffix}")
        frame.to_csv(path, index=False) if path.suffix == ".csv" else frame.to_parquet(path, index=False)
        written.append(path)
    return written


def _identity(rows: Rows, samples: Identities, coarse: Array | None) -> Rows:
    """Labels, split and entry task of the rows; masked for samples that the run does not have."""
    ids = rows[ID]
    place = np.minimum(np.searchsorted(samples.ids, ids), len(samples.ids) - 1)
    unknown = samples.ids[place] != ids
    labels, trained = samples.labels[place], samples.labels_trained[place]
    no_class = unknown | (labels < 0)
    found = {
        ID: ids,
        "label": np.ma.MaskedArray(labels, no_class),
        "label_trained": np.ma.MaskedArray(trained, no_class),
        "label_is_noisy": np.ma.MaskedArray(labels != trained, no_class),
    }
    if coarse is not None:
        found["coarse_class"] = np.ma.MaskedArray(coarse[np.where(no_class, 0, labels)], no_class)
    found["split"] = np.ma.MaskedArray(np.array(SPLITS)[samples.split[place]], unknown)
    found["entry_task"] = np.ma.MaskedArray(samples.entry_task[place], unknown)
    return found


def _about(own_id: str, merged: Merged, has_coarse: bool) -> dict[str, Any]:
    columns = {name: column for name, column in IDENTITY_COLUMNS.items() if has_coarse or name != "coarse_class"}
    return {
        "key": ["run_id", ID],
        "run_id": own_id,
        "samples": len(merged.ids),
        "joins": [count._asdict() for count in merged.counts],
        "columns": _said({**columns, **merged.columns}),
    }


def _said(columns: Mapping[str, Column]) -> dict[str, dict[str, str]]:
    return {name: {"definition": column.definition, "unit": column.unit} for name, column in columns.items()}


def _data(run: LoadedRun, notes: list[str]) -> DataSet | None:
    try:
        return run.data
    except DataError as error:
        notes.append(f"no coarse classes and no probabilities: {error}")
        return None


def _probabilities(run: LoadedRun, data: DataSet, out: Path, notes: list[str]) -> list[Path]:
    """Of the last task whose weights were kept."""
    epochs = run.config["epochs"]
    ends = [e // epochs - 1 for e in run.snapshots.epochs() if e > 0 and e % epochs == 0]
    if not ends:
        notes.append("no probabilities: the run has not finished a task")
        return []
    try:
        return list(write_probabilities(run.net(task=ends[-1]), run.task(ends[-1]), data.num_classes, out))
    except DataError as error:
        notes.append(f"no probabilities: {error}")
        return []


def _rows_of_data(folder: Path) -> int | None:
    """Size of the training file, where the rows of it are the ids."""
    data = (read_json(folder / "run.json") or {}).get("data", {})
    return data.get("file_train") if data.get("id_kind") == "row" else None


def _file_names(data: DataSet) -> Sequence[str] | None:
    """Names of the training images by id, where they are files of their own."""
    files = getattr(data.train.source, "files", None)
    ids = data.train.source.ids
    return None if files is None or not torch.equal(ids, torch.arange(len(ids))) else files.paths


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        raise RunError(f"there is no folder {folder}")
    return folder


def _renamed(source: Source, folder: Path, earlier: Sequence[Source]) -> Source:
    """The source with <column>@<folder> for columns that an earlier source has."""
    taken = {name for other in earlier for name in other.columns}
    return source.renamed({name: f"{name}@{folder.name}" for name in source.columns if name in taken})
