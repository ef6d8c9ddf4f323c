"""MNIST: 60,000 + 10,000 grey digits of 28x28 (LeCun, Cortes, Burges)."""

import gzip
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from plastiscope.data.finite_data import FiniteData
from plastiscope.data.raw_data import RawData, array_split
from plastiscope.data.vision import vision
from plastiscope.error import DataError

_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_MAGIC = {1: 2049, 3: 2051}


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The bytes of a gzipped idx file, uint8 [n] or [n, h, w]; raises DataError unless header and size agree."""
    try:
        content = gzip.decompress(path.read_bytes())
        magic, *shape = struct.unpack_from(f">{1 + dimensions}I", content)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path} is damaged ({error}); get the file again.") from error
    values = np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions))
    if magic != _MAGIC[dimensions] or values.size != np.prod(shape, dtype=np.int64):
        raise DataError(f"{path} is not an idx file of {dimensions} dimensions with all its values; get it again.")
    return values.reshape(shape).copy()


@dataclass(kw_only=True)
class Mnist(FiniteData):
    """MNIST from `folder`/MNIST/raw, the four official files, unpacked or still as .gz."""

    PUBLISHED: ClassVar = ((0.1307,), (0.3081,))

    folder: str = "data"
    """Holds MNIST/raw, or the files themselves."""
    download: bool = True
    """Download what is missing into `folder`."""

    def read(self, device: torch.device) -> RawData:
        """Unpacked files and downloads through torchvision; .gz files directly, so that nothing is written there."""
        x_train, y_train, x_test, y_test = self._from_gz() or self._from_torchvision()
        if x_train.shape[1:] != x_test.shape[1:] or len(x_train) != len(y_train) or len(x_test) != len(y_test):
            raise DataError(f"The MNIST files in {self.folder} do not belong together: counts or image sizes differ.")
        return RawData(
            train=array_split(x_train[:, None], y_train, device),
            test=array_split(x_test[:, None], y_test, device),
            num_classes=10,
            scale=255.0,
            class_names=tuple("0123456789"),
        )

    def _from_gz(self) -> list[np.ndarray] | None:
        folder = Path(self.folder)
        for raw in (folder / "MNIST" / "raw", folder / "raw", folder):
            if all((raw / f"{name}.gz").is_file() for name in _NAMES):
                return [read_idx(raw / f"{name}.gz", 3 if "images" in name else 1) for name in _NAMES]
        return None

    def _from_torchvision(self) -> list[np.ndarray]:
        kind = vision().datasets.MNIST
        here = all((Path(self.folder) / "MNIST" / "raw" / name).is_file() for name in _NAMES)
        if not here and not self.download:
            raise DataError(f"No MNIST in {self.folder}. " + self._where())
        try:
            splits = [kind(self.folder, train=train, download=not here) for train in (True, False)]
        except (OSError, RuntimeError, ValueError, AssertionError) as error:
            what = "is damaged" if here else "is not there and could not be downloaded"
            raise DataError(
                f"MNIST in {self.folder} {what} ({' '.join(str(error).split())}). " + self._where()
            ) from error
        return [array.numpy() for split in splits for array in (split.data, split.targets)]

    def _where(self) -> str:
        return f"Put {', '.join(f'{name}.gz' for name in _NAMES)} into {Path(self.folder) / 'MNIST' / 'raw'}."
