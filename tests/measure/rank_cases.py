"""Feature matrices that every rank is held to."""

import torch
from torch import Tensor


def _normal(n: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def orthogonal(size: int, seed: int = 1) -> Tensor:
    """A random rotation [size, size]."""
    return torch.linalg.qr(_normal(size, size, seed)).Q


MATRICES: dict[str, Tensor] = {
    "tall": _normal(40, 7),
    "wide": _normal(6, 30),
    "square": _normal(12, 12),
    "low rank": _normal(30, 3) @ _normal(3, 20, seed=2),
    "decaying": _normal(30, 15) * 10.0 ** -torch.arange(15, dtype=torch.float64),
    "relu": _normal(25, 10).relu(),
    "far from zero": _normal(20, 6) + 100.0,
    "equal values": 3.0 * orthogonal(9),
    "one sample": _normal(1, 8),
    "one unit": _normal(9, 1),
}
