"""How a task's samples come from those of the data set: every sample changed, or the samples of some classes."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from plastiscope.data.samples import DataSet, Samples
from plastiscope.error import ConfigError
from plastiscope.measure.keyed import named_seed
from plastiscope.measure.loss import Loss
from plastiscope.task_shift_mode.task import Task


def classes_of(data: DataSet) -> tuple[int, ...]:
    """All classes of the data, 0..K-1.

    Raises:
        ConfigError: the data have fewer than two, as data of a regression do.
    """
    if data.num_classes < 2:
        raise ConfigError(f"this task_shift_mode needs data of two classes or more, these have {data.num_classes}")
    return tuple(range(data.num_classes))


def any_classes_of(data: DataSet) -> tuple[int, ...]:
    """All classes of the data; none where the targets are not classes."""
    return classes_of(data) if data.num_classes else ()


def presentation_order(given: list[int] | None, data: DataSet, seed: int) -> tuple[int, ...]:
    """The classes in the order of their presentation: as given, or a permutation of all drawn from the seed.

    Raises:
        ConfigError: the given ones are not distinct classes of the data.
    """
    classes = classes_of(data)
    if given is None:
        return tuple(np.random.default_rng(named_seed(seed, "class_order")).permutation(len(classes)).tolist())
    if len(set(given)) < len(given) or not set(given) <= set(classes):
        raise ConfigError(
            f"task_shift_mode.class_order={given}: must be distinct classes of the data, 0 to {len(classes) - 1}"
        )
    return tuple(given)


def presented(samples: Samples, selected: Sequence[int], classes: Sequence[int]) -> Samples:
    """The samples of the classes `selected`; their targets are the positions of their labels in `classes`.

    Where the data's targets are one-hot rows, so are these, over the positions.
    """
    some = samples.of_classes(list(selected))
    position = torch.full((max(classes) + 1,), -1, device=some.labels.device)
    position[list(classes)] = torch.arange(len(classes), device=some.labels.device)
    targets = position[some.labels]
    one_hot = samples.targets.ndim == 2
    return some.with_targets(F.one_hot(targets, len(classes)).float() if one_hot else targets)


def unchanged(samples: Samples) -> Samples:
    """The samples themselves."""
    return samples


def task_of_all(
    data: DataSet,
    k: int,
    change: Callable[[Samples], Samples],
    *,
    classes: tuple[int, ...],
    outputs: int,
    loss: Loss | None = None,
    numbers: dict[str, float] | None = None,
) -> Task:
    """Task k of all samples, training, validation and test samples changed alike; learnt as the data say by default."""
    train, test = change(data.train), change(data.test)
    return Task(
        index=k,
        train=train,
        validation=None if data.validation is None else change(data.validation),
        test=test,
        new_train=train,
        new_test=test,
        classes=classes,
        active_outputs=outputs,
        loss=loss or data.loss,
        numbers=numbers or {},
    )
