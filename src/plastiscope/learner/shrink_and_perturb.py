"""Shrink and perturb: weight decay shrinks the weights, and noise is added to them after every step.

Source: Dohare et al. 2024, "Loss of plasticity in deep continual learning" (Nature 632).
The rule that acts once per task is `shrink_and_perturb_task`.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from plastiscope.error import require
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.scope import Scope, within
from plastiscope.learner.step_noise import StepNoise
from plastiscope.learner.trainee import Trainee


@dataclass(kw_only=True)
class ShrinkAndPerturb(LearnerConfig):
    """Backprop with weight decay, and theta <- theta + N(0, noise_std^2) after each step."""

    noise_std: float = 1e-5
    """Standard deviation of the noise of one step; after n steps alone the variance is n noise_std^2."""
    scope: Scope = Scope.all
    """Parameters that get noise: all, weights_biases; weight decay acts on all."""
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(0 <= self.noise_std < float("inf"), "noise_std", self.noise_std, "must be 0 or more, and finite")

    def make(self, trainee: Trainee) -> "ShrinkAndPerturbLearner":
        """The learner of `trainee`."""
        return ShrinkAndPerturbLearner(self, trainee)


class ShrinkAndPerturbLearner(Learner):
    """Gradient descent with noise on the weights, which is a function of seed and step."""

    config: ShrinkAndPerturb

    def __init__(self, config: ShrinkAndPerturb, trainee: Trainee) -> None:
        """Own the network, whose weights of `scope` get the noise."""
        super().__init__(config, trainee)
        self.perturbed: list[Tensor] = list(within(self.net, config.scope, self.lead))
        self.noise = StepNoise(self.perturbed, self.seed, "shrink_and_perturb", self.lead)
        self.noisy_steps = 0

    @torch.no_grad()
    def mechanism(self) -> None:
        """Add the noise of this step."""
        if self.config.noise_std > 0:
            torch._foreach_add_(self.perturbed, self.noise.at(self.noisy_steps), alpha=self.config.noise_std)
        self.noisy_steps += 1

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, and how many steps had noise."""
        return super().state_dict() | {"noisy_steps": self.noisy_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.noisy_steps = state["noisy_steps"]
