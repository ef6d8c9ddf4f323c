"""The samples on which a task's loss is looked at: drawn once, with the transforms of the task as it is now, and kept.

Data that change from task to task must not move under an analysis that looks before and after training, so the inputs
are copied. Which samples are taken depends on the seed and their ids alone: not on the order in which they lie, on the
device or on the task, so that a sample which several tasks have is taken in all of them or in few.
"""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from plastiscope.data.samples import Samples
from plastiscope.error import ConfigError
from plastiscope.event import Context
from plastiscope.landscape.settings import Split
from plastiscope.measure.keyed import keyed_bits
from plastiscope.measure.loss import Loss
from plastiscope.task_shift_mode.task import EVALUATION_BATCH, Task


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenSet:
    """Samples of a task as the task has them, and how they are learnt.

    Attributes:
        inputs: [n, ...] on the device, with the transforms of the task and no augmentation; a copy.
        targets: [n] or [n, k] as the loss sees them; a copy.
        ids: int64 [n] on the CPU, in the order of the inputs; those of all slices where a slice was asked for.
        loss: what the task is trained with.
        active_outputs: the loss sees the first so many outputs.
        classes: of the data that are active, in presentation order; empty for regression.
        asked: number of samples asked for; n is smaller where the task has fewer.
        sha256: of inputs and targets here, as of a `FrozenLoss` of them.
    """

    inputs: Tensor
    targets: Tensor
    ids: Tensor
    loss: Loss
    active_outputs: int
    classes: tuple[int, ...]
    asked: int
    sha256: str

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def note(self) -> str:
        """What to tell a reader when there are fewer samples than asked for; else ""."""
        n = len(self.ids)
        return "" if n >= self.asked else f"{self.asked} samples were asked for, the task has {n}: all"


def frozen_set(
    context: Context,
    *,
    num_samples: int,
    seed: int,
    split: Split | str = Split.train,
    rows: Callable[[int], slice] | None = None,
) -> FrozenSet:
    """At most `num_samples` samples of the current task, without replacement, each class by its share.

    A class with the share p of the split has p num_samples of the samples, rounded by largest remainders, so that the
    mean over them stands for the mean over the split. Without classes all samples are one stratum.

    Args:
        context: of the run, in a task.
        num_samples: how many.
        seed: of the drawing.
        split: which samples of the task.
        rows: of so many samples, those whose inputs and targets this process is to hold; None = all.

    Raises:
        ConfigError: the task has no such samples.
    """
    task = context.current_task
    samples = _of(task, Split(split))
    chosen = samples.select(stratified(samples, num_samples, seed))
    own = (
        chosen
        if rows is None
        else chosen.select(torch.arange(len(chosen), device=chosen.ids.device)[rows(len(chosen))])
    )
    batches = list(own.batches(EVALUATION_BATCH))
    inputs, targets = torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])
    return FrozenSet(
        inputs=inputs,
        targets=targets,
        ids=chosen.ids.cpu(),
        loss=task.loss,
        active_outputs=task.active_outputs,
        classes=task.classes,
        asked=num_samples,
        sha256=_sha256(inputs, targets),
    )


def frozen_size(context: Context, num_samples: int, split: Split | str) -> tuple[int, int]:
    """Samples of a `frozen_set`, and numbers in all its inputs."""
    samples = _of(context.current_task, Split(split))
    n = min(num_samples, len(samples))
    return n, n * math.prod(samples.input_shape)


def stratified(samples: Samples, num_samples: int, seed: int) -> Tensor:
    """Positions int64 [n] in `samples`, ascending, of at most `num_samples` of them, each class by its share."""
    ids = samples.ids
    if num_samples >= len(ids):
        return torch.arange(len(ids), device=ids.device)
    labels = samples.labels if samples.labels.ndim == 1 else torch.zeros_like(ids)
    _, stratum, sizes = labels.unique(return_inverse=True, return_counts=True)
    taken = _shares(sizes, num_samples)
    by_key = keyed_bits(seed, f"frozen_set/{samples.split}", ids).argsort()
    order = by_key[stratum[by_key].argsort(stable=True)]  # by stratum, in it by key
    place = torch.arange(len(ids), device=ids.device) - (sizes.cumsum(0) - sizes)[stratum[order]]
    return order[place < taken[stratum[order]]].sort().values


def _shares(sizes: Tensor, n: int) -> Tensor:
    """How many of `n` each stratum of these sizes int64 [k] gets: floors, the rest by the largest remainders."""
    exact = sizes * n
    taken, remainder = exact // sizes.sum(), exact % sizes.sum()
    largest = remainder.argsort(descending=True, stable=True)[: n - int(taken.sum())]
    taken[largest] += 1
    return taken


def _of(task: Task, split: Split) -> Samples:
    samples = {Split.train: task.train, Split.val: task.validation, Split.test: task.test}[split]
    if samples is None or len(samples) == 0:
        remedy = "set data.validation_share above 0, or take split=train" if split is Split.val else "take split=train"
        raise ConfigError(f"split={split.value}: task {task.index} has no such samples; {remedy}")
    return samples


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()
