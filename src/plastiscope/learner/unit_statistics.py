"""What continual backprop knows of each unit: utility, mean activation, age.

All layers lie side by side in one vector, so the arithmetic of a step is a handful of operations whatever the depth;
only the sums over weights and, in convolutional networks, over features are taken layer by layer.
"""

from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plastiscope.learner.unit_parameters import Chosen, Part, Slices

NON_NEGATIVE = frozenset(("relu", "relu6", "sigmoid", "hardsigmoid", "softplus"))
"""Activations with E|h| = E h."""
CHUNK = 1 << 18
"""Elements of |W| that are held at a time, so that they stay in the cache."""


class UtilityType(Enum):
    """What a step adds to a unit's utility; all weight magnitudes are means, f the unit's mean activation.

    E is over the batch and all positions. (Dohare et al. 2024, and the code published with it.)
    """

    weight = "weight"
    """mean |W_out|"""
    contribution = "contribution"
    """mean |W_out| E|h|"""
    zero_contribution = "zero_contribution"
    """mean |W_out| E|h - f|"""
    adaptation = "adaptation"
    """1 / mean |W_in|"""
    adaptable_contribution = "adaptable_contribution"
    """mean |W_out| E|h - f| / mean |W_in|"""
    feature_by_input = "feature_by_input"
    """E|h - f| / mean |W_in|"""
    random = "random"
    """None: units are chosen by uniform numbers."""

    @property
    def uses_outgoing(self) -> bool:
        """Whether mean |W_out| is a factor."""
        return self.value in ("weight", "contribution", "zero_contribution", "adaptable_contribution")

    @property
    def uses_incoming(self) -> bool:
        """Whether mean |W_in| divides."""
        return self.value in ("adaptation", "adaptable_contribution", "feature_by_input")

    @property
    def uses_deviation(self) -> bool:
        """Whether E|h - f| is a factor."""
        return self.value in ("zero_contribution", "adaptable_contribution", "feature_by_input")


class FeatureMagnitude(Enum):
    """E|h| of `contribution`."""

    mean = "mean"
    """That of the step; the utility's own exponential mean averages it, and both start anew with a fresh unit."""
    cumulative = "cumulative"
    """(1 - decay_rate) times the sum over all steps, never reset (published residual code)."""


class _Features(NamedTuple):
    """Features of a layer (or of several), their place in the vector of all units, the units' axis, the other axes."""

    feature: Tensor
    place: slice
    axis: int
    others: tuple[int, ...]


