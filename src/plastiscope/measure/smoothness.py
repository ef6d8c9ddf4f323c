"""How smooth a loss is along its own gradient: how far a step can be trusted (Santurkar et al. 2018).

"How does batch normalization help optimization?", section 3.2. A point theta [D] has the gradient g; at a distance eta
the gradient is asked again at theta + eta g (uphill) or theta - eta g (where a step of gradient descent goes). The
functions take the loss and its gradient as functions of the weights; `movable` makes them of a frozen loss.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.preserved import moved, put

GradientAt = Callable[[Tensor], Tensor]
"""Gradient [D] at weights [D]."""
LossAt = Callable[[Tensor], float]
"""Loss at weights [D]."""


class Movable(NamedTuple):
    """A loss as a function of the weights.

    Attributes:
        theta: weights [D] at which it was.
        loss_at, gradient_at: its value and its gradient elsewhere.
    """

    theta: Tensor
    loss_at: LossAt
    gradient_at: GradientAt


def step_sizes(smallest: float, largest: float, count: int) -> list[float]:
    """So many step sizes, evenly spaced in their logarithm, both ends among them."""
    return torch.logspace(*_exponents(smallest, largest), count, dtype=torch.float64).tolist()


def effective_beta(gradient_at: GradientAt, theta: Tensor, gradient: Tensor, etas: Sequence[float]) -> float:
    """The largest ||g(theta + eta g) - g(theta)|| / (eta ||g||) over eta: how fast the gradient changes, at least.

    It bounds the Lipschitz constant of the gradient from below. For a quadratic with Hessian H it is ||H g|| / ||g||,
    whatever the etas: the largest eigenvalue only where g is its eigenvector. 0 where the gradient is zero, NaN where
    one is not finite.

    Args:
        gradient_at: gradient at other weights.
        theta: [D].
        gradient: g [D], that at theta.
        etas: step sizes, above 0.
    """
    size = _norm(gradient)
    if size == 0:
        return 0.0
    changes = torch.stack([_norm(c) for c in gradient_changes(gradient_at, theta, gradient, etas)])
    return (changes / (torch.tensor(etas, dtype=torch.float64, device=size.device) * size)).max().item()


def gradient_predictiveness(
    gradient_at: GradientAt, theta: Tensor, gradient: Tensor, etas: Sequence[float]
) -> list[float]:
    """||g(theta - eta g) - g(theta)|| for each eta: how much the gradient changes within a step of descent.

    Small is predictive. The unit is that of the gradient; arguments as of `effective_beta`.
    """
    downhill = gradient_changes(gradient_at, theta, gradient, [-eta for eta in etas])
    return [_norm(change).item() for change in downhill]


def losses_along_step(loss_at: LossAt, theta: Tensor, gradient: Tensor, etas: Sequence[float]) -> list[float]:
    """L(theta - eta g) for each eta."""
    return [loss_at(theta - eta * gradient) for eta in etas]


def loss_range(losses: Sequence[float]) -> float:
    """Largest less smallest loss along a step, where it begins among them; NaN if one is not finite."""
    values = torch.tensor(losses, dtype=torch.float64)
    return (values.max() - values.min()).item() if values.isfinite().all() else torch.nan


def gradient_changes(
    gradient_at: GradientAt, theta: Tensor, gradient: Tensor, etas: Sequence[float]
) -> Iterator[Tensor]:
    """g(theta + eta g) - g(theta) [D] for each eta, one after the other; eta < 0 is downhill."""
    for eta in etas:
        yield gradient_at(theta + eta * gradient) - gradient


@contextmanager
def movable(frozen: FrozenLoss) -> Iterator[Movable]:
    """The loss and the gradient of a frozen set as functions of the chosen weights, which are as before afterwards."""
    with moved(frozen.net, frozen.space) as parameters:

        def go_to(theta: Tensor) -> None:
            put(parameters, frozen.space.parts(theta))

        def loss_at(theta: Tensor) -> float:
            go_to(theta)
            return frozen.value().item()

        def gradient_at(theta: Tensor) -> Tensor:
            go_to(theta)
            return frozen.gradient()

        yield Movable(frozen.space.values(frozen.net), loss_at, gradient_at)


def _norm(vector: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vector, dtype=torch.float64)


def _exponents(smallest: float, largest: float) -> tuple[float, float]:
    low, high = torch.tensor([smallest, largest], dtype=torch.float64).log10().tolist()
    return low, high
