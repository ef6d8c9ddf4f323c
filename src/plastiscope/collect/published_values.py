"""Published values of the experiments of Dohare et al. (Nature 632, 2024), read off their figures, as reference marks.

They are good to about 0.2 points (errors of regression: 0.01). A mark belongs to a group of runs whose settings match.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from plastiscope.collect.settings import Settings, matches


@dataclass(frozen=True)
class PublishedValue:
    """One value.

    Attributes:
        x: on the axis of the figure; None = along all of it.
        y: in its unit.
        settings: of runs that it is to be compared with; none = of no run, a line for all.
        is_bound: it is known to lie below y.
        label: of a line.
    """

    x: float | None
    y: float
    settings: Mapping[str, str]
    is_bound: bool = False
    label: str = ""

    def is_of(self, settings: Settings) -> bool:
        """Whether it is to be compared with runs of these settings."""
        return bool(self.settings) and matches(settings, self.settings)


def _of(settings: Mapping[str, str], *points: tuple[float | None, float]) -> list[PublishedValue]:
    return [PublishedValue(x, y, settings) for x, y in points]


def _arms(places: Sequence[float], values: Mapping[str, Sequence[float | None]]) -> list[PublishedValue]:
    """Values of each learner on incremental CIFAR-100, at the same places."""
    return [
        PublishedValue(x, y, {"learner": learner, "data": "cifar100"})
        for learner, row in values.items()
        for x, y in zip(places, row, strict=True)
        if y is not None
    ]


BEST_TEST_ACCURACY = _arms(
    (5, 50, 100),
    {
        "backprop": (89.4, 80.9, 71.1),
        "head_reset": (89.9, 80.9, 73.7),
        "shrink_and_perturb": (89.3, 80.9, 74.5),
        "continual_backprop": (89.0, 81.5, 76.1),
        "retrained": (89.6, 81.2, 76.1),
    },
)
"""Per cent, over the classes seen; the largest of a task's 200 epochs, on augmented test images."""
RELATIVE_ACCURACY = [
    *_arms(
        (15, 100),
        {
            "backprop": (2.4, -5.0),
            "head_reset": (2.3, -2.4),
            "shrink_and_perturb": (2.2, -1.5),
            "continual_backprop": (2.4, 0.1),
        },
    ),
    PublishedValue(None, 0.0, {}, label="retrained network"),
]
"""Points above the retrained network, over the classes seen."""
NEXT_TASK_DORMANT = _arms(
    (20,), {"backprop": (56.0,), "head_reset": (41.0,), "shrink_and_perturb": (7.5,), "continual_backprop": (1.5,)}
)
"""Per cent of units, before a task is learnt, by its number from 1."""
STABLE_RANK = _arms(
    (1, 20),
    {
        "backprop": (95.6, 75.3),
        "head_reset": (None, 89.6),
        "shrink_and_perturb": (None, 89.4),
        "continual_backprop": (None, 92.7),
    },
)
"""Per cent of the last layer's width, before a task is learnt, by its number from 1."""
_PAIRS = {"data": "imagenet32", "task_shift_mode": "binary_pairs"}
_PLAIN_PAIRS = _PAIRS | {"learner": "backprop", "net": "convnet"}
BINNED_ACCURACY = [
    *_of(_PLAIN_PAIRS | {"learner.lr": "0.01"}, (50, 84.3), (2000, 74.0)),
    *_of(_PLAIN_PAIRS | {"learner.lr": "0.001"}, (50, 83.3), (2000, 78.7)),
    *_of(_PLAIN_PAIRS | {"learner.lr": "0.0001"}, (2000, 78.3)),
    PublishedValue(50, 70.0, _PLAIN_PAIRS | {"learner.lr": "0.0001"}, is_bound=True),
    *_of(_PAIRS | {"learner": "continual_backprop"}, (50, 84.4), (5000, 90.5)),
    *_of(_PAIRS | {"learner": "l2"}, (50, 85.2), (5000, 89.2)),
    *_of(_PAIRS | {"learner": "shrink_and_perturb"}, (50, 84.3), (5000, 89.2)),
    PublishedValue(None, 77.1, {}, label="published, linear network"),
]
"""Per cent after a task's last epoch, mean of 50 tasks, over tasks; the line is the linear network's."""
_ONLINE = {"data": "mnist", "learner": "backprop", "learner.optimizer": "sgd", "batch_size": "1"}
_WIDE = _ONLINE | {"net.widths": "[2000, 2000, 2000]", "task_shift_mode.examples_per_task": "null"}
_SLOW = _ONLINE | {"learner.lr": "0.003", "task_shift_mode.examples_per_task": "null"}
_TASK = 60_000
ONLINE_ACCURACY = [
    *_of(_WIDE | {"learner.lr": "0.003"}, (_TASK, 95.2), (800 * _TASK, 93.7)),
    *_of(_WIDE | {"learner.lr": "0.001"}, (_TASK, 94.8), (800 * _TASK, 94.0)),
    *_of(_WIDE | {"learner.lr": "0.01"}, (_TASK, 94.7), (800 * _TASK, 90.2)),
    *_of(_SLOW | {"net.widths": "[10000, 10000, 10000]"}, (150 * _TASK, 95.8)),
    *_of(_SLOW | {"net.widths": "[1000, 1000, 1000]"}, (150 * _TASK, 93.7)),
    *_of(_SLOW | {"net.widths": "[100, 100, 100]"}, (_TASK, 93.3)),
    PublishedValue(150 * _TASK, 88.0, _SLOW | {"net.widths": "[100, 100, 100]"}, is_bound=True),
]
"""Per cent, over examples; the first of a setting is its start or its peak."""


def _regression(activation: str, lr: str, first: float, last: float) -> list[PublishedValue]:
    kind = {"learner": "backprop", "learner.optimizer": "sgd", "learner.lr": lr, "net.activation": activation}
    kind |= {"task_shift_mode.flip": "all", "net.widths": "[5]"}
    return _of(kind, (20_000, first), (1_000_000, last))


BINNED_ERROR = [
    *_regression("relu", "0.01", 0.62, 1.25),
    *_regression("relu", "0.003", 0.71, 1.08),
    *_regression("relu", "0.001", 0.84, 0.87),
    *_regression("tanh", "0.01", 0.43, 0.89),
    *_regression("tanh", "0.003", 0.60, 0.92),
    *_regression("tanh", "0.001", 0.80, 0.84),
    PublishedValue(None, 0.88, {}, label="published, linear learner"),
]
"""Squared error, mean of 20,000 steps, over steps; the line is the linear learner's."""
