"""A user's own arrays in one .npz, without a line of code."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from plastiscope.data.finite_data import FiniteData, TargetKind
from plastiscope.data.normalisation import NormalisationKind
from plastiscope.data.raw_data import RawData, Split, array_split
from plastiscope.error import DataError, require

_KEYS = ("x_train", "y_train", "x_test", "y_test")


@dataclass(kw_only=True)
class Arrays(FiniteData):
    """The arrays x_train, y_train, x_test, y_test of a .npz file, and coarse_classes int [K] if there.

    x is uint8 (0 to 255) or float, [n, features] or [n, channels, h, w]. y is int [n], classes 0 to K - 1; with
    `targets=multi_hot` zeros and ones [n, K]; with `targets=real` float [n] or [n, k].
    """

    TARGETS: ClassVar = tuple(TargetKind)

    file: str = "data/arrays.npz"
    """The .npz file; object arrays are refused."""
    num_classes: int | None = None
    """K; null = the largest label plus one."""
    normalisation: NormalisationKind = NormalisationKind.auto
    """auto (from the training samples) or none; mean and std, if given, come first."""
    targets: TargetKind = TargetKind.class_index
    """class_index, one_hot, multi_hot or real."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.num_classes is None or self.num_classes >= 1, "num_classes", self.num_classes, "must be 1 or more")

    def read(self, device: torch.device) -> RawData:
        """The arrays of the file, checked."""
        arrays = self._content()
        train, test = (self._split(arrays, name, device) for name in ("train", "test"))
        if (
            arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]
            or arrays["x_train"].dtype != arrays["x_test"].dtype
        ):
            raise DataError(f"x_train and x_test in {self.file} differ in the shape of a sample or in type.")
        num_classes = self._count_classes(arrays)
        coarse = arrays.get("coarse_classes")
        if coarse is not None and (coarse.shape != (num_classes,) or coarse.dtype.kind not in "iu"):
            raise DataError(
                f"coarse_classes in {self.file} must be int [{num_classes}], the coarse class of each class."
            )
        return RawData(
            train=train,
            test=test,
            num_classes=num_classes,
            scale=255.0 if arrays["x_train"].dtype == np.uint8 else 1.0,
            coarse_classes=None if coarse is None else coarse.astype(np.int64),
        )

    def _count_classes(self, arrays: dict[str, np.ndarray]) -> int:
        """K; 0 where the targets are not classes."""
        if self.targets in (TargetKind.real, TargetKind.multi_hot):
            return 0
        return self.num_classes or 1 + int(max(arrays["y_train"].max(initial=0), arrays["y_test"].max(initial=0)))

    def _content(self) -> dict[str, np.ndarray]:
        if not Path(self.file).is_file():
            raise DataError(
                f"No file {self.file}. Make it with numpy.savez(file, {', '.join(f'{k}=...' for k in _KEYS)})."
            )
        try:
            with open(self.file, "rb") as file, np.load(file, allow_pickle=False) as content:
                arrays = {name: content[name] for name in content.files}
        except (OSError, ValueError, EOFError, TypeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(f"{self.file} is damaged, or no .npz of plain arrays ({error}); write it again.") from error
        missing = [name for name in _KEYS if name not in arrays]
        if missing:
            raise DataError(f"{self.file} lacks {', '.join(missing)}; it needs {', '.join(_KEYS)}.")
        return arrays

    def _split(self, arrays: dict[str, np.ndarray], name: str, device: torch.device) -> Split:
        """One split; its targets must have the kind that is asked for."""
        x, y = arrays[f"x_{name}"], arrays[f"y_{name}"]
        if x.ndim < 2 or x.dtype.kind not in "biuf" or len(x) != len(y):
            raise DataError(
                f"x_{name} in {self.file} must be numbers [n, ...] with one row for each of {len(y)} targets."
            )
        if self.targets is TargetKind.real:
            fits, wanted = y.ndim in (1, 2) and y.dtype.kind in "biuf", "numbers [n] or [n, k]"
        elif self.targets is TargetKind.multi_hot:
            fits, wanted = y.ndim == 2 and y.dtype.kind in "biuf" and bool(np.isin(y, (0, 1)).all()), "0 and 1, [n, K]"
        else:
            fits, wanted = y.ndim == 1 and y.dtype.kind in "iu", "int [n]"
        if not fits:
            raise DataError(
                f"y_{name} in {self.file} must be {wanted} for targets={self.targets.name}, "
                f"not {y.dtype} {list(y.shape)}."
            )
        classes = self.targets in (TargetKind.class_index, TargetKind.one_hot)
        return array_split(x, y, device) if classes else array_split(x, None, device, targets=y)
