"""What a data set reads before any setting applies: raw splits, and how a split becomes a source."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plastiscope.data.samples import ArraySource, Normalisation, Source
from plastiscope.error import DataError


@dataclass(frozen=True, eq=False, kw_only=True)
class Split:
    """The raw training or test split.

    Attributes:
        open: (ids int64 [n], normalisation or None for raw values) -> the inputs in file order.
        labels: int64 [n], or None without classes.
        targets: float [n] or [n, k] where there are no classes, else None.
    """

    open: Callable[[Tensor, Normalisation | None], Source]
    labels: np.ndarray | None
    targets: Tensor | None = None

    def __len__(self) -> int:
        count = self.targets if self.labels is None else self.labels
        assert count is not None
        return len(count)


@dataclass(frozen=True, eq=False, kw_only=True)
class RawData:
    """What a data set reads: two splits and what is known about them.

    Attributes:
        scale: raw values are divided by it before anything else (255 for bytes).
        train_ids: int64 [n] positions in the canonical training set; the rows themselves by default.
        coarse_classes: int64 [K] or None.
        train_files: names of the training images, or empty where they are not files of their own.
    """

    train: Split
    test: Split
    num_classes: int
    scale: float
    class_names: tuple[str, ...] = ()
    coarse_classes: np.ndarray | None = None
    train_ids: np.ndarray | None = None
    train_files: tuple[str, ...] = ()


def array_split(
    inputs: np.ndarray, labels: np.ndarray | None, device: torch.device, targets: np.ndarray | None = None
) -> Split:
    """A split that lies on the device: bytes as they are, anything else as float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(inputs))
    tensor = tensor.to(device, torch.uint8 if tensor.dtype == torch.uint8 else torch.float32)
    if not torch.isfinite(tensor).all():
        raise DataError("the inputs hold NaN or infinite values; take them out of the file before training on it.")
    return Split(
        open=lambda ids, normalisation: ArraySource(tensor, ids, normalisation),
        labels=None if labels is None else np.asarray(labels, dtype=np.int64),
        targets=None if targets is None else torch.from_numpy(targets).to(device, torch.float32),
    )


class ResizedSource:
    """Images [c, size, size] made from another source by bilinear interpolation (antialiased), after normalisation."""

    def __init__(self, source: Source, size: int) -> None:
        """Show `source` at `size` pixels a side."""
        self.source, self.size = source, size

    @property
    def ids(self) -> Tensor:
        """Ids int64 [n]."""
        return self.source.ids

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (self.source.input_shape[0], self.size, self.size)

    @property
    def device(self) -> torch.device:
        """Where batches appear."""
        return self.source.device

    def __len__(self) -> int:
        return len(self.source)

    def stream(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Resized inputs of `rows`, `size` at a time."""
        for x in self.source.stream(rows, size):
            yield F.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
