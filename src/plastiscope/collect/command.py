"""`plastiscope-collect` and `plastiscope-plot`: what their arguments mean, and what they print."""

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from plastiscope.collect.curves import EPOCHS_COMPLETED, arms, chosen, curves, distinct, keys_of, usual_axis
from plastiscope.collect.export_tree import export
from plastiscope.collect.published_figures import FIGURES, figure_of, published_curves, x_label
from plastiscope.collect.reference_marks import REFERENCES, marks_of
from plastiscope.collect.runs import CollectedRun
from plastiscope.collect.settings import difference, read_settings, said
from plastiscope.collect.table import collect, report, write
from plastiscope.error import ConfigError, DataError
from plastiscope.figure.curves import BANDS, MOST_GROUPS, Curve, CurveLabels, seed_curves
from plastiscope.figure.style import save
from plastiscope.run.storage import write_atomic

OPTIONS = ("y", "x", "group", "smooth", "figure", "interval", "bin", "log_y", "reference", "out", "epochs_per_task")
"""Arguments of plastiscope-plot that are not settings of runs."""


def collect_command(arguments: Sequence[str] | None = None) -> None:
    """`plastiscope-collect FOLDER ... [--csv] [--keys PATTERN ...] [--out FOLDER] [--export FOLDER]`, or `--diff`.

    Raises:
        PlastiscopeError: as what it calls.
    """
    options = _parser().parse_args(arguments)
    if options.diff:
        print(_diff(*options.diff))
        return
    folders = options.folders or [Path("outputs")]
    found = collect(folders, options.keys, options.epochs_per_task)
    for line in report(found):
        print(line)
    if options.export:
        made = export(found.runs, options.export)
        for note in made.notes:
            print(note)
        for metric, count in made.left_out.items():
            print(f"{metric}: not measured by {count} runs, left out")
        for folder in made.folders:
            print(f"wrote {folder}")
        return
    for path in write(found, options.out or common_folder(folders) / "tables", options.csv):
        print(f"wrote {path}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="plastiscope-collect",
        description="All runs at or below some folders as one table of every logged number, with seed, overrides, "
        "status and the settings in which they differ; published results too. Says which runs are missing or failed. "
        "Works while runs go on.",
    )
    parser.add_argument("folders", type=Path, nargs="*", help="runs, sweeps, groups, published results; or outputs")
    parser.add_argument("--out", type=Path, help="folder for numbers.parquet and runs.csv; by default FOLDER/tables")
    parser.add_argument("--csv", action="store_true", help="also write numbers.csv")
    parser.add_argument(
        "--keys", nargs="+", default=[], metavar="PATTERN", help="only these numbers, such as 'test_*' 'csl/*'"
    )
    parser.add_argument("--export", type=Path, metavar="FOLDER", help="write published results instead of a table")
    parser.add_argument("--epochs-per-task", type=int, metavar="N", help="of published results that do not say it")
    parser.add_argument(
        "--diff", type=Path, nargs=2, metavar="RUN", help="only print the settings in which two runs differ"
    )
    return parser


def _diff(ours: Path, theirs: Path) -> str:
    pair = [read_settings(folder) for folder in (ours, theirs)]
    for folder, settings in zip((ours, theirs), pair, strict=True):
        if not settings:
            raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    rows = [(key, said(a), said(b)) for key, (a, b) in difference(*pair).items()]
    if not rows:
        return f"{ours} and {theirs} have the same settings"
    rows = [("setting", str(ours), str(theirs)), *rows]
    widths = [max(len(row[i]) for row in rows) for i in range(2)]
    return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c}" for a, b, c in rows)


def plot_command(arguments: Sequence[str]) -> None:
    """`plastiscope-plot FOLDER ... y=KEY [x= group= smooth=]` or `figure=NAME`, and settings that choose runs.

    Raises:
        PlastiscopeError: as what it calls; no y and no figure.
    """
    folders, given = _arguments(arguments)
    if given is None or not ("y" in given) ^ ("figure" in given):
        raise ConfigError(USAGE)
    found = collect(folders, epochs_per_task=_whole(given, "epochs_per_task")).runs
    runs = [run for run in found if run.rows is not None]
    runs = chosen(runs, {key: text for key, text in given.items() if key not in OPTIONS})
    for line in _said_of_runs(runs, [run for run in found if run.is_unreadable]):
        print(line)
    by = [key for key in given["group"].split(",") if key] if "group" in given else None
    target = Path(given["out"]) if "out" in given else common_folder(folders) / "figures"
    said: list[str] = []
    for name in _figures(given):
        try:
            written, notes = _plot(name, runs, by, given, target)
        except DataError:
            if given.get("figure") != "all":
                raise
            continue
        for line in (*(note for note in notes if note not in said), *(f"wrote {path}" for path in written)):
            print(line)
        said += notes


MOST_NOTES = 8
"""Lines about runs that a plot prints; plastiscope-collect prints all."""


