"""Step sizes by layer: falling over depth or in time, and updates of later layers at more of the steps.

Layers are counted l = 1..L from the input in the order of the unit description, the head is the last one. What the
description does not name (biases, norms, slopes, embeddings) belongs to the layer that it follows in the order of the
network's parameters, and to the first one before all layers. All rates multiply the learner's schedule and restart
with it.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import nn

from plastiscope.error import require
from plastiscope.net.units import UnitDescription, Wire


class Faster(Enum):
    """Which layers' rates fall faster."""

    early = "early"
    """Those near the input; the last layer's is constant."""
    late = "late"
    """Those near the output; the first layer's is constant."""


class Restart(Enum):
    """When the time of the decay starts anew."""

    task = "task"
    never = "never"


class Between(Enum):
    """What becomes of the gradients of the steps at which a layer is not updated."""

    mean = "mean"
    """The update takes the mean of all since the last one."""
    drop = "drop"
    """The update takes its own step's only."""


@dataclass(kw_only=True)
class LayerLr:
    """How the step sizes of layers l = 1..L differ."""

    depth_decay: float = 1.0
    """gamma of alpha gamma^(L - l): below 1 later layers have the higher rate, above 1 the reverse."""
    time_decay: float = 0.0
    """kappa of exp(-kappa_l t/T), t of T epochs of a task completed."""
    faster: Faster = Faster.early
    """kappa_l = kappa (L - l)/(L - 1) for early, kappa (l - 1)/(L - 1) for late; L = 1: 0."""
    restart: Restart = Restart.task
    """t counts from the task's start, or (never) from the run's."""
    update_period: int = 1
    """r: layer l is updated at the steps s = 1, 2, ... of a task with s mod r^(L - l) = 0."""
    between: Between = Between.mean
    """An update takes the mean gradient since the last one, or (drop) that of its step alone."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 < self.depth_decay < math.inf, "depth_decay", self.depth_decay, "must be more than 0, and finite")
        require(0 <= self.time_decay < math.inf, "time_decay", self.time_decay, "must be 0 or more, and finite")
        require(self.update_period >= 1, "update_period", self.update_period, "must be 1 or more")

    def factor(self, layer: int, layers: int, time: float) -> float:
        """What the step size of a layer is multiplied by.

        Args:
            layer: l, from 1.
            layers: L.
            time: t/T.
        """
        distance = layers - layer if self.faster is Faster.early else layer - 1
        kappa = self.time_decay * distance / (layers - 1) if layers > 1 else 0.0
        return self.depth_decay ** (layers - layer) * math.exp(-kappa * time)

    def period(self, layer: int, layers: int) -> int:
        """Steps from one update of layer l of L to the next."""
        return self.update_period ** (layers - layer)

    @property
    def varies(self) -> bool:
        """Whether any layer is treated otherwise than the others."""
        return self.depth_decay != 1 or self.time_decay != 0 or self.update_period != 1


def layers_of_parameters(net: nn.Module, units: UnitDescription) -> dict[str, int]:
    """The layer of each parameter, by name, from 1; the last number is that of the head.

    Args:
        net: the network.
        units: its description.
    """
    names, own = [name for name, _ in net.named_parameters()], {}

    def claim(number: int, path: str | None) -> None:
        if path:
            own.update({name: number for name in names if name.startswith(f"{path}.") and name not in own})

    def claim_rows(number: int, wires: Sequence[Wire]) -> None:
        for wire in wires:
            own.setdefault(wire.parameter, number)

    for number, layer in enumerate(units.layers, 1):
        claim_rows(number, (*layer.incoming, *layer.shortcut))
        for path in (layer.norm, layer.shortcut_norm, None if layer.incoming else layer.name):
            claim(number, path)
    claim(len(units.layers) + 1, units.head)
    found, last = {}, 1
    for name in names:
        last = found[name] = own.get(name, last)
    return found


class LayerRates:
    """The step sizes of the layers of one network, and the steps at which they are updated.

    Attributes:
        steps: made since the task began.
        sums: gradients since the last update, of the parameters that are not updated at each step.
    """

    def __init__(self, net: nn.Module, units: UnitDescription, layer_lr: LayerLr) -> None:
        """Read the layers of `net`.

        Args:
            net: the network.
            units: its description.
            layer_lr: rates by layer.
        """
        self.layer_lr = layer_lr
        numbers = layers_of_parameters(net, units)
        self.num_layers = len(units.layers) + bool(units.head)
        self._names = {parameter: name for name, parameter in net.named_parameters()}
        self.layer_of = {parameter: numbers[name] for parameter, name in self._names.items()}
        periods = {p: layer_lr.period(layer, self.num_layers) for p, layer in self.layer_of.items() if p.requires_grad}
        self._rare = {parameter: period for parameter, period in periods.items() if period > 1}
        self.steps = 0
        keeps = layer_lr.between is Between.mean
        self.sums = {parameter: torch.zeros_like(parameter) for parameter in self._rare if keeps}

    def factor(self, layer: int, time: float) -> float:
        """What the step size of a layer is multiplied by, t/T being `time`."""
        return self.layer_lr.factor(layer, self.num_layers, time)

    @contextmanager
    def due_only(self) -> Iterator[None]:
        """Around an optimiser's step: the gradients of layers that it leaves alone are away, those of others means."""
        self.steps += 1
        away = []
        for parameter, period in self._rare.items():
            gradient, total = parameter.grad, self.sums.get(parameter)
            if gradient is None:
                continue
            if total is not None:
                total.add_(gradient)
            if self.steps % period:
                away.append((parameter, gradient))
                parameter.grad = None
            elif total is not None:
                torch.div(total, period, out=gradient)
                total.zero_()
        yield
        for parameter, gradient in away:
            parameter.grad = gradient

    def begin_task(self) -> None:
        """Steps count from 0, and no gradients are kept."""
        self.steps = 0
        self.forget(self.sums)

    def forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the gradients that are kept of `parameters`."""
        for parameter in parameters:
            if parameter in self.sums:
                self.sums[parameter].zero_()

    def state_dict(self) -> dict[str, Any]:
        """Steps, and sums of gradients by parameter."""
        return {"steps": self.steps, "sums": {self._names[p]: total.clone() for p, total in self.sums.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.steps = state["steps"]
        for parameter, total in self.sums.items():
            total.copy_(state["sums"][self._names[parameter]])
