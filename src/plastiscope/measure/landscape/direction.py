"""Directions in weight space: random ones with a normalisation, and those along which checkpoints lie."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from plastiscope.measure.landscape.krylov import orthogonalised
from plastiscope.measure.landscape.space import ParameterSpace


class Normalise(Enum):
    """What the length of a random direction follows."""

    filter = "filter"
    """Each slice along the first axis of a tensor of two dimensions or more gets the norm of the weights' slice.

    The first axis: an output of a linear layer or a convolution, an input of a transposed convolution, a token of an
    embedding. Tensors of one dimension are one slice.
    """
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
        seed: key, with the parameter's name and the element, so a subset of parameters keeps its numbers.
        k: which direction.
        normalise: rule. A slice of weights of norm zero gives a slice of zeros.
        exclude_vectors: zero the entries of tensors with one dimension (biases, normalisations' weights).
    """
    noise = space.parts(space.normals(seed, "direction", k, weights.device).to(weights.dtype))
    drawn = [torch.zeros_like(part) if exclude_vectors and part.ndim < 2 else part for part in noise]
    own = space.parts(weights)
    if normalise is Normalise.model:
        flat = space.flat(drawn)
        return _scaled(flat, weights, Normalise.layer)
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
    """`second` without its part along `first`, with the length it had; zeros where nothing is left."""
    one, length = first.double(), second.double().norm()
    if not one.norm():
        return second
    one = one / one.norm()
    rest = orthogonalised(second.double(), one.unsqueeze(0))
    if rest.norm() <= 100 * torch.finfo(torch.float64).eps * length:
        return torch.zeros_like(second)
    return (rest * (length / rest.norm())).to(second.dtype)


NOTHING = 1e-12
"""Share of the squared distances below which an axis is rounding."""


@dataclass(frozen=True)
class Trajectory:
    """The plane in which checkpoints vary most, through the last of them.

    Attributes:
        directions: orthonormal [2, D], the entry of largest magnitude positive; zeros where the checkpoints span less.
        explained: share of the squared distances from the last checkpoint along each, float64 [2]; NaN if all are one.
        path: coordinates of every checkpoint in the plane, float64 [c, 2]; the last one is (0, 0).
        residuals: distance of every checkpoint from the plane, float64 [c].
    """

    directions: Tensor
    explained: Tensor
    path: Tensor
    residuals: Tensor


def trajectory(load: Callable[[int], Tensor], count: int) -> Trajectory:
    """PCA of checkpoints about the last one, through their Gram matrix; two are in memory beside the last at once.

    Args:
        load: checkpoint i as a vector [D]; called several times.
        count: how many, 1 or more; the last one is the centre.
    """
    centre = load(count - 1).double()

    def offset(i: int) -> Tensor:
        return load(i).double() - centre

    gram = torch.zeros(count, count, dtype=torch.float64)
    for i in range(count):
        one = offset(i)
        for j in range(i, count):
            gram[i, j] = gram[j, i] = torch.dot(one, offset(j)).item()
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0)[:2].clamp_min(0), vectors.flip(1)[:, :2]
    total = gram.trace().item()
    directions = torch.zeros(2, len(centre), dtype=torch.float64, device=centre.device)
    for axis in range(len(values)):
        if values[axis] > NOTHING * total:
            found = sum((vectors[i, axis].item() * offset(i) for i in range(count)), torch.zeros_like(centre))
            found = orthogonalised(found, directions[:axis])
            directions[axis] = found / found.norm() * torch.sign(found[found.abs().argmax()])
    path, residuals = torch.zeros(count, 2, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for i in range(count):
        place = directions @ offset(i)
        path[i], residuals[i] = place.cpu(), (offset(i) - place @ directions).norm().cpu()
    return Trajectory(
        directions=directions,
        explained=torch.cat([values, values.new_zeros(2 - len(values))]) / (total or math.nan),
        path=path,
        residuals=residuals,
    )
