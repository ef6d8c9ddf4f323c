"""Saved weights beside those that are looked at: how they are loaded and compared, and the plane they lie in most."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plastiscope.error import DataError
from plastiscope.landscape.look import Look, SavedPoint, State
from plastiscope.measure.landscape.direction import trajectory
from plastiscope.measure.landscape.krylov import orthogonalised
from plastiscope.run.processes import Part

HELD = 2**30
"""Bytes of checkpoints kept in memory; more of them are loaded anew for each comparison."""
MARGIN = 1.2
"""Half the span over the largest coordinate of the path."""
THINNEST = 0.1
"""The span of an axis is at least this share of the other one's."""


def loaded(point: SavedPoint, net: nn.Module) -> State:
    """The state of a saved point, where the network is and in its precision.

    Raises:
        DataError: it belongs to another architecture; names the first entry that differs.
    """
    state, own = point.load(), net.state_dict()
    for name in [*own, *(name for name in state if name not in own)]:
        if name not in state or name not in own:
            where = "the network has it" if name in own else f"{point.name} has it"
            raise DataError(f"{point.name} is of another architecture: of the two only {where}: {name}")
        if state[name].shape != own[name].shape:
            there, here = tuple(state[name].shape), tuple(own[name].shape)
            raise DataError(
                f"{point.name} is of another architecture: {name} has the shape {there} there and {here} in the "
                "network; planes and curves join networks of one shape"
            )
    return {name: state[name].to(device=own[name].device, dtype=own[name].dtype) for name in own}


@contextmanager
def holding(net: nn.Module, state: State) -> Iterator[None]:
    """Inside, the network holds `state`; afterwards the same bits as before."""
    own = {name: value.detach().clone() for name, value in net.state_dict().items()}
    try:
        put_state(net, state)
        yield
    finally:
        put_state(net, own)


@torch.no_grad()
def put_state(net: nn.Module, state: State) -> None:
    """Write a state into a network, in place."""
    for name, value in net.state_dict().items():
        value.copy_(state[name])


def mark_of(states: Sequence[State]) -> str:
    """A short digest, so that what was computed for some saved weights is never taken for others."""
    found = hashlib.sha256()
    for state in states:
        for name, value in state.items():
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


@dataclass(frozen=True, eq=False)
class Path:
    """The points of a training, in their order, seen in the plane through the weights in which they vary most.

    Attributes:
        names: of the points, the weights themselves among them.
        here: which point are the weights; None = the last one, and where they belong is not known.
        directions: orthonormal [2, D].
        path: coordinates float64 [c, 2]; (0, 0) of the weights.
        residuals: distances from the plane, float64 [c].
        explained: share of the squared distances from the weights along each axis, [2].
        is_second_random: the points lie on a line, and the second axis is a random one orthogonal to it.
        true: loss, its standard error and accuracy of each point with its own statistics, float64 [c, 3].
        mark: of the points.
    """

    names: tuple[str, ...]
    here: int | None
    directions: Tensor
    path: npt.NDArray[np.float64]
    residuals: npt.NDArray[np.float64]
    explained: npt.NDArray[np.float64]
    is_second_random: bool
    true: npt.NDArray[np.float64]
    mark: str

    @property
    def spans(self) -> tuple[float, float]:
        """Half the span of each axis: room around the path, and no axis all too thin."""
        wide, high = (MARGIN * float(np.abs(self.path[:, axis]).max()) for axis in (0, 1))
        if self.is_second_random:
            high = wide
        return max(wide, THINNEST * high), max(high, THINNEST * wide)


def path_of(look: Look) -> Path | str:
    """The path that the weights lie on, or why there is no plane of it."""
    points, here = look.landscape.path, look.landscape.here
    if not points:
        return "no saved weights on the way here: a path has another point than the weights"
    net = look.frozen.net
    mark = mark_of([loaded(point, net) for point in points])
    part = look.work.once(f"trajectory_{mark}", lambda: _principal(look, points))
    directions = torch.from_numpy(part["directions"]).to(look.weights.device)
    if not directions[0].any():
        return f"all {len(points)} saved weights equal those looked at: they span nothing"
    if is_line := not directions[1].any():
        noise = look.frozen.space.normals(look.seed, "second_axis", 0, directions.device).double()
        noise = orthogonalised(noise, directions[:1])
        directions[1] = noise / noise.norm()
    true = look.work.shared(f"true_losses_{mark}", len(points) + 1, _true_loss(look, points))
    before = len(points) if here.before is None else here.before
    order = [*range(before), len(points), *range(before, len(points))]  # the weights were put last
    names = [*(point.name for point in points), here.name]
    return Path(
        names=tuple(names[i] for i in order),
        here=before if here.is_known else None,
        directions=directions,
        path=part["path"][order],
        residuals=part["residuals"][order],
        explained=part["explained"],
        is_second_random=is_line,
        true=np.stack([true[i]["measured"] for i in order]),
        mark=mark,
    )


def _principal(look: Look, points: Sequence[SavedPoint]) -> Part:
    """PCA about the weights; the points stay in memory as long as they are few."""
    net, space, weights = look.frozen.net, look.frozen.space, look.weights
    count = len(points) + 1
    held: dict[int, Tensor] = {}

    def load(i: int) -> Tensor:
        if i == count - 1:
            return weights
        if i in held:
            return held[i]
        state = loaded(points[i], net)
        vector = space.flat([state[name] for name in space.names])
        if (len(held) + 1) * vector.nbytes <= HELD:
            held[i] = vector
        return vector

    found = trajectory(load, count)
    return {
        "directions": found.directions.cpu().numpy(),
        "path": found.path.numpy(),
        "residuals": found.residuals.numpy(),
        "explained": found.explained.numpy(),
    }


def _true_loss(look: Look, points: Sequence[SavedPoint]) -> Callable[[int], Part]:
    """Loss, standard error and accuracy of point i; after the last one come the weights themselves."""
    frozen = look.frozen.with_micro_batch(look.micro_batch)

    def compute(i: int) -> Part:
        state = loaded(points[i], frozen.net) if i < len(points) else frozen.net.state_dict()
        with holding(frozen.net, state):
            point = frozen.measure()
        return {"measured": np.array([point.loss, point.standard_error, point.accuracy])}

    return compute
