"""Curves from other weights to those that are looked at: the straight line and a trained Bezier curve.

A curve is one of whole networks: it moves all parameters, whatever `params` says. Where normalisations have running
statistics, each point is measured with statistics estimated anew and, as "stale", with the averaged ones of its ends;
all terms of a barrier are of one kind.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from plastiscope.landscape.batch_norm import shuffled, statistics_batches
from plastiscope.landscape.look import Look, Numbers, State
from plastiscope.landscape.planes import Case, numbers_of, save_plane, surface
from plastiscope.landscape.slices import sliced
from plastiscope.landscape.trajectory import MARGIN, THINNEST, holding, loaded, mark_of
from plastiscope.measure.landscape.connectivity import (
    Curve,
    barrier,
    curve_mean,
    first_bend,
    fresh_statistics,
    mixed_buffers,
    norms_with_statistics,
    train_bend,
)
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.plane import Plane, offsets
from plastiscope.measure.landscape.space import choose
from plastiscope.run.processes import Part

DRAWN = 101
"""Points of the curve in the picture of its plane."""


@dataclass(eq=False)
class Way:
    """Two ends and what is measured between them.

    Attributes:
        look: the look.
        start, end: states of the ends.
        mark: of both.
    """

    look: Look
    start: State
    end: State
    mark: str

    @cached_property
    def frozen(self) -> FrozenLoss:
        """The loss over all parameters."""
        space = choose(self.look.frozen.net)
        return replace(self.look.frozen, space=space, micro_batch=self.look.micro_batch)

    @cached_property
    def splits(self) -> dict[str, FrozenLoss]:
        """The losses that are measured: of the frozen set, and of samples that were not trained on."""
        test = self.look.landscape.test
        if test is None:
            return {"train": self.frozen}
        inputs, targets = test[0].to(self.frozen.inputs), test[1].to(self.frozen.targets)
        whole = replace(self.frozen, inputs=inputs, targets=targets, shards=None)
        return {"train": self.frozen, "test": sliced(whole, self.look.work.processes) if self.frozen.shards else whole}

    @cached_property
    def batches(self) -> list[Tensor] | None:
        """Inputs from which statistics are estimated; None where there are none."""
        return statistics_batches(self.look) if norms_with_statistics(self.frozen.net) else None

    @cached_property
    def ts(self) -> list[float]:
        """Points of a curve."""
        n = self.look.settings.mode_connectivity.curve_points
        assert n is not None
        return [i / (n - 1) for i in range(n)]

    @cached_property
    def line(self) -> Curve:
        """The straight line."""
        names = self.frozen.space.names
        return Curve.line(
            *(self.frozen.space.flat([state[name] for name in names]) for state in (self.start, self.end))
        )

    @cached_property
    def curves(self) -> dict[str, Curve]:
        """The straight line, and the curve whose bend was trained."""
        bend = torch.from_numpy(self.look.work.once(f"bend_{self.mark}", self._trained)["bend"])
        return {"linear": self.line, "bezier": replace(self.line, bend=bend.to(self.line.bend))}

    def state(self, weights: Tensor, t: float) -> State:
        """A network with these weights and the ends' buffers, averaged by t."""
        names = self.frozen.space.names
        start, end = ({k: v for k, v in state.items() if k not in names} for state in (self.start, self.end))
        return {**mixed_buffers(start, end, t), **self.frozen.space.named(weights)}

    def measured(self, weights: Tensor, t: float) -> Part:
        """Losses of samples, and whether they are right, by split and kind of statistics; and the penalty."""
        with holding(self.frozen.net, self.state(weights, t)):
            found = self._samples("stale")
            if self.batches is not None:
                with fresh_statistics(self.frozen.net, self.batches):
                    found |= self._samples("anew")
        penalty = 0.5 * self.frozen.weight_decay * weights.double().square().sum().item()
        return found | {"penalty": np.array(penalty)}

    def _samples(self, kind: str) -> Part:
        found: Part = {}
        for split, frozen in self.splits.items():
            losses, hits = (frozen.every(own) for own in frozen.losses_and_hits())
            found |= {f"{split}_{kind}_losses": losses.cpu().numpy(), f"{split}_{kind}_hits": hits.cpu().numpy()}
        return found

    def _trained(self) -> Part:
        settings, look, frozen = self.look.settings.mode_connectivity, self.look, self.frozen
        if self.batches is not None:  # each micro-batch is normalised by its own statistics: as in training
            order, size = shuffled(look, len(frozen)).to(frozen.inputs.device), look.landscape.training_batch
            size = min(max(size, 2), len(frozen))
            while len(frozen) % size == 1 and size > 2:
                size -= 1
            frozen = replace(frozen, inputs=frozen.inputs[order], targets=frozen.targets[order], micro_batch=size)
        curve = replace(self.line, bend=first_bend(self.line, frozen.space, look.seed))
        with holding(frozen.net, self.end):
            bend = train_bend(frozen, curve, steps=settings.opt_steps, lr=settings.lr, seed=look.seed)
        return {"bend": bend.cpu().numpy()}


