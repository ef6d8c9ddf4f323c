"""Rank-restoring continual backprop: fresh units compute what the other units of their layer do not.

Units are chosen and reset as by continual backprop; only the fresh incoming weights differ. They are orthogonal, over
the inputs that the layer has seen of late, to those of the units that stay, and the bias makes the mean pre-activation
zero on the batch. Whether the units that stay leave such a direction is asked of the device at each replacement; all
other steps wait for nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from plastiscope.error import ConfigError, require
from plastiscope.learner.continual_backprop import ContinualBackprop, ContinualBackpropLearner
from plastiscope.learner.input_moments import InputMoments
from plastiscope.learner.learner import Reset
from plastiscope.learner.replacement import FreshWeights, Init
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_parameters import ByIndex, Chosen, Part, Slices, UnitSet
from plastiscope.measure.keyed import Seed, keyed_normal
from plastiscope.measure.restoring_vectors import Energy, activation_energy, restoring_vectors
from plastiscope.task_shift_mode.task import Task


class Scale(Enum):
    """The length of a fresh vector w in w^T S w, the mean square of its pre-activation."""

    unit = "unit"
    """1."""
    energy = "energy"
    """A share of what the layer lacks of tr(S)/d / E phi(z)^2 for each unit."""


class Centre(Enum):
    """What of a fresh unit's pre-activations on the batch its bias makes 0."""

    mean = "mean"
    median = "median"


class ActivationEnergy(Enum):
    """E phi(z)^2 of a standard normal z, for scale=energy."""

    exact = "exact"
    as_published = "as_published"
    """1/2 for gelu, selu and silu, 1 for sigmoid and tanh."""


