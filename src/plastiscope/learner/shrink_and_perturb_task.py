"""Shrink and perturb once per task: theta <- mu theta + N(0, s^2) as a task begins.

Source: Ash and Adams 2020, "On warm-starting neural network training" (arXiv 1910.08475).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plastiscope.error import require
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.scope import Scope, within
from plastiscope.learner.step_noise import StepNoise
from plastiscope.learner.trainee import Trainee
from plastiscope.task_shift_mode.task import Task


@dataclass(kw_only=True)
class ShrinkAndPerturbTask(LearnerConfig):
    """Backprop; at the start of each task but the first theta <- shrink theta + N(0, noise_std^2)."""

    shrink: float = 0.6
    """mu."""
    noise_std: float = 0.01
    """s."""
    scope: Scope = Scope.all
    """Parameters that are shrunk and perturbed: all, weights_biases."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(0 <= self.shrink <= 1, "shrink", self.shrink, "must be in [0, 1]")
        require(0 <= self.noise_std < float("inf"), "noise_std", self.noise_std, "must be 0 or more, and finite")

    def make(self, trainee: Trainee) -> "ShrinkAndPerturbTaskLearner":
        """The learner of `trainee`."""
        return ShrinkAndPerturbTaskLearner(self, trainee)


class ShrinkAndPerturbTaskLearner(Learner):
    """Gradient descent that goes back a part of the way between tasks; the noise is a function of seed and task."""

    config: ShrinkAndPerturbTask

    def begin_task(self, task: Task) -> None:
        """Shrink and perturb, then reset what task and settings reset."""
        if task.index > 0:
            self._shrink_and_perturb(task.index)
        super().begin_task(task)

    @torch.no_grad()
    def _shrink_and_perturb(self, k: int) -> None:
        """Each parameter of the scope; its optimiser state is that of the values before, so it is cleared."""
        reached = within(self.net, self.config.scope, self.lead)
        parameters: list[Tensor] = list(reached)
        noise = StepNoise(parameters, self.seed, f"shrink_and_perturb_task/{k}", self.lead).at(0)
        torch._foreach_mul_(parameters, self.config.shrink)
        torch._foreach_add_(parameters, noise, alpha=self.config.noise_std)
        self.forget_optimizer_state(reached)
