"""Published values of the experiments of Dohare et al. (Nature 632, 2024), read off their figures, as reference marks.

They are good to about 0.2 points (errors of regression: 0.01). Each belongs to an arm: to the settings of a preset,
`experiment=<study>_as_published`, with a few changes where a figure varies them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class PublishedArm:
    """Values of one curve.

    Attributes:
        preset: of configs/experiment, whose settings the values belong to; "" = a line for all runs.
        data, learner: of the preset; runs with these are of its kind, though their other settings may differ.
        points: values that stand at a place.
        bounds: the same of values that are known to lie below y.
        lines: values by their label in the legend whose place is not known, or that have none.
        changes: settings that are other than those of the preset.
        needs: settings, besides data and learner, that must be known of a run: they tell the arms apart.
        also: other values of settings that are as good, because the published code does something of both.
        only: groups of settings that count; none = all. The values are then of no curve, but lines for all of them.
    """

    preset: str
    data: str
    learner: str
    points: Sequence[tuple[float, float]] = ()
    bounds: Sequence[tuple[float, float]] = ()
    lines: Mapping[str, float] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)
    needs: Sequence[str] = ()
    also: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    only: Sequence[str] = ()

    @property
    def is_of_curve(self) -> bool:
        """Whether the values are those of a curve; else they are lines for a whole picture."""
        return bool(self.preset) and not self.only


def _preset(study: str, learner: str) -> str:
    return f"{study}_as_published" + ("" if learner == "backprop" else f"/{learner}")


def _cifar(places: Sequence[float], values: Mapping[str, Sequence[float | None]]) -> list[PublishedArm]:
    """Arms of incremental CIFAR-100, at the same places.

    The published code goes on with the weights of the best validation accuracy, and shows the best test accuracy.
    """
    return [
        PublishedArm(
            _preset("incremental_cifar", learner), "cifar100", learner,
            [(x, y) for x, y in zip(places, row, strict=True) if y is not None],
            also={"task_shift_mode.initial_classes": (None, 5)},
        )
        for learner, row in values.items()
    ]  # fmt: skip


BEST_TEST_ACCURACY = _cifar(
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
    *_cifar(
        (15, 100),
        {
            "backprop": (2.4, -5.0),
            "head_reset": (2.3, -2.4),
            "shrink_and_perturb": (2.2, -1.5),
            "continual_backprop": (2.4, 0.1),
        },
    ),
    PublishedArm("", "", "", lines={"retrained network": 0.0}),
]
"""Points above the retrained network, over the classes seen; the first place is where most arms have their peak."""
NEXT_TASK_DORMANT = _cifar(
    (20,), {"backprop": (56.0,), "head_reset": (41.0,), "shrink_and_perturb": (7.5,), "continual_backprop": (1.5,)}
)
"""Per cent of units, before a task is learnt, by its number from 1."""
STABLE_RANK = _cifar(
    (1, 20),
    {
        "backprop": (95.6, 75.3),
        "head_reset": (None, 89.6),
        "shrink_and_perturb": (None, 89.4),
        "continual_backprop": (None, 92.7),
    },
)
"""Per cent of the last layer's width, before a task is learnt, by its number from 1."""


def _pairs(learner: str, *points: tuple[float, float], **more: Any) -> PublishedArm:
    """An arm of continual ImageNet."""
    preset = _preset("continual_imagenet", learner)
    return PublishedArm(preset, "imagenet32", learner, points, needs=("learner.lr",), **more)


BINNED_ACCURACY = [
    _pairs("backprop", (1, 89.4), (50, 84.3), (2000, 74.0), lines={"published, highest bin of lr 0.01": 85.3}),
    _pairs("backprop", (50, 83.3), (2000, 78.7), changes={"learner.lr": 0.001}),
    _pairs("backprop", (2000, 78.3), bounds=[(50, 70.0)], changes={"learner.lr": 0.0001}),
    _pairs("continual_backprop", (50, 84.4), (5000, 90.5)),
    _pairs("l2", (50, 85.2), (5000, 89.2)),
    _pairs("shrink_and_perturb", (50, 84.3), (5000, 89.2)),
    _pairs("backprop", lines={"published, linear network": 77.1}, only=("data", "task_shift_mode", "epochs")),
]
"""Per cent after a task's last epoch, mean of 50 tasks, over tasks; at 1 stands the first task alone."""
_TASK, _ALL = 60_000, 48_000_000


def _online(*points: tuple[float, float], bounds: Sequence[tuple[float, float]] = (), **changes: Any) -> PublishedArm:
    """An arm of online permuted MNIST; `changes` are lr, width, and examples of a task."""
    found: dict[str, Any] = {"learner.lr": changes.get("lr", 0.003)}
    if "width" in changes:
        found["net.widths"] = "[{0}, {0}, {0}]".format(changes["width"])
    if "examples" in changes:
        found |= {
            "task_shift_mode.examples_per_task": changes["examples"],
            "online.bin_size": max(_TASK, changes["examples"]),
        }
    needs = ("learner.lr", "net.widths", "task_shift_mode.examples_per_task")
    preset = _preset("permuted_mnist", "backprop")
    return PublishedArm(preset, "mnist", "backprop", points, bounds, changes=found, needs=needs)


ONLINE_ACCURACY = [
    _online((_TASK, 95.2), (_ALL, 93.7)),
    _online((_TASK, 94.8), (_ALL, 94.0), lr=0.001),
    _online((_TASK, 94.7), (_ALL, 90.2), lr=0.01),
    _online((150 * _TASK, 95.8), width=10_000),
    _online((150 * _TASK, 93.7), width=1000),
    _online((_TASK, 93.3), bounds=[(150 * _TASK, 88.0)], width=100),
    _online((1_000_000, 99.2), (_ALL, 98.8), examples=1_000_000),
    _online((100_000, 95.9), (_ALL, 92.9), examples=100_000),
    _online((_TASK, 88.7), bounds=[(10_000_000, 85.0)], examples=10_000),
]
"""Per cent, over examples: means of 60,000, or of a task where that is longer (no first 60,000 examples are learnt to
99 %). The first value of an arm is its start or its peak."""


def _regression(activation: str, lr: float, first: float, last: float, **more: Any) -> PublishedArm:
    """An arm of slowly changing regression."""
    return PublishedArm(
        _preset("slowly_changing_regression", "backprop"), "bit_flipping", "backprop",
        [(20_000, first), (1_000_000, last)], changes={"learner.lr": lr, "net.activation": activation},
        needs=("learner.lr", "net.activation", "net.widths", "task_shift_mode.flip"), **more,
    )  # fmt: skip


BINNED_ERROR = [
    _regression("relu", 0.01, 0.62, 1.25),
    _regression("relu", 0.003, 0.71, 1.08),
    _regression("relu", 0.001, 0.84, 0.87, lines={"published, lowest bin of relu, lr 0.001": 0.72}),
    _regression("tanh", 0.01, 0.43, 0.89),
    _regression("tanh", 0.003, 0.60, 0.92),
    _regression("tanh", 0.001, 0.80, 0.84),
    PublishedArm(
        _preset("slowly_changing_regression", "backprop"), "bit_flipping", "backprop",
        lines={"published, linear learner": 0.88}, needs=("task_shift_mode.flip",), only=("data", "task_shift_mode"),
    ),
]  # fmt: skip
"""Squared error, mean of 20,000 steps, over steps."""