def _said_of_runs(shown: Sequence[CollectedRun], damaged: Sequence[CollectedRun]) -> list[str]:
    """What cannot be read, and what is to be said of the runs that are drawn."""
    lines = [f"failed: {run.label} ({run.error})" for run in damaged]
    lines += dict.fromkeys(note for run in shown for note in run.notes)
    more = [f"and {len(lines) - MOST_NOTES} more such lines, see plastiscope-collect"]
    return lines[:MOST_NOTES] + (more if len(lines) > MOST_NOTES else [])


USAGE = (
    "say what to draw: plastiscope-plot FOLDER ... y=test_accuracy [x=KEY group=KEY,KEY smooth=N], or figure=NAME; "
    f"figures: {', '.join(FIGURES)}, all"
)


def _arguments(arguments: Sequence[str]) -> tuple[list[Path], dict[str, str] | None]:
    """Folders, and what is given as key=value; None = help is wanted."""
    folders, given = [], {}
    for text in arguments:
        key, sign, value = text.partition("=")
        if text.startswith("-"):
            return [], None
        if sign and not Path(text).is_dir():
            given[key] = value
        else:
            folders.append(Path(text))
    return folders or [Path("outputs")], given


def _figures(given: dict[str, str]) -> list[str]:
    """Names of published figures; "" for a curve of one's own."""
    return list(FIGURES) if given.get("figure") == "all" else [given.get("figure", "")]


def _plot(
    name: str, runs: Sequence[CollectedRun], by: Sequence[str] | None, given: dict[str, str], target: Path
) -> tuple[list[Path], list[str]]:
    """Draw one picture, and write what it shows beside it as CSV; the files, and what is to be said."""
    interval = _one_of(given, "interval", tuple(BANDS), "stderr" if name else "bootstrap")
    is_log = _one_of(given, "log_y", ("true", "false"), "false") == "true"
    reference = _one_of(given, "reference", REFERENCES, "published")
    if name:
        figure = figure_of(name, _whole(given, "bin"))
        found, notes = published_curves(runs, figure, by)
        labels = CurveLabels(x_label(figure, found), figure.y, interval=interval, log_y=is_log)
        marks, more = marks_of(found, figure.values, figure.depends_on, reference)
        notes, file = [*notes, *more], name
    else:
        smooth, y = _whole(given, "smooth") or 1, given["y"]
        x = given.get("x") or (usual_axis(runs, y) if y in keys_of(runs) else EPOCHS_COMPLETED)
        found, notes = curves(runs, y, x, by, smooth), []
        title = f"each seed: moving mean of {smooth} points" if smooth > 1 else ""
        labels = CurveLabels(AXES.get(x, x), y, title, interval, is_log)
        marks, file = [], f"{y}_over_{x}".replace("/", ".")
    if len(found) > MOST_GROUPS:
        raise ConfigError(f"{len(found)} groups are too many for one picture; choose some with SETTING=VALUE")
    arm_of = arms(runs, by)
    styles = distinct([arm_of[next(iter(curve.group.runs.values())).label] for curve in found], MOST_GROUPS)
    drawn = [Curve(curve.group.label, curve.x, curve.band(), i) for curve, i in zip(found, styles, strict=True)]
    shown = [replace(curve, label=label) for curve, label in zip(drawn, short_labels(drawn), strict=True)]
    picture = save(seed_curves(shown, labels, marks), target / f"{file}.png")
    table = picture.with_suffix(".csv")
    write_atomic(table, _csv(drawn).encode())
    return [picture, table], notes


def _one_of(given: dict[str, str], key: str, values: Sequence[str], default: str) -> str:
    value = given.get(key, default)
    if value not in values:
        raise ConfigError(f"{key}={value}: must be one of {', '.join(values)}")
    return value


AXES = {EPOCHS_COMPLETED: "epochs completed", "task_idx": "task (from 0)", "global_epoch": "epoch of the run (from 0)"}
"""What usual axes are called."""


def short_labels(drawn: Sequence[Curve]) -> list[str]:
    """Labels with the last part of each setting's name, where that is not another setting's too."""
    keys = {key for curve in drawn for key in re.findall(r"([\w.]+)=", curve.label)}
    last = [key.rpartition(".")[2] for key in keys]
    short = {key: key.rpartition(".")[2] for key in keys if last.count(key.rpartition(".")[2]) == 1}
    return [re.sub(r"([\w.]+)=", lambda found: f"{short.get(found[1], found[1])}=", curve.label) for curve in drawn]


def _whole(given: dict[str, str], key: str) -> int | None:
    if key not in given:
        return None
    if not given[key].isdigit() or int(given[key]) < 1:
        raise ConfigError(f"{key}={given[key]}: must be a whole number, 1 or more")
    return int(given[key])


def _csv(drawn: Sequence[Curve]) -> str:
    lines = ["group,x,n,mean,standard_error,low,high"]
    for curve in drawn:
        band = curve.band
        label = '"' + curve.label.replace('"', '""') + '"'
        for x, n, *numbers in zip(curve.x, band.n, band.mean, band.error, band.low, band.high, strict=True):
            lines.append(
                ",".join([label, f"{x:.15g}", str(n), *("" if np.isnan(v) else repr(float(v)) for v in numbers)])
            )
    return "\n".join(lines) + "\n"


def common_folder(folders: Sequence[Path]) -> Path:
    """The folder itself, or what several have in common."""
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))
