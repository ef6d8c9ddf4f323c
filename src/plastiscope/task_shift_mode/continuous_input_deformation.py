"""Images seen through an affine map that moves a little with every task.

Output position (x, y, 1) in [-1, 1]^2 shows what theta (x, y, 1)^T of the image shows: bilinear, and 0 (the mean of
normalised data) outside the image. theta(0) = I + U(-0.1, 0.1); it moves once before task 0 and after every task, so
task k is seen through the map after k + 1 moves.
"""

from dataclasses import dataclass
from enum import Enum

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError, require
from plastiscope.measure.keyed import named_seed
from plastiscope.task_shift_mode.evolution import Evolution
from plastiscope.task_shift_mode.task import Task, TaskShift
from plastiscope.task_shift_mode.views import any_classes_of, task_of_all

Matrix = npt.NDArray[np.float64]
IDENTITY: Matrix = np.eye(2, 3)


class Drift(Enum):
    """How theta moves; n counts the moves."""

    linear = "linear"
    """theta(0) + n max_drift d, in a fixed random direction d of unit Frobenius norm."""
    random_walk = "random_walk"
    """theta(n - 1) + N(0, std^2) in each entry."""
    sinusoidal = "sinusoidal"
    """I + A sin(frequency (n - 1) + phase)."""


class Sinusoid(Enum):
    """Amplitude and phase of the six entries."""

    per_entry = "per_entry"
    """Amplitude uniform in [0, amplitude] and phase uniform in [0, 2 pi], drawn for each entry."""
    shared = "shared"
    """One amplitude, phase 0: all six entries move together, as published."""


class AtBounds(Enum):
    """What happens to an entry that would leave its bounds."""

    reflect = "reflect"
    clamp = "clamp"


