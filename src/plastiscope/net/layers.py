"""How the linear layers and convolutions of a network are parametrised: one setting, the same blocks."""

import math
from dataclasses import dataclass, fields
from enum import Enum
from typing import Literal

from torch import nn

from plastiscope.error import require
from plastiscope.net.projection import (
    FixedProjection,
    PhiAt,
    ProjectedConv2d,
    ProjectedLinear,
    Projection,
    SquareConv2d,
    SquareLinear,
)
from plastiscope.net.svd import Inner, Orthogonal, Sign, SvdConv2d, SvdLinear, SvdSettings
from plastiscope.net.weight_normalised import InputStatistic, WeightNormConv2d, WeightNormLinear

COMPOSED = (SvdLinear, SvdConv2d, ProjectedLinear, ProjectedConv2d)
"""Layers of several factors."""
LEAVES = (*COMPOSED, WeightNormLinear, WeightNormConv2d, SquareLinear, SquareConv2d, FixedProjection)
"""Layers of our own, each looked at as a whole."""
WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *COMPOSED)
"""Layers that make units from all of their inputs, by trained weights."""


class Kind(Enum):
    """The parametrisation of a layer's weights."""

    plain = "plain"
    weight_normalised = "weight_normalised"
    svd = "svd"
    projection = "projection"


class Head(Enum):
    """The parametrisation of the head."""

    same = "same"
    plain = "plain"


class Init(Enum):
    """The distribution of initial weights and biases."""

    default = "default"
    """torch's own: weights and biases uniform within 1/sqrt(fan_in)."""
    kaiming_uniform = "kaiming_uniform"
    """Weights uniform within gain sqrt(3/fan_in), gain 1 for the head; biases zero (published permuted MNIST)."""


