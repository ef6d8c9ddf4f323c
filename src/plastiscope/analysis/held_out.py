"""The held-out task of the trainability probe: samples of the training split under a map that no task of a run has."""

import hashlib
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from plastiscope.analysis.frozen_set import stratified
from plastiscope.data.samples import Batch, Samples
from plastiscope.error import ConfigError
from plastiscope.event import Context
from plastiscope.measure.loss import Loss
from plastiscope.task_shift_mode.task import EVALUATION_BATCH, NewHead, Task


class HeldOutKind(Enum):
    """What is to be learnt."""

    random_labels = "random_labels"
    """Random labels, as many of each as can be; cross-entropy, whatever the run is trained with."""
    permuted_input = "permuted_input"
    """The targets of the data, of inputs whose entries are permuted as no task permutes them."""


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOut:
    """The task: everything is a function of (data, seed, settings).

    Attributes:
        inputs: float32 [N, ...] on the device.
        task: says targets, loss and outputs; its training samples are those of the inputs, as the data have them.
        order: int64 [n, b], the samples of each step.
        permutation: int64 [entries] of permuted inputs, else None.
        asked: number of samples asked for; N is smaller where the data have fewer.
    """

    inputs: Tensor
    task: Task
    order: Tensor
    permutation: Tensor | None
    asked: int

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def targets(self) -> Tensor:
        """What the loss sees, [N] or [N, k]."""
        return self.task.train.targets

    @property
    def ids(self) -> Tensor:
        """Ids int64 [N]."""
        return self.task.train.ids

    def batch(self, step: int) -> Batch:
        """The batch of a step, from 0."""
        rows = self.order[step]
        return Batch(self.inputs[rows], self.targets[rows], self.ids[rows])

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """All samples, for an evaluation."""
        pieces = (self.inputs.split(EVALUATION_BATCH), self.targets.split(EVALUATION_BATCH))
        return list(zip(*pieces, strict=True))

    def digest(self) -> str:
        """SHA-256 of inputs, targets and order."""
        parts = (self.inputs, self.targets, self.order)
        return hashlib.sha256(b"".join(part.cpu().contiguous().numpy().tobytes() for part in parts)).hexdigest()


def held_out(
    context: Context, *, kind: HeldOutKind, samples: int, classes: int, steps: int, batch_size: int, new_head: NewHead
) -> HeldOut:
    """Draw the held-out task of a run.

    Args:
        context: of the run; only its seed and the data of its tasks count.
        kind: what is to be learnt.
        samples: N, each class of the data by its share; all where there are fewer.
        classes: K of random labels.
        steps: n.
        batch_size: of a step; at most N are taken.
        new_head: how the head begins.

    Raises:
        ConfigError: more classes than samples.
    """
    pool, loss, outputs = _pool(context)
    chosen = pool.select(stratified(pool, samples, context.rng("probe", "samples").initial_seed()))
    inputs = torch.cat([batch.inputs for batch in chosen.batches(EVALUATION_BATCH)])
    permutation = None
    if kind is HeldOutKind.random_labels:
        if classes > len(chosen):
            raise ConfigError(f"probe.classes={classes}: there are {len(chosen)} samples; lower it")
        drawn = torch.randperm(len(chosen), generator=context.rng("probe", "labels")) % classes
        loss, outputs = Loss.cross_entropy, classes
        chosen = chosen.with_targets(drawn.to(inputs.device))
    else:
        permutation = torch.randperm(inputs[0].numel(), generator=context.rng("probe", "permutation"))
        inputs = inputs.flatten(1)[:, permutation.to(inputs.device)].view_as(inputs)
    return HeldOut(
        inputs=inputs,
        task=Task(
            index=0,
            train=chosen,
            validation=None,
            test=chosen,
            new_train=chosen,
            new_test=chosen,
            classes=(),
            active_outputs=outputs,
            loss=loss,
            new_head=new_head,
            numbers={},
        ),
        order=_order(context, len(chosen), steps, min(batch_size, len(chosen))).to(inputs.device),
        permutation=permutation,
        asked=samples,
    )


def _pool(context: Context) -> tuple[Samples, Loss, int]:
    """The training split of the data as no task changes it, its loss, and the outputs that its targets need."""
    first = context.shift.task(0)
    samples, loss, outputs = first.train, first.loss, first.active_outputs
    if (data := getattr(context.shift, "data", None)) is not None:
        samples, loss, outputs = data.train, data.loss, data.outputs
    return replace(samples, transforms=(), augmentation=None, presentation=None), loss, outputs


def _order(context: Context, n: int, steps: int, size: int) -> Tensor:
    """Positions int64 [steps, size]: passes over all samples one after the other, each in an order of its own."""
    passes = -(-steps * size // n)
    orders = [torch.randperm(n, generator=context.rng("probe", "order", p)) for p in range(passes)]
    return torch.cat(orders)[: steps * size].view(steps, size)
