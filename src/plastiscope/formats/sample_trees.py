"""Trees of published per-sample analyses: a folder epoch_{E:04d} for each epoch, with arrays, tables and metadata.

    dormancy    per_sample_dormant_props.{npy,csv} per_sample_sample_ids.npy per_sample_labels.npy
                combined_dormant_data.csv metadata.json
    curvature   per_image_curvature.npy per_image_directional_eig.npy per_image_labels.npy per_image_sample_ids.csv
                metadata.json
    loss        per_sample_losses.npy per_sample_grads.npy per_sample_labels.npy per_sample_ids.csv
                combined_loss_data.csv

The main array is written last, and then the mark `done`. Where scoring_{tree}.json beside the folders says that they
were written here, a folder without the mark is not complete; other people's folders need none. An old mark is taken
away before anything of its folder is written anew.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.formats.content import check_ids, read_vector, write_array
from plastiscope.formats.csv_columns import read_columns, write_columns
from plastiscope.formats.scoring_facts import facts_path, read_facts
from plastiscope.run.storage import read_json, write_atomic, write_json

Ids = npt.NDArray[np.int64]
Values = npt.NDArray[np.float32]
_DONE = "done"
"""Mark of a folder that is complete."""


@dataclass(frozen=True)
class _Names:
    """Files of one kind of tree.

    Attributes:
        arrays: file of each quantity; the first is the main one.
        optional: quantities that may be missing.
        ids: file of the sample ids, npy or CSV with a column sample_id.
        labels: file of the labels.
        combined: table of everything, and its columns; None where there is none.
        statistics: key of the main array's statistics in metadata.json; None where no metadata are written.
    """

    arrays: Mapping[str, str]
    optional: tuple[str, ...]
    ids: str
    labels: str
    combined: tuple[str, tuple[str, ...]] | None
    statistics: str | None


class Tree(Enum):
    """What a tree holds."""

    dormancy = "dormancy"
    curvature = "curvature"
    loss = "loss"


_NAMES = {
    Tree.dormancy: _Names(
        arrays={"dormant_prop": "per_sample_dormant_props.npy"},
        optional=(),
        ids="per_sample_sample_ids.npy",
        labels="per_sample_labels.npy",
        combined=("combined_dormant_data.csv", ("dormant_prop",)),
        statistics="dormant_props_stats",
    ),
    Tree.curvature: _Names(
        arrays={"curvature": "per_image_curvature.npy", "directional_eig": "per_image_directional_eig.npy"},
        optional=("directional_eig",),
        ids="per_image_sample_ids.csv",
        labels="per_image_labels.npy",
        combined=None,
        statistics="curvature_stats",
    ),
    Tree.loss: _Names(
        arrays={"loss": "per_sample_losses.npy", "loss_grad": "per_sample_grads.npy"},
        optional=("loss_grad",),
        ids="per_sample_ids.csv",
        labels="per_sample_labels.npy",
        combined=("combined_loss_data.csv", ("loss", "loss_grad")),
        statistics=None,
    ),
}


@dataclass(frozen=True, eq=False)
class EpochScores:
    """Scores of the samples of one epoch.

    Attributes:
        epoch: number of the folder.
        ids: int64 [n], in the order of the file.
        labels: int64 [n].
        values: float32 [n] of each quantity.
        metadata: of the folder's metadata.json; empty without one.
    """

    epoch: int
    ids: Ids
    labels: Ids
    values: dict[str, Values]
    metadata: dict[str, Any]


def epoch_folder(root: Path, epoch: int) -> Path:
    """epoch_0200 and so on."""
    return root / f"epoch_{epoch:04d}"


def main_file(root: Path, tree: Tree, epoch: int) -> Path:
    """The array whose being there says that an epoch is complete."""
    return epoch_folder(root, epoch) / next(iter(_NAMES[tree].arrays.values()))


def files_of(root: Path, tree: Tree, quantity: str) -> dict[int, Path]:
    """The files of a quantity, or of "ids" or "labels", by epoch; only epochs that have one.

    Raises:
        DataError: as `epochs_of`.
    """
    names = _NAMES[tree]
    name = {"ids": names.ids, "labels": names.labels, **names.arrays}[quantity]
    return {epoch: folder / name for epoch, folder in epochs_of(root).items() if (folder / name).exists()}


def statistics(values: npt.ArrayLike) -> dict[str, float]:
    """Mean, standard deviation (divisor n), smallest and largest value, as the metadata have them."""
    x = np.asarray(values, np.float64)
    if len(x) == 0:
        return dict.fromkeys(("mean", "std", "min", "max"), np.nan)
    return {"mean": x.mean().item(), "std": x.std().item(), "min": x.min().item(), "max": x.max().item()}


def write_epoch(root: Path, tree: Tree, scores: EpochScores) -> Path:
    """Write the folder of one epoch, its main array last and then the mark `done`; returns the main array's path.

    Raises:
        DataError: ids repeat, or arrays have different lengths.
    """
    names, folder = _NAMES[tree], epoch_folder(root, scores.epoch)
    ids = check_ids(scores.ids, folder / names.ids)
    _check_lengths(scores.labels, scores.values, ids, folder, scores.epoch)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _DONE).unlink(missing_ok=True)
    known = {"sample_id": ids, "class_label": scores.labels}
    write_array(folder / names.labels, scores.labels)
    _write_ids(folder / names.ids, ids)
    if tree is Tree.dormancy:
        write_columns(folder / "per_sample_dormant_props.csv", {"dormant_prop": scores.values["dormant_prop"]})
    if names.combined is not None:
        file, columns = names.combined
        write_columns(folder / file, known | {c: scores.values[c] for c in columns if c in scores.values})
    if names.statistics is not None:
        first = scores.values[next(iter(names.arrays))]
        facts = {"epoch": scores.epoch, "total_samples": len(ids), names.statistics: statistics(first)}
        write_json(folder / "metadata.json", facts | scores.metadata)
    for name, file in reversed(list(names.arrays.items())):
        if name in scores.values:
            write_array(folder / file, scores.values[name].astype(np.float32))
    write_atomic(folder / _DONE, b"")
    return main_file(root, tree, scores.epoch)


def epochs_of(root: Path) -> dict[int, Path]:
    """The folders of a tree by number, ascending.

    Raises:
        DataError: no such tree, or two folders of one number.
    """
    found: dict[int, Path] = {}
    for path in sorted(root.iterdir()) if root.is_dir() else []:
        match = re.fullmatch(r"epoch_(\d+)", path.name)
        if match and path.is_dir():
            if int(match[1]) in found:
                raise DataError(f"{found[int(match[1])]} and {path.name} both stand for epoch {int(match[1])}.")
            found[int(match[1])] = path
    if not found:
        raise DataError(f"{root} has no folders epoch_0000 and so on.")
    return dict(sorted(found.items()))


def unfinished(root: Path, tree: Tree) -> dict[int, Path]:
    """The folders without the mark `done` of a tree that was written here; none of other people's trees.

    Raises:
        DataError: as `epochs_of`.
    """
    if not read_facts(facts_path(root, tree.value)):
        return {}
    return {epoch: folder for epoch, folder in epochs_of(root).items() if not (folder / _DONE).exists()}


def read_epoch(root: Path, tree: Tree, epoch: int, ids: Ids | None = None) -> EpochScores:
    """The scores of one epoch.

    Args:
        root: of the tree.
        tree: what it holds.
        epoch: number of the folder, however many zeros its name has.
        ids: of the rows, where the folder has none. A row position is never taken for an id.

    Raises:
        DataError: no such epoch, an incomplete one, no ids, ids that repeat, unequal lengths; names file and epoch.
    """
    names, folder = _NAMES[tree], epochs_of(root).get(epoch)
    if folder is None:
        raise DataError(f"{root} has no folder of epoch {epoch}.")
    if epoch in unfinished(root, tree):
        raise DataError(not_done(folder, epoch))
    values = {}
    for name, file in names.arrays.items():
        if (folder / file).exists():
            values[name] = read_vector(folder / file).astype(np.float32)
        elif name not in names.optional:
            raise DataError(f"{folder} (epoch {epoch}) has no {file}: it is not complete.")
    found = read_ids(folder / names.ids) if (folder / names.ids).exists() else ids
    if found is None:
        raise DataError(
            f"{folder} (epoch {epoch}) has no {names.ids}, and row i is not sample i; give the ids of its rows."
        )
    labels = read_vector(folder / names.labels).astype(np.int64)
    _check_lengths(labels, values, found, folder, epoch)
    metadata = read_json(folder / "metadata.json")
    return EpochScores(epoch, found, labels, values, metadata if isinstance(metadata, dict) else {})


def not_done(folder: Path, epoch: int) -> str:
    """What is said of a folder of `unfinished`."""
    return f"{folder} (epoch {epoch}) has no mark `done`: it is not complete; remove the folder and score it again."


def _check_lengths(labels: Ids, values: Mapping[str, Values], ids: Ids, folder: Path, epoch: int) -> None:
    lengths = {"labels": len(labels)} | {name: len(array) for name, array in values.items()}
    for what, length in lengths.items():
        if length != len(ids):
            raise DataError(f"{folder} (epoch {epoch}) has {length} {what} and {len(ids)} sample ids.")


def _write_ids(path: Path, ids: Ids) -> None:
    if path.suffix == ".csv":
        write_columns(path, {"sample_id": ids})
    else:
        write_array(path, ids)


def read_ids(path: Path) -> Ids:
    """Sample ids of an array, or of the column sample_id of a CSV.

    Raises:
        DataError: ids that repeat or are no integers.
    """
    raw = read_columns(path, ["sample_id"])["sample_id"] if path.suffix == ".csv" else read_vector(path)
    return check_ids(raw, path)
