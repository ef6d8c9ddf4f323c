"""Layers that every dormancy rule is held to, and the rules once more, by loops over Python numbers."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def _normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _with_rare(h: Tensor) -> Tensor:
    """ReLU features: unit 0 silent, unit 1 active in 1 % of the samples, unit 2 tiny, unit 3 rare in space."""
    h = h.relu()
    h[:, :2] = 0
    h[::100, 1] = 5
    h[:, 2] = 1e-8
    h[:, 3] = 0
    h.view(*h.shape[:2], -1)[::10, 3, 0] = 1
    return h


FEATURES: dict[str, tuple[Tensor, str, int]] = {
    "relu": (_with_rare(_normal(200, 6)), "relu", 1),
    "relu maps": (_with_rare(_normal(100, 5, 3, 4)), "relu", 1),
    "relu tokens": (_with_rare(_normal(100, 5, 7)).movedim(1, 2), "relu", 2),
    "silent": (torch.zeros(50, 4), "relu", 1),
    "sigmoid": (torch.sigmoid(_normal(60, 5) * torch.tensor([1e3, 1.0, 1e3, 1e3, 1.0])), "sigmoid", 1),
    "tanh": (torch.tanh(_normal(60, 4) * torch.tensor([1e4, 1.0, 1e-3, 1.0])), "tanh", 1),
    "elu": (F.elu(_normal(60, 4) - torch.tensor([50.0, 0.0, 0.0, 4.0])), "elu", 1),
    "selu": (
        F.selu(_normal(60, 4) * torch.tensor([1.0, 1.0, 0.0, 0.1]) - torch.tensor([50.0, 0.0, 1.2, 4.0])),
        "selu",
        1,
    ),
    "leaky relu": (F.leaky_relu(_normal(60, 4) - torch.tensor([50.0, 0.0, 0.0, 4.0])), "leaky_relu", 1),
    "gelu": (F.gelu(_normal(60, 4) - torch.tensor([50.0, 0.0, 0.0, 4.0])), "gelu", 1),
    "linear": (_normal(60, 4) * torch.tensor([0.0, 1.0, 1.0, 1e-3]), "", 1),
}
"""Features, activation, unit axis."""

Unit = list[list[float]]
"""Values of one unit: a list of positions for each sample."""


def _values(unit: Unit) -> list[float]:
    return [h for sample in unit for h in sample]


def _mean(unit: Unit) -> float:
    return sum(map(abs, _values(unit))) / len(_values(unit))


_SATURATION: dict[str, Callable[[float], bool]] = {
    "relu": lambda h: h == 0,
    "sigmoid": lambda h: not 0.01 <= h <= 0.99,
    "tanh": lambda h: abs(h) > 0.99,
    "elu": lambda h: h < -0.99,
    "selu": lambda h: h < -1.7,
}


def brute_force(rule: str, features: Tensor, activation: str, unit_axis: int) -> list[bool]:
    """Which units a rule calls dormant."""
    by_unit = (
        features.double().movedim(unit_axis, 0).flatten(2) if features.ndim > 2 else features.double().T[..., None]
    )
    layer: list[Unit] = by_unit.tolist()
    layer_mean = sum(map(_mean, layer)) / len(layer)
    rules: dict[str, Callable[[Unit], bool]] = {
        "dormant_rate": lambda unit: sum(h != 0 for h in _values(unit)) / len(_values(unit)) < 0.01,
        "dormant_dead": lambda unit: all(h == 0 for h in _values(unit)),
        "dormant_rl": lambda unit: sum(max(sample) > 0 for sample in unit) / len(unit) <= 0.01,
        "dormant_redo": lambda unit: layer_mean == 0 or _mean(unit) / layer_mean <= 0.025,
        "dormant_absmean": lambda unit: _mean(unit) < 0.01,
        "saturated": lambda unit: all(map(_SATURATION.get(activation, lambda h: False), _values(unit))),
        "dead_aj": lambda unit: sum(abs(h) < 1e-7 for h in _values(unit)) / len(_values(unit)) > 0.95,
    }
    return [rules[rule](unit) for unit in layer]
