"""Landscapes whose planes, balls and curves are known in closed form."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from measure.landscape.landscape_cases import DOUBLE, OfWeights, with_spectrum
from plastiscope.landscape.look import Landscape, Numbers, SavedPoint, opened
from plastiscope.landscape.settings import (
    BackendChoice,
    DirectionSettings,
    LandscapeSettings,
    PlaneSettings,
    Profile,
    SpectrumSettings,
)
from plastiscope.landscape.study import everything
from plastiscope.measure.loss import Loss
from plastiscope.run.storage import read_json

ENDS = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=DOUBLE)


def settings_of(planes: dict[str, Any] | None = None, **options: Any) -> LandscapeSettings:
    """The smallest profile in float64, with everything off that is not asked for; 1-D weights take part."""
    off = {"enable_planes": planes is not None, "enable_spectrum": False, "enable_sam": False}
    kinds = {"include_hessian": False, "include_random": False, "include_trajectory": False, "plot_3d": False}
    route = SpectrumSettings(backend=BackendChoice.rebuilt, top_k=2, bottom_k=1)
    options = {"profile": Profile.smoke, "dtype": "float64", "spectrum": route} | off | options
    directions = DirectionSettings(exclude_bn_and_bias=False)
    return LandscapeSettings(planes=PlaneSettings(**{"bn": directions} | kinds | (planes or {})), **options)


def of_weights(function: Callable[[Tensor], Tensor], theta: Tensor, folder: Path, **options: Any) -> Landscape:
    """The landscape L(theta) = function(theta): two samples, of losses half and one and a half of it."""
    inputs = torch.tensor([[0.5], [1.5]], dtype=theta.dtype)
    net = OfWeights(function, theta)
    return Landscape(
        net=net, inputs=inputs, targets=torch.zeros(2), loss=lambda outputs, _: outputs[:, 0], folder=folder, **options
    )


def bowl(folder: Path, **options: Any) -> tuple[Landscape, Tensor, Tensor]:
    """A quadratic .5 theta^T A theta + b^T theta in ten dimensions, A of eigenvalues 5, 4, ..., -2; with A and b."""
    generator = torch.Generator().manual_seed(0)
    values = torch.tensor([5, 4, 2, 1.5, 1, 0.5, 0.25, 0, -0.5, -2], dtype=DOUBLE)
    matrix = with_spectrum(values)
    slope, theta = torch.randn(2, len(values), dtype=DOUBLE, generator=generator)
    landscape = of_weights(lambda t: 0.5 * torch.dot(t, matrix @ t) + torch.dot(slope, t), theta, folder, **options)
    return landscape, matrix, slope


def ring(folder: Path, **options: Any) -> Landscape:
    """(||theta||^2 - 1)^2 in the plane: a straight line between opposite points crosses a hill of height 1."""
    start = SavedPoint("before", lambda: {"theta": ENDS[1].clone()})
    return of_weights(lambda t: (t.square().sum() - 1).square(), ENDS[0], folder, start=start, **options)


def with_norms(seed: int) -> nn.Module:
    """A classifier with batch normalisations whose statistics have seen data."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)
    )
    net = net.double()
    for _ in range(20):
        net(torch.randn(40, 6, dtype=DOUBLE))
    return net.eval()


def normed(folder: Path, **options: Any) -> Landscape:
    """A net with batch normalisations, random data of 45 samples, and test data."""
    generator = torch.Generator().manual_seed(1)
    inputs, test = (torch.randn(n, 6, dtype=DOUBLE, generator=generator) for n in (45, 21))
    targets, test_targets = (torch.randint(0, 3, (n,), generator=generator) for n in (45, 21))
    start = with_norms(7).state_dict()
    return Landscape(
        net=with_norms(3),
        inputs=inputs,
        targets=targets,
        loss=Loss.cross_entropy,
        folder=folder,
        start=SavedPoint("before", lambda: start),
        test=(test, test_targets),
        training_batch=11,
        **options,
    )


def stored(folder: Path, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Arrays and record of a result."""
    with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
        return dict(file), read_json(folder / f"{name}.json")


def with_settings(landscape: Landscape, settings: LandscapeSettings) -> Landscape:
    return replace(landscape, settings=settings)


def looked(landscape: Landscape) -> Numbers:
    """All of a look but its pictures."""
    with opened(landscape) as look:
        numbers = everything(look)
        look.work.finish()
    return numbers
