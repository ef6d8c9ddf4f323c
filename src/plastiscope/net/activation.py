"""The activations networks are made with."""

import math
from enum import Enum

import torch
from torch import Tensor, nn


class Activation(Enum):
    """Activations by name, as in torch.nn.functional where it has them."""

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
    prelu = "prelu"
    """max(0, z) + a min(0, z), a learned for each unit or channel, 0.25 at first, without weight decay."""
    prelu_shared = "prelu_shared"
    """The same with one a for the layer."""
    maxout = "maxout"
    """The largest of several pieces, each with weights of its own."""
    crelu = "crelu"
    """max(0, z) and max(0, -z) side by side: the next layer has twice the inputs."""

    def module(self, units: int = 1, pieces: int = 2) -> nn.Module:
        """A new module of this activation.

        Args:
            units: of the layer (channels of a convolution).
            pieces: of each unit, of maxout.
        """
        if self is Activation.prelu:
            return nn.PReLU(units)
        return MaxOut(pieces) if self is Activation.maxout else _MODULES[self]()

    @property
    def function(self) -> str:
        """Its name in unit descriptions."""
        return "prelu" if self is Activation.prelu_shared else self.value

    @property
    def copies(self) -> int:
        """Columns that a unit has in what reads it."""
        return 2 if self is Activation.crelu else 1

    def rows(self, pieces: int) -> int:
        """Rows that a unit has in the weights before it."""
        return pieces if self is Activation.maxout else 1

    def gain_of(self, pieces: int) -> float:
        """As `gain`; of maxout with so many pieces, which must see independent normal numbers for it."""
        return _expected_square_of_largest(pieces) ** -0.5 if self is Activation.maxout else self.gain

    @property
    def gain(self) -> float:
        """Gain of Kaiming initialisation, as torch.nn.init has it; GELU, SiLU, ELU as ReLU, SELU 1 (LeCun).

        PReLU as leaky ReLU of slope .25, CReLU as ReLU (twice the inputs, half the square each), maxout of two pieces 1
        (the squares of the larger and of the smaller of two normal numbers have one mean).
        """
        return _GAINS[self]


class MaxOut(nn.Module):
    """y_i = max over p < pieces of z_(pieces i + p): the pieces of a unit are adjacent; of ties the lowest p wins."""

    axis = 1
    """Of the units."""

    def __init__(self, pieces: int = 2) -> None:
        """Take so many pieces for each unit."""
        super().__init__()
        self.pieces = pieces

    def forward(self, z: Tensor) -> Tensor:
        """[b, units * pieces, ...] -> [b, units, ...]."""
        return z.unflatten(self.axis, (-1, self.pieces)).max(self.axis + 1).values

    def wins(self, z: Tensor) -> Tensor:
        """How often each piece is the largest, int64 [units, pieces], of pre-activations as `forward` takes them."""
        winners = z.detach().unflatten(1, (-1, self.pieces)).argmax(2)
        return torch.nn.functional.one_hot(winners.movedim(1, 0).flatten(1), self.pieces).sum(1)

    def extra_repr(self) -> str:
        """The number of pieces."""
        return f"pieces={self.pieces}"


class BothSigns(nn.Module):
    """max(0, z) and max(0, -z) of each unit, on an axis of their own: where the features of CReLU are seen."""

    axis = 1
    """Of the units."""

    def forward(self, z: Tensor) -> Tensor:
        """[b, units, ...] -> [b, units, 2, ...]."""
        return torch.stack((z.relu(), (-z).relu()), self.axis).transpose(self.axis, self.axis + 1)


class Concatenated(nn.Module):
    """All units of the first sign, then all of the second."""

    axis = 1
    """Of the units."""

    def forward(self, both: Tensor) -> Tensor:
        """[b, units, 2, ...] -> [b, 2 units, ...]."""
        return both.transpose(self.axis, self.axis + 1).flatten(self.axis, self.axis + 1)


class CReLU(nn.Sequential):
    """concat(max(0, z), max(0, -z)) along the units or channels (Shang et al. 2016): [b, d, ...] -> [b, 2d, ...]."""

    def __init__(self) -> None:
        """Make the two steps; the features of the d units are those of `both`."""
        super().__init__()
        self.both = BothSigns()
        self.concatenated = Concatenated()


def undecayed(net: nn.Module) -> set[Tensor]:
    """Parameters that take no weight decay: slopes of PReLU, which decay would turn into ReLU."""
    return {p for module in net.modules() if isinstance(module, nn.PReLU) for p in module.parameters()}


def _expected_square_of_largest(n: int) -> float:
    """E max(z_1..z_n)^2 of independent standard normal z: the integral of z^2 n phi(z) Phi(z)^(n - 1)."""
    z = torch.linspace(-12.0, 12.0, 4801, dtype=torch.float64)
    density = n * torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) * torch.special.ndtr(z) ** (n - 1)
    return torch.trapezoid(z.square() * density, z).item()


_MODULES: dict[Activation, type[nn.Module]] = {
    Activation.relu: nn.ReLU,
    Activation.leaky_relu: nn.LeakyReLU,
    Activation.elu: nn.ELU,
    Activation.selu: nn.SELU,
    Activation.gelu: nn.GELU,
    Activation.silu: nn.SiLU,
    Activation.tanh: nn.Tanh,
    Activation.sigmoid: nn.Sigmoid,
    Activation.prelu_shared: nn.PReLU,
    Activation.crelu: CReLU,
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
    Activation.prelu: math.sqrt(2.0 / (1.0 + 0.25**2)),
    Activation.prelu_shared: math.sqrt(2.0 / (1.0 + 0.25**2)),
    Activation.maxout: 1.0,
    Activation.crelu: math.sqrt(2.0),
}
