"""Fully connected networks."""

import math
from dataclasses import dataclass, field

from torch import nn

from plastiscope.error import require
from plastiscope.net.activation import Activation
from plastiscope.net.chain import Chain, ChainNet, Norm, check_activation, check_init
from plastiscope.net.layers import Init, Layers

__all__ = ["FeedForward", "Init", "Mlp", "Norm"]


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
    layers: Layers = field(default_factory=Layers)
    """How the linear layers are parametrised."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(all(width > 0 for width in self.widths), "widths", self.widths, "each must be 1 or more")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "must be in [0, 1)")
        check_init(self.init, self.layers)
        check_activation(self.activation, self.layers)

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when projections cannot have the widths."""
        sizes = [math.prod(input_shape), *self.widths, outputs]
        return FeedForward(sizes, self.activation, self.norm, self.dropout, layers=self.layers, init=self.init)


class FeedForward(ChainNet):
    """Flatten, then linear, norm, activation, dropout for each hidden layer, then the head."""

    def __init__(
        self,
        sizes: list[int],
        activation: Activation | None,
        norm: Norm = Norm.none,
        dropout: float = 0.0,
        bias: bool = True,
        layers: Layers | None = None,
        init: Init = Init.default,
    ) -> None:
        """Make a network.

        Args:
            sizes: of the input, of each hidden layer, of the output.
            activation: None = linear network.
            norm: before the activation.
            dropout: probability, after the activation.
            bias: whether linear layers have biases.
            layers: how they are parametrised; None = plain.
            init: the distribution of initial weights.
        """
        chain = Chain(sizes[0], activation, layers or Layers(), lambda name, part: name.replace("linear", part))
        chain.flatten()
        for i, width in enumerate(sizes[1:-1], start=1):
            chain.linear(f"linear_{i}", width, norm, dropout, bias)
        chain.head("head", sizes[-1], bias)
        super().__init__(chain, "head", init)
