"""Sizes of weights, gradients and updates, how far weights have moved, and how fast a direction moves.

Functions of a layer's parameters, as lists of tensors. Results are float64 tensors on the device: inside a step
nothing is copied to the host.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


def norm(tensors: Iterable[Tensor]) -> Tensor:
    """||.||_2 of tensors taken together: `weight_norm` of parameters, `grad_norm` of gradients."""
    norms = [torch.linalg.vector_norm(t.detach(), dtype=torch.float64) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros((), dtype=torch.float64)


def unit_norms(weights: Tensor) -> Tensor:
    """||w_i||_2 of each unit's incoming weights (row, filter) [units], for norms that act on each filter by itself."""
    return torch.linalg.vector_norm(weights.detach().flatten(1), dim=1, dtype=torch.float64)


def distance(after: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """||after - before||_2: `dist_init`, `dist_task` of parameters, `update_norm` of an optimiser step."""
    return norm(a.detach().double() - b.detach().double() for a, b in zip(after, before, strict=True))


def relative_distance(after: Sequence[Tensor], before: Sequence[Tensor]) -> Tensor:
    """||after - before||_2 / ||before||_2: `dist_init_rel`, `update_ratio`; NaN or infinite when `before` is zero."""
    return distance(after, before) / norm(before)


def effective_lr(lr: float, weight_norm: Tensor, adaptive: bool = False) -> Tensor:
    """Rate at which the direction w/||w|| of scale-invariant weights moves (L(c w) = L(w) for every c > 0).

    lr / ||w||^2 under SGD, because grad L(c w) = grad L(w) / c; lr / ||w|| under Adam and its kind. Momentum and
    preconditioner are not included. It has no meaning for weights that are not scale-invariant: give NaN there.

    Args:
        lr: scheduled rate of the layer.
        weight_norm: ||w||_2 of a layer, or of each of its filters.
        adaptive: whether the step's size does not depend on the gradient's scale.
    """
    return lr / (weight_norm if adaptive else weight_norm.square())
