"""Fully connected networks."""

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from torch import nn

from plastiscope.error import require
from plastiscope.net.activation import Activation
from plastiscope.net.units import Layer, Site, UnitDescription, columns, rows, width_of


class Norm(Enum):
    """The normalisation between the weights and the activation of a hidden layer."""

    none = "none"
    batch = "batch"
    layer = "layer"


class Init(Enum):
    """The distribution of initial weights and biases."""

    default = "default"
    """torch's own for nn.Linear: weights and biases uniform within 1/sqrt(fan_in)."""
    kaiming_uniform = "kaiming_uniform"
    """Weights uniform within gain sqrt(3/fan_in), gain 1 for the head; biases zero (published permuted MNIST)."""


@dataclass(kw_only=True)
class Mlp:
    """A fully connected network; inputs of any shape are flattened."""

    widths: list[int] = field(default_factory=lambda: [256, 256])
    """Units of each hidden layer."""
    activation: Activation = Activation.relu
    norm: Norm = Norm.none
    """Before the activation: none, batch, layer."""
    dropout: float = 0.0
    """Probability that an activation is dropped in training."""
    init: Init = Init.default

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(all(width > 0 for width in self.widths), "widths", self.widths, "each must be 1 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be in [0, 1)")

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network."""
        sizes = [math.prod(input_shape), *self.widths, outputs]
        net = FeedForward(sizes, self.activation, self.norm, self.dropout)
        if self.init is Init.kaiming_uniform:
            for name, module in net.named_children():
                if isinstance(module, nn.Linear):
                    _kaiming_uniform(module, 1.0 if name == "head" else self.activation.gain)
        return net


def _kaiming_uniform(linear: nn.Linear, gain: float) -> None:
    bound = gain * math.sqrt(3.0 / linear.in_features)
    nn.init.uniform_(linear.weight, -bound, bound)
    nn.init.zeros_(linear.bias)


class FeedForward(nn.Sequential):
    """Flatten, then linear, norm, activation, dropout for each hidden layer, then the head."""

    def __init__(
        self,
        sizes: list[int],
        activation: Activation | None,
        norm: Norm = Norm.none,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        """Make a network.

        Args:
            sizes: of the input, of each hidden layer, of the output.
            activation: None = linear network.
            norm: before the activation.
            dropout: probability, after the activation.
            bias: whether linear layers have biases.
        """
        modules: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        sites = []
        for i, (inputs, width) in enumerate(pairwise(sizes[:-1]), start=1):
            modules[f"linear_{i}"] = nn.Linear(inputs, width, bias)
            if norm is not Norm.none:
                modules[f"norm_{i}"] = nn.BatchNorm1d(width) if norm is Norm.batch else nn.LayerNorm(width)
            if activation is not None:
                modules[f"activation_{i}"] = activation.module()
            sites.append(next(reversed(modules)))
            if dropout > 0:
                modules[f"dropout_{i}"] = nn.Dropout(dropout)
        modules["head"] = nn.Linear(sizes[-2], sizes[-1], bias)
        super().__init__(modules)
        self._sites, self._activation, self._norm = sites, activation, norm

    def unit_description(self) -> UnitDescription:
        """One layer for each hidden linear layer."""
        names = [*(f"linear_{i}" for i in range(1, len(self._sites) + 1)), "head"]
        layers = tuple(
            Layer(
                name=name,
                width=width_of(self, name),
                site=Site(site),
                incoming=rows(self, name),
                norm=None if self._norm is Norm.none else name.replace("linear", "norm"),
                consumers=(columns(reader),),
                activation="" if self._activation is None else self._activation.value,
            )
            for name, reader, site in zip(names, names[1:], self._sites, strict=False)
        )
        return UnitDescription(layers, head="head")
