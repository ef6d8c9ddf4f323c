"""Utility-based perturbed gradient descent: noisy steps, smaller for the weights that the loss would miss most.

Source: Elsayed and Mahmood 2024, "Addressing loss of plasticity and catastrophic forgetting in continual learning"
(ICLR), with the global maximum and the factor 2 of the code it was read in; what that code leaves uncorrected is a
setting.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from plastiscope.error import ConfigError, require
from plastiscope.learner.learner import (
    Learner,
    LearnerConfig,
    Optimizer,
    ParameterGroups,
)
from plastiscope.learner.step_noise import StepNoise
from plastiscope.learner.trainee import Trainee


class GateCorrection(Enum):
    """Whose start is corrected in the ratio u^/U."""

    consistent = "consistent"
    """That of the utility and of the maximum, so the ratio is at most 1."""
    as_published = "as_published"
    """That of the utility alone: the ratio is up to 1/(1 - utility_decay^t), 1000 at the first step."""


class Gate(Enum):
    """The gate s of a weight with utility u^, U the largest utility; s = 0 where U <= 0."""

    sigmoid = "sigmoid"
    """sigmoid(u^/U): at most 0.731, so a step is never less than 0.269 of its ungated size (as published)."""
    linear = "linear"
    """clip(u^/U, 0, 1): the most useful weight does not move, the useless move freely."""


class GatingMode(Enum):
    """Which parameters are gated."""

    full = "full"
    output_only = "output_only"
    """Those of the head."""
    hidden_only = "hidden_only"
    """All but those of the head."""


@dataclass(kw_only=True)
class Upgd(LearnerConfig):
    """Gradient descent with gated, noisy steps; `weight_decay` is decoupled: theta <- theta (1 - lr weight_decay)."""

    optimizer: Optimizer = Optimizer.adam
    """What is gated: adam: m^/(sqrt(v^) + eps), sgd: the momentum buffer."""
    lr: float = 1e-3
    """Step size at a task's start; a step is `step_multiplier` times that."""
    momentum: float = 0.0
    """Of sgd."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Of adam."""
    eps: float = 1e-5
    """Of adam."""
    utility_decay: float = 0.999
    """Of the exponential mean of the utility -g theta."""
    noise: float = 1e-3
    """Standard deviation of the noise that is added to what is gated; it is not preconditioned."""
    gate: Gate = Gate.sigmoid
    """sigmoid, linear."""
    gate_correction: GateCorrection = GateCorrection.consistent
    """consistent, as_published."""
    gating_mode: GatingMode = GatingMode.full
    """full, output_only, hidden_only."""
    non_gated_scale: float = 0.5
    """Factor of the step, in place of 1 - s, of parameters that are not gated."""
    step_multiplier: float = 2.0
    """Factor of every step, as published."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        is_own = self.optimizer in (Optimizer.sgd, Optimizer.adam)
        require(
            is_own, "optimizer", self.optimizer.value, "upgd has sgd and adam; its weight decay is decoupled in both"
        )
        require(0 <= self.utility_decay < 1, "utility_decay", self.utility_decay, "must be in [0, 1)")
        for name in ("noise", "non_gated_scale", "step_multiplier"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")

    def make(self, trainee: Trainee) -> "UpgdLearner":
        """The learner of `trainee`."""
        return UpgdLearner(self, trainee)


Noise = Callable[[int], Mapping[Tensor, Tensor]]
"""Step (from 0) -> standard normal numbers of the shape of each parameter."""


class GatedDescent(torch.optim.Optimizer):
    """The update of every parameter that has a gradient g; the others, and their utility, stay as they are.

    u <- b u + (1 - b)(-g theta); U = max of u^ = u/(1 - b^t) over all parameters; s = gate(u^/U);
    theta <- theta (1 - a lambda); theta <- theta - k a (1 - s)(M + noise), M as in Adam or the heavy-ball buffer.
    With leading axes U is that of each run.
    """

    def __init__(
        self, parameters: ParameterGroups, config: Upgd, gated: set[Tensor], noise: Noise | None, lead: int
    ) -> None:
        """Make the optimiser.

        Args:
            parameters: those to update, or groups of them with their own `lr` and `weight_decay`.
            config: settings.
            gated: parameters with a gate.
            noise: step -> numbers of each parameter, standard normal; None = none.
            lead: number of leading axes of every parameter.
        """
        super().__init__(parameters, {"lr": config.lr, "weight_decay": config.weight_decay})
        self.config, self.gated, self.noise, self.lead = config, gated, noise, lead
        self.updates = 0

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """One update of all parameters."""
        noise = self.noise(self.updates) if self.noise is not None else None
        self.updates += 1
        taken = [(group, own) for group in self.param_groups if (own := self._with_gradients(group["params"]))]
        if not taken:
            return
        utilities = [self._utilities(parameters) for _, parameters in taken]
        most = self._largest([parameters for _, parameters in taken], utilities)
        for (group, parameters), corrected in zip(taken, utilities, strict=True):
            moves = self._moves(parameters)
            if noise is not None:
                torch._foreach_add_(moves, [noise[parameter] for parameter in parameters], alpha=self.config.noise)
            if group["weight_decay"]:
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
            factors = self._factors(parameters, corrected, most)
            torch._foreach_addcmul_(parameters, factors, moves, value=-self.config.step_multiplier * group["lr"])

    def _with_gradients(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Those that have a gradient; their steps are counted up."""
        found = [parameter for parameter in parameters if parameter.grad is not None]
        for parameter in found:
            self._count(parameter)
        return found

    def _largest(self, parameters: Sequence[list[Tensor]], corrected: Sequence[list[Tensor]]) -> Tensor:
        """U over all groups, [*lead]."""
        ranked: Sequence[list[Tensor]] = corrected
        if self.config.gate_correction is GateCorrection.as_published:
            ranked = [self._of(own, "utility") for own in parameters]
        largest = [one.reshape(*one.shape[: self.lead], -1).amax(-1) for own in ranked for one in own]
        return torch.stack(largest).amax(0)

    def _count(self, parameter: Tensor) -> None:
        state = self.state[parameter]
        if not state:
            is_adam = self.config.optimizer is Optimizer.adam
            for name in ("utility", *(("exp_avg", "exp_avg_sq") if is_adam else ("momentum_buffer",))):
                state[name] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # on the CPU, so that reading it waits for nothing
        state["step"] += 1

    def _of(self, parameters: Sequence[Tensor], name: str) -> list[Tensor]:
        return [self.state[parameter][name] for parameter in parameters]

    def _corrections(self, parameters: Sequence[Tensor], decay: float) -> list[float]:
        """1 - decay^t of each."""
        return [1.0 - decay ** self.state[parameter]["step"].item() for parameter in parameters]

    def _utilities(self, parameters: list[Tensor]) -> list[Tensor]:
        """u^, after the step's gradients were counted in."""
        kept, utilities = self.config.utility_decay, self._of(parameters, "utility")
        lost = torch._foreach_mul(_gradients(parameters), parameters)
        torch._foreach_mul_(utilities, kept)
        torch._foreach_add_(utilities, lost, alpha=kept - 1.0)
        return list(torch._foreach_div(utilities, self._corrections(parameters, kept)))

    def _moves(self, parameters: list[Tensor]) -> list[Tensor]:
        """M, new tensors, after the step's gradients were counted in."""
        gradients = _gradients(parameters)
        if self.config.optimizer is Optimizer.sgd:
            buffers = self._of(parameters, "momentum_buffer")
            torch._foreach_mul_(buffers, self.config.momentum)
            torch._foreach_add_(buffers, gradients)
            return [buffer.clone() for buffer in buffers]
        (beta1, beta2), first, second = (
            self.config.betas,
            self._of(parameters, "exp_avg"),
            self._of(parameters, "exp_avg_sq"),
        )
        torch._foreach_lerp_(first, gradients, 1.0 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1.0 - beta2)
        divisors = list(torch._foreach_div(second, self._corrections(parameters, beta2)))
        torch._foreach_sqrt_(divisors)
        torch._foreach_add_(divisors, self.config.eps)
        moves = list(torch._foreach_div(first, self._corrections(parameters, beta1)))
        torch._foreach_div_(moves, divisors)
        return moves

    def _factors(self, parameters: list[Tensor], utilities: list[Tensor], most: Tensor) -> list[Tensor]:
        """1 - s of each parameter, or the scale of those without a gate."""
        is_useful = most > 0
        divisor = torch.where(is_useful, most, 1.0)
        # Where no utility is positive every gate is open: the factor is 1.
        least = torch.where(is_useful, 0.0, 1.0)
        factors = []
        for parameter, utility in zip(parameters, utilities, strict=True):
            if parameter not in self.gated:
                factors.append(torch.full_like(utility, self.config.non_gated_scale))
                continue
            beside = (*most.shape, *(1,) * (parameter.ndim - self.lead))
            ratio = utility.div_(divisor.view(beside)).mul_(is_useful.view(beside))
            if self.config.gate is Gate.linear:
                factors.append(ratio.clamp_(0.0, 1.0).neg_().add_(1.0))
            else:
                factors.append(torch.maximum(ratio.neg_().sigmoid_(), least.view(beside)))
        return factors


