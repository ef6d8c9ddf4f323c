"""The loss on a plane through the weights, and the worst loss in a small ball around each of its points."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import torch
from torch import Tensor

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.first_layer import FirstLayer, as_ever, first_layer
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.preserved import moved, put


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
        """What `at` gives at the cells of row i, float64 [columns, ...]; the loss by default.

        theta + a d1 is formed once from the weights, and each cell adds b d2 to that: the order of rounding is fixed,
        so a row is the same bits whoever computes it, and the cell in the middle is theta itself. Where the network
        begins with a linear layer, its outputs are formed in the same way (see `FirstLayer`).
        """
        frozen, space = self.frozen, self.frozen.space
        at = at or frozen.value
        a = self.a[i].item()
        found = []
        with torch.no_grad(), moved(frozen.net, space) as parameters:
            first, second = (laid_out_as(parameters, space.parts(d)) for d in (self.first, self.second))
            base = [p.add(d, alpha=a) if a else p.clone() for p, d in zip(parameters, first, strict=True)]
            layer, named = self._first_layer, dict(zip(space.names, base, strict=True))
            with layer.on_line(named) if layer else as_ever() as tell:
                for j in range(len(self.b)) if columns is None else columns:
                    b = self.b[j].item()
                    for parameter, start, direction in zip(parameters, base, second, strict=True):
                        torch.add(start, direction, alpha=b, out=parameter) if b else parameter.copy_(start)
                    tell(b)
                    found.append(at())
        return torch.stack(found)

    @cached_property
    def _first_layer(self) -> FirstLayer | None:
        """Where there are cells enough that what is the same in all of them is worth its own product."""
        return first_layer(self.frozen, self.frozen.space.named(self.second)) if len(self.b) > 2 else None

    def point(self, a: float, b: float, at: Callable[[], Tensor] | None = None) -> Tensor:
        """What `at` gives at one place of the plane, on the grid or off it; the loss by default."""
        places = (torch.tensor([place], dtype=torch.float64) for place in (a, b))
        return Plane(self.frozen, self.first, self.second, *places).row(0, at)[0]

    def losses(self) -> Tensor:
        """Loss at every cell, float64 [rows, columns]; what is not finite stays as it is."""
        return torch.stack([self.row(i) for i in range(len(self.a))]).cpu()


def laid_out_as(parameters: Sequence[Tensor], parts: Sequence[Tensor]) -> list[Tensor]:
    """The parts with the parameters' order in memory (channels last), so that sums of both run through both in step."""
    return [torch.empty_like(p).copy_(d) for p, d in zip(parameters, parts, strict=True)]


class Ascent(Enum):
    """How far a step of the inner maximisation goes along each coordinate."""

    plain = "plain"
    """rho g / ||g||"""
    adaptive = "adaptive"
    """rho t^2 g / ||t g||, scaled by t = |theta| twice (Kwon et al. 2021, ASAM)."""


def robust_loss(
    frozen: FrozenLoss,
    rho: float,
    kind: Ascent = Ascent.plain,
    steps: int = 1,
    here: Tensor | None = None,
    starts: int = 1,
    seed: int = 0,
) -> Tensor:
    """(L_rho, L, ||g||), float64 [3], at the live parameters, which are as before afterwards.

    L_rho(theta) = L(theta + rho g / (||g|| + 1e-12)), g the full gradient over the chosen parameters (Foret et al.
    2021): a lower bound of the maximum over the ball. With more steps the radius is divided among them, and the
    gradient is taken anew at each. Where g = 0 the point does not move, and L_rho = L says nothing of the ball.

    With more starts it is the worst of several ascents: the others begin at random points of the sphere, take one step
    of rho along the gradient there and, where that leads out of the ball, go back to its surface.

    Args:
        frozen: the loss.
        rho: radius.
        kind: of the ascent.
        steps: of the ascent.
        here: L at the live parameters, where it is known; saves a forward.
        starts: ascents, of which the largest loss counts.
        seed: of the random points, which are the same ones in every cell.

    Raises:
        ConfigError: rho is negative or not finite, or there is no step or start.
    """
    if not (rho >= 0 and math.isfinite(rho)) or steps < 1 or starts < 1:
        raise ConfigError(
            f"rho={rho}, steps={steps}, starts={starts}: rho must be 0 or more and finite, steps and starts 1 or more"
        )
    gradient, here = frozen.gradient(), frozen.value() if here is None else here
    norm = gradient.double().norm()
    if not rho:
        return torch.stack([here, here, norm])
    with moved(frozen.net, frozen.space) as parameters:
        for step in range(steps):
            if step:
                gradient = frozen.gradient()
            weights = frozen.space.values(frozen.net)
            put(parameters, frozen.space.parts(weights + _ascent(gradient, weights, rho / steps, kind)))
        worst = frozen.value()
    for k in range(1, starts):
        worst = torch.maximum(worst, _from_random_point(frozen, rho, kind, seed, k))
    return torch.stack([worst, here, norm])


