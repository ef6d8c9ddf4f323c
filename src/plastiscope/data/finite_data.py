"""What all data sets of files or arrays share: their settings, and how raw splits become a `DataSet`."""

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from plastiscope.data.augmentation import AugmentationKind, make_augmentation
from plastiscope.data.normalisation import NormalisationKind, automatic, constants
from plastiscope.data.order import LossWeighting, Order, Presentation, WeightedBy, make_presentation
from plastiscope.data.partition import noisy_labels, rank_in_class, validation_mask
from plastiscope.data.raw_data import RawData, ResizedSource, Split
from plastiscope.data.samples import DataSet, Normalisation, Samples, Source
from plastiscope.error import ConfigError, DataError, require
from plastiscope.formats.memorization import IdKind, read_memorization
from plastiscope.measure.loss import Loss


class TargetKind(Enum):
    """What the loss sees."""

    class_index = "class_index"
    one_hot = "one_hot"
    """Rows of num_classes floats."""
    multi_hot = "multi_hot"
    """Rows of zeros and ones, any number of ones; only from `arrays`."""
    real = "real"
    """Real values, one or several a sample; only from `arrays`."""


LOSSES = {
    TargetKind.class_index: Loss.cross_entropy,
    TargetKind.one_hot: Loss.cross_entropy,
    TargetKind.multi_hot: Loss.binary_cross_entropy,
    TargetKind.real: Loss.mse,
}
"""What each kind of targets is learnt with."""


@dataclass(kw_only=True)
class FiniteData(ABC):
    """Settings of every data set that has a training and a test split."""

    PUBLISHED: ClassVar[tuple[tuple[float, ...], tuple[float, ...]] | None] = None
    """Published mean and std per channel, of values divided by the scale."""
    TARGETS: ClassVar[tuple[TargetKind, ...]] = (TargetKind.class_index, TargetKind.one_hot)
    """Targets that these data can have."""

    validation_share: float = 0.1
    """The first training samples of each class in file order, this share of it, are for validation; their ids stay."""
    validation_per_class: int | None = None
    """So many of each class instead of a share."""
    samples_per_class: int | None = None
    """Train on the first so many samples of each class (after those for validation); null = all."""
    test_samples_per_class: int | None = None
    """Test on the first so many samples of each class; null = all, 0 = no test."""
    normalisation: NormalisationKind = NormalisationKind.published
    """published, auto (from the training samples) or none; mean and std, if given, come first."""
    mean: list[float] | None = None
    """Given mean per channel or feature, of values divided by 255 (bytes) or 16 (digits); needs std."""
    std: list[float] | None = None
    """Given standard deviation; needs mean."""
    augmentation: AugmentationKind = AugmentationKind.none
    """none, crop_flip or incremental_cifar; drawn per sample and epoch, in training only."""
    augment_test: bool = False
    """Give the test samples the augmentation too, as published code did (evaluation then passes the epoch as key)."""
    label_noise: float = 0.0
    """Share of training samples whose label is moved to another class; both labels are kept."""
    resize: int | None = None
    """Pixels a side the network gets, by bilinear interpolation before any augmentation; null = as they are."""
    targets: TargetKind = TargetKind.class_index
    """class_index or one_hot."""
    ids_file: str | None = None
    """A .npy of int [n]: the official id of each training row, -1 where unknown; null = the row is the id."""
    order: Order = Order.random
    """Order of presentation: random, or by score: low_to_high, high_to_low, alternating_hardest_easiest, middle_out."""
    scores_file: str | None = None
    """Scores of training samples by id (memorization, CSL) for such an order or for weights; npy, npz, CSV or JSON."""
    loss_weighting: LossWeighting = field(default_factory=LossWeighting)
    """Weights of the samples in the loss, by score."""

    def __post_init__(self) -> None:
        require(0 <= self.validation_share < 1, "validation_share", self.validation_share, "must be in [0, 1)")
        per_class = self.validation_per_class
        require(per_class is None or per_class >= 0, "validation_per_class", per_class, "must be null, or 0 or more")
        for name, least in (("samples_per_class", 1), ("test_samples_per_class", 0), ("resize", 1)):
            value = getattr(self, name)
            require(value is None or value >= least, name, value, f"must be null, or {least} or more")
        require((self.mean is None) == (self.std is None), "mean", self.mean, "must be given together with std")
        require(0 <= self.label_noise <= 1, "label_noise", self.label_noise, "must be in [0, 1]")
        names = " or ".join(kind.name for kind in self.TARGETS)
        require(self.targets in self.TARGETS, "targets", self.targets.name, f"must be {names} for these data")
        by = self.loss_weighting.by
        scored = self.order is not Order.random or by is not WeightedBy.nothing
        chosen = f"order={self.order.name} and loss_weighting.by={by.name}"
        what = f"must name a file of scores for {chosen}" if scored else f"is of no use with {chosen}; leave it out"
        require(scored == (self.scores_file is not None), "scores_file", self.scores_file, what)

    @abstractmethod
    def read(self, device: torch.device) -> RawData:
        """Read the files; raises DataError with what to do when they are missing or damaged."""

    def published(self, raw: Source, rows: Tensor, scale: float) -> Normalisation:
        """The normalisation that publications use; `rows` of `raw` are the training samples, if it needs them."""
        if self.PUBLISHED is None:
            raise ConfigError("normalisation=published: these data have none; take auto or none, or give mean and std.")
        return constants(*self.PUBLISHED, scale, raw.input_shape, raw.device)

    def load(self, seed: int, device: torch.device) -> DataSet:
        """The data set under these settings; raises DataError and ConfigError."""
        kept: dict[torch.device, Opened] = self.__dict__.setdefault("_opened", {})
        if device not in kept:  # runs of several seeds that advance together share the inputs
            kept[device] = open_raw(self, self.read(device), device)
        return of_seed(self, kept[device], seed, device)


