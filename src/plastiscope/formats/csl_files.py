"""CSL and learning time under the published file names: csl_*.npy, lt_*.npy and metrics_*.json."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError, RunError
from plastiscope.formats.content import check_ids, decimal_number, read_vector, write_array
from plastiscope.formats.csv_columns import read_columns, write_columns
from plastiscope.formats.sample_trees import statistics
from plastiscope.run.storage import read_json, write_json

ORIGIN = ("dataset", "run_idx", "noise_level", "input_dir", "source", "experiment_index")
"""The facts that say of which run the files are; files of another run are not overwritten."""
_ROOT_METADATA = "metadata_{dataset}_csl.json"
_ADDED = (
    "filled_epochs",
    "grad_kind",
    "contains_l2",
    "mode",
    "logit_scope",
    "split",
    "csl_definition",
    "lt_definition",
)
"""What the published file does not have; null where the writer does not say it."""


def file_stem(dataset: str, run_idx: int, noise_level: float) -> str:
    """The part that the three names share, such as cifar100_run1_noise_0.01; the noise level as Python writes it."""
    return f"{dataset}_run{run_idx}_noise_{float(noise_level)!r}"


def write_csl(
    folder: Path,
    dataset: str,
    run_idx: int,
    noise_level: float,
    csl: npt.ArrayLike,
    lt: npt.ArrayLike | None,
    facts: Mapping[str, Any],
    full_paths: bool = False,
) -> list[Path]:
    """Write csl_{dataset}_run{r}_noise_{z}.npy, lt_... of the same name and metrics_....json, each atomically.

    Args:
        folder: where to; made if missing.
        dataset: name of the data, such as cifar100.
        run_idx: r; the seed for runs of the app.
        noise_level: z; data.label_noise for runs of the app.
        csl: [n], row = sample id; stored as float32.
        lt: [n] or None when there are no gradients: then there is no lt file, and lt_path is null.
        facts: what metrics_*.json says besides; `kept_epochs` (a list) is needed. Known keys: losses_shape and
            loss_grads_shape (by default [epochs, n], null without lt), tau, input_dir, source, filled_epochs, grad_kind
            (input, param or unknown), contains_l2, mode (posthoc or online), logit_scope (active, all or task), split,
            csl_definition, lt_definition; any others are kept.
        full_paths: put the folder before the names in csl_path and lt_path, as published; otherwise they are the plain
            names beside the JSON, equal for equal runs.

    Returns:
        The paths written.

    Raises:
        DataError: csl and lt have different lengths, or are no vectors.
        RunError: files of another run are there under these names.
    """
    values = np.asarray(csl, dtype=np.float32)
    times = None if lt is None else np.asarray(lt, dtype=np.float32)
    if values.ndim != 1 or (times is not None and times.shape != values.shape):
        shapes = [list(array.shape) for array in (values, times) if array is not None]
        raise DataError(f"CSL and learning time must be one number a sample each, they have shapes {shapes}.")
    stem = file_stem(dataset, run_idx, noise_level)
    paths = [folder / f"csl_{stem}.npy", folder / f"lt_{stem}.npy", folder / f"metrics_{stem}.json"]
    epochs = list(facts["kept_epochs"])
    content: dict[str, Any] = {"dataset": dataset, "run_idx": int(run_idx), "noise_level": float(noise_level)}
    content |= {"kept_epochs": epochs, "num_epochs": len(epochs), "losses_shape": [len(epochs), len(values)]}
    content["loss_grads_shape"] = None if times is None else [len(epochs), len(times)]
    named = [str(path) if full_paths else path.name for path in paths]
    content |= {"csl_path": named[0], "lt_path": None if times is None else named[1], "tau": None}
    content |= dict.fromkeys(_ADDED) | dict(facts)
    _refuse_other_run(paths, content)
    folder.mkdir(parents=True, exist_ok=True)
    write_array(paths[0], values)
    if times is None:
        paths.pop(1).unlink(missing_ok=True)  # of an earlier aggregation of this run, which had gradients
    else:
        write_array(paths[1], times)
    write_json(paths[-1], content)
    return paths


def _refuse_other_run(paths: list[Path], content: Mapping[str, Any]) -> None:
    there = [path for path in paths if path.exists()]
    if not there:
        return
    before = read_json(paths[-1])
    if not isinstance(before, dict):
        raise RunError(
            f"{there[0]} is there and no readable {paths[-1].name} says of which run; move it, or write elsewhere."
        )
    for key in ORIGIN:
        if before.get(key) != content.get(key):
            raise RunError(
                f"{there[0]} is of another run ({key} {before.get(key)}, now {content.get(key)}) and is not "
                "overwritten; move it, or write elsewhere."
            )


def read_csl(
    folder: Path, dataset: str, run_idx: int, noise_level: float
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32] | None, dict[str, Any]]:
    """CSL [n], learning time [n] or None, and the facts, from files in the published names.

    The arrays are looked up beside the JSON, whatever folder it names. Of the noise level only the value counts, not
    how it is written.

    Raises:
        DataError: missing or damaged files, several that stand for one noise level, or unequal lengths.
    """
    path = _metrics_path(folder, dataset, run_idx, noise_level)
    facts = read_json(path)
    if not isinstance(facts, dict):
        raise DataError(f"{path} is damaged; write it again with compute_csl.")
    stem = path.name.removeprefix("metrics_").removesuffix(".json")
    csl = read_vector(folder / f"csl_{stem}.npy").astype(np.float32)
    lt_path = folder / f"lt_{stem}.npy"
    lt = read_vector(lt_path, len(csl)).astype(np.float32) if facts.get("lt_path") else None
    return csl, lt, facts


def _metrics_path(folder: Path, dataset: str, run_idx: int, noise_level: float) -> Path:
    start, end = f"metrics_{dataset}_run{run_idx}_noise_", ".json"
    found = [
        path
        for path in sorted(folder.glob("metrics_*.json"))
        if path.name.startswith(start)
        and decimal_number(path.name.removeprefix(start).removesuffix(end)) == float(noise_level)
    ]
    if len(found) != 1:
        what = f"metrics file of {dataset}, run {run_idx}, noise {float(noise_level)!r}"
        raise DataError(
            f"{folder} has no {what}."
            if not found
            else f"{folder} has more than one {what}: {', '.join(path.name for path in found)}; leave one there."
        )
    return found[0]


def write_csl_root(
    folder: Path, dataset: str, labels: npt.ArrayLike, csl: npt.ArrayLike, lt: npt.ArrayLike | None
) -> None:
    """Write what published trees have at their root beside csl_* and lt_*.

    csl_results_full.npy (float32 [n], row = sample id), csl_active_samples.csv (sample_id, class_label, csl, lt: the
    samples that have a CSL) and metadata_{dataset}_csl.json; "valid" samples are those with a CSL above 0.

    Args:
        folder: made if missing.
        dataset: for the metadata's name.
        labels: int [n].
        csl: [n], NaN where a sample was never in training.
        lt: [n] or None.
    """
    values, of_class = np.asarray(csl, np.float32), np.asarray(labels, np.int64)
    known = np.flatnonzero(~np.isnan(values))
    columns: dict[str, npt.ArrayLike] = {"sample_id": known, "class_label": of_class[known], "csl": values[known]}
    if lt is not None:
        columns["lt"] = np.asarray(lt, np.float32)[known]
    folder.mkdir(parents=True, exist_ok=True)
    write_columns(folder / "csl_active_samples.csv", columns)
    valid = values[values > 0]
    facts = {"dataset": dataset, "total_samples": len(values), "active_samples": len(known)}
    facts |= {"valid_samples": len(valid), "valid": "csl > 0", "csl_stats": statistics(valid)}
    write_json(folder / _ROOT_METADATA.format(dataset=dataset), facts)
    write_array(folder / "csl_results_full.npy", values)


def read_csl_table(folder: Path) -> dict[str, npt.NDArray[np.float64]]:
    """sample_id, class_label and csl of a published csl_active_samples.csv.

    Raises:
        DataError: no such file or column, or ids that repeat.
    """
    path = folder / "csl_active_samples.csv"
    table = read_columns(path, ["sample_id", "class_label", "csl"])
    check_ids(table["sample_id"], path)
    return table
