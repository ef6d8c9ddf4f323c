"""Norms of gradients and updates, layer by layer, over the steps of an epoch; they stay on the device until its end."""

from enum import Enum
from typing import Any

import torch
from torch import Tensor

from plastiscope.analysis.parameters import by_layer, parameters_of
from plastiscope.event import Context
from plastiscope.measure.optimisation import distance, norm

QUANTITIES = ("grad_norm", "update_norm", "update_ratio")


class Steps(Enum):
    """The steps of an epoch whose gradients and updates are measured."""

    none = "none"
    last = "last"
    """The epoch's last step."""
    all = "all"
    """The mean over all steps; takes a copy of all parameters each."""


class StepNorms:
    """||gradient||, ||update|| and ||update|| / ||parameters before it||, by layer, of the steps asked for."""

    def __init__(self, steps: Steps) -> None:
        """Measure `steps` of each epoch."""
        self.steps = steps
        self._sum: Tensor | None = None
        self._count = 0
        self._before: dict[str, Tensor] = {}
        self._gradients = torch.empty(0)

    def on_backward(self, context: Context) -> None:
        """Gradients are there: take their norms, and a copy of the parameters."""
        if self.steps is Steps.all or (self.steps is Steps.last and context.is_last_batch):
            parameters = dict(context.net.named_parameters())
            gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
            self._gradients = torch.stack([norm(part) for part in by_layer(context.units, gradients).values()])
            self._before = {name: p.detach().clone() for name, p in parameters.items()}

    def on_update(self, context: Context) -> None:
        """The optimiser has stepped: compare with the copy."""
        if not self._before:
            return
        before = by_layer(context.units, self._before)
        after = by_layer(context.units, parameters_of(context.net))
        update = torch.stack([distance(after[name], before[name]) for name in before])
        size = torch.stack([norm(part) for part in before.values()])
        measured = torch.stack([self._gradients, update, update / size])
        self._sum = measured if self._sum is None else self._sum.to(measured.device) + measured
        self._count, self._before = self._count + 1, {}

    def take(self, context: Context) -> dict[tuple[str, str], float]:
        """The epoch's means by (layer, quantity), and a fresh start; empty when no step was measured."""
        if self._sum is None:
            return {}
        means = (self._sum / self._count).tolist()
        layers = by_layer(context.units, parameters_of(context.net))
        self._sum, self._count = None, 0
        return {(layer, q): row[i] for q, row in zip(QUANTITIES, means, strict=True) for i, layer in enumerate(layers)}

    def state_dict(self) -> dict[str, Any]:
        """What was measured of the epoch under way; between steps no copy of the parameters is held."""
        return {"sum": self._sum, "count": self._count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._sum, self._count = state["sum"], state["count"]
