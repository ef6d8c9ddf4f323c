"""Seeded samples of a run's tasks: what analyses that need no more than some samples look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from torch import Tensor

from plastiscope.data.samples import Batch, Samples
from plastiscope.event import Context


class Subset(Enum):
    """Where a sample comes from."""

    current = "current"
    """The training samples of the current task."""
    next = "next"
    """The training samples that enter with the next task (where classes come: unseen ones)."""
    previous = "previous"
    """The training samples that entered with the earlier tasks, as each task had them."""


@dataclass(frozen=True, eq=False)
class Sample:
    """Samples of one or more tasks, each as its task has it.

    Attributes:
        parts: samples by index of their task, ascending.
    """

    parts: dict[int, Samples]

    def __len__(self) -> int:
        return sum(len(samples) for samples in self.parts.values())

    @property
    def ids(self) -> Tensor:
        """Ids int64 [n] in the order of the batches."""
        return torch.cat([samples.ids for samples in self.parts.values()])

    @property
    def tasks(self) -> Tensor:
        """Index of the task of each sample, int64 [n] on the CPU."""
        return torch.cat([torch.full((len(samples),), task) for task, samples in self.parts.items()])

    def batches(self, size: int) -> Iterator[Batch]:
        """Batches of clean inputs, of `size` or more samples (less than twice as many), the last one ragged."""
        waiting: list[Batch] = []
        for samples in self.parts.values():
            for batch in samples.batches(size):
                waiting.append(batch)
                if sum(len(b.ids) for b in waiting) >= size:
                    yield _joined(waiting)
                    waiting = []
        if waiting:
            yield _joined(waiting)


def draw(context: Context, subset: Subset, n: int) -> Sample | None:
    """A sample of at most `n`, without replacement, the same each time it is asked for within a task.

    Before the first task, when there is no current one, the next task is the first one.

    Returns:
        None when there is no such task (no next one, no current one, no earlier one).
    """
    k, shift = -1 if context.task is None else context.task_idx, context.shift
    if subset is Subset.current:
        pools = {} if context.task is None else {k: context.current_task.train}
    elif subset is Subset.next:
        pools = {k + 1: shift.task(k + 1).new_train} if k + 1 < context.num_tasks else {}
    else:
        pools = {j: shift.task(j).new_train for j in range(k)}
    return draw_from(pools, n, context.rng("analysis_sample", subset.value, k).initial_seed())


def draw_from(pools: dict[int, Samples], n: int, seed: int) -> Sample | None:
    """At most `n` of the samples of `pools` (by task index, ascending), in their order there; None of none."""
    ends = np.cumsum([len(samples) for samples in pools.values()])
    if len(ends) == 0 or ends[-1] == 0:
        return None
    chosen = np.random.default_rng(seed).choice(ends[-1], min(n, int(ends[-1])), replace=False)  # O(n) memory
    owners = np.searchsorted(ends, chosen, side="right")
    parts = {}
    for i, (task, samples) in enumerate(pools.items()):
        positions = np.sort(chosen[owners == i]) - (ends[i] - len(samples))
        if len(positions):
            parts[task] = samples.select(torch.from_numpy(positions).to(samples.rows.device))
    return Sample(parts)


def _joined(batches: list[Batch]) -> Batch:
    if len(batches) == 1:
        return batches[0]
    inputs, targets, ids = zip(*((b.inputs, b.targets, b.ids) for b in batches), strict=True)
    return Batch(torch.cat(inputs), torch.cat(targets), torch.cat(ids))
