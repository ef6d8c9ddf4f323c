"""What continual backprop knows of each unit: utility, mean activation, age.

All layers lie side by side in one vector, so the arithmetic of a step is a handful of operations whatever the depth;
only the sums over weights and, in convolutional networks, over features are taken layer by layer.
"""

from collections.abc import Sequence
from enum import Enum
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from plastiscope.learner.unit_parameters import Chosen, Part, Slices
from plastiscope.learner.weight_sums import AbsoluteSums

NON_NEGATIVE = frozenset(("relu", "relu6", "sigmoid", "hardsigmoid", "softplus"))
"""Activations with E|h| = E h."""
BLOCK = 32
"""Steps on single samples that are worked off at once."""


SMALLEST = 1e-12
"""Of the sum of |W_in|: a dead unit has no incoming weight left once all units that it reads were replaced."""


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


class UnitStatistics:
    """Exponential means over steps of every unit's utility and activation, with their bias correction.

    With decay d: f <- d f + (1 - d) E h, u <- d u + (1 - d) y, c <- d c + (1 - d), all 0 for a fresh unit; f/c and u/c
    are the corrected values, for c = 1 - d^age.

    Steps on single samples (online learning) only note the features and the sums of weights. A block of steps is then
    worked off at once: after n steps f_n = d^n f_0 + (1 - d) sum_k d^(n-k) h_k, and so on.
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
        weight = parts[0].weights[0].tensor.detach()
        edges = [0, *accumulate(part.layer.width for part in parts)]
        self.places = {part: slice(*edge) for part, edge in zip(parts, pairwise(edges), strict=True)}
        shape = (*weight.shape[:lead], edges[-1])
        self.utility, self.magnitude, self.correction, self.mean = (weight.new_zeros(shape) for _ in range(4))
        self.born = torch.zeros_like(self.utility, dtype=torch.int64)
        self._scale = torch.ones_like(self.utility)
        # Rows are the steps of a block that is under way.
        self.noted = 0
        self._activations, self._outgoing, self._incoming = (weight.new_zeros(BLOCK, *shape) for _ in range(3))
        self._places_of_activations = [row.unsqueeze(lead) for row in self._activations]
        self._sums = self._prepare_sums()
        ages = torch.arange(1, BLOCK + 1, dtype=torch.float64)
        self._kept = (decay**ages).to(weight)
        self._weights = ((1.0 - decay) * decay ** (ages[:, None] - ages)).tril().to(weight)

    def _prepare_sums(self) -> list[AbsoluteSums]:
        """The passes over weights, each parameter once; the constant factor that makes means of the sums."""
        passes: dict[str, AbsoluteSums] = {}

        def sum_of(all_slices: Sequence[Slices], out: Tensor) -> int:
            for i, slices in enumerate(all_slices):
                one = passes.setdefault(slices.name, AbsoluteSums(slices))
                one.add(slices, out, i == 0)
            return sum(slices.view()[(0,) * (self.lead + 1)].numel() for slices in all_slices)

        for part, place in self.places.items():
            if self.kind.uses_outgoing:
                consumers = [consumer.weight for consumer in part.consumers]
                self._scale[..., place] /= sum_of(consumers, self._outgoing[..., place])
            if self.kind.uses_incoming:
                self._scale[..., place] *= sum_of(part.weights, self._incoming[..., place])
        for one in passes.values():
            one.prepare()
        return list(passes.values())

    def update(self, features: Sequence[Tensor]) -> None:
        """One step more: the weights as they are now, the features of the step (empty when none are used)."""
        is_single = all(h.ndim == self.lead + 2 and h.shape[self.lead] == 1 for h in features)
        if not is_single:
            self.work_off()
        for take in self._sums:
            take(self.noted)
        if not is_single:
            self._look(features)
            return
        if len(features) == 1:
            self._places_of_activations[self.noted].copy_(features[0])
        elif features:
            torch.cat(list(features), -1, out=self._places_of_activations[self.noted])
        self.noted += 1
        if self.noted == BLOCK:
            self.work_off()

    def work_off(self) -> None:
        """Bring the exponential means up to the last step that was noted."""
        n, self.noted = self.noted, 0
        if n == 0:
            return
        activations = self._activations[:n]
        corrections = self._decayed(self.correction, torch.ones_like(activations))
        activity = None
        if self.keeps_mean:
            means = self._decayed(self.mean, activations)
            if self.kind.uses_deviation:
                activity = torch.sub(activations, means / corrections).abs_()
            self.mean.copy_(means[-1])
        if self.uses_magnitude:
            activity = activations.abs()
            if self.is_cumulative:
                activity = activity.cumsum(0).mul_(1.0 - self.decay).add_(self.magnitude)
                self.magnitude.copy_(activity[-1])
        if self.kind is not UtilityType.random:
            y = self._y(slice(0, n), activity)
            self.utility.copy_(self._decayed(self.utility, y.expand_as(activations))[-1])
        self.correction.copy_(corrections[-1])

    def _decayed(self, start: Tensor, values: Tensor) -> Tensor:
        """The exponential mean after each of n steps with `values` [n, ...], from `start` [...]."""
        n = len(values)
        kept = self._kept[:n].reshape(n, *(1,) * start.ndim)
        return torch.addmm((kept * start).flatten(1), self._weights[:n, :n], values.flatten(1)).view(values.shape)

    def _y(self, steps: int | slice, activity: Tensor | None) -> Tensor:
        """What steps add to the utility, [(n), *lead, units]."""
        y = self._scale
        if self.kind.uses_outgoing:
            y = self._outgoing[steps] * y
        if activity is not None:
            y = y * activity
        return y / self._incoming[steps].clamp(min=SMALLEST) if self.kind.uses_incoming else y

    def _look(self, features: Sequence[Tensor]) -> None:
        """One step on a batch: exponential means of the features, E|h| or E|h - f| of the step, utility."""
        layers, new, activity = self._side_by_side(features), 1.0 - self.decay, None
        self.correction.lerp_(torch.ones_like(self.correction), new)
        if self.keeps_mean:
            now = self._average(layers, [layer.feature for layer in layers])
            self.mean.lerp_(now, new)
        if self.kind.uses_deviation:
            mean = self.mean / self.correction
            # |h - f| = 2 max(h, f) - h - f, one pass over the features less
            largest = [torch.maximum(layer.feature, self._beside(layer, mean)) for layer in layers]
            activity = self._average(layers, largest).mul_(2.0).sub_(now).sub_(mean).clamp_(min=0.0)
        elif self.uses_magnitude:
            if self.is_non_negative and self.keeps_mean:
                activity = now
            else:
                magnitudes = [layer.feature if self.is_non_negative else layer.feature.abs() for layer in layers]
                activity = self._average(layers, magnitudes)
            if self.is_cumulative:
                activity = self.magnitude.add_(activity, alpha=new)
        if self.kind is not UtilityType.random:
            self.utility.lerp_(self._y(0, activity), new)

    def _side_by_side(self, features: Sequence[Tensor]) -> list[_Features]:
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

    def _average(self, layers: Sequence[_Features], values: Sequence[Tensor]) -> Tensor:
        """Means over samples and positions, [*lead, all units]."""
        out = torch.empty_like(self.utility)
        for layer, value in zip(layers, values, strict=True):
            torch.mean(value, layer.others, out=out[..., layer.place])
        return out

    def _beside(self, layer: _Features, values: Tensor) -> Tensor:
        """A layer's values [*lead, units], ready to broadcast against its features."""
        own = values[..., layer.place]
        shape = [*own.shape[: self.lead], *(1,) * (layer.feature.ndim - self.lead)]
        shape[layer.axis] = own.shape[-1]
        return own.view(shape)

    def corrected_mean(self, part: Part) -> Tensor:
        """f^ of a layer, [*lead, units], as of the last step that was worked off."""
        place = self.places[part]
        return self.mean[..., place] / self.correction[..., place]

    def corrected_utility(self, part: Part) -> Tensor:
        """u^ of a layer, [*lead, units], as of the last step that was worked off."""
        place = self.places[part]
        return self.utility[..., place] / self.correction[..., place]

    def is_mature(self, part: Part, step: int, maturity: int) -> Tensor:
        """Whether the age of each unit at `step` is more than `maturity`, bool [*lead, units]."""
        return self.born[..., self.places[part]] < step - maturity

    def start_anew(self, part: Part, chosen: Chosen, step: int) -> None:
        """The chosen units are fresh after `step`; a cumulative magnitude stays."""
        place = self.places[part]
        for state in (self.utility, self.correction, self.mean):
            chosen.put(state[..., place], 0.0)
        chosen.put(self.born[..., place], step)

    def all_anew(self, step: int) -> None:
        """All units are fresh after `step`."""
        self.noted = 0
        for state in (self.utility, self.correction, self.mean, self.magnitude):
            state.zero_()
        self.born.fill_(step)

    def _states(self) -> dict[str, Tensor]:
        return {
            "utility": self.utility,
            "correction": self.correction,
            "mean_activation": self.mean,
            "magnitude": self.magnitude,
            "born": self.born,
        }

    def _notes(self) -> dict[str, Tensor]:
        notes = {"activations": self._activations, "outgoing": self._outgoing, "incoming": self._incoming}
        return {f"noted_{name}": rows for name, rows in notes.items()}

    def state_dict(self) -> dict[str, Any]:
        """By layer: tensors [*lead, units], and of a block under way [n, *lead, units]."""
        values = self._states() | {name: rows[: self.noted] for name, rows in self._notes().items()}
        return {
            part.layer.name: {name: value[..., place].clone() for name, value in values.items()}
            for part, place in self.places.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for part, place in self.places.items():
            own = state[part.layer.name]
            self.noted = len(own["noted_activations"])
            for name, value in self._states().items():
                value[..., place].copy_(own[name])
            for name, rows in self._notes().items():
                rows[: self.noted, ..., place].copy_(own[name])