def look_at_connectivity(look: Look) -> Numbers:
    """Loss and accuracy along the line and along the curve, into mode/curves.npz and .json, and the plane of both.

    Keys are `mode_<linear|bezier>_<quantity>`, of the frozen set and with statistics estimated anew; those of other
    samples end in `_test`, those with averaged statistics in `_stale`.
    """
    point, absent = look.landscape.start, look.facts.setdefault("absent", {})
    if point is None:
        absent["mode"] = look.landscape.without_start
        return {}
    net = look.frozen.net
    start, end = loaded(point, net), {name: value.clone() for name, value in net.state_dict().items()}
    if all(start[name].equal(parameter) for name, parameter in net.named_parameters()):
        absent["mode"] = f"degenerate: {point.name} has the very weights that are looked at"
        look.work.save("mode", "curves", {}, {**look.common(), "degenerate": True, "reason": absent["mode"]})
        return {}
    way = Way(look, start, end, mark_of([start]))
    parts = {name: _along(way, name, curve) for name, curve in way.curves.items()}
    numbers, record, arrays = _summarised(way, parts)
    about = {"degenerate": False, "ends": [point.name, "the weights"], **_how(way), **record}
    look.work.save("mode", "curves", arrays, {**look.common(), **about})
    if look.settings.enable_planes:
        numbers |= _three_point(way, absent)
    return numbers


def _along(way: Way, name: str, curve: Curve) -> list[Part]:
    """What is measured at every point of a curve, and behind them at the bend."""

    def compute(i: int) -> Part:
        return way.measured(curve.at(way.ts[i]), way.ts[i]) if i < len(way.ts) else way.measured(curve.bend, 0.5)

    return way.look.work.shared(f"curve_{name}_{way.mark}", len(way.ts) + 1, compute)


def _how(way: Way) -> dict[str, Any]:
    """How points were measured and M was trained."""
    settings, batches = way.look.settings.mode_connectivity, way.batches
    return {
        "params": "all",
        "samples_of": {split: frozen.total_samples for split, frozen in way.splits.items()},
        "statistics": None if batches is None else {"samples": sum(map(len, batches)), "batch": len(batches[0])},
        "bend": {"steps": settings.opt_steps, "lr": settings.lr, "momentum": 0.9, "trained_on": "the frozen set"},
        "cost": {
            "forwards": 2 * (len(way.ts) + 1) * len(way.splits) * (1 if batches is None else 2),
            "gradients": 2 * settings.opt_steps,
        },
    }


@dataclass(frozen=True, eq=False)
class Series:
    """Losses along a curve, of one split and one kind of statistics.

    Attributes:
        losses: of samples, float64 [points, samples], without the penalty; behind the points the bend.
        hits: which are classified rightly, float64 [points, samples]; NaN of regression.
        penalty: of each point, float64 [points].
    """

    losses: Tensor
    hits: Tensor
    penalty: Tensor

    @classmethod
    def of(cls, parts: Sequence[Part], split: str, kind: str) -> "Series":
        """From the parts of a curve."""
        names = f"{split}_{kind}_losses", f"{split}_{kind}_hits", "penalty"
        return cls(*(torch.from_numpy(np.stack([part[name] for part in parts])) for name in names))

    @property
    def means(self) -> Tensor:
        """L at each point, float64 [points]."""
        return self.losses.mean(1) + self.penalty

    @property
    def accuracies(self) -> Tensor:
        """Share of samples that are classified rightly, float64 [points]; NaN of regression."""
        return self.hits.mean(1)

    @property
    def errors(self) -> Tensor:
        """Standard error of each point's mean, float64 [points]."""
        return torch.stack([standard_error(losses) for losses in self.losses])


def standard_error(values: Tensor) -> Tensor:
    """Of the mean over samples [n]; NaN of one."""
    return values.std(correction=1) / math.sqrt(len(values)) if len(values) > 1 else values.new_tensor(math.nan)


