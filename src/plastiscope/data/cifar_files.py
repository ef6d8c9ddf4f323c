"""CIFAR-10 and CIFAR-100 in the official python layout, whole or a subset."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from plastiscope.data.restricted_pickle import load_restricted
from plastiscope.data.vision import vision
from plastiscope.error import DataError


@dataclass(frozen=True, eq=False)
class CifarArrays:
    """Images uint8 [n, 3, 32, 32] and labels int64 [n], in file order."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray], names: list[str]) -> Self:
        """Of (images, labels) of each split."""
        return cls(*train, *test, tuple(names))


def read_cifar(name: str, folder: str, download: bool) -> CifarArrays:
    """Read torchvision's data set `name` ("CIFAR10", "CIFAR100") from `folder`.

    The files lie in `folder` or in the official sub-folder of it. Where all checksums are official torchvision reads
    them; any other copy, such as a subset, goes through the restricted unpickler.

    Raises:
        DataError: missing, damaged, or of another shape.
    """
    official = getattr(vision().datasets, name)
    checksums = [
        *map(tuple, official.train_list + official.test_list),
        (official.meta["filename"], official.meta["md5"]),
    ]
    place = _find(official, folder, [file for file, _ in checksums])
    if place is None and download:
        place = _download(official, folder)
    if place is None:
        raise DataError(f"No {name} in {folder}. " + _where(official, folder))
    check = vision().datasets.utils.check_integrity
    if all(check(str(place / file), md5) for file, md5 in checksums):
        return _through_torchvision(official, place)
    return _restricted(official, place)


def _find(official: Any, folder: str, files: Sequence[str]) -> Path | None:
    for place in (Path(folder) / official.base_folder, Path(folder)):
        if all((place / file).is_file() for file in files):
            return place
    return None


def _where(official: Any, folder: str) -> str:
    files = [file for file, _ in official.train_list + official.test_list] + [official.meta["filename"]]
    return f"Put {', '.join(files)} (from {official.url}, unpacked) into {Path(folder) / official.base_folder}."


def _download(official: Any, folder: str) -> Path:
    try:
        official(folder, download=True)
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{official.__name__} is not in {folder} and could not be downloaded ({error}). " + _where(official, folder)
        ) from error
    return Path(folder) / official.base_folder


def _through_torchvision(official: Any, place: Path) -> CifarArrays:
    here = type(official.__name__, (official,), {"base_folder": place.name})
    with warnings.catch_warnings():
        # numpy finds fault with how numpy 1 wrote the flag `align` into the official pickles
        warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
        train, test = (here(place.parent, train=is_train) for is_train in (True, False))
    pairs = [(split.data.transpose(0, 3, 1, 2), np.array(split.targets)) for split in (train, test)]
    return CifarArrays.of(pairs[0], pairs[1], train.classes)


def _restricted(official: Any, place: Path) -> CifarArrays:
    meta = load_restricted(place / official.meta["filename"], encoding="latin1")
    names = meta.get(official.meta["key"]) if isinstance(meta, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{place / official.meta['filename']} holds no list {official.meta['key']}; get it again.")
    train, test = (_joined(place, files) for files in (official.train_list, official.test_list))
    return CifarArrays.of(train, test, names)


def _joined(place: Path, files: Sequence[Sequence[str]]) -> tuple[np.ndarray, np.ndarray]:
    images, labels = zip(*(_content(place / file) for file, _ in files), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def _content(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one file, after checking keys, shapes and types."""
    entry = load_restricted(path, encoding="latin1")
    if not isinstance(entry, dict) or "data" not in entry:
        raise DataError(f"{path} holds no key `data`; it is not a CIFAR file in the official python layout.")
    data, labels = entry["data"], entry.get("fine_labels", entry.get("labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        found = f"{data.dtype} {list(data.shape)}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"`data` in {path} must be uint8 [n, 3072], one image a row; it is {found}.")
    if not isinstance(labels, list | np.ndarray) or len(labels) != len(data):
        raise DataError(f"{path} must hold `labels` or `fine_labels`, one integer for each of its {len(data)} images.")
    classes = np.asarray(labels)
    if classes.dtype.kind not in "iu" or classes.ndim != 1:
        raise DataError(f"The labels in {path} must be integers.")
    return data.reshape(-1, 3, 32, 32), classes.astype(np.int64)
