"""A task tells two classes apart, a new pair a task.

Published: 32x32 ImageNet, 1,000 classes, the head set to zero at each task (Dohare et al. 2024, "Loss of plasticity in
deep continual learning").
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np

from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError
from plastiscope.measure.keyed import named_seed
from plastiscope.task_shift_mode.task import NewHead, Task, TaskShift
from plastiscope.task_shift_mode.views import presentation_order, presented


class Pairs(Enum):
    """Where the pairs come from."""

    fresh = "fresh"
    """Without replacement; when all classes have been used they are shuffled again (an odd one out waits)."""
    tiled = "tiled"
    """One order of the classes, repeated end to end, as published: the same pairs recur."""


@dataclass(kw_only=True)
class BinaryPairs:
    """Two classes a task, labelled 0 and 1."""

    pairs: Pairs = Pairs.fresh
    """fresh or tiled."""
    new_heads: bool = True
    """Set the head's weights and biases to zero when a task begins, the first one included."""
    class_order: list[int] | None = None
    """Classes in the order of presentation (fresh: until used up); null = all, in an order drawn from the seed."""

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data."""
        order = presentation_order(self.class_order, data, seed)
        if len(order) < 2:
            raise ConfigError(f"task_shift_mode.class_order={list(order)}: must be two classes or more")
        return BinaryPairsTasks(data, order, self.pairs, NewHead.zeros if self.new_heads else NewHead.keep, seed)


class BinaryPairsTasks(TaskShift):
    """Any number of pairs."""

    outputs = 2
    num_tasks_possible = None

    def __init__(self, data: DataSet, order: tuple[int, ...], pairs: Pairs, new_head: NewHead, seed: int) -> None:
        """Tasks of `data` whose classes come in `order` at first."""
        self.data, self.order, self.pairs, self.new_head, self.seed = data, order, pairs, new_head, seed

    def pair(self, k: int) -> tuple[int, int]:
        """The two classes of task k; the first is labelled 0."""
        n = len(self.order)
        if self.pairs is Pairs.tiled:
            return self.order[2 * k % n], self.order[(2 * k + 1) % n]
        times_used, i = divmod(k, n // 2)
        order = self.order
        if times_used:
            order = np.random.default_rng(named_seed(self.seed, "binary_pairs", times_used)).permutation(order).tolist()
        return order[2 * i], order[2 * i + 1]

    def task(self, k: int) -> Task:
        """Task k."""
        pair = self.pair(k)
        data = self.data
        train, test = presented(data.train, pair, pair), presented(data.test, pair, pair)
        return Task(
            index=k,
            train=train,
            validation=None if data.validation is None else presented(data.validation, pair, pair),
            test=test,
            new_train=train,
            new_test=test,
            classes=pair,
            active_outputs=2,
            new_head=self.new_head,
            numbers={},
        )
