"""Regression on class values that drift: class i has the target v_i, which begins at i and moves with every task.

A move: v += N(0, std^2) in each entry; neighbours closer than the gap repel each other; all are brought within the
bounds. v moves once for task 0 too, before it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError, require
from plastiscope.measure.keyed import named_seed
from plastiscope.measure.loss import Loss
from plastiscope.task_shift_mode.evolution import Evolution
from plastiscope.task_shift_mode.task import Task, TaskShift
from plastiscope.task_shift_mode.views import classes_of, task_of_all

Values = npt.NDArray[np.float64]


@dataclass(kw_only=True)
class DriftingValues:
    """All samples in every task; one output, mean squared error against the value of the sample's class."""

    std: float = 0.05
    """Standard deviation of a value's random step."""
    repulsion: float = 0.05
    """Strength: share of (overlap + min_gap) by which two values that are too close move apart in a sweep."""
    min_gap: float = 0.2
    """Smallest distance of neighbouring values."""
    lower: float = -20.0
    """Lower bound of the values."""
    upper: float = 20.0
    """Upper bound of the values."""

    def __post_init__(self) -> None:
        for name in ("std", "repulsion", "min_gap"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        require(self.lower < self.upper, "lower", self.lower, f"must be less than upper={self.upper}")

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data; ConfigError when values so far apart do not fit between the bounds."""
        if (data.num_classes - 1) * self.min_gap >= self.upper - self.lower:
            raise ConfigError(
                f"task_shift_mode: {data.num_classes} values, min_gap={self.min_gap} apart, do not fit between "
                f"lower={self.lower} and upper={self.upper}; widen the bounds or lower min_gap"
            )
        return DriftingValuesTasks(data, self, seed)


def repelled(values: Values, gap: float, strength: float) -> Values:
    """Values after repulsion.

    Up to 4 K sweeps over neighbours in order: where v_i >= v_{i+1} - gap, with o = v_i - v_{i+1} + gap, both move
    (o + gap) / 2 * strength apart. Where that does not suffice they are sorted and spaced.
    """
    v = values.tolist()
    for _ in range(4 * len(v)):
        settled = True
        for i in range(len(v) - 1):
            overlap = v[i] - (v[i + 1] - gap)
            if overlap >= 0:
                settled = False
                half = (overlap + gap) / 2 * strength
                v[i] -= half
                v[i + 1] += half
        if settled:
            break
    return spaced(np.array(v), gap)


def spaced(values: Values, gap: float) -> Values:
    """Values in ascending order, neighbours at least `gap` apart; unchanged where they are already."""
    if np.all(values[:-1] <= values[1:] - gap):
        return values
    v = np.sort(values)
    for i in range(1, len(v)):
        v[i] = max(v[i], v[i - 1] + gap)
    return v


def within_bounds(values: Values, gap: float, lower: float, upper: float) -> Values:
    """Ascending values between the bounds, neighbours still at least `gap` apart.

    A span of more than upper - lower - (K - 1) gap is compressed to that about the centre, which leaves room to space
    the values again; then all are shifted.
    """
    span, room = values[-1] - values[0], upper - lower - (len(values) - 1) * gap
    if span > room:
        centre = (values[0] + values[-1]) / 2
        values = spaced(centre + (values - centre) * (room / span), gap)
    return values + max(lower - values[0], 0.0) - max(values[-1] - upper, 0.0)


class DriftingValuesTasks(TaskShift):
    """Any number of moves."""

    outputs = 1
    num_tasks_possible = None

    def __init__(self, data: DataSet, config: DriftingValues, seed: int) -> None:
        """Tasks of `data`."""
        self.data, self.config, self.seed = data, config, seed
        self._moved = Evolution(np.arange(len(classes_of(data)), dtype=np.float64), self._move)

    def values(self, k: int) -> Values:
        """float64 [K]: the target of each class in task k, after k + 1 moves."""
        return self._moved(k + 1)

    def task(self, k: int) -> Task:
        """Task k; its numbers are the values."""
        values = self.values(k)
        table = torch.from_numpy(values).to(self.data.train.labels.device, torch.float32)
        return task_of_all(
            self.data,
            k,
            lambda s: s.with_targets(table[s.labels]),
            classes=(),
            outputs=1,
            loss=Loss.mse,
            numbers={f"label_{i}_value": float(v) for i, v in enumerate(values)},
        )

    def _move(self, values: Values, n: int) -> Values:
        config = self.config
        rng = np.random.default_rng(named_seed(self.seed, "drifting_values", n))
        values = repelled(values + rng.normal(0.0, config.std, len(values)), config.min_gap, config.repulsion)
        return within_bounds(values, config.min_gap, config.lower, config.upper)
