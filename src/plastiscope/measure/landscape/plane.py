"""The loss on a plane through the weights, and the worst loss in a small ball around each of its points."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.frozen import FrozenLoss, moved


def offsets(span: float, n: int) -> Tensor:
    """Offsets span (i - c) / c with c = (n - 1) / 2, float64 [n]: exactly 0 in the middle, exactly antisymmetric.

    Raises:
        ConfigError: n is even or less than 3, or the span is not positive.
    """
    if n < 3 or n % 2 == 0:
        raise ConfigError(f"grid_resolution={n}: must be odd and 3 or more, so that a cell lies on the weights")
    if not (span > 0 and math.isfinite(span)):
        raise ConfigError(f"span={span}: must be positive and finite")
    c = (n - 1) // 2
    return span * (torch.arange(n, dtype=torch.float64) - c) / c


@dataclass(frozen=True, eq=False)
class Plane:
    """theta + a d1 + b d2.

    Attributes:
        frozen: the loss; theta is where its parameters are.
        first, second: directions [D].
        a, b: offsets along them, float64 [rows], [columns].
    """

    frozen: FrozenLoss
    first: Tensor
    second: Tensor
    a: Tensor
    b: Tensor

    def row(self, i: int, at: Callable[[], Tensor] | None = None, columns: Sequence[int] | None = None) -> Tensor:
        """What `at` gives at the cells of row i, float64 [columns]; the loss by default.

        theta + a d1 is formed once from the weights, and each cell adds b d2 to that: the order of rounding is fixed,
        so a row is the same bits whoever computes it, and the cell in the middle is theta itself.
        """
        frozen, space = self.frozen, self.frozen.space
        at = at or frozen.value
        first, second = space.parts(self.first), space.parts(self.second)
        a = self.a[i].item()
        found = []
        with torch.no_grad(), moved(frozen.net, space) as parameters:
            base = [p.add(d, alpha=a) if a else p.clone() for p, d in zip(parameters, first, strict=True)]
            for j in range(len(self.b)) if columns is None else columns:
                b = self.b[j].item()
                for parameter, start, direction in zip(parameters, base, second, strict=True):
                    torch.add(start, direction, alpha=b, out=parameter.data) if b else parameter.copy_(start)
                found.append(at())
        return torch.stack(found)

    def losses(self) -> Tensor:
        """Loss at every cell, float64 [rows, columns]; what is not finite stays as it is."""
        return torch.stack([self.row(i) for i in range(len(self.a))]).cpu()


class Ascent(Enum):
    """How far a step of the inner maximisation goes along each coordinate."""

    plain = "plain"
    """rho g / ||g||"""
    adaptive = "adaptive"
    """rho t g / ||t g||, scaled by t = |theta| twice (Kwon et al. 2021, ASAM)."""


def robust_loss(frozen: FrozenLoss, rho: float, kind: Ascent = Ascent.plain, steps: int = 1) -> Tensor:
    """(L at the worst point found, L, ||g||), float64 [3], at the live parameters, which are as before afterwards.

    L_rho(theta) = L(theta + rho g / (||g|| + 1e-12)), g the full gradient over the chosen parameters (Foret et al.
    2021): a lower bound of the maximum over the ball. With more steps the radius is divided among them, and the
    gradient is taken anew at each.
    """
    space = frozen.space
    here = frozen.value()
    norm = None
    with moved(frozen.net, space) as parameters:
        for _ in range(steps):
            gradient = frozen.gradient()
            with torch.no_grad():
                norm = gradient.double().norm() if norm is None else norm
                step = gradient
                if kind is Ascent.adaptive:
                    size = space.values(frozen.net).abs()
                    step = size * gradient
                    move = size * step * (rho / steps / (step.double().norm() + 1e-12)).to(step.dtype)
                else:
                    move = step * (rho / steps / (step.double().norm() + 1e-12)).to(step.dtype)
                if rho:
                    for parameter, part in zip(parameters, space.parts(move), strict=True):
                        parameter.add_(part)
        worst = frozen.value() if rho else here
    assert norm is not None
    return torch.stack([worst, here, norm])


def strided(n: int, stride: int) -> list[int]:
    """Cells of an odd grid whose offset from the middle is a multiple of `stride`; the middle always is."""
    c = (n - 1) // 2
    return [i for i in range(n) if (i - c) % stride == 0]


@dataclass(frozen=True)
class Shape:
    """What a grid of losses says.

    Attributes:
        centre: loss at the weights.
        minimum: smallest finite loss, and its cell.
        cell: (row, column) of the minimum.
        centre_is_minimum: whether no cell lies lower.
        nonfinite: share of cells that are not finite.
        curvatures: second derivatives along both axes of the quadratic fitted to the inner 3 x 3 cells (or 5 x 5).
        r2: how well it fits.
    """

    centre: float
    minimum: float
    cell: tuple[int, int]
    centre_is_minimum: bool
    nonfinite: float
    curvatures: tuple[float, float]
    r2: float


def shape_of(losses: Tensor, a: Tensor, b: Tensor) -> Shape:
    """The shape of a grid, float64 [rows, columns] at offsets a and b."""
    finite = torch.isfinite(losses)
    i, j = (len(a) - 1) // 2, (len(b) - 1) // 2
    lowest = torch.where(finite, losses, math.inf)
    cell = divmod(int(lowest.argmin()), losses.shape[1])
    minimum = lowest.min().item()
    curvatures, r2 = _quadratic(losses, a, b, i, j)
    centre = losses[i, j].item()
    return Shape(
        centre, minimum, cell, centre <= minimum, 1 - finite.double().mean().item(), curvatures, r2
    )  # fmt: skip


def _quadratic(losses: Tensor, a: Tensor, b: Tensor, i: int, j: int) -> tuple[tuple[float, float], float]:
    """Second derivatives and R^2 of a quadratic through the cells within one of the middle; NaN of bad cells."""
    rows, columns = slice(i - 1, i + 2), slice(j - 1, j + 2)
    inner = losses[rows, columns].flatten()
    if not torch.isfinite(inner).all():
        return (math.nan, math.nan), math.nan
    x, y = torch.meshgrid(a[rows], b[columns], indexing="ij")
    x, y = x.flatten(), y.flatten()
    design = torch.stack([torch.ones_like(x), x, y, x * x, x * y, y * y], 1)
    fit = torch.linalg.lstsq(design, inner.unsqueeze(1)).solution.squeeze(1)
    left = (inner - design @ fit).square().sum()
    spread = (inner - inner.mean()).square().sum()
    return (2 * fit[3].item(), 2 * fit[5].item()), 1 - (left / spread).item() if spread > 0 else math.nan
