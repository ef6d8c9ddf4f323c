"""Adam and AdamW for learners that give single units a fresh start: each element knows its own number of steps.

A reset of a unit clears whole entries of an axis of a parameter (a row of the weights that make it, columns of those
that read it). So the steps of all elements are kept as ages along axes: an element has made as many steps as the
youngest of its entries.
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from plastiscope.learner.optimizer import ParameterGroups

AGE = "age_"


class UnitAdam(torch.optim.Adam):
    """torch.optim.Adam (or AdamW) whose steps can be set back for a part of a parameter.

    As long as nothing was set back it is torch's own fused step, bit for bit. A parameter with ages takes the same
    formula with its own bias corrections:
    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, theta -= lr m / (1 - b1^a) / (sqrt(v / (1 - b2^a)) + eps),
    a [same shape] = min over axes of the ages along them. (Kingma and Ba 2015, arXiv 1412.6980.)
    """

    def __init__(
        self,
        parameters: ParameterGroups,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        decoupled: bool = False,
        lead: int = 0,
    ) -> None:
        """Make the optimiser.

        Args:
            parameters: those to update, or groups of them.
            lr: step size.
            betas: decay of the moments.
            eps: added to the root of the second moment after its bias correction.
            weight_decay: as in torch.
            decoupled: AdamW's weight decay.
            lead: number of leading axes of every parameter.
        """
        super().__init__(
            parameters,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            fused=True,
            decoupled_weight_decay=decoupled,
        )
        self.lead = lead

    def ages(self, parameter: Tensor, axis: int) -> Tensor | None:
        """Steps since each entry of an axis (of the unstacked shape) was set back, [*lead, n]; to be written into.

        None before the first step of the parameter.
        """
        state = self.state.get(parameter)
        if not state:
            return None
        key = f"{AGE}{axis}"
        if key not in state:
            shape = (*parameter.shape[: self.lead], parameter.shape[self.lead + axis])
            state[key] = state["step"].to(parameter.device, parameter.dtype).expand(shape).clone()
        ages: Tensor = state[key]
        return ages

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of all parameters that have a gradient."""
        aged = [
            (group, parameter, ages)
            for group in self.param_groups
            for parameter in group["params"]
            if parameter.grad is not None and (ages := self._ages_of(parameter))
        ]
        gradients = [parameter.grad for _, parameter, _ in aged]
        for _, parameter, _ in aged:
            parameter.grad = None
        result = super().step(closure)
        for (group, parameter, ages), gradient in zip(aged, gradients, strict=True):
            parameter.grad = gradient
            self._update(group, parameter, ages)
        return result

    def _ages_of(self, parameter: Tensor) -> list[tuple[int, Tensor]]:
        """(axis, ages along it), ready to broadcast against the parameter; empty when nothing was set back."""
        state = self.state.get(parameter, {})
        return [(int(key.removeprefix(AGE)), value) for key, value in state.items() if key.startswith(AGE)]

    def _update(self, group: dict[str, Any], parameter: Tensor, ages: list[tuple[int, Tensor]]) -> None:
        state, (beta1, beta2), gradient = self.state[parameter], group["betas"], parameter.grad
        assert gradient is not None
        if group["weight_decay"] and group["decoupled_weight_decay"]:
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
        state["step"] += 1
        first, second = state["exp_avg"], state["exp_avg_sq"]
        first.lerp_(gradient, 1.0 - beta1)
        second.mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        rates, scales = [], []
        for axis, age in ages:
            age += 1
            shape = (*age.shape, *(1,) * (parameter.ndim - self.lead - axis - 1))
            beside = age.reshape(*shape[: self.lead], *(1,) * axis, *shape[self.lead :])
            rates.append(group["lr"] / _correction(beta1, beside))
            scales.append(_correction(beta2, beside).rsqrt_())
        # The correction of a younger entry is the smaller one, so an element takes the largest reciprocal.
        denominator = second.sqrt().mul_(reduce(torch.maximum, scales)).add_(group["eps"])
        parameter.addcdiv_(first * reduce(torch.maximum, rates), denominator, value=-1.0)


def _correction(beta: float, age: Tensor) -> Tensor:
    """1 - beta^age without cancellation."""
    return torch.expm1(age * (math.log(beta) if beta else -math.inf)).neg_()
