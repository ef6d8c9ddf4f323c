"""A task of four random samples, for tests of what works within one."""

import torch

from plastiscope.data.samples import ArraySource, Samples
from plastiscope.measure.loss import Loss
from plastiscope.task_shift_mode.task import NewHead, Task


def make_task(
    outputs: int,
    index: int = 0,
    loss: Loss = Loss.cross_entropy,
    new_head: NewHead = NewHead.keep,
) -> Task:
    rows = torch.arange(4)
    samples = Samples(
        source=ArraySource(torch.randn(4, 2), rows),
        split="train",
        rows=rows,
        labels=rows,
        clean_labels=rows,
        targets=rows,
    )
    return Task(
        index=index,
        train=samples,
        validation=None,
        test=samples,
        new_train=samples,
        new_test=samples,
        classes=tuple(range(outputs)),
        active_outputs=outputs,
        loss=loss,
        new_head=new_head,
        numbers={},
    )
