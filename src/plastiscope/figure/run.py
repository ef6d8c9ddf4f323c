"""Figures of a run, from what its folder holds: numbers in metrics.jsonl, arrays of the analyses."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.figure import landscape, landscape_spectrum
from plastiscope.figure.accuracy import TRAINING, accuracy_matrix, accuracy_over_epochs
from plastiscope.figure.csl import draw_csl
from plastiscope.figure.dormant import draw_dormancy
from plastiscope.figure.online import draw_online
from plastiscope.figure.probe import draw_probe
from plastiscope.figure.representation import quantities_over_epochs
from plastiscope.figure.smoothness import draw_smoothness
from plastiscope.figure.style import save
from plastiscope.run.log import read_rows
from plastiscope.run.storage import read_json

Row = dict[str, Any]
Array = npt.NDArray[np.float64]

SPLITS = {"epoch": TRAINING, "validation": "validation", "test": "test"}
PANELS = {
    ("current", "dormant_rate"): "dormant_rate (share of units), current task",
    ("current", "effective_rank"): "effective_rank, current task",
    ("current", "stable_rank"): "stable_rank, current task",
    ("weights", "weight_mag_layer"): "weight_mag_layer (mean |w|)",
}
"""What representation.png shows: the title by (subset, quantity)."""
TOTALS = ("total", "layer_mean")


def draw_run(folder: Path) -> list[Path]:
    """Draw what the run in `folder` has data for into <folder>/figures.

    Returns:
        The files written: accuracy_per_task.png, accuracy_matrix.png, representation.png, csl_*.png, dormant_*.png,
        smoothness.png, probe.png, online.png; and beside what they show, those of looks at the landscape that are not
        drawn yet.
    """
    rows, target = read_rows(folder / "metrics.jsonl"), folder / "figures"
    written = []
    epoch_rows = [row for row in rows if row["kind"] == "epoch"]
    boundaries = _boundaries(epoch_rows)
    if epoch_rows:
        curves, quantity = _curves(epoch_rows)
        figure = accuracy_over_epochs(_epochs(epoch_rows), curves, boundaries, quantity)
        written.append(save(figure, target / "accuracy_per_task.png"))
    for matrix, quantity in _matrix(folder):
        written.append(save(accuracy_matrix(matrix, quantity), target / "accuracy_matrix.png"))
    measured, panels = _panels(rows)
    if panels:
        figure = quantities_over_epochs(_epochs(measured), panels, boundaries)
        written.append(save(figure, target / "representation.png"))
    for columns, definition in _csl(folder):
        written += draw_csl(columns, definition, target)
    written += draw_dormancy(folder, epoch_rows, boundaries) + draw_smoothness(folder)
    return written + draw_probe(folder) + draw_online(folder) + _landscapes(folder)


def _epochs(rows: list[Row]) -> Array:
    """Epochs completed, the axis of everything stored."""
    return np.array([row["global_epoch"] + 1.0 for row in rows])


def _boundaries(epoch_rows: list[Row]) -> list[int]:
    """Epochs completed when each task but the first began."""
    first = {row["task_idx"]: row["global_epoch"] for row in reversed(epoch_rows)}
    return sorted(first.values())[1:]


def _column(rows: list[Row], key: str) -> Array:
    return np.array([row.get(key, float("nan")) for row in rows], dtype=np.float64)


def _curves(rows: list[Row]) -> tuple[dict[str, Array], str]:
    """Accuracies by split, or losses where there is no accuracy; and what they are."""
    quantity = "accuracy" if any(f"{split}_accuracy" in row for row in rows for split in SPLITS) else "loss"
    columns = {name: _column(rows, f"{split}_{quantity}") for split, name in SPLITS.items()}
    return {name: column for name, column in columns.items() if np.isfinite(column).any()}, quantity


def _matrix(folder: Path) -> list[tuple[Array, str]]:
    """The newest matrix of accuracies (or of losses, with the sign changed), if there is one with a finite cell."""
    for name, quantity in (("accuracy_matrix", "test accuracy"), ("negative_loss_matrix", "-(test loss)")):
        stored = sorted(folder.glob(f"task_*/continual/{name}.npy"))
        if stored and np.isfinite(matrix := np.load(stored[-1])).any():
            return [(matrix, quantity)]
    return []


def _csl(folder: Path) -> list[tuple[dict[str, Array], str]]:
    """The newest per-sample table, and the column that its CSL files hold, if there is one."""
    stored = sorted(folder.glob("task_*/csl/per_sample.npz"))
    if not stored:
        return []
    (path,) = stored[-1].parent.glob("metrics_*.json")
    facts = read_json(path)
    prefix = "online_" if facts["mode"] == "online" else ""
    with np.load(stored[-1], allow_pickle=False) as table:
        return [(dict(table), prefix + facts["csl_definition"])]


def _landscapes(folder: Path) -> list[Path]:
    """Pictures of all looks at the landscape whose files are newer than their pictures."""
    written: list[Path] = []
    for look in sorted(folder.glob("task_*/lla/*_training")):
        files, pictures = ([p.stat().st_mtime for p in look.glob(f"*/*.{ending}")] for ending in ("json", "png"))
        if files and (not pictures or max(files) > min(pictures)):
            written += landscape.draw(look) + landscape_spectrum.draw(look)
    return written


def _panels(rows: list[Row]) -> tuple[list[Row], dict[str, dict[str, Array]]]:
    """Rows with a representation, and the panels: those of task ends, or else those of epochs."""
    for kind in ("task_end", "epoch"):
        some = [row for row in rows if row["kind"] == kind]
        panels = {title: _by_layer(some, *names) for names, title in PANELS.items()}
        panels = {title: curves for title, curves in panels.items() if curves}
        if panels:
            return some, panels
    return [], {}


def _by_layer(rows: list[Row], subset: str, quantity: str) -> dict[str, Array]:
    """Column of each layer, in the order of the log."""
    keys = dict.fromkeys(key for row in rows for key in row if _is(key, subset, quantity))
    columns = {key.split("/")[2]: _column(rows, key) for key in keys}
    return {layer: column for layer, column in columns.items() if np.isfinite(column).any()}


def _is(key: str, subset: str, quantity: str) -> bool:
    parts = key.split("/")
    return parts[0] == "representation" and parts[1::2] == [subset, quantity] and parts[2] not in TOTALS
