"""In which order the samples of a task are presented, and in which pieces the batches are gathered."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from plastiscope.data.samples import Batch, Samples, side_by_side
from plastiscope.measure.keyed import named_seed
from plastiscope.task_shift_mode.task import Task

GATHERED = 1 << 20
"""Input values that are gathered at a time, about; 4 MiB stay in the cache."""
MOST_STEPS = 256
"""Steps that are gathered at a time, at most."""


def epoch_order(seed: int, task: int, epoch: int, n: int) -> Tensor:
    """The random order of presentation, int64 [n] on the CPU: a pure function, so any epoch's order can be rebuilt."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(named_seed(seed, "order", task, epoch)))


def presentation_order(samples: Samples, seed: int, task: int, epoch: int) -> Tensor:
    """Positions in `samples` in the order of presentation in an epoch: their fixed order, or a random one."""
    fixed = samples.fixed_order()
    return epoch_order(seed, task, epoch, len(samples)).to(samples.rows.device) if fixed is None else fixed


def blocks_of_epoch(
    tasks: Sequence[Task],
    orders: Sequence[Tensor],
    batch_size: int,
    epochs_completed: int,
    lead: int = 0,
    start: int = 0,
) -> Iterator[Batch]:
    """The batches of an epoch, many at a time, [steps, *lead, b, ...]; the last one by itself.

    Args:
        tasks: of each run, of equal sizes.
        orders: of presentation, of each run.
        batch_size: b; of the last batch less, if it does not divide the number of samples.
        epochs_completed: by the run, for what is drawn anew in each epoch.
        lead: 1 where several runs advance together, side by side; else 0.
        start: the first batch.
    """
    values = math.prod(tasks[0].train.input_shape) * batch_size * len(tasks)
    steps = max(1, min(MOST_STEPS, GATHERED // values))
    left = -(-len(orders[0]) // batch_size) - start
    streams = [
        task.train.blocks(batch_size, steps, order, epochs_completed, start)
        for task, order in zip(tasks, orders, strict=True)
    ]
    for blocks in zip(*streams, strict=True):
        block = side_by_side(blocks, 1) if lead else blocks[0]
        n = len(block.targets)
        left -= n
        if left or n == 1:
            yield block
        else:
            yield block.each(lambda tensor: tensor[:-1])
            yield block.each(lambda tensor: tensor[-1:])
