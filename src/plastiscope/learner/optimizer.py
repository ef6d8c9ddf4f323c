"""The optimisers of torch.optim that learners use, their groups of parameters, and clipping."""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from plastiscope.net.activation import undecayed

if TYPE_CHECKING:
    from plastiscope.learner.learner import LearnerConfig


class Optimizer(Enum):
    """The optimisers of torch.optim."""

    sgd = "sgd"
    adam = "adam"
    adamw = "adamw"


ParameterGroups = list[nn.Parameter] | list[dict[str, Any]]
"""What torch's optimisers take."""


def parameter_groups(
    net: nn.Module, parameters: list[nn.Parameter], facts: Mapping[nn.Parameter, dict[str, Any]] | None = None
) -> ParameterGroups:
    """The parameters; in groups where some of them take no weight decay, or where layers differ.

    Args:
        net: the network.
        parameters: those that are trained.
        facts: settings of the group that a parameter belongs to; those with equal ones are one group.
    """
    exempt, groups = undecayed(net), dict[Any, dict[str, Any]]()
    for parameter in parameters:
        own = (facts or {}).get(parameter, {}) | ({"weight_decay": 0.0} if parameter in exempt else {})
        groups.setdefault(tuple(own.items()), {"params": [], **own})["params"].append(parameter)
    return parameters if list(groups) == [()] else list(groups.values())


def make_optimizer(config: "LearnerConfig", parameters: ParameterGroups) -> torch.optim.Optimizer:
    """The optimiser of the settings; fused kernels, which torch has for CPU and CUDA alike."""
    shared: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer is Optimizer.sgd:
        return torch.optim.SGD(parameters, momentum=config.momentum, **shared)
    kind = torch.optim.Adam if config.optimizer is Optimizer.adam else torch.optim.AdamW
    return kind(parameters, betas=(config.betas[0], config.betas[1]), eps=config.eps, **shared)


def clip_norm(parameters: Sequence[nn.Parameter], most: float, lead: int = 0) -> None:
    """Scale the gradients of each run so that their joint Euclidean norm is at most `most`.

    As torch.nn.utils.clip_grad_norm_: the factor is min(1, most / (norm + 1e-6)).
    """
    if lead == 0:
        nn.utils.clip_grad_norm_(parameters, most)
        return
    gradients = [p.grad for p in parameters if p.grad is not None]
    squares = [gradient.square().flatten(lead).sum(-1) for gradient in gradients]
    factor = (most / (torch.stack(squares).sum(0).sqrt() + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(factor.view(*factor.shape, *(1,) * (gradient.ndim - lead)))