def _from_random_point(frozen: FrozenLoss, rho: float, kind: Ascent, seed: int, k: int) -> Tensor:
    """The loss after a step of rho from a random point of the sphere, back on the ball; float64 scalar.

    The ball is one of theta + t z, |z| <= rho, with t = 1 or, if it is adaptive, t = |theta|.
    """
    space, weights = frozen.space, frozen.space.values(frozen.net)
    scale = weights.abs() if kind is Ascent.adaptive else torch.ones_like(weights)
    noise = space.normals(seed, "robust", k, weights.device).to(weights.dtype)
    with moved(frozen.net, space) as parameters:
        z = noise * (rho / noise.double().norm()).to(weights.dtype)
        put(parameters, space.parts(weights + scale * z))
        slope = scale * frozen.gradient()
        z = z + slope * (rho / (slope.double().norm() + 1e-12)).to(weights.dtype)
        z = z * (rho / z.double().norm().clamp_min(rho)).to(weights.dtype)
        put(parameters, space.parts(weights + scale * z))
        return frozen.value()


def _ascent(gradient: Tensor, weights: Tensor, rho: float, kind: Ascent) -> Tensor:
    scale = weights.abs() if kind is Ascent.adaptive else torch.ones_like(weights)
    scaled = scale * gradient
    return scale * scaled * (rho / (scaled.double().norm() + 1e-12)).to(weights.dtype)


@dataclass(frozen=True)
class RobustSurface:
    """The robust loss at some cells of a plane, float64 [r, c] each.

    Attributes:
        rows, columns: places of the cells in the plane.
        worst: L_rho.
        plain: L.
        gradient_norms: ||g||; rho ||g|| is the first-order gap.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    worst: Tensor
    plain: Tensor
    gradient_norms: Tensor

    @property
    def gap(self) -> Tensor:
        """L_rho - L."""
        return self.worst - self.plain

    @property
    def stationary(self) -> Tensor:
        """Where the gradient is zero, so that the gap of 0 is none that was found, bool [r, c]."""
        return self.gradient_norms == 0


def robust_surface(
    plane: Plane, rho: float, stride: int = 1, kind: Ascent = Ascent.plain, steps: int = 1
) -> RobustSurface:
    """The robust loss at every `stride`-th cell, counted from the middle (see `robust_loss`)."""
    rows, columns = strided(len(plane.a), stride), strided(len(plane.b), stride)

    def at() -> Tensor:
        return robust_loss(plane.frozen, rho, kind, steps)

    worst, plain, norms = torch.stack([plane.row(i, at, columns) for i in rows]).cpu().unbind(-1)
    return RobustSurface(tuple(rows), tuple(columns), worst, plain, norms)


def strided(n: int, stride: int) -> list[int]:
    """Cells of an odd grid whose offset from the middle is a multiple of `stride`; the middle always is.

    Raises:
        ConfigError: the stride is less than 1.
    """
    if stride < 1:
        raise ConfigError(f"subsample_stride={stride}: must be 1 or more")
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
        curvatures: second derivatives along both axes of the quadratic fitted to the inner 3 x 3 cells.
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
    curvatures, r2 = _quadratic(losses, a, b, i, j)
    centre, minimum = losses[i, j].item(), lowest.min().item()
    return Shape(
        centre=centre,
        minimum=minimum,
        cell=divmod(int(lowest.argmin()), losses.shape[1]),
        centre_is_minimum=centre <= minimum,
        nonfinite=1 - finite.double().mean().item(),
        curvatures=curvatures,
        r2=r2,
    )


def _quadratic(losses: Tensor, a: Tensor, b: Tensor, i: int, j: int) -> tuple[tuple[float, float], float]:
    """Second derivatives and R^2 of a quadratic through the cells within one of the middle; NaN of bad cells."""
    inner = losses[i - 1 : i + 2, j - 1 : j + 2].flatten().tolist()
    if not all(map(math.isfinite, inner)):
        return (math.nan, math.nan), math.nan
    # In cells, whatever the span, 1, x, y, x^2 - 2/3, x y, y^2 - 2/3 are orthogonal over the nine cells, so that each
    # coefficient is a quotient of exact sums: a solver's last bits depend on where in memory its arrays lie.
    cells = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    columns = [[1.0] * 9, *zip(*((x, y, x * x - 2 / 3, x * y, y * y - 2 / 3) for x, y in cells), strict=True)]
    fit = [_sum(column, inner) / _sum(column, column) for column in columns]
    found = [_sum(fit, row) for row in zip(*columns, strict=True)]
    left = math.fsum((f - g) ** 2 for f, g in zip(inner, found, strict=True))
    spread = math.fsum((f - fit[0]) ** 2 for f in inner)
    curvatures = 2 * fit[3] / a[i + 1].item() ** 2, 2 * fit[5] / b[j + 1].item() ** 2
    return curvatures, 1 - left / spread if spread > 0 else math.nan


def _sum(one: Sequence[float], other: Sequence[float]) -> float:
    """Inner product, rounded once a term and once in all."""
    return math.fsum(a * b for a, b in zip(one, other, strict=True))