@dataclass(kw_only=True)
class RankRestoringCbp(ContinualBackprop):
    """Continual backprop whose fresh units are orthogonal to the others over the data."""

    replacement_rate: float = 1e-3
    """Units replaced per eligible unit and step."""
    decay_rate: float = 0.9
    """Of the exponential means of utility and activation."""
    scale: Scale = Scale.unit
    """Mean square of a fresh unit's pre-activation: unit, energy."""
    second_moment_decay: float = 0.99
    """Of the exponential mean S of the layer's inputs h h^T."""
    second_moment_every: int = 1
    """Steps between its updates."""
    diagonal: bool = False
    """Keep the diagonal of S alone: cheap, and blind to correlated inputs."""
    ridge: float = 1e-4
    """Added to the diagonal of S; 2e-6 tr(S), which rounding may amount to, where that is more."""
    orthonormalise_batch: bool = True
    """Units that are replaced in one step are orthogonal to each other too."""
    centre: Centre = Centre.mean
    """mean, median."""
    micro_seed: float = 0.0
    """Length of the zero-mean noise in the outgoing weights of a fresh unit (published energy variant: 1e-4)."""
    activation_energy: ActivationEnergy = ActivationEnergy.exact
    """exact, as_published."""
    saturated_share: float = 1e-2
    """scale=energy: share of the least eigenvalue of S that a unit gets for which the others leave no direction."""
    by_coverage: bool = False
    """scale=energy: or twice the least eigenvalue of the others' coverage, at most 1, where that is more."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        decay = self.second_moment_decay
        require(0 <= decay < 1, "second_moment_decay", decay, "must be in [0, 1)")
        require(self.second_moment_every >= 1, "second_moment_every", self.second_moment_every, "must be 1 or more")
        require(0 < self.ridge < float("inf"), "ridge", self.ridge, "must be more than 0, and finite")
        require(self.micro_seed >= 0, "micro_seed", self.micro_seed, "must be 0 or more")
        require(0 < self.saturated_share <= 1, "saturated_share", self.saturated_share, "must be in (0, 1]")
        is_own = self.init is Init.kaiming
        require(is_own, "init", self.init.value, "has no effect here: rank_restoring_cbp makes its own fresh weights")

    def make(self, trainee: Trainee) -> "RankRestoringCbpLearner":
        """The learner of `trainee`."""
        return RankRestoringCbpLearner(self, trainee)


SLOPE_OF_PRELU = 0.25
"""At first."""
PUBLISHED_ENERGY = {"gelu": 0.5, "selu": 0.5, "silu": 0.5, "sigmoid": 1.0, "tanh": 1.0}


def energy_of(activation: str, kind: ActivationEnergy) -> float:
    """E phi(z)^2 of an activation by name; 1 without one, of CReLU that of each of its two parts.

    Raises:
        ConfigError: it is none of torch.nn.functional.
    """
    if kind is ActivationEnergy.as_published and activation in PUBLISHED_ENERGY:
        return PUBLISHED_ENERGY[activation]
    if not activation:
        return 1.0
    if activation == "prelu":
        return activation_energy(lambda z: F.leaky_relu(z, SLOPE_OF_PRELU))
    name = "relu" if activation == "crelu" else activation
    function = getattr(F, name, None) or getattr(torch, name, None)
    if function is None:
        raise ConfigError(f"learner.scale=energy does not know the activation {activation!r}; use learner.scale=unit")
    return activation_energy(function)


class RestoringWeights(FreshWeights):
    """Incoming weights made from what the layer reads and from those of the units that stay.

    The draw behind the g-th fresh vector of unit i is a function of (seed, parameter, i, g).

    Attributes:
        saturated: by weight, how many vectors had no direction left, int64 [*lead].
    """

    def __init__(self, seed: Seed, config: RankRestoringCbp, parts: Sequence[Part], moments: InputMoments) -> None:
        """Take inputs from `moments`."""
        self.seed, self.config, self.moments = seed, config, moments
        self.saturated: dict[str, Tensor] = {}
        self._inputs: dict[str, Tensor] = {}
        self._energy: dict[str, Energy | None] = {}
        for part in parts:
            (slices,) = part.weights
            self._energy[slices.name] = self._rule(part, slices.width)
            weight, lead = slices.tensor.detach(), slices.lead
            self._inputs[slices.name] = weight.new_ones(*weight.shape[:lead], 1, *weight.shape[lead + 1 :])
        self.forget_counts()

    def _rule(self, part: Part, units: int) -> Energy | None:
        config = self.config
        if config.scale is Scale.unit:
            return None
        own = energy_of(part.layer.activation, config.activation_energy)
        return Energy(
            units=units,
            activation_energy=own,
            saturated_share=config.saturated_share,
            by_coverage=config.by_coverage,
        )

    def forget_counts(self) -> None:
        """Count from 0."""
        for name, inputs in self._inputs.items():
            runs = inputs.shape[: self.moments.lead]
            self.saturated[name] = torch.zeros(runs, dtype=torch.int64, device=inputs.device)

    def silence(self, consumer: Slices, chosen: Chosen) -> None:
        """What reads the chosen units in this step reads 0 there, for these are fresh too."""
        if consumer.name in self._inputs:
            chosen.put(consumer.view(self._inputs[consumer.name]), 0.0)

    def hear_all(self) -> None:
        """Forget which inputs are silent."""
        for inputs in self._inputs.values():
            inputs.fill_(1.0)

    def values(self, slices: Slices, activation: str, ids: Tensor, generation: Tensor) -> Tensor:
        """Fresh weights [*lead, k, fan_in] for units `ids` [*lead, k] that were replaced `generation` times."""
        kept, size = slices.view().flatten(slices.lead + 1).clone(), slices.fan_in
        ByIndex(ids).put(kept, 0.0)
        counter = generation.unsqueeze(-1) * size + torch.arange(size, device=ids.device)
        draws = keyed_normal(self.seed, f"restoring/{slices.name}", ids.unsqueeze(-1), counter)
        heard, moment = self._inputs[slices.name].flatten(slices.lead), self.moments.corrected(slices.name)
        moment = moment * heard.unsqueeze(-1) * heard.unsqueeze(-2)
        found = restoring_vectors(
            moment,
            kept,
            draws * heard.unsqueeze(-2),
            self.config.ridge,
            self._energy[slices.name],
            self.config.orthonormalise_batch,
        )
        self.saturated[slices.name] += found.saturated.sum(-1)
        return found.vectors.to(slices.tensor.dtype)


class RankRestoringCbpLearner(ContinualBackpropLearner):
    """Continual backprop, with second moments of the inputs of its layers."""

    config: RankRestoringCbp
    fresh: RestoringWeights

    def __init__(self, config: RankRestoringCbp, trainee: Trainee) -> None:
        """Own the network; see ReplacingLearner.

        Raises:
            ConfigError: a layer whose units are not made by one row of weights from one vector, such as convolutions
                beside a shortcut, maxout, weight-normalised layers; names it and the reason.
        """
        if trainee.lead and not config.accumulate:
            raise ConfigError(
                "learner.accumulate=false cannot be stacked with rank_restoring_cbp: each run would replace another "
                "number of units at a step. Use learner.accumulate=true, or one process per run"
            )
        super().__init__(config, trainee)
        self.moments = InputMoments(self.net, self.parts, config.second_moment_decay, config.diagonal, self.lead)
        self.fresh = RestoringWeights(self.seed, config, self.parts, self.moments)

    def begin_task(self, task: Task) -> None:
        """Start `task`; a network that is reset has seen nothing."""
        super().begin_task(task)
        if self.config.reset is Reset.network and task.index > 0:
            self.moments.all_anew()

    def wants_features(self) -> bool:
        """At each step: a fresh unit is centred on the batch."""
        return True

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the network; what its layers read is kept for the mechanism."""
        with self.moments:
            return super().forward(inputs)

    def hear(self, features: Mapping[str, Tensor]) -> None:
        """Also take what the layers read in a step without autograd."""
        super().hear(features)
        assert self._explicit is not None
        self.moments.give(self._explicit.inputs)

    @torch.no_grad()
    def mechanism(self) -> None:
        """Update the moments, then as continual backprop."""
        if self.steps % self.config.second_moment_every == 0:
            self.moments.update()
        super().mechanism()

    def replace(self, due: Sequence[tuple[UnitSet, Chosen]]) -> None:
        """Replace the chosen units of each set.

        Outgoing weights become 0 before fresh ones are made, for they belong to what the next layer's units stay with.
        """
        for units, chosen in due:
            for part in units.parts:
                for consumer in part.consumers:
                    self.fresh.silence(consumer.weight, chosen)
                    with consumer.keeping_others():
                        chosen.put(consumer.weight.view(), 0.0)
        generations = [chosen.take(self.generations[units.name]) for units, chosen in due]
        super().replace(due)
        self.fresh.hear_all()
        for (units, chosen), generation in zip(due, generations, strict=True):
            for part in units.parts:
                self._centre(part, chosen)
                if self.config.micro_seed:
                    self._sow(part, chosen, generation)

    def _centre(self, part: Part, chosen: Chosen) -> None:
        """Biases that make the mean (or median) pre-activation on the batch 0; without them the norm's running mean."""
        (slices,) = part.weights
        weights = chosen.take(slices.view()).flatten(slices.lead + 1)
        if self.config.centre is Centre.mean:
            middle = (weights @ self.moments.mean(slices.name).unsqueeze(-1)).squeeze(-1)
        else:
            middle = torch.cat([rows @ weights.mT for rows in self.moments.rows(slices.name)], -2).median(-2).values
        biases = [own for own in part.incoming if own.is_bias]
        for bias in biases:
            chosen.put(bias.view(), -middle.unsqueeze(-1))
        for norm, _ in part.norm:
            if norm.name.endswith(".running_mean") and not biases:
                chosen.put(norm.view(), middle.unsqueeze(-1))

    def _sow(self, part: Part, chosen: Chosen, generation: Tensor) -> None:
        """Zero-mean noise of a given length in the outgoing weights."""
        for consumer in part.consumers:
            view = consumer.weight.view()
            shape = view.shape[consumer.weight.lead + 1 :]
            counter = generation.unsqueeze(-1) * shape.numel() + torch.arange(shape.numel(), device=view.device)
            purpose = f"seed/{consumer.weight.name}/{consumer.weight.offset}"
            noise = keyed_normal(self.seed, purpose, chosen.ids.unsqueeze(-1), counter)
            noise = noise - noise.mean(-1, keepdim=True)
            length = torch.linalg.vector_norm(noise, dim=-1, keepdim=True).clamp_min(torch.finfo(noise.dtype).tiny)
            noise = (noise * (self.config.micro_seed / length)).to(view.dtype).unflatten(-1, shape)
            with consumer.keeping_others():
                chosen.put(view, noise)

    def numbers(self) -> Mapping[str, float | Tensor]:
        """Also the fresh units for which the others left no direction: `<layer or total>/saturated`."""
        of_layer = {part.layer.name: self.fresh.saturated[part.weights[0].name] for part in self.parts}
        counts = {"total": torch.stack(list(of_layer.values())).sum(0), **of_layer}
        return {**super().numbers(), **{f"{name}/saturated": count for name, count in counts.items()}}

    def end_task(self) -> None:
        """Count the units of the next task from 0."""
        super().end_task()
        if isinstance(self.fresh, RestoringWeights):
            self.fresh.forget_counts()

    def must_be_finite(self) -> dict[str, Tensor]:
        """Also the second moments."""
        return {**super().must_be_finite(), "second moment of a layer's inputs": self.moments.traces()}

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: also the second moments."""
        saturated = {name: count.clone() for name, count in self.fresh.saturated.items()}
        return super().state_dict() | {"moments": self.moments.state_dict(), "saturated": saturated}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.moments.load_state_dict(state["moments"])
        for name, count in self.fresh.saturated.items():
            count.copy_(state["saturated"][name])