@dataclass(kw_only=True)
class Layers:
    """The settings of linear layers and convolutions."""

    kind: Kind = Kind.plain
    head: Head = Head.same
    """Whether the head is of that kind too."""
    input_statistic: InputStatistic = InputStatistic.none
    """weight_normalised: what of the inputs the weights are divided by the root of; none, variance, second_moment."""
    statistic_rate: float = 0.01
    """weight_normalised: weight of a training batch in the tracked statistic."""
    rank: int | None = None
    """svd: singular values of a layer; null = the smaller of inputs and outputs."""
    singular_values: Sign = Sign.abs
    """svd: abs, signed, softplus."""
    inner: Inner = Inner.identity
    """svd: non-linearity between the factors."""
    orthogonal: Orthogonal = Orthogonal.parametrised
    """svd: parametrised, penalty, none."""
    orthogonal_penalty: float = 1e-4
    """svd: mu of mu sum over layers of ||U^T U - I||_F^2 + ||V^T V - I||_F^2."""
    projection: Projection = Projection.random
    """projection: random, coordinates."""
    phi_at: PhiAt = PhiAt.output
    """projection: the activation stands after the projection (output), or between the map and it (map)."""
    maxout_pieces: int = 2
    """Of each unit, with activation=maxout."""

    def __post_init__(self) -> None:
        """Check the ranges, and that no setting belongs to another kind."""
        require(0 < self.statistic_rate < 1, "layers.statistic_rate", self.statistic_rate, "must be in (0, 1)")
        require(self.rank is None or self.rank > 0, "layers.rank", self.rank, "must be 1 or more, or null")
        penalty = self.orthogonal_penalty
        require(0 <= penalty < math.inf, "layers.orthogonal_penalty", penalty, "must be 0 or more, and finite")
        require(self.maxout_pieces > 0, "layers.maxout_pieces", self.maxout_pieces, "must be 1 or more")
        for field in fields(self):
            kind = _KIND_OF.get(field.name, self.kind)
            value = getattr(self, field.name)
            is_effective = kind is self.kind or value == field.default
            told = f"belongs to net.layers.kind={kind.value}, and kind is {self.kind.value}"
            require(is_effective, f"layers.{field.name}", getattr(value, "value", value), told)

    @property
    def is_mapped(self) -> bool:
        """Whether the activation stands between the two parts of a layer."""
        return self.kind is Kind.projection and self.phi_at is PhiAt.map

    def of_head(self) -> "Layers":
        """The settings of the head."""
        return Layers() if self.head is Head.plain else self

    def linear(self, inputs: int, outputs: int, gain: float, bias: bool = True) -> nn.Module:
        """A fresh linear layer.

        Args:
            inputs: dimensions.
            outputs: units.
            gain: of the activation after it, 1 before an output; plain layers and projections start as torch's do.
            bias: whether there is one.
        """
        if self.kind is Kind.weight_normalised:
            return WeightNormLinear(inputs, outputs, bias, gain, self.input_statistic, self.statistic_rate)
        if self.kind is Kind.svd:
            return SvdLinear(inputs, outputs, bias, gain, self._svd())
        if self.kind is Kind.projection:
            return ProjectedLinear(inputs, outputs, bias, self.projection)
        return nn.Linear(inputs, outputs, bias)

    def conv(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        gain: float,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> nn.Module:
        """A fresh convolution; see `linear` and nn.Conv2d."""
        place = (inputs, outputs, kernel_size, stride, padding)
        if self.kind is Kind.weight_normalised:
            told = {"statistic": self.input_statistic, "rate": self.statistic_rate}
            return WeightNormConv2d(*place, bias=bias, gain=gain, **told)  # type: ignore[arg-type]
        if self.kind is Kind.svd:
            return SvdConv2d(*place, bias=bias, gain=gain, settings=self._svd())
        if self.kind is Kind.projection:
            return ProjectedConv2d(*place, bias=bias, projection=self.projection)
        return nn.Conv2d(*place, bias=bias)

    def mapped_linear(self, inputs: int, outputs: int, bias: bool = True) -> tuple[nn.Module, nn.Module]:
        """The square map of a linear layer, and the projection that follows its activation."""
        square = SquareLinear(inputs, outputs)
        return square, FixedProjection(inputs, outputs, bias, self.projection)

    def mapped_conv(self, inputs: int, outputs: int, kernel_size: int, padding: int) -> tuple[nn.Module, nn.Module]:
        """The same of a convolution."""
        square = SquareConv2d(inputs, outputs, kernel_size, padding)
        return square, FixedProjection(inputs, outputs, True, self.projection)

    def _svd(self) -> SvdSettings:
        return SvdSettings(
            rank=self.rank,
            sign=self.singular_values,
            inner=self.inner,
            orthogonal=self.orthogonal,
            penalty=self.orthogonal_penalty,
        )


_KIND_OF = {
    **dict.fromkeys(("input_statistic", "statistic_rate"), Kind.weight_normalised),
    **dict.fromkeys(("rank", "singular_values", "inner", "orthogonal", "orthogonal_penalty"), Kind.svd),
    **dict.fromkeys(("projection", "phi_at"), Kind.projection),
}


def kaiming_uniform(module: nn.Module, gain: float) -> None:
    """Draw weights uniform within gain sqrt(3/fan_in), biases 0; layers of factors keep the start of their own."""
    weight = getattr(module, "weight", None)
    if weight is not None:
        bound = gain * math.sqrt(3.0 / weight[0].numel())
        nn.init.uniform_(weight, -bound, bound)
        _grow(module)
    if getattr(module, "bias", None) is not None:
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


def kaiming_normal(module: nn.Module, nonlinearity: Literal["relu", "linear"]) -> None:
    """Draw weights normal by fan-in; layers of factors keep the start of their own."""
    weight = getattr(module, "weight", None)
    if weight is not None:
        nn.init.kaiming_normal_(weight, nonlinearity=nonlinearity)
        _grow(module)


def _grow(module: nn.Module) -> None:
    grow = getattr(module, "grow", None)
    if callable(grow):
        grow()