class AbsoluteSums:
    """Sums of |W| over each unit's rows or columns of one parameter, from one pass over it."""

    def __init__(self, tensor: Tensor, lead: int) -> None:
        """Prepare the pass over `tensor` [*lead, out, ...]."""
        self.tensor, self.lead = tensor.detach(), lead
        self.targets: list[tuple[Slices, Tensor, bool]] = []

    def add(self, slices: Slices, out: Tensor, is_first: bool) -> None:
        """Also sum over the units of `slices` into `out` [*lead, units]; add to it unless `is_first`."""
        self.targets.append((slices, out, is_first))

    def prepare(self) -> None:
        """Make the buffer and the views of all passes."""
        whole, lead = self.tensor, self.lead
        rows = whole.shape[lead]
        blocks = [slices.block for slices, _, _ in self.targets if slices.axis == 0]
        can_split = lead == 0 and all(block == 1 for block in blocks) and whole.numel() > CHUNK
        size = max(1, CHUNK // max(1, whole.numel() // rows)) if can_split else rows
        buffer = torch.empty_like(whole.narrow(lead, 0, min(size, rows)))
        self._passes = []
        for start in range(0, rows, size):
            part = whole.narrow(lead, start, min(size, rows - start))
            absolute = buffer.narrow(lead, 0, part.shape[lead])
            sums = [self._sum(absolute, start, *target) for target in self.targets]
            self._passes.append((part, absolute, [entry for entry in sums if entry is not None]))

    def _sum(
        self, absolute: Tensor, start: int, slices: Slices, out: Tensor, is_first: bool
    ) -> tuple[Tensor, tuple[int, ...], Tensor, bool] | None:
        lead = self.lead
        if slices.axis == 0 and absolute.shape != self.tensor.shape:
            first, last = max(slices.offset, start), min(slices.offset + slices.width, start + len(absolute))
            if first >= last:
                return None
            out = out.narrow(0, first - slices.offset, last - first)
            view = absolute.narrow(0, first - start, last - first)
        else:
            view = slices.view(absolute)
            is_first = is_first and (slices.axis == 0 or start == 0)
        return view, tuple(range(lead + 1, view.ndim)), out, is_first

    def __call__(self) -> None:
        """Take the sums of the weights as they are now."""
        for part, absolute, sums in self._passes:
            torch.abs(part, out=absolute)
            for view, dims, out, is_first in sums:
                if is_first:
                    torch.sum(view, dims, out=out)
                else:
                    out.add_(view.sum(dims))


class UnitStatistics:
    """Exponential means over steps of every unit's utility and activation, with their bias correction.

    With decay d: f <- d f + (1 - d) E h, u <- d u + (1 - d) y, c <- d c + (1 - d), all 0 for a fresh unit; f/c and u/c
    are the corrected values, for c = 1 - d^age.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        utility_type: UtilityType,
        decay: float,
        magnitude: FeatureMagnitude,
        keeps_mean: bool,
        lead: int,
    ) -> None:
        """Start with fresh units.

        Args:
            parts: layers, in the order of the features.
            utility_type: formula of y.
            decay: d.
            magnitude: E|h| of `contribution`.
            keeps_mean: the mean activation is wanted for its own sake.
            lead: number of leading axes.
        """
        self.parts, self.kind, self.decay, self.lead = parts, utility_type, decay, lead
        self.is_cumulative = magnitude is FeatureMagnitude.cumulative
        self.uses_magnitude = utility_type is UtilityType.contribution
        self.keeps_mean = keeps_mean or utility_type.uses_deviation
        self.uses_features = self.keeps_mean or self.uses_magnitude
        self.is_non_negative = all(part.layer.activation in NON_NEGATIVE for part in parts)
        weight = parts[0].weights[0].tensor
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + part.layer.width)
        self.places = {part: slice(a, b) for part, a, b in zip(parts, starts, starts[1:], strict=False)}
        like = weight.detach().new_zeros(*weight.shape[:lead], starts[-1])
        self.utility, self.magnitude = torch.zeros_like(like), torch.zeros_like(like)
        self.born = torch.zeros_like(like, dtype=torch.int64)
        self._means = torch.stack([like, like])  # of ones, of activations
        self._now = torch.stack([torch.ones_like(like), like])
        self._y, self._activity, self._corrected = (torch.empty_like(like) for _ in range(3))
        self._outgoing, self._incoming, self._scale = (
            torch.zeros_like(like),
            torch.zeros_like(like),
            torch.ones_like(like),
        )
        self._sums = self._prepare_sums()

    @property
    def correction(self) -> Tensor:
        """c, [*lead, all units]."""
        return self._means[0]

    @property
    def mean_activation(self) -> Tensor:
        """The mean activation without its correction, [*lead, all units]."""
        return self._means[1]

    def _prepare_sums(self) -> list[AbsoluteSums]:
        """The passes over weights, each parameter once; the constant factor that makes means of the sums."""
        passes: dict[str, AbsoluteSums] = {}

        def sum_of(all_slices: Sequence[Slices], out: Tensor) -> int:
            for i, slices in enumerate(all_slices):
                one = passes.setdefault(slices.name, AbsoluteSums(slices.tensor, self.lead))
                one.add(slices, out, i == 0)
            return sum(slices.view()[(0,) * (self.lead + 1)].numel() for slices in all_slices)

        for part, place in self.places.items():
            if self.kind.uses_outgoing:
                count = sum_of([consumer.weight for consumer in part.consumers], self._outgoing[..., place])
                self._scale[..., place] /= count
            if self.kind.uses_incoming:
                self._scale[..., place] *= sum_of(part.weights, self._incoming[..., place])
        for one in passes.values():
            one.prepare()
        return list(passes.values())

    def update(self, features: Sequence[Tensor]) -> None:
        """One step more: the weights as they are now, the features of the step (empty when none are used)."""
        new = 1.0 - self.decay
        if self.uses_features:
            self._reduce(features, new)
        else:
            self._means[0].lerp_(self._now[0], new)
        if self.kind is UtilityType.random:
            return
        for take in self._sums:
            take()
        y = self._scale
        if self.kind.uses_outgoing:
            y = torch.mul(self._outgoing, y, out=self._y)
        if self.uses_magnitude or self.kind.uses_deviation:
            y = torch.mul(y, self._activity, out=self._y)
        if self.kind.uses_incoming:
            y = torch.div(y, self._incoming, out=self._y)
        self.utility.lerp_(y, new)

    def _reduce(self, features: Sequence[Tensor], new: float) -> None:
        """Exponential means of the features, and E|h| or E|h - f| of the step into `_activity`."""
        layers = self._side_by_side(features)
        if self.keeps_mean:
            self._average(layers, [layer.feature for layer in layers], self._now[1])
            self._means.lerp_(self._now, new)
        else:
            self._means[0].lerp_(self._now[0], new)
        if self.kind.uses_deviation:
            torch.div(self._means[1], self._means[0], out=self._corrected)
            self._average(layers, [self._deviation(layer) for layer in layers], self._activity)
        elif self.uses_magnitude:
            if self.is_non_negative and self.keeps_mean:
                self._activity.copy_(self._now[1])
            else:
                magnitudes = [layer.feature if self.is_non_negative else layer.feature.abs() for layer in layers]
                self._average(layers, magnitudes, self._activity)
            if self.is_cumulative:
                self._activity.copy_(self.magnitude.add_(self._activity, alpha=new))

    def _side_by_side(self, features: Sequence[Tensor]) -> list["_Features"]:
        """Features with their places in the vector of all units; fully connected layers are joined into one."""
        lead = self.lead
        if all(feature.ndim == lead + 2 for feature in features):
            joined = features[0] if len(features) == 1 else torch.cat(list(features), -1)
            return [_Features(joined, slice(None), lead + 1, (lead,))]
        found = []
        for part, feature in zip(self.parts, features, strict=True):
            axis = part.layer.unit_axis + lead
            others = tuple(dim for dim in range(lead, feature.ndim) if dim != axis)
            found.append(_Features(feature, self.places[part], axis, others))
        return found

    def _average(self, layers: Sequence["_Features"], values: Sequence[Tensor], out: Tensor) -> None:
        for layer, value in zip(layers, values, strict=True):
            if len(layers) == 1 and value.shape[self.lead] == 1 and value.ndim == self.lead + 2:
                out.copy_(value.squeeze(self.lead))  # a single sample: nothing to average
            else:
                torch.mean(value, layer.others, out=out[..., layer.place])

    def _deviation(self, layer: "_Features") -> Tensor:
        """|h - f| of a layer."""
        mean = self._corrected[..., layer.place]
        shape = [*mean.shape[: self.lead], *(1,) * (layer.feature.ndim - self.lead)]
        shape[layer.axis] = mean.shape[-1]
        return (layer.feature - mean.view(shape)).abs_()

    def corrected_mean(self, part: Part) -> Tensor:
        """f^ of a layer, [*lead, units]."""
        place = self.places[part]
        return self._means[1][..., place] / self._means[0][..., place]

    def corrected_utility(self, part: Part) -> Tensor:
        """u^ of a layer, [*lead, units]."""
        place = self.places[part]
        return self.utility[..., place] / self._means[0][..., place]

    def is_mature(self, part: Part, step: int, maturity: int) -> Tensor:
        """Whether the age of each unit at `step` is more than `maturity`, bool [*lead, units]."""
        return self.born[..., self.places[part]] < step - maturity

    def start_anew(self, part: Part, chosen: Chosen, step: int) -> None:
        """The chosen units are fresh after `step`; a cumulative magnitude stays."""
        place = self.places[part]
        for state in (self.utility, self._means[0], self._means[1]):
            chosen.put(state[..., place], 0.0)
        chosen.put(self.born[..., place], step)

    def all_anew(self, step: int) -> None:
        """All units are fresh after `step`."""
        self.utility.zero_()
        self._means.zero_()
        self.magnitude.zero_()
        self.born.fill_(step)

    def _states(self) -> dict[str, Tensor]:
        return {
            "utility": self.utility,
            "correction": self._means[0],
            "mean_activation": self._means[1],
            "magnitude": self.magnitude,
            "born": self.born,
        }

    def state_dict(self) -> dict[str, Any]:
        """By layer, tensors [*lead, units]."""
        return {
            part.layer.name: {name: value[..., place].clone() for name, value in self._states().items()}
            for part, place in self.places.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for part, place in self.places.items():
            for name, value in self._states().items():
                value[..., place].copy_(state[part.layer.name][name])
