"""Arrays of the CSL-Mem study (Ravikumar et al. 2025): npz archives with key `data`, whatever their suffix says.

    loss_resnet18_wd1_{e}.npy  loss_grad_resnet18_wd1_{e}.npy  loss_imagenet_resnet18_wd1_{e}.npy         [N]
    loss_curvature_resnet18_wd1_{e}_h_0.001_n_10.npy                                                      [N]
    learning_time_cifar100_resnet18_wd1_{e}.pt            0/1 correctness, in spite of its name           [N]
    losses_{model}_tid0.pt  loss_curvature_{model}_h0.001_tid0.pt  pred_...  correct_...                  [N]
    prob_{model}_tid0.pt                                                                                  [N, K]
    ssft_pred_resnet18_part_{0,1}_noisy_idx_{s}_noise_{n}.npy                                             [2 epochs, N]
    data_index_{ds}.pt                                    a permutation of the N samples                  [N]

with {model} = {ds}_resnet18_noisy_idx_{s}_epoch_{e}_noise_{n}. Epochs count from 0, after the first one.

The programs write scores[index[a:b]] = scores of batch a:b. Rows are in the order of the data set if and only if the
same index built the loader; of a loader in file order, row index[k] has the score of sample k.
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
from plastiscope.formats.content import decimal_number, read_array, whole_number
from plastiscope.formats.csv_columns import read_columns
from plastiscope.run.storage import write_by

Values = npt.NDArray[Any]
Ids = npt.NDArray[np.int64]

_MODEL = r"(?P<dataset>\w+?)_resnet18_noisy_idx_(?P<idx>[^_]+)_epoch_(?P<epoch>[^_]+)_noise_(?P<noise>[^_]+)"
_STEP = r"_h_?(?P<h>[^_]+)(?:_n_(?P<n>[^_]+))?"
_NAMES = {
    "loss": (r"loss_resnet18_wd1_(?P<epoch>[^_]+)\.\w+", rf"losses_{_MODEL}_tid0\.\w+"),
    "loss_grad": (r"loss_grad_resnet18_wd1_(?P<epoch>[^_]+)\.\w+",),
    "curvature": (
        rf"loss_curvature_resnet18_wd1_(?P<epoch>[^_]+){_STEP}\.\w+",
        rf"loss_curvature_{_MODEL}{_STEP}_tid0\.\w+",
    ),
    "correct": (r"learning_time_(?P<dataset>\w+?)_resnet18_wd1_(?P<epoch>[^_]+)\.\w+", rf"correct_{_MODEL}_tid0\.\w+"),
    "imagenet_loss": (r"loss_imagenet_resnet18_wd1_(?P<epoch>[^_]+)\.\w+",),
    "prob": (rf"prob_{_MODEL}_tid0\.\w+",),
    "pred": (rf"pred_{_MODEL}_tid0\.\w+",),
}
QUANTITIES = tuple(_NAMES)
"""What is read by epoch."""


class Loader(Enum):
    """In which order the images came to the program that wrote the scores."""

    same_index = "same_index"
    """In that of the data index: rows are in the order of the data set."""
    file_order = "file_order"
    """In that of the data set: row index[k] has the score of sample k."""


@dataclass(frozen=True, eq=False)
class CslMemSeries:
    """A quantity by epoch; column = position in the data set's own order.

    Attributes:
        epochs: ascending, from 0 = after the first.
        values: [E, N], or [E, N, K] of probabilities.
    """

    epochs: list[int]
    values: Values


def find_csl_mem(folder: Path, quantity: str, **wanted: float | str) -> dict[int, Path]:
    """The files of a quantity by epoch.

    Args:
        folder: where they are.
        quantity: one of `QUANTITIES`.
        wanted: dataset, idx, noise, h or n that a name must have, if it has one at all; numbers count as numbers.

    Raises:
        DataError: there are none, or two of one epoch.
    """
    found = csl_mem_files(folder, quantity, **wanted)
    if not found:
        raise DataError(f"{folder} has no files with {quantity} in the names of CSL-Mem.")
    return found


def csl_mem_files(folder: Path, quantity: str, **wanted: float | str) -> dict[int, Path]:
    """As `find_csl_mem`, and empty where there are none.

    Raises:
        DataError: two files of one epoch.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        for pattern in _NAMES[quantity]:
            match = re.fullmatch(pattern, path.name)
            epoch = whole_number(match["epoch"]) if match else None
            if match is None or epoch is None or not _is_wanted(match.groupdict(), wanted):
                continue
            if epoch in found:
                raise DataError(
                    f"{found[epoch]} and {path.name} both have {quantity} of epoch {epoch}; say which is meant, by "
                    "data set, idx, noise, h or n."
                )
            found[epoch] = path
    return dict(sorted(found.items()))