def _check_labels(split: Split, num_classes: int, name: str) -> None:
    if len(split) == 0:
        if name == "test":  # a run without a test has no test accuracy
            return
        raise DataError(f"The {name} split has no samples.")
    if split.labels is not None and not 0 <= split.labels.min() <= split.labels.max() < num_classes:
        raise DataError(
            f"Labels of the {name} split go from {split.labels.min()} to {split.labels.max()}, and with {num_classes} "
            f"classes they must be 0 to {num_classes - 1}; check the files."
        )


def _kept_rows(settings: FiniteData, raw: RawData) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of training, validation and test; without classes all samples count as one class."""
    groups, test_groups = (
        np.zeros(len(split), dtype=np.int64) if split.labels is None else split.labels
        for split in (raw.train, raw.test)
    )
    validation = validation_mask(groups, settings.validation_share, settings.validation_per_class)
    rows = np.flatnonzero(~validation)
    missing = sorted(set(np.unique(groups)) - set(np.unique(groups[rows])))
    if missing:
        raise ConfigError(
            f"no training samples of class {missing[0]} are left beside those for validation; it has "
            f"{(groups == missing[0]).sum()}: lower data.validation_per_class or data.validation_share."
        )
    if settings.samples_per_class is not None:
        rows = rows[rank_in_class(groups[rows]) < settings.samples_per_class]
    test_rows = np.arange(len(test_groups))
    if settings.test_samples_per_class is not None:
        test_rows = np.flatnonzero(rank_in_class(test_groups) < settings.test_samples_per_class)
    return rows, np.flatnonzero(validation), test_rows


def _training_ids(ids_file: str | None, raw: RawData) -> np.ndarray:
    """Ids of the training rows; unknown ones become -1 - row, so that each sample keeps random numbers of its own."""
    count = len(raw.train)
    if ids_file is None:
        return np.arange(count) if raw.train_ids is None else raw.train_ids
    try:
        ids = np.load(ids_file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"data.ids_file={ids_file} cannot be read as a .npy of integers ({error}).") from error
    if not isinstance(ids, np.ndarray) or ids.shape != (count,) or ids.dtype.kind not in "iu":
        shape = getattr(ids, "shape", "no array")
        raise DataError(f"data.ids_file={ids_file} must hold {count} integers, one a training row; it has {shape}.")
    ids = ids.astype(np.int64)
    known = ids[ids >= 0]
    if len(np.unique(known)) != len(known):
        raise DataError(f"data.ids_file={ids_file} gives one id to several rows; ids must be unique.")
    return np.where(ids >= 0, ids, -1 - np.arange(count))


def _normalisation(settings: FiniteData, raw: Source, rows: Tensor, scale: float) -> Normalisation:
    if settings.mean is not None and settings.std is not None:
        return constants(settings.mean, settings.std, scale, raw.input_shape, raw.device)
    if settings.normalisation is NormalisationKind.auto:
        return automatic(raw.stream(rows, 2048), scale)
    if settings.normalisation is NormalisationKind.none:
        return constants([0.0], [1.0], scale, raw.input_shape, raw.device)
    return settings.published(raw, rows, scale)


def _sources(
    settings: FiniteData, raw: RawData, rows: np.ndarray, device: torch.device
) -> tuple[Source, Source, Normalisation]:
    """The normalised training and test inputs."""
    ids = torch.from_numpy(_training_ids(settings.ids_file, raw)).to(device)
    unnormalised = raw.train.open(ids, None)
    normalisation = _normalisation(settings, unnormalised, torch.from_numpy(rows).to(device), raw.scale)
    train = raw.train.open(ids, normalisation)
    test = raw.test.open(torch.arange(len(raw.test), device=device), normalisation)
    if settings.resize is None:
        return train, test, normalisation
    if len(train.input_shape) != 3:
        raise ConfigError(f"resize={settings.resize}: needs images, and one input here has shape {train.input_shape}.")
    return ResizedSource(train, settings.resize), ResizedSource(test, settings.resize), normalisation


def _view(
    split: Split, source: Source, name: str, rows: np.ndarray, told: np.ndarray | None, one_hot: int | None
) -> Samples:
    """The samples `rows` of a split; `told` are the labels after noise, `one_hot` the number of classes or None."""
    positions = torch.from_numpy(rows).to(source.device)
    if split.labels is None or told is None:
        assert split.targets is not None
        empty = torch.empty((len(rows), 0), dtype=torch.int64, device=source.device)
        targets = split.targets[positions]
        return Samples(source=source, split=name, rows=positions, labels=empty, clean_labels=empty, targets=targets)
    labels = torch.from_numpy(told).to(source.device)
    return Samples(
        source=source,
        split=name,
        rows=positions,
        labels=labels,
        clean_labels=torch.from_numpy(split.labels[rows]).to(source.device),
        targets=labels if one_hot is None else F.one_hot(labels, one_hot).to(torch.float32),
    )


def _presentation(settings: FiniteData, raw: RawData, ids: Tensor) -> Presentation | None:
    """In which order and with which weights the training rows, with `ids`, are presented; None as usual.

    Raises:
        DataError: scores by position, and not one for each row.
    """
    if settings.scores_file is None:
        return None
    scores = read_memorization(settings.scores_file, raw.train_files or None)
    rows_are_ids = settings.ids_file is None
    if rows_are_ids and scores.id_kind is IdKind.official_order and len(scores.ids) != len(ids):
        raise DataError(
            f"data.scores_file={scores.source} holds {len(scores.ids)} scores by position, and these data have "
            f"{len(ids)} training samples: these are scores of other data. If the data are a part of those, let "
            "data.ids_file say which."
        )
    labels = None if raw.train.labels is None else torch.from_numpy(raw.train.labels)
    if scores.id_kind is IdKind.file_name:  # then the row is the id, and classes may be numbered in another way
        ids, labels = torch.arange(len(ids), device=ids.device), None
    return make_presentation(settings.order, settings.loss_weighting, scores, ids, labels)


def _description(settings: FiniteData, raw: RawData, ids: Tensor, normalisation: Normalisation) -> dict[str, object]:
    told = raw.train.targets if raw.train.labels is None else torch.from_numpy(raw.train.labels)
    assert told is not None
    return {
        "data": type(settings).__name__,
        "file_train": len(raw.train),
        "file_test": len(raw.test),
        "num_classes": raw.num_classes,
        "label_hash": hashlib.sha256(told.cpu().numpy().tobytes()).hexdigest(),
        "id_kind": "row" if settings.ids_file is None else "ids_file",
        "ids_known": int((ids >= 0).sum()),
        "mean": normalisation.mean.flatten().tolist(),
        "std": normalisation.std.flatten().tolist(),
        "scale": normalisation.scale,
    }


@dataclass(frozen=True, eq=False)
class Opened:
    """What is the same for every seed: raw data, rows of training, validation and test, normalised inputs."""

    raw: RawData
    rows: tuple[np.ndarray, np.ndarray, np.ndarray]
    train: Source
    test: Source
    normalisation: Normalisation


def open_raw(settings: FiniteData, raw: RawData, device: torch.device) -> Opened:
    """Check what was read, choose the rows, normalise the inputs.

    Raises:
        DataError: no samples, or labels out of range.
        ConfigError: settings that these data cannot meet.
    """
    _check_labels(raw.train, raw.num_classes, "training")
    _check_labels(raw.test, raw.num_classes, "test")
    if settings.label_noise and (raw.train.labels is None or raw.num_classes < 2):
        raise ConfigError(f"label_noise={settings.label_noise}: needs class labels of at least two classes.")
    rows = _kept_rows(settings, raw)
    return Opened(raw, rows, *_sources(settings, raw, rows[0], device))


def of_seed(settings: FiniteData, opened: Opened, seed: int, device: torch.device) -> DataSet:
    """Training, validation and test samples: ids, normalised inputs, label noise, augmentation.

    Args:
        settings: what the user asked for.
        opened: what was read.
        seed: of the run; keys label noise and augmentation.
        device: where batches appear.
    """
    raw, train_source, test_source, normalisation = opened.raw, opened.train, opened.test, opened.normalisation
    rows, validation_rows, test_rows = opened.rows
    one_hot = raw.num_classes if settings.targets is TargetKind.one_hot else None

    def view(split: Split, source: Source, name: str, rows: np.ndarray, noise: float = 0.0) -> Samples:
        told = None if split.labels is None else noisy_labels(split.labels[rows], noise, raw.num_classes, seed)
        return _view(split, source, name, rows, told, one_hot)

    train = view(raw.train, train_source, "train", rows, settings.label_noise)
    test = view(raw.test, test_source, "test", test_rows)
    validation = view(raw.train, train_source, "validation", validation_rows) if len(validation_rows) else None
    shape = train.input_shape
    presentation = _presentation(settings, raw, train_source.ids)
    augmentation = make_augmentation(settings.augmentation, seed, "train", shape)
    train = replace(train, augmentation=augmentation, presentation=presentation)
    if settings.augment_test:
        test = replace(test, augmentation=make_augmentation(settings.augmentation, seed, "test", shape))
    numbers = {"train": len(train), "validation": len(validation_rows), "test": len(test)}
    numbers["noisy_labels"] = int((train.labels != train.clean_labels).sum())
    about = _description(settings, raw, train_source.ids, normalisation)
    about |= {} if presentation is None else presentation.description()
    return DataSet(
        train=train,
        validation=validation,
        test=test,
        num_classes=raw.num_classes,
        loss=LOSSES[settings.targets],
        class_names=raw.class_names,
        coarse_classes=None if raw.coarse_classes is None else torch.from_numpy(raw.coarse_classes).to(device),
        normalisation=normalisation,
        description=numbers | about,
    )
