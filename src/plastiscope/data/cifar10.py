"""CIFAR-10: 50,000 + 10,000 colour images of 32x32 in 10 classes (Krizhevsky 2009)."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from plastiscope.data.cifar_files import read_cifar
from plastiscope.data.finite_data import FiniteData
from plastiscope.data.raw_data import RawData, array_split


@dataclass(kw_only=True)
class Cifar10(FiniteData):
    """CIFAR-10, or a subset in the same layout; ids are positions in the training files, one after another."""

    PUBLISHED: ClassVar = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))

    folder: str = "data"
    """Holds cifar-10-batches-py, or the files themselves."""
    download: bool = True
    """Download what is missing into `folder`."""

    def read(self, device: torch.device) -> RawData:
        """The official files or a subset."""
        arrays = read_cifar("CIFAR10", self.folder, self.download)
        return RawData(
            train=array_split(arrays.x_train, arrays.y_train, device),
            test=array_split(arrays.x_test, arrays.y_test, device),
            num_classes=10,
            scale=255.0,
            class_names=arrays.class_names,
        )