def _gradients(parameters: Sequence[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


class UpgdLearner(Learner):
    """Gradient descent with its own optimiser; the noise is a function of the seed and the step."""

    config: Upgd
    optimizer: GatedDescent

    def __init__(self, config: Upgd, trainee: Trainee) -> None:
        """Own the network; see Learner."""
        super().__init__(config, trainee)
        self.noise = StepNoise(self.parameters, self.seed, "upgd", self.lead) if config.noise > 0 else None
        noise = self._noise_at if self.noise else None
        self.optimizer = GatedDescent(self.parameter_groups(), config, self._gated(), noise, self.lead)

    def _noise_at(self, step: int) -> dict[Tensor, Tensor]:
        assert self.noise is not None
        return dict(zip(self.parameters, self.noise.at(step), strict=True))

    def _gated(self) -> set[Tensor]:
        if self.config.gating_mode is GatingMode.full:
            return set(self.parameters)
        if not self.units.head:
            raise ConfigError(
                f"the head of this network was not found, which gating_mode={self.config.gating_mode.value} asks for; "
                "use learner.gating_mode=full"
            )
        head: set[Tensor] = set(self.net.get_submodule(self.units.head).parameters())
        if self.config.gating_mode is GatingMode.output_only:
            return head
        return {parameter for parameter in self.parameters if parameter not in head}

    def state_dict(self) -> dict[str, Any]:
        """The optimiser's state, and how many updates were made."""
        return super().state_dict() | {"updates": self.optimizer.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.optimizer.updates = state["updates"]
