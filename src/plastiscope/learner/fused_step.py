"""The step of torch's fused optimisers as the kernel alone.

Around one call of a kernel `torch.optim.Optimizer.step` opens a profiler's record, switches the gradient mode, collects
the state and groups tensors by device; for small networks that takes several times as long as the kernel. The state
stays torch's own, and so do the bits.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def fused_step(optimizer: torch.optim.Optimizer) -> None:
    """`optimizer.step()`; where only the kernel is left to call, that alone.

    Args:
        optimizer: with parameters of one type on one device; any that is no torch.optim.SGD, Adam or AdamW, is not
            fused or has more to do (a first step, hooks, parameters without gradients) makes its own step.
    """
    kernel = _KERNELS.get(type(optimizer))
    has_hooks = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    if kernel is None or has_hooks or not all(_is_ready(optimizer, group) for group in optimizer.param_groups):
        optimizer.step()
        return
    with torch.no_grad():
        for group in optimizer.param_groups:
            parameters = group["params"]
            states = [optimizer.state.get(parameter) for parameter in parameters]
            kernel(group, parameters, [parameter.grad for parameter in parameters], states)


def _is_ready(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> bool:
    """Whether all parameters have gradients, and what is kept of them has begun."""
    if not group["fused"] or group["maximize"] or group.get("amsgrad") or group.get("nesterov"):
        return False
    has_state = group.get("momentum") != 0
    return all(p.grad is not None and (not has_state or optimizer.state.get(p)) for p in group["params"])


State = list[dict[str, Tensor]]


def _sgd(group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], states: State) -> None:
    torch._fused_sgd_(
        parameters,
        gradients,
        [state["momentum_buffer"] for state in states] if group["momentum"] else [],
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=False,
        maximize=False,
        is_first_step=False,
        grad_scale=None,
        found_inf=None,
    )


def _adam(group: dict[str, Any], parameters: list[Tensor], gradients: list[Tensor], states: State) -> None:
    steps = [state["step"] for state in states]
    torch._foreach_add_(steps, 1)
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    kernel(
        parameters,
        gradients,
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        steps,
        amsgrad=False,
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
        grad_scale=None,
        found_inf=None,
    )


_KERNELS: dict[type, Callable[[dict[str, Any], list[Tensor], list[Any], Any], None]] = {
    torch.optim.SGD: _sgd,
    torch.optim.Adam: _adam,
    torch.optim.AdamW: _adam,
}
