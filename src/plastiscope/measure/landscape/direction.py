"""Directions in weight space: random ones with a normalisation, and those along which checkpoints lie."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from plastiscope.measure.keyed import keyed_normal
from plastiscope.measure.landscape.space import ParameterSpace


class Normalise(Enum):
    """What the length of a random direction follows."""

    filter = "filter"
    """Each slice along the first axis of a tensor of two dimensions or more gets the norm of the weights' slice."""
    layer = "layer"
    """Each tensor gets the norm of the weights' tensor."""
    model = "model"
    """The whole direction gets the norm of all weights."""
    none = "none"
    """As drawn."""


def random_direction(
    space: ParameterSpace,
    weights: Tensor,
    *,
    seed: int,
    k: int,
    normalise: Normalise = Normalise.filter,
    exclude_vectors: bool = True,
) -> Tensor:
    """A Gaussian direction [D], normalised (Li et al. 2018, "Visualizing the loss landscape of neural nets").

    Args:
        space: coordinates.
        weights: [D], whose norms are followed.
        seed, k: key; coordinate by coordinate within each parameter's name, so a subset of parameters keeps its numbers.
        normalise: rule. A slice of weights of norm zero gives a slice of zeros.
        exclude_vectors: zero the entries of tensors with one dimension (biases, normalisations' weights).
    """
    drawn = []
    for name, shape in zip(space.names, space.shapes, strict=True):
        coordinates = torch.arange(shape.numel(), device=weights.device)
        noise = keyed_normal(seed, f"direction/{name}", coordinates, k).to(weights.dtype).view(shape)
        drawn.append(torch.zeros_like(noise) if exclude_vectors and len(shape) < 2 else noise)
    own = space.parts(weights)
    if normalise is Normalise.model:
        flat = space.flat(drawn)
        return flat * (weights.norm() / flat.norm()) if flat.norm() else flat
    return space.flat([_scaled(d, w, normalise) for d, w in zip(drawn, own, strict=True)])


def _scaled(direction: Tensor, weights: Tensor, normalise: Normalise) -> Tensor:
    if normalise is Normalise.none:
        return direction
    is_sliced = normalise is Normalise.filter and direction.ndim >= 2
    axes = tuple(range(1, direction.ndim)) if is_sliced else tuple(range(direction.ndim))
    own = direction.square().sum(axes, keepdim=True).sqrt()
    wanted = weights.square().sum(axes, keepdim=True).sqrt()
    return torch.where(own > 0, direction * (wanted / own.clamp_min(torch.finfo(own.dtype).tiny)), 0.0)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two directions, NaN of a zero one."""
    a, b = a.double(), b.double()
    size = (a.norm() * b.norm()).item()
    return torch.dot(a, b).item() / size if size else math.nan


def orthogonal(second: Tensor, first: Tensor) -> Tensor:
    """`second` without its part along `first` (two passes), with the length it had."""
    length = second.double().norm()
    rest = second.double()
    for _ in range(2):
        rest = rest - (torch.dot(first.double(), rest) / first.double().square().sum()) * first.double()
    return (rest * (length / rest.norm())).to(second.dtype) if rest.norm() else rest.to(second.dtype)


@dataclass(frozen=True)
class Trajectory:
    """The plane in which checkpoints vary most, through the last of them.

    Attributes:
        directions: orthonormal [2, D]; rows of zeros where the checkpoints span less.
        explained: share of the squared distances from the last checkpoint along each, float64 [2].
        path: coordinates of every checkpoint in the plane, float64 [c, 2]; the last one is (0, 0).
        residuals: distance of every checkpoint from the plane, float64 [c].
    """

    directions: Tensor
    explained: Tensor
    path: Tensor
    residuals: Tensor


def trajectory(load: Callable[[int], Tensor], count: int) -> Trajectory:
    """PCA of checkpoints about the last one, through their Gram matrix; no more than two are in memory at once.

    Args:
        load: checkpoint i as a vector [D]; called several times.
        count: how many, 1 or more; the last one is the centre.
    """
    centre = load(count - 1).double()
    gram = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        one = load(i).double() - centre
        for j in range(i, count):
            gram[i, j] = gram[j, i] = torch.dot(one, load(j).double() - centre).item()
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:2].clamp_min(0), vectors.flip(1)[:, :2]
    tiny = 1e-12 * max(gram.trace().item(), torch.finfo(torch.float64).tiny)
    directions = torch.zeros(2, len(centre), dtype=torch.float64, device=centre.device)
    for axis in range(len(values)):
        if values[axis] > tiny:
            for i in range(count):
                directions[axis] += vectors[i, axis].item() * (load(i).double() - centre)
            directions[axis] /= directions[axis].norm()
    path, residuals = torch.zeros(count, 2, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for i in range(count):
        offset = load(i).double() - centre
        place = directions @ offset
        path[i] = place.cpu()
        residuals[i] = (offset - place @ directions).norm().cpu()
    total = gram.trace().item()
    explained = torch.zeros(2, dtype=torch.float64)
    explained[: len(values)] = values / total if total > 0 else math.nan
    return Trajectory(directions, explained, path, residuals)


def stacked(vectors: Sequence[Tensor]) -> Callable[[int], Tensor]:
    """`load` for checkpoints that are in memory."""
    return lambda i: vectors[i]
