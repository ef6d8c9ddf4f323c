"""Downsampled ImageNet for pairs of classes: one array per class, `classes/{k}.npy` of shape [rows, 3, 32, 32].

    python -m plastiscope.data.imagenet32 IMAGES OUT [--size 32] [--rows 700]

makes such files from a folder with one sub-folder of images per class.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from plastiscope.data.finite_data import FiniteData
from plastiscope.data.raw_data import RawData, array_split
from plastiscope.data.vision import vision
from plastiscope.error import DataError, require


@dataclass(kw_only=True)
class Imagenet32(FiniteData):
    """ImageNet at 32x32, 600 + 100 rows a class as published; counts come from the files.

    A training id is a position in the training rows of all class files, one after another in the order of k.
    """

    PUBLISHED: ClassVar = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    folder: str = "data"
    """Holds classes/0.npy, classes/1.npy, ... and perhaps wnids.txt, with the name of class k in line k + 1."""
    train_rows: int | None = None
    """The first so many rows of each file are for training; null = all but those for testing."""
    test_rows: int = 100
    """The last so many rows of each file are for testing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.train_rows is None or self.train_rows >= 1, "train_rows", self.train_rows, "must be null, or 1 or more"
        )
        require(self.test_rows >= 1, "test_rows", self.test_rows, "must be 1 or more")

    def read(self, device: torch.device) -> RawData:
        """All class files found; label = place in the order of k."""
        classes = Path(self.folder) / "classes"
        numbers = sorted(int(path.stem) for path in classes.glob("*.npy") if path.stem.isdecimal())
        if not numbers:
            raise DataError(
                f"No class arrays in {classes}. Put 0.npy, 1.npy, ... of shape [rows, 3, 32, 32] there, or make them: "
                f"`python -m plastiscope.data.imagenet32 IMAGES {self.folder}`."
            )
        arrays = [self._class_rows(classes / f"{k}.npy") for k in numbers]
        if len({(array.shape[1:], array.dtype) for array in arrays}) > 1:
            raise DataError(f"The arrays in {classes} differ in image shape or type; make them all alike.")
        counts = [len(array) - self.test_rows for array in arrays]  # training rows, used or not: ids count them all
        train = [array[:count][: self.train_rows] for array, count in zip(arrays, counts, strict=True)]
        starts = np.cumsum([0, *counts[:-1]])
        test = [array[len(array) - self.test_rows :] for array in arrays]
        labels = np.arange(len(arrays))
        return RawData(
            train=array_split(np.concatenate(train), np.repeat(labels, [len(part) for part in train]), device),
            test=array_split(np.concatenate(test), np.repeat(labels, self.test_rows), device),
            num_classes=len(arrays),
            scale=255.0 if arrays[0].dtype == np.uint8 else 1.0,
            class_names=self._names(numbers),
            train_ids=np.concatenate([start + np.arange(len(part)) for start, part in zip(starts, train, strict=True)]),
        )

    def _class_rows(self, path: Path) -> np.ndarray:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path} is damaged or no plain .npy array ({error}); make it again.") from error
        if array.ndim != 4 or array.shape[1] != 3 or array.dtype.kind not in "uf":
            raise DataError(f"{path} must hold images [rows, 3, h, w]; it holds {array.dtype} {list(array.shape)}.")
        needed = (self.train_rows or 1) + self.test_rows
        if len(array) < needed:
            raise DataError(f"{path} has {len(array)} rows and {needed} are asked for; lower train_rows or test_rows.")
        return array

    def _names(self, numbers: list[int]) -> tuple[str, ...]:
        path = Path(self.folder) / "wnids.txt"
        names = path.read_text(encoding="utf-8").split() if path.is_file() else []
        return tuple(names[k] if k < len(names) else str(k) for k in numbers)


def make_class_arrays(images: Path, out: Path, size: int = 32, rows: int | None = None) -> int:
    """Write `out`/classes/{k}.npy and wnids.txt from `images`/<class>/<image files>; returns the number of classes.

    Classes and images in the order of their names. Each image is turned to RGB, cropped to its central square and
    shrunk with PIL's BOX filter, the mean over each pixel's area (rounded once along each axis).
    """
    from PIL import Image

    try:
        folder = vision().datasets.ImageFolder(images)
    except OSError as error:
        raise DataError(f"{images} must hold one folder of images per class ({error}).") from error
    (out / "classes").mkdir(parents=True, exist_ok=True)
    for k in range(len(folder.classes)):
        paths = [path for path, label in folder.samples if label == k][:rows]
        pixels = np.empty((len(paths), 3, size, size), np.uint8)
        for row, path in enumerate(paths):
            image = folder.loader(path)
            side = min(image.size)
            left, top = (image.width - side) // 2, (image.height - side) // 2
            box = (left, top, left + side, top + side)
            pixels[row] = np.asarray(image.resize((size, size), Image.Resampling.BOX, box=box)).transpose(2, 0, 1)
        np.save(out / "classes" / f"{k}.npy", pixels)
    (out / "wnids.txt").write_text("\n".join(folder.classes) + "\n", encoding="utf-8")
    return len(folder.classes)


def main() -> None:
    """The command of the module's docstring."""
    parser = argparse.ArgumentParser(
        description="Make classes/{k}.npy from a folder with one sub-folder of images per class."
    )
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=32, help="pixels a side (32)")
    parser.add_argument("--rows", type=int, default=None, help="at most so many images of each class (all)")
    given = parser.parse_args()
    try:
        count = make_class_arrays(given.images, given.out, given.size, given.rows)
    except DataError as error:
        parser.exit(1, f"{error}\n")
    print(f"{count} classes in {given.out / 'classes'}")


if __name__ == "__main__":
    main()
