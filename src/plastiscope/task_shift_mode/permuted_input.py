"""A new permutation of the inputs' entries in every task.

Published: online permuted MNIST, where each permutation is composed with the ones before (Dohare et al. 2024, "Loss of
plasticity in deep continual learning"). Independent and composed permutations are uniform alike. There each task is one
pass over all images; in the study of the rate of change it ends after 10,000, 100,000 or a million presentations.
"""

import math
from dataclasses import dataclass, replace
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plastiscope.data.samples import DataSet, Samples
from plastiscope.data.stream import AsTheyCome, Recurring
from plastiscope.error import ConfigError, require
from plastiscope.measure.keyed import named_seed
from plastiscope.task_shift_mode.evolution import Evolution
from plastiscope.task_shift_mode.task import Task, TaskShift
from plastiscope.task_shift_mode.views import any_classes_of, task_of_all, unchanged


class Permuted(Enum):
    """What changes places."""

    entries = "entries"
    """All entries of an input, across channels and positions."""
    spatial = "spatial"
    """The positions of an image, the channels alike."""


@dataclass(kw_only=True)
class PermutedInput:
    """All samples in every task, their entries permuted."""

    permuted: Permuted = Permuted.entries
    """entries or spatial."""
    compose: bool = False
    """Permute the inputs of the task before, as published; false = each permutation is drawn by itself."""
    first_task_identity: bool = False
    """Leave the inputs of task 0 as they are."""
    examples_per_task: int | None = None
    """Presentations of an epoch, to change faster or slower than after a pass over all samples: fewer are drawn anew
    for each task, without replacement; for more there are several passes, each in a new order. null = one pass."""

    def __post_init__(self) -> None:
        """Check the range."""
        n = self.examples_per_task
        require(n is None or n >= 1, "examples_per_task", n, "must be null, or 1 or more")

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data.

        Raises:
            ConfigError: spatial positions are asked for and the data are no images; more presentations than samples,
                and the data have a fixed order.
        """
        if (self.examples_per_task or 0) > len(data.train) and data.train.fixed_order() is not None:
            raise ConfigError(
                f"task_shift_mode.examples_per_task={self.examples_per_task}: more than {len(data.train)} samples come "
                "in passes of random order; use data.order=random"
            )
        if self.permuted is Permuted.spatial and len(data.input_shape) != 3:
            raise ConfigError(
                "task_shift_mode.permuted=spatial needs images [c, h, w], these data are flat vectors; "
                "take permuted=entries, or data=digits, mnist or other images"
            )
        return PermutedInputTasks(data, self, seed)


@dataclass(frozen=True, eq=False)
class InputPermutation:
    """Entry i of the output is entry order[i] of the input, over all dimensions from `start` on as one."""

    order: Tensor
    start: int

    def __call__(self, inputs: Tensor, ids: Tensor) -> Tensor:
        """Permuted inputs [b, ...]."""
        return inputs.flatten(self.start).index_select(-1, self.order).view_as(inputs)


class PermutedInputTasks(TaskShift):
    """Any number of permutations."""

    num_tasks_possible = None

    def __init__(self, data: DataSet, config: PermutedInput, seed: int) -> None:
        """Tasks of `data`."""
        self.data, self.config, self.seed, self.classes = data, config, seed, any_classes_of(data)
        self.outputs = data.outputs
        self._start = 2 if config.permuted is Permuted.spatial else 1
        self._size = math.prod(data.input_shape[self._start - 1 :])
        self._composed = Evolution(self._drawn(0), lambda order, k: order[self._drawn(k)])

    def permutation(self, k: int) -> npt.NDArray[np.int64]:
        """int64 [size]: where in the raw input each entry of task k comes from."""
        return self._composed(k) if self.config.compose else self._drawn(k)

    def task(self, k: int) -> Task:
        """Task k."""
        data = replace(self.data, train=self._presented(k))
        if k == 0 and self.config.first_task_identity:
            return task_of_all(data, k, unchanged, classes=self.classes, outputs=self.outputs)
        order = torch.from_numpy(self.permutation(k)).to(self.data.train.source.device)
        transform = InputPermutation(order, self._start)
        return task_of_all(data, k, lambda s: s.with_transform(transform), classes=self.classes, outputs=self.outputs)

    def _presented(self, k: int) -> Samples:
        """The training samples of task k, in raw inputs; those that come more than once are a stream."""
        train, n = self.data.train, self.config.examples_per_task
        if n is None or n == len(train):
            return train
        rng = np.random.default_rng(named_seed(self.seed, "permuted_input", "examples", k))
        passes = [rng.permutation(len(train)) for _ in range(-(-n // len(train)))]
        positions = torch.from_numpy(np.concatenate(passes)[:n]).to(train.rows.device)
        if n < len(train):
            return train.select(positions.sort().values)
        weights = None if train.presentation is None else train.presentation.weights
        recurring = replace(train, source=Recurring(train.source), presentation=AsTheyCome(weights))
        return recurring.select(positions)

    def _drawn(self, k: int) -> npt.NDArray[np.int64]:
        if k == 0 and self.config.first_task_identity:
            return np.arange(self._size)
        return np.random.default_rng(named_seed(self.seed, "permuted_input", k)).permutation(self._size)
