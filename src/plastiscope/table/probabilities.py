"""Predicted probabilities of a run's training samples, from its final weights, beside the table."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from plastiscope.error import DataError
from plastiscope.task_shift_mode.task import EVALUATION_BATCH, Task


class Written(NamedTuple):
    """The two files: probabilities float32 [n, K] and ids int64 [n], ascending."""

    probabilities: Path
    ids: Path


@torch.no_grad()
def write_probabilities(net: nn.Module, task: Task, num_classes: int, folder: Path) -> Written:
    """Softmax over the active outputs, in the order of the data set's classes; 0 for classes that are not active.

    Clean inputs, evaluation mode. probabilities.npy is written batch by batch and can be memory-mapped.

    Args:
        net: in evaluation mode.
        task: whose training samples are predicted.
        num_classes: K, of the data set.
        folder: where the files go.

    Raises:
        DataError: the task has no classes.
    """
    if not task.classes or task.train.labels.ndim != 1:
        raise DataError("these targets are not classes, so there are no probabilities")
    folder.mkdir(parents=True, exist_ok=True)
    order = torch.argsort(task.train.ids)
    files = Written(folder / "probabilities.npy", folder / "probabilities_ids.npy")
    temporary = folder / ".probabilities.tmp"
    matrix = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(len(order), num_classes))
    start, classes = 0, list(task.classes)
    for batch in task.train.batches(EVALUATION_BATCH, order=order):
        outputs = net(batch.inputs)[:, : task.active_outputs]
        matrix[start : start + len(outputs), classes] = torch.softmax(outputs, 1).cpu().numpy()
        start += len(outputs)
    matrix.flush()
    np.save(files.ids, task.train.ids[order].cpu().numpy())
    temporary.replace(files.probabilities)
    return files
