"""Dormant units of a layer over a data set: a one-pass accumulator, and the rules that read it.

The site is the post-activation; the scope is all samples given (a data set, or one batch). Numbers of different rules
are never compared. A unit is a channel (over its positions), a neuron or a hidden unit of a block (over tokens).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

_SATURATED: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda h: h == 0,
    "sigmoid": lambda h: (h < 0.01) | (h > 0.99),
    "tanh": lambda h: h.abs() > 0.99,
    "elu": lambda h: h < -0.99,
    "selu": lambda h: h < -1.7,
}
"""Saturation by activation; the others (leaky ReLU, SiLU, GELU) have none."""


@dataclass
class UnitActivity:
    """What the dormancy rules need to know of a layer, summed over batches on the device, without host copies.

    The sums are None before the first batch. `samples` counts rows, `values` rows times positions.

    Attributes:
        activation: name of the layer's activation, such as "relu"; decides what saturation is.
        unit_axis: of the features: 1 for [b, units] and [b, units, *positions], 2 for [b, tokens, units].
        absolute: sum of |h|, float64 [units].
        non_zero: number of values h != 0, int64 [units].
        tiny: number of values |h| < 1e-7, int64 [units].
        active_samples: number of samples with h > 0 at some position, int64 [units].
        unsaturated: number of values that are not saturated, int64 [units].
    """

    activation: str = ""
    unit_axis: int = 1
    samples: int = 0
    values: int = 0
    absolute: Tensor = field(default_factory=lambda: torch.zeros(()))
    non_zero: Tensor = field(default_factory=lambda: torch.zeros(()))
    tiny: Tensor = field(default_factory=lambda: torch.zeros(()))
    active_samples: Tensor = field(default_factory=lambda: torch.zeros(()))
    unsaturated: Tensor = field(default_factory=lambda: torch.zeros(()))
