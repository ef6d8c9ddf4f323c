"""Extreme eigenpairs of a look: computed once, by one process, and kept in the look's parts for spectrum and planes."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.landscape.settings import LandscapeSettings
from plastiscope.measure.landscape.eigenpairs import Eigenpairs, extreme_eigenpairs
from plastiscope.measure.landscape.operator import SymmetricOperator
from plastiscope.run.processes import Part


def wanted(settings: LandscapeSettings) -> tuple[int, int]:
    """How many top and bottom pairs spectrum and planes need."""
    spectrum, planes = settings.spectrum, settings.planes
    assert spectrum.top_k is not None
    top, bottom = (spectrum.top_k, spectrum.bottom_k) if settings.enable_spectrum else (0, 0)
    if settings.enable_planes and (planes.include_hessian or planes.include_hessian_signed):
        top, bottom = max(top, 2), max(bottom, 1 if planes.include_hessian_signed else 0)
    return top, bottom


def most_steps(settings: LandscapeSettings) -> int:
    """Steps of the search at most, and never fewer than are wanted; 0 where nothing is."""
    pairs = sum(wanted(settings))
    return max(settings.spectrum.max_steps or 10 * pairs + 20, pairs) if pairs else 0


def compute(
    operator: SymmetricOperator, settings: LandscapeSettings, seed: int, memory: int, told: Callable[[int], None]
) -> Part:
    """The pairs as arrays.

    Args:
        operator: the Hessian.
        settings: of the look.
        seed: of the start.
        memory: bytes that the basis of the search takes at most.
        told: is called with the number of each step.
    """
    top, bottom = wanted(settings)
    pairs = extreme_eigenpairs(
        operator,
        top,
        bottom,
        seed=seed,
        tol=settings.spectrum.tol,
        max_steps=most_steps(settings),
        order=settings.spectrum.order,
        memory=memory,
        told=told,
    )
    return {field.name: _array(getattr(pairs, field.name)) for field in fields(Eigenpairs)}


def restored(part: Part, device: torch.device) -> Eigenpairs:
    """The pairs of their arrays; vectors on the device."""
    values: dict[str, Any] = {name: _value(array) for name, array in part.items()}
    return Eigenpairs(**values | {name: values[name].to(device) for name in ("vectors", "images")})


def _array(value: Any) -> npt.NDArray:
    return value.cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)


def _value(array: npt.NDArray) -> Any:
    if array.dtype.kind == "U":  # notes
        return array.item() if array.ndim == 0 else tuple(array.tolist())
    return array.item() if array.ndim == 0 else torch.from_numpy(array)