def _summarised(
    way: Way, parts: Mapping[str, Sequence[Part]]
) -> tuple[Numbers, dict[str, Any], dict[str, Tensor | np.ndarray]]:
    """Numbers, record and arrays of both curves."""
    kinds = {"stale": "_stale"} if way.batches is None else {"anew": "", "stale": "_stale"}
    arrays: dict[str, Tensor | np.ndarray] = {"t": np.array(way.ts)}
    numbers: Numbers = {}
    record: dict[str, Any] = {"chord": way.line.chord, "barrier_at": {}, "anew_minus_stored_at_ends": {}}
    n = len(way.ts)
    for name, curve in way.curves.items():
        numbers[f"mode_{name}_length_ratio"] = curve.length() / curve.chord
        for split in way.splits:
            every = {kind: Series.of(parts[name], split, kind) for kind in kinds}
            for kind, ending in kinds.items():
                series, key = every[kind], f"{name}_{split}{ending if len(kinds) > 1 else ''}"
                arrays |= {f"{key}_loss": series.means[:n], f"{key}_stderr": series.errors[:n]}
                arrays |= {f"{key}_accuracy": series.accuracies[:n]}
            used = every["anew" if "anew" in every else "stale"]
            ending = "_test" if split == "test" else ""
            found, at = _quantities(used, curve, way.ts)
            numbers |= {f"mode_{name}_{quantity}{ending}": value for quantity, value in found.items()}
            stale, _ = _quantities(every["stale"], curve, way.ts)
            numbers[f"mode_{name}_barrier_stale{ending}"] = stale["barrier"]
            record["barrier_at"][f"{name}_{split}"] = at
            difference = (used.means - every["stale"].means)[[0, n - 1]]
            record["anew_minus_stored_at_ends"][f"{name}_{split}"] = difference.tolist()
            if name == "bezier":
                numbers[f"mode_bezier_bend_loss{ending}"] = used.means[n].item()
                numbers[f"mode_bezier_bend_accuracy{ending}"] = used.accuracies[n].item()
    record["numbers"] = numbers
    if not torch.isfinite(way.curves["bezier"].bend).all():
        record["warning"] = "the training of the curve diverged: lower mode_connectivity.lr"
    return {key: value for key, value in numbers.items() if math.isfinite(value)}, record, arrays


def _quantities(series: Series, curve: Curve, ts: Sequence[float]) -> tuple[Numbers, float]:
    """What a curve is told by, each with its standard error over samples, and the t of the barrier.

    The terms of a barrier are of the same samples, so its error is that of the samples' differences, at the inner point
    that rises highest above the chord; that point is the barrier's where there is one.
    """
    n = len(ts)
    means, losses = series.means[:n].tolist(), series.losses[:n]
    t = torch.tensor(ts, dtype=torch.float64)
    excess = series.means[:n] - ((1 - t) * means[0] + t * means[-1])
    at = int(excess[1:-1].argmax()) + 1
    height = barrier(means, ts)
    above = losses[at] - ((1 - ts[at]) * losses[0] + ts[at] * losses[-1])
    steps = t.diff()
    weights = torch.cat([steps, steps.new_zeros(1)]) / 2 + torch.cat([steps.new_zeros(1), steps]) / 2
    return {
        "barrier": height,
        "barrier_stderr": standard_error(above).item(),
        "mid_loss": means[n // 2],
        "mid_loss_stderr": standard_error(losses[n // 2]).item(),
        "mid_accuracy": series.accuracies[n // 2].item(),
        "mean_loss": curve_mean(means, curve, ts, by_length=False),
        "mean_loss_stderr": standard_error(weights @ losses).item(),
        "mean_loss_by_length": curve_mean(means, curve, ts, by_length=True),
    }, ts[at]


def _three_point(way: Way, absent: dict[str, str]) -> Numbers:
    """The plane through both ends and the bend, about the middle of the chord, into planes/three_point.npz, .json."""
    settings = way.look.settings.planes
    assert settings.grid_resolution is not None
    curve, n = way.curves["bezier"], settings.grid_resolution
    middle = way.line.bend
    first = (curve.end - curve.start).double() / curve.chord
    bend = curve.bend.double() - middle.double()
    along = torch.dot(bend, first).item()
    across = bend - along * first
    height = across.norm().item()
    if not height > 0 or not math.isfinite(height):
        absent["planes/three_point"] = "the bend of the curve lies on the line, or is not finite"
        return {}
    wide, high = MARGIN * max(curve.chord / 2, abs(along)), MARGIN * height
    spans = max(wide, THINNEST * high), max(high, THINNEST * wide)
    directions = (direction.to(middle.dtype) for direction in (first, across / height))
    plane = Plane(way.frozen, *directions, *(offsets(span, n) for span in spans))
    points = torch.tensor([[-curve.chord / 2, 0], [curve.chord / 2, 0], [along, height]], dtype=torch.float64)
    drawn = Curve(*points)
    facts = {"points": ["start", "the weights", "bend"], "units": "distance in weight space", "params": "all"}
    arrays = {
        "path": points.numpy(),
        "curve": torch.stack([drawn.at(i / (DRAWN - 1)) for i in range(DRAWN)]).numpy(),
    }
    case = Case("three_point", "three_point", plane, f"plane_three_point_{way.mark}", facts=facts, arrays=arrays)
    with holding(way.frozen.net, way.state(middle, 0.5)):
        losses = surface(way.look, case, way.batches)
    return numbers_of("three_point", save_plane(way.look, case, losses))
