"""Curves between two weight vectors: the straight line and a trained quadratic Bezier curve (Garipov et al. 2018).

Running statistics mean nothing between two networks, so they are estimated anew at every point of a curve, from the
same batches; the curve with the averaged ("stale") statistics is kept beside it, because it equals the saved networks
at its ends.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.measure.keyed import keyed_uniform
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.preserved import moved, put
from plastiscope.measure.landscape.space import ParameterSpace

State = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Curve:
    """theta(t) = (1-t)^2 A + 2t(1-t) M + t^2 B over the chosen parameters; with M in the middle a straight line.

    Attributes:
        start, end: A and B, [D].
        bend: M, [D].
    """

    start: Tensor
    end: Tensor
    bend: Tensor

    @classmethod
    def line(cls, start: Tensor, end: Tensor) -> "Curve":
        """The straight line."""
        return cls(start, end, (start + end) / 2)

    def at(self, t: float) -> Tensor:
        """Point t in [0, 1]; the ends are exact."""
        if t in (0.0, 1.0):
            return self.end if t else self.start
        to_bend, to_end = self.bend - self.start, self.end - self.start  # equal ends give the same point everywhere
        return self.start + 2 * t * (1 - t) * to_bend + t**2 * to_end

    def steps(self, ts: Sequence[float]) -> list[float]:
        """Distances between neighbours of the points ts, in float64.

        theta(s) - theta(t) = 2(s(1-s) - t(1-t)) (M - A) + (s^2 - t^2) (B - A): three inner products give all of them.
        """
        to_bend, to_end = self.bend.double() - self.start.double(), self.end.double() - self.start.double()
        uu, uv, vv = (torch.dot(*pair).item() for pair in ((to_bend, to_bend), (to_bend, to_end), (to_end, to_end)))
        found = []
        for t, s in pairwise(ts):
            x, y = 2 * (s * (1 - s) - t * (1 - t)), s * s - t * t
            found.append(math.sqrt(max(0.0, x * x * uu + 2 * x * y * uv + y * y * vv)))
        return found

    def length(self, points: int = 101) -> float:
        """Length of the polygon through so many points, in float64."""
        return sum(self.steps([i / (points - 1) for i in range(points)]))

    @property
    def chord(self) -> float:
        """Distance of the ends."""
        return (self.end.double() - self.start.double()).norm().item()


def first_bend(curve: Curve, space: ParameterSpace, seed: int, share: float = 1e-2) -> Tensor:
    """The middle of the chord, moved by a seeded Gaussian of norm `share` times the chord.

    At the exact middle of a symmetric problem the gradient of M has no component off the line.
    """
    noise = space.normals(seed, "bend", 0, curve.start.device).to(curve.start.dtype)
    return (curve.start + curve.end) / 2 + noise * (share * curve.chord / noise.double().norm().item())


@contextmanager
def batch_statistics(net: nn.Module) -> Iterator[None]:
    """Inside, normalisations take the statistics of the batch at hand, as in training; afterwards they are as before.

    Everything else, dropout too, stays as it is.
    """
    norms = norms_with_statistics(net)
    kept = [(m.training, {k: v.clone() for k, v in m.named_buffers(recurse=False)}) for m in norms]
    try:
        for module in norms:
            module.train()
        yield
    finally:
        _put_back(norms, kept)


def train_bend(frozen: FrozenLoss, curve: Curve, *, steps: int, lr: float, seed: int, momentum: float = 0.9) -> Tensor:
    """M after `steps` of SGD on the mean loss over t, t uniform and in antithetic pairs (t, 1 - t).

    The gradient of M is 2t(1-t) times that of L at theta(t), over the whole frozen set; the frozen loss' penalty
    counts at theta(t). Where there are running statistics, they mean nothing here, and each micro-batch is normalised
    by its own, as in training. The learning rate falls linearly to zero, so that the noise of t dies out.
    """
    space = frozen.space
    bend, velocity = curve.bend.clone(), torch.zeros_like(curve.bend)
    ids = torch.arange(steps, device=bend.device)
    draws = keyed_uniform(seed, "curve", ids).tolist()
    with moved(frozen.net, space) as parameters, batch_statistics(frozen.net):
        for step, t in enumerate(draws):
            gradient = torch.zeros_like(bend)
            for point in (t, 1 - t):
                put(parameters, space.parts(Curve(curve.start, curve.end, bend).at(point)))
                gradient += point * (1 - point) * frozen.gradient()  # 2t(1-t), halved: the mean of the pair
            velocity = momentum * velocity + gradient
            bend = bend - lr * (1 - step / steps) * velocity
    return bend


def norms_with_statistics(net: nn.Module) -> list[nn.modules.batchnorm._NormBase]:
    """The batch (and instance) normalisations that keep running statistics."""
    kinds = nn.modules.batchnorm._NormBase
    return [m for m in net.modules() if isinstance(m, kinds) and m.running_mean is not None]


@contextmanager
def fresh_statistics(net: nn.Module, batches: Sequence[Tensor]) -> Iterator[None]:
    """Inside, running statistics are those of `batches` at the live parameters; afterwards as before.

    Each batch counts by its size: momentum n_b / (n_seen + n_b). Exact for the mean of the first layer; deeper layers
    see inputs that were normalised batch by batch, so the batches are part of the result.

    Raises:
        ConfigError: a batch of one sample, which has no variance.
    """
    norms = norms_with_statistics(net)
    if norms and any(len(inputs) < 2 for inputs in batches):
        raise ConfigError("bn_samples: a batch of one sample has no variance; choose a number that leaves no such rest")
    momenta = [m.momentum for m in norms]
    kept = [(m.training, {k: v.clone() for k, v in m.named_buffers(recurse=False)}) for m in norms]
    try:
        for module in norms:
            module.reset_running_stats()
            module.train()
        seen = 0
        with torch.no_grad():
            for inputs in batches if norms else ():
                seen += len(inputs)
                for module in norms:
                    module.momentum = len(inputs) / seen
                net(inputs)
        for module in norms:
            module.eval()
        yield
    finally:
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum
        _put_back(norms, kept)


def _put_back(norms: Sequence[nn.Module], kept: Sequence[tuple[bool, State]]) -> None:
    for module, (training, buffers) in zip(norms, kept, strict=True):
        module.training = training
        for name, value in buffers.items():
            module.get_buffer(name).copy_(value)


def mixed_buffers(start: Mapping[str, Tensor], end: Mapping[str, Tensor], t: float) -> State:
    """(1-t) A + t B of what is floating; what counts is not averaged but A's; both ends are exact."""
    if t in (0.0, 1.0):
        return dict(end if t else start)
    return {k: (1 - t) * value + t * end[k] if value.is_floating_point() else value for k, value in start.items()}


def barrier(losses: Sequence[float], ts: Sequence[float]) -> float:
    """Maximum over t of L(t) - ((1-t) L(0) + t L(1)); `ts` ascending from 0 to 1.

    Never below 0, since the ends count; NaN where some loss is.
    """
    if any(math.isnan(loss) for loss in losses):
        return math.nan
    first, last = losses[0], losses[-1]
    inner = zip(losses[1:-1], ts[1:-1], strict=True)
    return max([0.0, *(loss - (first + t * (last - first)) for loss, t in inner)])


def curve_mean(losses: Sequence[float], curve: Curve, ts: Sequence[float], by_length: bool) -> float:
    """Trapezoid mean of the loss over t, or over the arc length."""
    steps = curve.steps(ts) if by_length else [s - t for t, s in pairwise(ts)]
    total = sum(steps)
    weighted = sum(h * (a + b) / 2 for h, a, b in zip(steps, losses, losses[1:], strict=False))
    return weighted / total if total else math.nan
