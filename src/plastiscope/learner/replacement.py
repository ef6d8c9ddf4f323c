"""What learners that replace units share: fresh weights, the reset of a unit, and the state that goes with it.

A unit is replaced in this order: its consumers' biases take over its mean contribution (`compensate`), it gets fresh
incoming weights, its bias and outgoing weights become 0, its normalisation is that of a fresh unit, and the optimiser
forgets what it knew of all these. (Dohare et al. 2024, "Loss of plasticity in deep continual learning".)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.learner.adam import UnitAdam
from plastiscope.learner.features import TrainingFeatures
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.trainee import InitialNet, Trainee
from plastiscope.learner.unit_parameters import Chosen, Part, ResidualMode, Slices, UnitSet, unit_sets
from plastiscope.measure.keyed import Seed, keyed_bits, keyed_normal, keyed_uniform
from plastiscope.net.activation import Activation


class Init(Enum):
    """The distribution of a fresh unit's incoming weights; gain is that of its activation, SELU always takes lecun."""

    kaiming = "kaiming"
    """Uniform within gain sqrt(3/fan_in)."""
    lecun = "lecun"
    """Uniform within sqrt(3/fan_in)."""
    xavier = "xavier"
    """Uniform within gain sqrt(6/(fan_in + fan_out))."""
    default = "default"
    """Uniform within sqrt(1/fan_in), torch's own for linear layers and convolutions."""
    normal = "normal"
    """Normal with deviation gain/sqrt(fan_in) (published residual code)."""
    network = "network"
    """Drawn from the weights that the layer itself started with."""


@dataclass(kw_only=True)
class ReplacingConfig(LearnerConfig):
    """Settings of learners that replace units."""

    init: Init = Init.kaiming
    """Distribution of fresh incoming weights: kaiming, lecun, xavier, default, normal, network."""
    residual_mode: ResidualMode = ResidualMode.inner_only
    """Units of residual networks: inner_only, group (tied channels are one unit), legacy (as published)."""
    reset_optimizer_state: bool = True
    """Clear momentum, moments and step counts of what is replaced; published code mostly keeps them."""


def gain_of(activation: str) -> float:
    """Gain of Kaiming initialisation for an activation by name; 1 without one, that of ReLU for unknown ones."""
    if not activation:
        return 1.0
    known = {kind.value: kind.gain for kind in Activation}
    return known.get(activation, math.sqrt(2.0))


def scale_of(init: Init, slices: Slices, activation: str) -> float:
    """Bound of the uniform distribution of fresh weights, or the deviation of the normal one (see Init)."""
    fan_in, gain = slices.fan_in, gain_of(activation)
    if activation == "selu":
        return math.sqrt(3.0 / fan_in)
    if init is Init.lecun:
        return math.sqrt(3.0 / fan_in)
    if init is Init.xavier:
        return gain * math.sqrt(6.0 / (fan_in + slices.fan_out))
    if init is Init.default:
        return math.sqrt(1.0 / fan_in)
    return gain * math.sqrt((1.0 if init is Init.normal else 3.0) / fan_in)


class FreshWeights:
    """Incoming weights of fresh units.

    The g-th fresh vector of unit i of a parameter is a function of (seed, parameter, i, g): it does not depend on the
    data, on other units, on the device or on how many runs advance together.
    """

    def __init__(self, seed: Seed, init: Init, initial_net: InitialNet, parts: Sequence[Part]) -> None:
        """Draw with `seed`; the network's first weights are kept only if `init` asks for them."""
        self.seed, self.init = seed, init
        self._initial: dict[str, Tensor] = {}
        if init is Init.network:
            first = dict(initial_net(0).named_parameters())
            wanted = {slices.name: slices.tensor for part in parts for slices in part.weights}
            self._initial = {name: first[name].detach().to(tensor) for name, tensor in wanted.items()}

    def values(self, slices: Slices, activation: str, ids: Tensor, generation: Tensor) -> Tensor:
        """Fresh weights [*lead, k, block * fan_in] for units `ids` [*lead, k] that were replaced `generation` times."""
        size = slices.block * slices.fan_in
        counter = generation.unsqueeze(-1) * size + torch.arange(size, device=ids.device)
        key = (self.seed, f"fresh/{slices.name}", ids.unsqueeze(-1), counter)
        if self.init is Init.network and activation != "selu":
            first = self._initial[slices.name].flatten(slices.lead)
            place = (keyed_bits(*key) & (2**63 - 1)) % first.shape[-1]
            return first.gather(-1, place.flatten(slices.lead)).view(place.shape)
        scale = scale_of(self.init, slices, activation)
        if self.init is Init.normal and activation != "selu":
            return (keyed_normal(*key) * scale).to(slices.tensor.dtype)
        return ((keyed_uniform(*key) * 2.0 - 1.0) * scale).to(slices.tensor.dtype)


def compensate(part: Part, chosen: Chosen, mean_activation: Tensor, at_norms: bool) -> None:
    """Give the consumers' biases what the chosen units contribute on average: b += sum_i W_out[:, i] f_i.

    Exact when the units are constant; at the borders of a convolution with padding up to the padding. Units of CReLU
    are left out: the mean does not tell their two parts apart.

    Args:
        part: the layer of the units.
        chosen: units that are about to be replaced.
        mean_activation: f, [*lead, units], over samples and positions.
        at_norms: also where a batch norm follows, which takes a constant shift away by itself.
    """
    if part.layer.activation == "crelu":
        return
    mean = chosen.kept(chosen.take(mean_activation)).unsqueeze(-1)
    lead = mean_activation.ndim - 1
    for consumer in part.consumers:
        if consumer.bias is not None and (at_norms or not consumer.is_normalised):
            weight = chosen.take(consumer.weight.view(consumer.weight.effective()))
            weight = weight.reshape(*weight.shape[: lead + 2], -1).sum(-1)
            consumer.bias.detach().add_((weight * mean).sum(lead))


