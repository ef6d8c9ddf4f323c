"""Rank of the Jacobian of a layer's features by the pixels of one sample (Feng et al. 2022).

"Rank diminishing in deep neural networks", NeurIPS: by the chain rule the rank of d feature_l / d x cannot rise with
depth, and in trained networks it falls. Only the pixels of a patch are moved, which bounds the rank from below. The
rank is that of the singular values of J itself: those of J^T J, as published, have twice the digits to lose (its
default threshold amounts to eps = .0096 of the largest singular value of J for 768 pixels in float32).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.operator import torchs_own_warnings_hidden
from plastiscope.measure.rank import numerical_rank

Features = Callable[[Tensor], Mapping[str, Tensor]]
"""Features [1, ...] by layer of inputs [1, ...]; differentiable, and safe from later changes in place."""

MEMORY = 2**30
"""Bytes of the Jacobians that are held at once; more layers take more passes."""
TANGENTS = 2**24
"""Numbers of features that one vectorised pass may hold."""


class Mode(Enum):
    """How a Jacobian is made."""

    forward = "forward"
    """A column for each pixel, of all layers at once."""
    reverse = "reverse"
    """A row for each feature."""


def patch_columns(shape: Sequence[int], side: int, offset: Sequence[int] | None = None) -> Tensor:
    """Positions int64 [p] in a flattened input of `shape` that belong to the patch, all channels of it.

    Args:
        shape: of an input, [c, h, w], or [d]: there side * side neighbouring features take the place of a patch.
        side: pixels a side; where the input is smaller, all of it (more pixels would be zeros, and add no rank).
        offset: row and column of the patch's first pixel ([d]: its first feature); None = in the middle.

    Raises:
        ConfigError: the patch sticks out.
    """
    lengths, sides = (shape, [side * side]) if len(shape) == 1 else (shape[1:], [side] * (len(shape) - 1))
    sides = [min(s, length) for s, length in zip(sides, lengths, strict=True)]
    starts = [(length - s) // 2 for s, length in zip(sides, lengths, strict=True)] if offset is None else list(offset)
    fits = len(starts) == len(lengths) and all(
        0 <= start <= length - s for start, s, length in zip(starts, sides, lengths, strict=True)
    )
    if not fits:
        raise ConfigError(f"patch_offset={starts}: a patch of {sides} pixels must lie within {list(lengths)}")
    positions = torch.arange(math.prod(shape)).view(tuple(shape))
    for axis, (start, s) in enumerate(zip(starts, sides, strict=True), start=len(shape) - len(lengths)):
        positions = positions.narrow(axis, start, s)
    return positions.flatten()


def jacobian_spectra(features: Features, sample: Tensor, columns: Tensor) -> dict[str, Tensor]:
    """Singular values of d feature / d x of each layer, float64, descending, by name.

    Args:
        features: of a network in evaluation mode.
        sample: one input, without the batch axis; the Jacobian is at this point.
        columns: positions [p] in the flattened input that are moved, as of `patch_columns`.

    Returns:
        [min(features, p)] for each layer; NaN where the Jacobian is not finite.
    """
    spectra: dict[str, Tensor] = {}
    for group in _groups(_sizes(features, sample), len(columns) * sample.element_size()):
        for name, jacobian in jacobians(features, sample, columns, group).items():
            spectra[name] = _spectrum(jacobian)
    return spectra


def partial_jacobian_ranks(spectra: Mapping[str, Tensor], eps: float = 0.01) -> dict[str, float]:
    """Number of singular values s >= eps * s_1 of each layer's Jacobian; 0 of a zero one, NaN of one not finite."""
    return {name: numerical_rank(spectrum, eps) for name, spectrum in spectra.items()}


def jacobians(
    features: Features, sample: Tensor, columns: Tensor, names: Sequence[str], mode: Mode | None = None
) -> dict[str, Tensor]:
    """J [out, p] of the layers `names`: J_ij = d feature_i / d x_j for the inputs j in `columns`.

    Args:
        features: of a network in evaluation mode.
        sample: one input, without the batch axis.
        columns: positions [p] in the flattened input that are moved.
        names: of the layers; the others are not held.
        mode: None = that with fewer passes; reverse where an operation of the network has no forward derivative.
    """
    columns = columns.to(sample.device)
    sizes = {name: size for name, size in _sizes(features, sample).items() if name in names}

    def of_patch(pixels: Tensor) -> dict[str, Tensor]:
        inputs = sample.flatten().scatter(0, columns, pixels).view(1, *sample.shape)
        found = features(inputs)
        return {name: found[name].flatten() for name in names}

    pixels = sample.flatten()[columns]
    chunk = max(TANGENTS // sum(sizes.values()), 1)
    is_wide = len(columns) > sum(sizes.values())
    with sdpa_kernel(SDPBackend.MATH), torch.enable_grad(), torchs_own_warnings_hidden():
        if mode is Mode.forward or (mode is None and not is_wide):
            try:
                return _by_columns(of_patch, pixels, chunk)
            except NotImplementedError:
                if mode is Mode.forward:
                    raise
        return torch.func.jacrev(of_patch, chunk_size=chunk)(pixels)


def _by_columns(function: Callable[[Tensor], dict[str, Tensor]], at: Tensor, chunk: int) -> dict[str, Tensor]:
    """Jacobians by forward derivatives, `chunk` columns in a pass."""

    def column(tangent: Tensor) -> dict[str, Tensor]:
        derivatives: dict[str, Tensor] = torch.func.jvp(function, (at,), (tangent,))[1]
        return derivatives

    units = torch.eye(len(at), dtype=at.dtype, device=at.device)
    return {name: rows.T for name, rows in torch.func.vmap(column, chunk_size=chunk)(units).items()}


@torch.no_grad()
def _sizes(features: Features, sample: Tensor) -> dict[str, int]:
    """Number of features of each layer."""
    return {name: feature.numel() for name, feature in features(sample.unsqueeze(0)).items()}


def _groups(sizes: Mapping[str, int], bytes_each: int) -> Iterator[list[str]]:
    """Neighbouring layers whose Jacobians fit into the memory together; a larger one alone."""
    group: list[str] = []
    held = 0
    for name, size in sizes.items():
        if group and held + size * bytes_each > MEMORY:
            yield group
            group, held = [], 0
        group.append(name)
        held += size * bytes_each
    yield group


def _spectrum(jacobian: Tensor) -> Tensor:
    matrix = jacobian.detach().double()
    if not matrix.isfinite().all():
        return torch.full((min(matrix.shape),), torch.nan, dtype=torch.float64, device=matrix.device)
    return torch.linalg.svdvals(matrix)
