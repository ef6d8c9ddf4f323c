"""Samples: a view of a canonical set, with ids that travel with every batch.

A `Source` holds the raw inputs of one split in canonical order (official order, unfiltered, unshuffled); an id is a
position in that order (or what an ids file says), never a position in a loader. `Samples` is an immutable view: rows of
a source, targets, and the transforms of a batch. Making a view copies no input.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from plastiscope.data.order import Presentation
from plastiscope.measure.loss import Loss

BatchTransform = Callable[[Tensor, Tensor], Tensor]
"""(inputs [b, ...], ids int64 [b]) -> inputs [b, ...]; deterministic, per batch, on the device."""


class Augmentation(Protocol):
    """A random transform of a batch; its randomness is keyed by (seed, epoch, id), so it is a pure function."""

    def __call__(self, inputs: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """Augmented normalised inputs [b, c, h, w] for samples `ids` int64 [b] in epoch `epoch` of the run."""


class Source(Protocol):
    """The raw inputs of one split, in canonical order; what fits in memory and what does not look the same."""

    @property
    def ids(self) -> Tensor:
        """Ids int64 [n] on the device, unique; negative where the official id is unknown."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input, such as (3, 32, 32)."""

    @property
    def device(self) -> torch.device:
        """Where batches appear."""

    def __len__(self) -> int:
        """Number of samples."""

    def stream(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Normalised float32 inputs of `rows` (int64, on the device) in that order, `size` at a time, last ragged."""


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch on the device: inputs float32 [b, ...], targets [b] or [b, k], ids int64 [b].

    weights: float32 [b], of the losses in the gradient; None = all alike.
    """

    inputs: Tensor
    targets: Tensor
    ids: Tensor
    weights: Tensor | None = None

    def each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with `change` applied to each of its tensors."""
        weights = None if self.weights is None else change(self.weights)
        return Batch(change(self.inputs), change(self.targets), change(self.ids), weights)

    def steps(self) -> Iterator["Batch"]:
        """Of a block of batches (a leading axis of steps), each batch."""
        weights = iter(() if self.weights is None else self.weights.unbind())
        for inputs, targets, ids in zip(self.inputs.unbind(), self.targets.unbind(), self.ids.unbind(), strict=True):
            yield Batch(inputs, targets, ids, next(weights, None))


def side_by_side(batches: Sequence[Batch], axis: int) -> Batch:
    """Batches of one shape, stacked along a new axis."""
    weights = [batch.weights for batch in batches if batch.weights is not None]
    return Batch(
        torch.stack([batch.inputs for batch in batches], axis),
        torch.stack([batch.targets for batch in batches], axis),
        torch.stack([batch.ids for batch in batches], axis),
        torch.stack(weights, axis) if weights else None,
    )


@dataclass(frozen=True, eq=False, kw_only=True)
class Samples:
    """An immutable view of samples.

    Attributes:
        source: where the inputs are.
        split: "train", "validation" or "test"; ids are unique within (split of origin, id): validation keeps train ids.
        rows: int64 [n] positions in the source.
        labels: int64 [n] classes of the data set that the network is told (after label noise); empty for regression.
        clean_labels: int64 [n] the same before label noise.
        targets: [n] or [n, k] what the loss sees, as the task maps it; equal to `labels` until a task says otherwise.
        transforms: applied to each batch after augmentation, in order.
        augmentation: applied in training only (`batches(epoch=...)`).
        presentation: fixed order and weights in training; None = a random order, all weights alike.
    """

    source: Source
    split: str
    rows: Tensor
    labels: Tensor
    clean_labels: Tensor
    targets: Tensor
    transforms: tuple[BatchTransform, ...] = ()
    augmentation: Augmentation | None = None
    presentation: Presentation | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> Tensor:
        """Ids int64 [n] of the samples, in the order of the view."""
        return self.source.ids[self.rows]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.source.input_shape

    def select(self, positions: Tensor) -> "Samples":
        """The view of `positions` (int64 or bool mask over this view)."""
        return replace(
            self,
            rows=self.rows[positions],
            labels=self.labels[positions],
            clean_labels=self.clean_labels[positions],
            targets=self.targets[positions],
        )

    def of_classes(self, classes: Tensor | list[int]) -> "Samples":
        """The samples whose label is one of `classes`, in the order of this view."""
        wanted = torch.as_tensor(classes, device=self.labels.device)
        return self.select(torch.isin(self.labels, wanted).nonzero().squeeze(1))

    def with_targets(self, targets: Tensor) -> "Samples":
        """The same samples with other targets."""
        return replace(self, targets=targets)

    def with_transform(self, transform: BatchTransform) -> "Samples":
        """The same samples with one more transform of each batch."""
        return replace(self, transforms=(*self.transforms, transform))

    def fixed_order(self) -> Tensor | None:
        """Positions int64 [n] of this view in the order of presentation, the same in each epoch; None = random."""
        return None if self.presentation is None else self.presentation.positions(self.rows, self.ids)

    def gather(self, positions: Tensor, epoch: int | None = None) -> Batch:
        """One batch of the samples at `positions` of this view, at least one."""
        return next(self.batches(len(positions), order=positions, epoch=epoch))

    def batches(
        self, size: int, order: Tensor | None = None, epoch: int | None = None, start: int = 0
    ) -> Iterator[Batch]:
        """Batches of `size` samples, the last one ragged.

        Args:
            size: samples in a batch.
            order: int64 positions in this view; the view's own order by default.
            epoch: key of the augmentation (epochs completed by the run); None = no augmentation.
            start: number of leading batches to leave out, as on a resume.
        """
        rows, targets = (self.rows, self.targets) if order is None else (self.rows[order], self.targets[order])
        rows, targets = rows[start * size :], targets[start * size :]
        if len(rows) == 0:
            return
        ids = self.source.ids[rows]
        inputs = self.source.stream(rows, size)
        weights = None if self.presentation is None else self.presentation.weights_of(rows)
        weight = iter(() if weights is None else weights.split(size))
        for x, y, i in zip(inputs, targets.split(size), ids.split(size), strict=True):
            if epoch is not None and self.augmentation is not None:
                x = self.augmentation(x, i, epoch)
            for transform in self.transforms:
                x = transform(x, i)
            yield Batch(x, y, i, next(weight, None))

    def blocks(self, size: int, steps: int, order: Tensor, epoch: int | None = None, start: int = 0) -> Iterator[Batch]:
        """Batches as in `batches`, gathered `steps` at a time: [n, size, ...], n <= steps; a ragged last [1, b, ...].

        Gathering many small batches at once costs little more than gathering one; each sample is the same.
        """
        whole = len(order) // size * size
        for batch in self.batches(size * steps, order[start * size : whole], epoch):
            yield batch.each(lambda tensor: tensor.unflatten(0, (-1, size)))
        if whole < len(order) and start * size <= whole:
            yield self.gather(order[whole:], epoch).each(lambda tensor: tensor.unsqueeze(0))


@dataclass(frozen=True, eq=False)
class Normalisation:
    """(x - mean) / std per channel or feature; `scale` divides raw values first (255 for bytes)."""

    mean: Tensor
    std: Tensor
    scale: float = 1.0

    def __call__(self, raw: Tensor) -> Tensor:
        """Normalised float32 of raw [b, ...]; mean and std broadcast against one input."""
        return raw.to(torch.float32).div_(self.scale).sub_(self.mean).div_(self.std)


class ArraySource:
    """Inputs that lie on the device as one tensor (uint8 or float)."""

    def __init__(self, inputs: Tensor, ids: Tensor, normalisation: Normalisation | None = None) -> None:
        """Keep `inputs` [n, ...]; float inputs are normalised once, here, bytes batch by batch."""
        if normalisation is not None and inputs.dtype != torch.uint8:
            inputs, normalisation = normalisation(inputs.clone()), None
        self.inputs, self._ids, self.normalisation = inputs, ids, normalisation

    @property
    def ids(self) -> Tensor:
        """Ids int64 [n]."""
        return self._ids

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return tuple(self.inputs.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where batches appear."""
        return self.inputs.device

    def __len__(self) -> int:
        return len(self.inputs)

    def stream(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Normalised inputs of `rows`, `size` at a time."""
        for some in rows.split(size):
            raw = self.inputs.index_select(0, some)
            yield raw if self.normalisation is None else self.normalisation(raw)


@dataclass(frozen=True, eq=False, kw_only=True)
class DataSet:
    """What a data component loads: three views and what is known about them.

    Attributes:
        train: without the validation samples.
        validation: None when no share was asked for.
        test: evaluated clean unless `data.augment_test`.
        num_classes: K; labels are 0..K-1. 0 where the targets are not classes.
        class_names: K names, or empty.
        coarse_classes: int64 [K], the coarse class of each class, or None.
        loss: what these targets are learnt with.
        normalisation: mean and std in use, stored with the run.
        description: plain numbers and strings for run.json (counts, label hash, id kind, normalisation).
    """

    train: Samples
    validation: Samples | None
    test: Samples
    num_classes: int
    class_names: tuple[str, ...] = ()
    coarse_classes: Tensor | None = None
    loss: Loss = Loss.cross_entropy
    normalisation: Normalisation | None = None
    description: dict[str, object]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.train.input_shape

    @property
    def outputs(self) -> int:
        """Outputs a network needs for the targets as they are: one per class, or one per real or multi-hot value."""
        targets = self.train.targets
        return self.num_classes or (targets.shape[1] if targets.ndim > 1 else 1)


class DataConfig(Protocol):
    """A component of the config group `data`: a dataclass of settings that loads its samples."""

    def load(self, seed: int, device: torch.device) -> DataSet:
        """Read the samples; raises DataError with what to do when they are missing or damaged."""
