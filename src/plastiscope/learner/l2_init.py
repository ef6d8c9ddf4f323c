"""Regenerative L2: the penalty lambda/2 ||theta - theta_0||^2 draws the weights towards where they began.

Source: Kumar, Marklund, Van Roy 2023, "Maintaining plasticity in continual learning via regenerative regularization"
(arXiv 2308.11958), which writes lambda ||theta - theta_0||^2: its lambda is half of ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.error import require
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.scope import Scope, within
from plastiscope.learner.trainee import Trainee


@dataclass(kw_only=True)
class L2Init(LearnerConfig):
    """Backprop with gradient += strength (theta - theta_0)."""

    strength: float = 1e-4
    """lambda."""
    scope: Scope = Scope.all
    """Parameters that are drawn back: all, weights_biases."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(0 <= self.strength < float("inf"), "strength", self.strength, "must be 0 or more, and finite")

    def make(self, trainee: Trainee) -> "L2InitLearner":
        """The learner of `trainee`."""
        return L2InitLearner(self, trainee)


class L2InitLearner(Learner):
    """Gradient descent that remembers its first weights.

    Attributes:
        origin: theta_0 by parameter; what is initialised anew has its new values here.
    """

    config: L2Init

    def __init__(self, config: L2Init, trainee: Trainee) -> None:
        """Own the network, whose weights of now are theta_0."""
        super().__init__(config, trainee)
        self.origin: dict[Tensor, Tensor] = {p: p.detach().clone() for p in within(self.net, config.scope, self.lead)}

    def update(self) -> None:
        """The gradient of the penalty, which like weight decay is not clipped, then the optimiser's step."""
        pulled = [(p, p.grad, first) for p, first in self.origin.items() if p.grad is not None]
        if pulled:
            with torch.no_grad():
                parameters, gradients, firsts = (list(column) for column in zip(*pulled, strict=True))
                torch._foreach_add_(gradients, torch._foreach_sub(parameters, firsts), alpha=self.config.strength)
        super().update()

    def reinitialised(self, parameters: Sequence[nn.Parameter]) -> None:
        """New first values are a new theta_0."""
        super().reinitialised(parameters)
        for parameter in parameters:
            if parameter in self.origin:
                self.origin[parameter].copy_(parameter.detach())

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, and theta_0 by the names of the parameters."""
        origin = {name: self.origin[p].clone() for name, p in self.net.named_parameters() if p in self.origin}
        return super().state_dict() | {"origin": origin}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        for name, first in state["origin"].items():
            self.origin[self.net.get_parameter(name)].copy_(first)