def replace_units(
    due: Sequence[tuple[UnitSet, Chosen]],
    fresh: FreshWeights,
    generations: dict[str, Tensor],
    optimizer: torch.optim.Optimizer | None,
) -> None:
    """Reset units completely: all fresh rows first, then all columns to 0, so that no fresh row fills them again.

    Args:
        due: the units of each set.
        fresh: where new weights come from.
        generations: int64 [*lead, units] by set, how often each unit was replaced before; counted up here.
        optimizer: whose state of the units is cleared; None = it is kept.
    """
    for units, chosen in due:
        generation = chosen.take(generations[units.name])
        for part in units.parts:
            for slices in part.incoming:
                value: Tensor | float = slices.fresh
                view = slices.view()
                if not slices.is_bias:
                    value = fresh.values(slices, part.layer.activation, chosen.ids, generation)
                    value = value.reshape(*chosen.ids.shape, *view.shape[slices.lead + 1 :])
                chosen.put(view, value)
        chosen.put(generations[units.name], generation + 1)
    for units, chosen in due:
        for part in units.parts:
            touched = [*part.incoming, *(consumer.weight for consumer in part.consumers)]
            for consumer in part.consumers:
                with consumer.keeping_others():
                    chosen.put(consumer.weight.view(), 0.0)
            for slices, value in part.norm:
                chosen.put(slices.view(), value)
                touched.append(slices)
            if optimizer is not None:
                for slices in touched:
                    forget(optimizer, slices, chosen)


def forget(optimizer: torch.optim.Optimizer, slices: Slices, chosen: Chosen) -> None:
    """Clear what the optimiser keeps of the units' part of a parameter: momentum, moments, steps."""
    if not isinstance(slices.tensor, nn.Parameter):
        return
    if isinstance(optimizer, UnitAdam):
        ages = optimizer.ages(slices.tensor, slices.axis)
        if ages is not None:
            chosen.put(slices.along_axis(ages), 0.0)
    for value in optimizer.state.get(slices.tensor, {}).values():
        if isinstance(value, Tensor) and value.shape == slices.tensor.shape:
            chosen.put(slices.view(value), 0.0)


class ReplacingLearner(Learner):
    """Gradient descent by a learner that replaces units; a subclass says in `mechanism` which, and when.

    Attributes:
        sets: the units among which is chosen.
        parts: all their layers.
        features: of the training forward, in the order of `parts`.
        steps: steps made so far.
        replaced: units replaced since the task began, by set; on the device where only it knows.
    """

    config: ReplacingConfig

    def __init__(self, config: ReplacingConfig, trainee: Trainee) -> None:
        """Own the network; refuse one whose units cannot be replaced completely.

        Raises:
            ConfigError: names the layer and the reason.
        """
        super().__init__(config, trainee)
        self.sets = unit_sets(self.net, self.units, config.residual_mode, self.lead)
        self.parts = [part for units in self.sets for part in units.parts]
        self.features = TrainingFeatures(self.net, [part.layer for part in self.parts])
        self.fresh = FreshWeights(self.seed, config.init, self.initial_net, self.parts)
        if config.reset_optimizer_state and config.optimizer is not Optimizer.sgd:
            self.optimizer = UnitAdam(
                self.parameter_groups(),
                lr=config.lr,
                betas=(config.betas[0], config.betas[1]),
                eps=config.eps,
                weight_decay=config.weight_decay,
                decoupled=config.optimizer is Optimizer.adamw,
                lead=self.lead,
            )
        self.steps = 0
        self.generations = {units.name: self._per_unit(units, torch.int64) for units in self.sets}
        self.replaced: dict[str, int | Tensor] = {}
        self.end_task()

    def _per_unit(self, units: UnitSet, dtype: torch.dtype) -> Tensor:
        weight = units.parts[0].weights[0].tensor
        return torch.zeros(*weight.shape[: self.lead], units.width, dtype=dtype, device=weight.device)

    def wants_features(self) -> bool:
        """Whether the mechanism of the step that comes next needs the features."""
        return True

    @property
    def hears_modules(self) -> bool:
        """Features are heard by hooks."""
        return True

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the network, its features kept for the mechanism."""
        with self.features.listen(self.wants_features()):
            return super().forward(inputs)

    def hear(self, features: Mapping[str, Tensor]) -> None:
        """Keep those of the layers whose units are replaced."""
        self.features.give([features[part.layer.site.module] for part in self.parts])

    def replace(self, due: Sequence[tuple[UnitSet, Chosen]]) -> None:
        """Replace the chosen units of each set."""
        replace_units(due, self.fresh, self.generations, self.optimizer if self.config.reset_optimizer_state else None)

    def numbers(self) -> Mapping[str, float | Tensor]:
        """Units replaced since the task began: `<layer or total>/replaced`."""
        return {f"{name}/replaced": n for name, n in {"total": sum(self.replaced.values()), **self.replaced}.items()}

    def end_task(self) -> None:
        """Count the units of the next task from 0."""
        self.replaced = {units.name: 0 for units in self.sets}

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, steps; by set how often each unit was replaced, and how many since the task began."""
        generations = {name: value.clone() for name, value in self.generations.items()}
        own = {"steps": self.steps, "generations": generations, "replaced": dict(self.replaced)}
        return super().state_dict() | own

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.steps = state["steps"]
        device = self.parameters[0].device
        for name, count in state["replaced"].items():
            self.replaced[name] = count.to(device) if isinstance(count, Tensor) else count
        for name, value in self.generations.items():
            value.copy_(state["generations"][name])
