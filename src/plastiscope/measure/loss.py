"""The losses a task can be trained with, per sample."""

from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor


class Loss(Enum):
    """What a task is trained with."""

    cross_entropy = "cross_entropy"
    """Softmax cross-entropy; targets are class indices [n] or probabilities (one-hot rows) [n, outputs]."""
    binary_cross_entropy = "binary_cross_entropy"
    """Mean over outputs of the logistic loss; targets are multi-hot rows [n, outputs]."""
    mse = "mse"
    """Mean over outputs of the squared error; targets are real values [n, outputs] or [n]."""


def per_sample_loss(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor:
    """Loss of each sample [*lead, n] from outputs [*lead, n, k] and targets [*lead, n] or [*lead, n, k] (see Loss)."""
    if loss is Loss.cross_entropy:
        if outputs.ndim == 2:
            return F.cross_entropy(outputs, targets, reduction="none")
        lead = outputs.shape[:-1]
        flat = targets.flatten() if targets.ndim < outputs.ndim else targets.flatten(0, -2)
        return F.cross_entropy(outputs.flatten(0, -2), flat, reduction="none").view(lead)
    if loss is Loss.binary_cross_entropy:
        return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)
    # The numbers of F.mse_loss, whose gradient torch.func.linearize cannot trace (torch 2.13 crashes).
    return (outputs - targets.view(outputs.shape)).square().mean(-1)


def correct(loss: Loss, outputs: Tensor, targets: Tensor) -> Tensor | None:
    """Whether each sample is classified rightly, bool [*lead, n]; None for regression.

    Cross-entropy: the largest output is the target's (the class of largest probability for probability targets).
    Multi-hot targets: every output is on its side of zero.

    Args:
        loss: what the task is trained with.
        outputs: [*lead, n, k].
        targets: [*lead, n] or [*lead, n, k] (see Loss).
    """
    if loss is Loss.cross_entropy:
        return outputs.argmax(-1) == (targets if targets.ndim < outputs.ndim else targets.argmax(-1))
    if loss is Loss.binary_cross_entropy:
        return torch.eq(outputs > 0, targets > 0.5).all(-1)
    return None


def class_index(targets: Tensor) -> Tensor:
    """Class of each target, int64 [n]: class indices as they are, of one-hot rows the place of the one."""
    return targets if targets.ndim == 1 else targets.argmax(1)


def margin(outputs: Tensor, targets: Tensor) -> Tensor:
    """The target's output minus the largest other one, [n]; above 0 is classified rightly.

    Args:
        outputs: [n, k]; of a single output there is no other one, and the margin is NaN.
        targets: class indices [n] or one-hot rows [n, k].

    Source: Pleiss et al. 2020, "Identifying mislabeled data using the area under the margin ranking".
    """
    if outputs.shape[1] == 1:
        return torch.full_like(outputs[:, 0], float("nan"))
    place = class_index(targets).unsqueeze(1)
    others = outputs.scatter(1, place, float("-inf"))
    return outputs.gather(1, place).squeeze(1) - others.amax(1)
