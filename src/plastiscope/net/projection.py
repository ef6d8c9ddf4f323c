"""Layers of the full-rank projection network: a trained square map W, then a fixed projection P with a bias.

h' = phi(P W h + b), or with phi at the map h' = P phi(W h) + b. P [out, in] has orthonormal rows, where the width grows
orthonormal columns; it is drawn once and kept as a buffer.
"""

import math
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastiscope.error import ConfigError


class Projection(Enum):
    """What P is."""

    random = "random"
    """Uniform among the matrices with orthonormal rows (or columns)."""
    coordinates = "coordinates"
    """The first rows of the identity; only where the width does not grow."""


class PhiAt(Enum):
    """Where the activation stands."""

    output = "output"
    """After the projection."""
    map = "map"
    """Between the square map and the projection."""


def draw_projection(inputs: int, outputs: int, kind: Projection) -> Tensor:
    """P [outputs, inputs].

    Raises:
        ConfigError: coordinates of a layer that grows.
    """
    if kind is Projection.random:
        return nn.init.orthogonal_(torch.empty(outputs, inputs))
    if outputs > inputs:
        raise ConfigError(
            f"net.layers.projection=coordinates: a layer grows from {inputs} to {outputs} units, of which these "
            "coordinates do not exist; use net.layers.projection=random, or widths that do not grow"
        )
    return torch.eye(outputs, inputs)


def growth(inputs: int, outputs: int) -> float:
    """Factor of the first W: where the width grows the columns of P spread the energy over more outputs."""
    return max(1.0, math.sqrt(outputs / inputs))


class SquareMap:
    """The square map W, `weight`, of either form."""

    weight: Tensor
    growth: float

    @torch.no_grad()
    def grow(self) -> None:
        """Multiply freshly drawn weights by `growth`."""
        self.weight.mul_(self.growth)

    def numbers(self) -> dict[str, float]:
        """What is logged of the layer: the smallest singular value of W, a kernel as [C, C k k]."""
        values = torch.linalg.svdvals(self.weight.detach().flatten(1).double())
        return {"smallest_singular_value": values[-1].item()}


class _Projected(SquareMap, nn.Module):
    """Square map, projection and bias in one module."""

    row_obstacle = "the fixed projection in {path} mixes the rows of its weights"
    column_obstacle = ""
    projection: Tensor
    bias: nn.Parameter | None

    def start_at_zero(self) -> None:
        """Outputs 0 on all inputs, and able to learn: W = 0 and b = 0."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class ProjectedLinear(_Projected):
    """y = P W x + b."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, projection: Projection = Projection.random
    ) -> None:
        """Draw W and b as torch draws those of a square linear layer, then P."""
        super().__init__()
        self.in_features, self.out_features, self.growth = inputs, outputs, growth(inputs, outputs)
        square = nn.Linear(inputs, inputs, bias=False)
        self.weight = square.weight
        bound = inputs**-0.5
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None
        self.register_buffer("projection", draw_projection(inputs, outputs, projection))
        self.grow()

    def forward(self, x: Tensor) -> Tensor:
        """[b, ..., inputs] -> [b, ..., outputs]."""
        return F.linear(F.linear(x, self.weight), self.projection, self.bias)


class ProjectedConv2d(_Projected):
    """W is a convolution C -> C, P a fixed 1x1 convolution with the bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        projection: Projection = Projection.random,
    ) -> None:
        """Draw W and b as torch draws those of a convolution C -> C, then P; stride and padding are those of W."""
        super().__init__()
        self.in_channels, self.out_channels, self.growth = inputs, outputs, growth(inputs, outputs)
        self.kernel_size, self.stride, self.padding = kernel_size, stride, padding
        self.weight = nn.Conv2d(inputs, inputs, kernel_size, bias=False).weight
        bound = (inputs * kernel_size**2) ** -0.5
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None
        self.register_buffer("projection", draw_projection(inputs, outputs, projection))
        self.grow()

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, h, w] -> [b, outputs, h', w']."""
        mapped = F.conv2d(x, self.weight, stride=self.stride, padding=self.padding)
        return F.conv2d(mapped, self.projection[:, :, None, None], self.bias)


class SquareLinear(SquareMap, nn.Linear):
    """W alone, where the activation stands before the projection."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """Make the map of a layer from `inputs` to `outputs` units; it has `inputs` outputs."""
        super().__init__(inputs, inputs, bias=False)
        self.growth = growth(inputs, outputs)
        self.grow()


class SquareConv2d(SquareMap, nn.Conv2d):
    """W alone, of a convolution."""

    def __init__(self, inputs: int, outputs: int, kernel_size: int, padding: int = 0) -> None:
        """Make the map of a layer from `inputs` to `outputs` channels; it has `inputs` of them."""
        super().__init__(inputs, inputs, kernel_size, padding=padding, bias=False)
        self.growth = growth(inputs, outputs)
        self.grow()


class FixedProjection(nn.Module):
    """P x + b along axis 1; P fixed."""

    projection: Tensor

    def __init__(self, inputs: int, outputs: int, bias: bool, projection: Projection) -> None:
        """Draw b as torch draws that of a layer with so many inputs, then P."""
        super().__init__()
        bound = inputs**-0.5
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-bound, bound)) if bias else None
        self.register_buffer("projection", draw_projection(inputs, outputs, projection))

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, ...] -> [b, outputs, ...]."""
        if x.ndim == 2:
            return F.linear(x, self.projection, self.bias)
        return F.conv2d(x, self.projection[:, :, None, None], self.bias)
