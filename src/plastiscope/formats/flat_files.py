"""Flat per-sample files of published analyses: dormancy by epoch, curvature of one checkpoint.

    dormant_props_epoch_{E}.npy  sample_ids_epoch_{E}.npy  labels_epoch_{E}.npy
    per_image_curvature.npy  per_image_directional_eig.npy  per_image_labels.npy  per_image_sample_ids.npy
    curvature_results_{dataset}_{epoch}.csv  curvature_summary_{dataset}.json

Flat curvature files of others often have no ids: they are read only with an id file, or with a statement of which
classes were scored.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.formats.content import check_ids, read_vector, write_array
from plastiscope.formats.csv_columns import write_columns
from plastiscope.formats.sample_trees import EpochScores, Ids, statistics
from plastiscope.run.storage import write_json


def dormancy_file(folder: Path, epoch: int) -> Path:
    """The shares of dormant units after `epoch` epochs."""
    return folder / f"dormant_props_epoch_{epoch}.npy"


def write_dormancy(folder: Path, scores: EpochScores) -> Path:
    """Write ids, labels and, last, the shares `dormant_prop` of one epoch; returns the path of the shares."""
    folder.mkdir(parents=True, exist_ok=True)
    path = dormancy_file(folder, scores.epoch)
    write_array(folder / f"sample_ids_epoch_{scores.epoch}.npy", check_ids(scores.ids, path))
    write_array(folder / f"labels_epoch_{scores.epoch}.npy", scores.labels)
    write_array(path, scores.values["dormant_prop"].astype(np.float32))
    return path


def read_dormancy(folder: Path) -> list[EpochScores]:
    """Dormancy by epoch, ascending; the number of samples may differ from epoch to epoch.

    Raises:
        DataError: no such files, no ids of an epoch, ids that repeat, or unequal lengths; names file and epoch.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("dormant_props_epoch_*.npy")):
        match = re.fullmatch(r"dormant_props_epoch_(\d+)\.npy", path.name)
        if match and int(match[1]) in found:
            raise DataError(f"{found[int(match[1])]} and {path.name} both stand for epoch {int(match[1])}.")
        if match:
            found[int(match[1])] = path
    if not found:
        raise DataError(f"{folder} has no files dormant_props_epoch_0.npy and so on.")
    return [_read_dormancy(path, epoch) for epoch, path in sorted(found.items())]


def _read_dormancy(path: Path, epoch: int) -> EpochScores:
    number = path.name.removeprefix("dormant_props_epoch_")
    ids_path, labels_path = (path.with_name(f"{name}_epoch_{number}") for name in ("sample_ids", "labels"))
    if not ids_path.exists():
        raise DataError(f"{path} (epoch {epoch}) has no {ids_path.name} beside it, and row i is not sample i.")
    values = read_vector(path).astype(np.float32)
    ids = check_ids(read_vector(ids_path, len(values)), ids_path)
    labels = read_vector(labels_path, len(values)).astype(np.int64)
    return EpochScores(epoch, ids, labels, {"dormant_prop": values}, {})


def write_curvature(folder: Path, dataset: str, scores: EpochScores) -> Path:
    """Write arrays, results table and summary of one checkpoint, `per_image_curvature.npy` last; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    ids, values = check_ids(scores.ids, folder / "per_image_sample_ids.npy"), scores.values
    write_array(folder / "per_image_sample_ids.npy", ids)
    write_array(folder / "per_image_labels.npy", scores.labels)
    write_array(folder / "per_image_directional_eig.npy", values["directional_eig"].astype(np.float32))
    columns = {"sample_id": ids, "class_label": scores.labels}
    columns |= {name: values[name].astype(np.float32) for name in ("curvature", "directional_eig")}
    write_columns(folder / f"curvature_results_{dataset}_{scores.epoch}.csv", columns)
    summary: dict[str, Any] = {"epoch": scores.epoch, "total_samples": len(ids)}
    summary |= {f"{name}_stats": statistics(values[name]) for name in ("curvature", "directional_eig")}
    write_json(folder / f"curvature_summary_{dataset}.json", summary | {"parameters": scores.metadata})
    path = folder / "per_image_curvature.npy"
    write_array(path, values["curvature"].astype(np.float32))
    return path


def read_curvature(
    folder: Path,
    ids: Ids | None = None,
    allowed_classes: Sequence[int] | None = None,
    labels_of_data: npt.ArrayLike | None = None,
    epoch: int = 0,
) -> EpochScores:
    """Curvature from flat per_image_*.npy files.

    Args:
        folder: where they are.
        ids: of the rows, where there is no per_image_sample_ids.npy.
        allowed_classes: instead: the rows are the samples of these classes, in the order of the data.
        labels_of_data: labels of all samples in canonical order, for `allowed_classes`.
        epoch: which the caller knows it to be; the files do not say.

    Raises:
        DataError: nothing says which samples the rows are, the labels contradict it, or lengths differ.
    """
    curvature = read_vector(folder / "per_image_curvature.npy").astype(np.float32)
    labels = read_vector(folder / "per_image_labels.npy", len(curvature)).astype(np.int64)
    values = {"curvature": curvature}
    if (folder / "per_image_directional_eig.npy").exists():
        path = folder / "per_image_directional_eig.npy"
        values["directional_eig"] = read_vector(path, len(curvature)).astype(np.float32)
    path = folder / "per_image_sample_ids.npy"
    if path.exists():
        ids = check_ids(read_vector(path), path)
    elif ids is None and allowed_classes is not None and labels_of_data is not None:
        ids = np.flatnonzero(np.isin(np.asarray(labels_of_data), list(allowed_classes)))
    if ids is None:
        raise DataError(
            f"{folder} has no per_image_sample_ids.npy, and row i is not sample i; give the ids, or the classes that "
            "were scored."
        )
    if len(ids) != len(curvature):
        raise DataError(f"{folder} has {len(curvature)} rows, and {len(ids)} samples are said to be there.")
    if labels_of_data is not None and (np.asarray(labels_of_data)[ids] != labels).any():
        raise DataError(f"{folder}: the labels of its rows are not those of the samples they are said to be.")
    return EpochScores(epoch, ids, labels, values, {})