@dataclass(kw_only=True)
class ContinuousInputDeformation:
    """All samples in every task, their images deformed; needs images."""

    drift: Drift = Drift.linear
    """linear, random_walk or sinusoidal."""
    initial_range: float = 0.1
    """theta(0) - I is uniform within plus and minus this (linear and random_walk)."""
    max_drift: float = 0.5
    """Frobenius norm of a linear move."""
    std: float = 0.1
    """Standard deviation of a random step of an entry."""
    amplitude: float = 5.0
    """Of the sinusoid."""
    frequency: float = 0.1
    """Of the sinusoid, radians a task."""
    sinusoid: Sinusoid = Sinusoid.per_entry
    """per_entry or shared."""
    bounds: float | None = 0.3
    """Largest distance of an entry from the identity's; null = none, as published: images may leave the frame."""
    at_bounds: AtBounds = AtBounds.reflect
    """reflect or clamp."""

    def __post_init__(self) -> None:
        for name in ("initial_range", "max_drift", "std", "amplitude", "frequency"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        require(self.bounds is None or self.bounds > 0, "bounds", self.bounds, "must be more than 0, or null")

    def make(self, data: DataSet, seed: int) -> TaskShift:
        """The tasks of these data; ConfigError when they are no images."""
        if len(data.input_shape) != 3:
            raise ConfigError(
                "task_shift_mode=continuous_input_deformation needs images [c, h, w], these data are flat vectors; "
                "take image data, such as data=digits or data=cifar10"
            )
        return ContinuousInputDeformationTasks(data, self, seed)


@dataclass(frozen=True, eq=False)
class AffineDeformation:
    """Images sampled at grid [h, w, 2]; one grid for all images."""

    grid: Tensor

    def __call__(self, inputs: Tensor, ids: Tensor) -> Tensor:
        """Deformed inputs [b, c, h, w]."""
        return F.grid_sample(inputs, self.grid.expand(len(inputs), -1, -1, -1), align_corners=False)


def affine_deformation(theta: Matrix, input_shape: tuple[int, ...], device: torch.device) -> AffineDeformation:
    """The deformation of images [c, h, w] by theta [2, 3]; the grid is computed in float64 and rounded once."""
    grid = F.affine_grid(torch.from_numpy(theta)[None], [1, *input_shape], align_corners=False)[0]
    return AffineDeformation(grid.to(device, torch.float32))


def coverage(theta: Matrix) -> float:
    """Share of the image's area that stays in the frame.

    The frame [-1, 1]^2 shows a parallelogram of the image; its part inside the image [-1, 1]^2 is found exactly, by
    clipping (Sutherland and Hodgman 1974, "Reentrant polygon clipping") and the shoelace formula.
    """
    polygon = [theta @ (x, y, 1.0) for x, y in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    for axis in (0, 1):
        for side in (-1.0, 1.0):
            polygon = _clipped(polygon, axis, side)
    if not polygon:
        return 0.0
    x, y = np.stack(polygon, 1)
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2 / 4)


def _clipped(polygon: list[npt.NDArray[np.float64]], axis: int, side: float) -> list[npt.NDArray[np.float64]]:
    """The part of a convex polygon where side * p[axis] <= 1."""
    kept = []
    for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        p_room, q_room = 1 - side * p[axis], 1 - side * q[axis]
        if p_room >= 0:
            kept.append(p)
        if (p_room >= 0) != (q_room >= 0):
            kept.append(p + (q - p) * (p_room / (p_room - q_room)))
    return kept


class ContinuousInputDeformationTasks(TaskShift):
    """Any number of deformations.

    Attributes:
        start: theta(0), before any move.
        direction: of the linear drift.
    """

    num_tasks_possible = None

    def __init__(self, data: DataSet, config: ContinuousInputDeformation, seed: int) -> None:
        """Tasks of `data`."""
        self.data, self.config, self.seed, self.classes = data, config, seed, any_classes_of(data)
        self.outputs = data.outputs
        self.start = IDENTITY + self._generator("start").uniform(-config.initial_range, config.initial_range, (2, 3))
        direction = self._generator("direction").uniform(-1, 1, (2, 3))
        self.direction: Matrix = direction / np.linalg.norm(direction)
        wave = self._generator("wave")
        self._share, self._phase = wave.uniform(0, 1, (2, 3)), wave.uniform(0, 2 * np.pi, (2, 3))
        if config.sinusoid is Sinusoid.shared:
            self._share, self._phase = np.ones((2, 3)), np.zeros((2, 3))
        self._walk = Evolution(self._bounded(self.start), self._random_step)

    def theta(self, k: int) -> Matrix:
        """The map float64 [2, 3] of task k, after k + 1 moves."""
        config = self.config
        if config.drift is Drift.random_walk:
            return self._walk(k + 1)
        if config.drift is Drift.linear:
            return self._bounded(self.start + (k + 1) * config.max_drift * self.direction)
        wave = config.amplitude * self._share * np.sin(config.frequency * k + self._phase)
        return self._bounded(IDENTITY + wave)

    def task(self, k: int) -> Task:
        """Task k; its numbers are the coverage and theta."""
        theta = self.theta(k)
        transform = affine_deformation(theta, self.data.input_shape, self.data.train.source.device)
        numbers = {"coverage": coverage(theta)}
        numbers |= {f"theta_{row + 1}{column + 1}": float(theta[row, column]) for row, column in np.ndindex(2, 3)}
        return task_of_all(
            self.data,
            k,
            lambda s: s.with_transform(transform),
            classes=self.classes,
            outputs=self.outputs,
            numbers=numbers,
        )

    def _generator(self, *purpose: object) -> np.random.Generator:
        return np.random.default_rng(named_seed(self.seed, "continuous_input_deformation", *purpose))

    def _random_step(self, theta: Matrix, n: int) -> Matrix:
        return self._bounded(theta + self._generator("walk", n).normal(0.0, self.config.std, (2, 3)))

    def _bounded(self, theta: Matrix) -> Matrix:
        """Theta with every entry within the bounds; entries that are inside keep their bits."""
        b = self.config.bounds
        if b is None:
            return theta
        away = theta - IDENTITY
        if self.config.at_bounds is AtBounds.clamp:
            inside = np.clip(away, -b, b)
        else:
            inside = b - np.abs((away + b) % (4 * b) - 2 * b)
        return np.where(np.abs(away) <= b, theta, IDENTITY + inside)
