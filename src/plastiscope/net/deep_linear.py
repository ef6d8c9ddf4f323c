"""Deep linear networks: y = W_L ... W_1 x."""

import math
from dataclasses import dataclass, field

from torch import nn

from plastiscope.error import require
from plastiscope.net.mlp import FeedForward, Norm


@dataclass(kw_only=True)
class DeepLinear:
    """A deep linear network; inputs of any shape are flattened, the weights have torch's default initialisation."""

    widths: list[int] = field(default_factory=lambda: [64, 64, 64])
    """Units of each hidden layer; their number is the depth less one."""
    bias: bool = False
    """Whether the layers have biases."""
    batch_norm: bool = False
    """Batch normalisation after each hidden layer."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(all(width > 0 for width in self.widths), "widths", self.widths, "each must be 1 or more")

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network."""
        sizes = [math.prod(input_shape), *self.widths, outputs]
        return FeedForward(sizes, None, Norm.batch if self.batch_norm else Norm.none, bias=self.bias)