def _is_wanted(named: Mapping[str, str | None], wanted: Mapping[str, float | str]) -> bool:
    for key, value in wanted.items():
        text = named.get(key)
        if text is None:
            continue
        if text != value if isinstance(value, str) else decimal_number(text) != float(value):
            return False
    return True


def read_csl_mem(files: Mapping[int, Path], loader: Loader, index: Ids | None = None) -> CslMemSeries:
    """The files of `find_csl_mem`, in the order of the data set.

    Args:
        files: by epoch.
        loader: how the images came; the files do not say.
        index: the data index (`read_data_index`), needed for Loader.file_order.

    Raises:
        DataError: a file that cannot be read, unequal shapes, or no index where one is needed; names file and epoch.
    """
    if loader is Loader.file_order and index is None:
        raise DataError("Scores of a loader in file order need the data index, data_index_{ds}.pt.")
    rows: list[Values] = []
    for epoch, path in files.items():
        row = read_array(path)
        if row.ndim == 2 and 1 in row.shape:
            row = row.reshape(-1)
        if rows and row.shape != rows[0].shape:
            raise DataError(
                f"{path} (epoch {epoch}) has shape {list(row.shape)}, and the epochs before {list(rows[0].shape)}."
            )
        rows.append(row)
    values = np.stack(rows)
    if loader is Loader.file_order:
        assert index is not None
        if values.shape[1] != len(index):
            raise DataError(f"The data index has {len(index)} samples, and the files have {values.shape[1]}.")
        values = values[:, index]
    return CslMemSeries(list(files), values)


def read_data_index(path: Path) -> Ids:
    """A permutation of the samples, int64 [N].

    Raises:
        DataError: it is none.
    """
    index = read_array(path).reshape(-1)
    if index.dtype.kind not in "iu" or not np.array_equal(np.sort(index), np.arange(len(index))):
        raise DataError(f"{path} must be a permutation of 0 to N - 1; it is no data index.")
    return index.astype(np.int64)


def read_second_split(folder: Path, idx: int, noise: float) -> tuple[Values, Values]:
    """Predictions of second-split training, [2 epochs, N] for part 0 and for part 1.

    Raises:
        DataError: a part is missing, or the shapes differ or are no [2 epochs, N].
    """
    parts = []
    for part in (0, 1):
        start = f"ssft_pred_resnet18_part_{part}_noisy_idx_"
        named = {path: path.stem.removeprefix(start).split("_noise_") for path in sorted(folder.glob(f"{start}*"))}
        found = [
            path
            for path, words in named.items()
            if len(words) == 2 and whole_number(words[0]) == idx and decimal_number(words[1]) == float(noise)
        ]
        if len(found) != 1:
            raise DataError(f"{folder} has {len(found)} files {start}{idx}_noise_{float(noise)!r}; one is needed.")
        array = read_array(found[0])
        if array.ndim != 2 or len(array) % 2:
            raise DataError(f"{found[0]} has shape {list(array.shape)}, and [2 epochs, N] is needed.")
        parts.append(array)
    if parts[0].shape != parts[1].shape:
        raise DataError(f"{folder}: the parts of second-split training have shapes {parts[0].shape}, {parts[1].shape}.")
    return parts[0], parts[1]


def from_tfds(values: Values, table: Path) -> Values:
    """Values by TFDS id, last axis N, in torchvision's order.

    Args:
        values: [..., N], position = TFDS id.
        table: CSV with the column torch_id, row = TFDS id (the published pickle is a data frame, which is not read).

    Raises:
        DataError: the table is no permutation of the N ids.
    """
    ids = read_columns(table, ["torch_id"])["torch_id"]
    if not np.array_equal(np.sort(ids), np.arange(values.shape[-1])):
        raise DataError(f"{table} must have each torch_id from 0 to {values.shape[-1] - 1} once.")
    ordered = np.empty_like(values)
    ordered[..., ids.astype(np.int64)] = values
    return ordered


def write_csl_mem(path: Path, values: npt.ArrayLike) -> None:
    """Write one array as CSL-Mem does: a compressed npz with key `data`, under any suffix."""
    write_by(path, lambda file: np.savez_compressed(file, data=np.asarray(values)))
