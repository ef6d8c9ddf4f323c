"""CIFAR-100: 50,000 + 10,000 colour images of 32x32 in 100 classes and 20 superclasses (Krizhevsky 2009)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from plastiscope.data.cifar_files import read_cifar
from plastiscope.data.finite_data import FiniteData
from plastiscope.data.raw_data import RawData, array_split

COARSE_CLASSES = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15, 0, 11, 1,
    10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12,
    12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0,
    17, 8, 14, 13,
)  # fmt: skip
"""The superclass of each class, as `coarse_labels` of the official files."""


@dataclass(kw_only=True)
class Cifar100(FiniteData):
    """CIFAR-100, or a subset in the same layout; labels are the fine ones.

    Incremental CIFAR validates on the first 50 images of each class: `validation_per_class=50`.
    """

    PUBLISHED: ClassVar = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))

    folder: str = "data"
    """Holds cifar-100-python, or the files train, test and meta themselves."""
    download: bool = True
    """Download what is missing into `folder`."""

    def read(self, device: torch.device) -> RawData:
        """The official files or a subset."""
        arrays = read_cifar("CIFAR100", self.folder, self.download)
        return RawData(
            train=array_split(arrays.x_train, arrays.y_train, device),
            test=array_split(arrays.x_test, arrays.y_test, device),
            num_classes=100,
            scale=255.0,
            class_names=arrays.class_names,
            coarse_classes=np.array(COARSE_CLASSES),
        )
