"""Images in folders, one per class: what does not fit in memory is read by workers, batch by batch."""

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from plastiscope.data.finite_data import FiniteData
from plastiscope.data.raw_data import RawData, Split
from plastiscope.data.samples import Normalisation
from plastiscope.data.vision import vision
from plastiscope.error import DataError, require


class _ImageFiles(Dataset):
    """Row -> pixels uint8 [3, size, size], or the text of what went wrong: a worker's error is hard to read."""

    def __init__(self, paths: Sequence[str], loader: Any, size: int) -> None:
        transforms = vision().transforms
        steps = [transforms.Resize(size), transforms.CenterCrop(size), transforms.PILToTensor()]
        self.paths, self.loader, self.size, self.transform = paths, loader, size, transforms.Compose(steps)

    def __getitem__(self, row: int) -> Tensor | str:
        try:
            return self.transform(self.loader(self.paths[row]))
        except (OSError, SyntaxError, ValueError) as error:  # PIL raises all three for damaged files
            return f"{self.paths[row]} cannot be read as an image ({error}); replace or remove it."


def _stacked(items: list[Tensor | str]) -> Tensor | str:
    broken = [item for item in items if isinstance(item, str)]
    return broken[0] if broken else torch.stack([item for item in items if isinstance(item, Tensor)])


def _leave_preemption_to_the_parent(_: int) -> None:
    """A forked worker inherits the launcher's handler of the preemption signal, which would requeue the job again."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Image files as a source (see `samples.Source`); bytes go to the device and are normalised there."""

    files: _ImageFiles
    ids: Tensor
    normalisation: Normalisation | None
    workers: int

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return (3, self.size, self.size)

    @property
    def size(self) -> int:
        """Pixels a side."""
        return self.files.size

    @property
    def device(self) -> torch.device:
        """Where batches appear."""
        return self.ids.device

    def __len__(self) -> int:
        return len(self.files.paths)

    def stream(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Inputs of `rows`, `size` at a time, in that order whatever the number of workers."""
        batches = [batch.tolist() for batch in rows.cpu().split(size)] if len(rows) else []
        loader = DataLoader(
            self.files,
            batch_sampler=batches,
            num_workers=self.workers if len(batches) > 1 else 0,
            collate_fn=_stacked,
            worker_init_fn=_leave_preemption_to_the_parent,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator(),  # without one the loader draws from the global generator
        )
        for pixels in loader:
            if isinstance(pixels, str):
                raise DataError(pixels)
            raw = pixels.to(self.device, non_blocking=True)
            yield raw if self.normalisation is None else self.normalisation(raw)


@dataclass(kw_only=True)
class ImageFolder(FiniteData):
    """`folder`/train/<class>/* and `folder`/test/<class>/* (or val); ids in torchvision's order, by class, by name."""

    PUBLISHED: ClassVar = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    folder: str = "data"
    """Holds train/ and test/ (or val/), each with one folder of images per class."""
    size: int = 224
    """Pixels a side: the shorter side is resized to it, the centre cropped."""
    workers: int = 2
    """Processes that read images; 0 = none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.size >= 1, "size", self.size, "must be 1 or more")
        require(self.workers >= 0, "workers", self.workers, "must be 0 or more")
        require(self.resize is None, "resize", self.resize, "must be null; set size, images are read at that size")

    def read(self, device: torch.device) -> RawData:
        """The lists of files; images are read when they are needed."""
        train = self._listed("train")
        test = self._listed("test" if (Path(self.folder) / "test").is_dir() else "val")
        if train.classes != test.classes:
            raise DataError(f"The class folders of train and test in {self.folder} differ; both need the same names.")
        return RawData(
            train=self._split(train, device),
            test=self._split(test, device),
            num_classes=len(train.classes),
            scale=255.0,
            class_names=tuple(train.classes),
            train_files=tuple(path for path, _ in train.samples),
        )

    def _listed(self, name: str) -> Any:
        place = Path(self.folder) / name
        try:
            return vision().datasets.ImageFolder(str(place))
        except OSError as error:
            raise DataError(f"{place} must hold one folder of images per class ({error}).") from error

    def _split(self, listed: Any, device: torch.device) -> Split:
        files = _ImageFiles([path for path, _ in listed.samples], listed.loader, self.size)
        return Split(
            open=lambda ids, normalisation: FolderSource(files, ids, normalisation, self.workers),
            labels=np.array(listed.targets, dtype=np.int64),
        )
