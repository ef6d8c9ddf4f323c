"""The activations networks are made with."""

import math
from enum import Enum

from torch import nn


class Activation(Enum):
    """Activations by name, as in torch.nn.functional."""

    relu = "relu"
    leaky_relu = "leaky_relu"
    """Slope 0.01."""
    elu = "elu"
    selu = "selu"
    gelu = "gelu"
    silu = "silu"
    """Also called swish."""
    tanh = "tanh"
    sigmoid = "sigmoid"

    def module(self) -> nn.Module:
        """A new module of this activation."""
        return _MODULES[self]()

    @property
    def gain(self) -> float:
        """Gain of Kaiming initialisation, as torch.nn.init has it; GELU, SiLU, ELU as ReLU, SELU 1 (LeCun)."""
        return _GAINS[self]


_MODULES: dict[Activation, type[nn.Module]] = {
    Activation.relu: nn.ReLU,
    Activation.leaky_relu: nn.LeakyReLU,
    Activation.elu: nn.ELU,
    Activation.selu: nn.SELU,
    Activation.gelu: nn.GELU,
    Activation.silu: nn.SiLU,
    Activation.tanh: nn.Tanh,
    Activation.sigmoid: nn.Sigmoid,
}

_GAINS: dict[Activation, float] = {
    Activation.relu: math.sqrt(2.0),
    Activation.leaky_relu: math.sqrt(2.0 / (1.0 + 0.01**2)),
    Activation.elu: math.sqrt(2.0),
    Activation.selu: 1.0,
    Activation.gelu: math.sqrt(2.0),
    Activation.silu: math.sqrt(2.0),
    Activation.tanh: 5.0 / 3.0,
    Activation.sigmoid: 1.0,
}
