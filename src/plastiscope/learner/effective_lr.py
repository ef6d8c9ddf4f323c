"""A constant effective learning rate of scale-invariant layers: how fast the direction w/||w|| moves.

Under SGD it is alpha/||w||^2, under Adam and its kind alpha/||w||, so with a constant alpha it falls as weights grow
(van Laarhoven 2017, arXiv 1706.05350; Lyle et al. 2024, arXiv 2407.01800).
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum

import torch
from torch import Tensor, nn

EFFECTIVE_LR = "effective_lr"
"""Key of a parameter group whose step size is this rate times ||w||^2 (Adam and its kind: ||w||); its `lr` is 1."""
SMALLEST = 1e-30
"""Smallest ||w|| that is divided by."""


class EffectiveLrMode(Enum):
    """How the effective rate of scale-invariant layers is held constant."""

    scale = "scale"
    """The step size is effective_lr times ||w||^2, or times ||w|| under Adam and its kind."""
    project = "project"
    """After each step ||w|| is what it was at initialisation; the step size is the learner's own."""


def joint_norm(tensors: Sequence[Tensor], lead: int = 0) -> Tensor:
    """||w||_2 of tensors taken together, for each entry of the leading axes, [*lead]."""
    rows = [torch.linalg.vector_norm(t.detach().flatten(lead), dim=-1) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(rows), dim=0)


def beside(values: Tensor, tensor: Tensor) -> Tensor:
    """Values [*lead], ready to broadcast against a tensor [*lead, ...]."""
    return values.view(*values.shape, *(1,) * (tensor.ndim - values.ndim))


@contextmanager
@torch.no_grad()
def scaled_steps(optimizer: torch.optim.Optimizer, is_adaptive: bool, lead: int = 0) -> Iterator[None]:
    """Around an optimiser's step: groups with an effective rate e take the step size e ||w||^2, or e ||w||.

    w are all parameters of the group, before the step. The optimiser makes a step of size 1, which is then shortened:
    all updates of torch's SGD, Adam and AdamW are proportional to the step size, decoupled weight decay included. So
    the size may lie on the device, and be another for each entry of the leading axes.

    Args:
        optimizer: whose groups are looked through.
        is_adaptive: Adam and its kind.
        lead: number of leading axes of every parameter.
    """
    groups = [group for group in optimizer.param_groups if EFFECTIVE_LR in group]
    sizes = [joint_norm(group["params"], lead) ** (1 if is_adaptive else 2) * group[EFFECTIVE_LR] for group in groups]
    before = [[p.detach().clone() for p in group["params"]] for group in groups]
    yield
    for group, size, old in zip(groups, sizes, before, strict=True):
        for parameter, value in zip(group["params"], old, strict=True):
            parameter.detach().copy_(value.lerp_(parameter, beside(size, parameter)))


class Projection:
    """Keeps the norms of scale-invariant weights at what they were at initialisation."""

    def __init__(self, together: list[list[nn.Parameter]], lead: int = 0) -> None:
        """Take the norms of now.

        Args:
            together: parameters, those that are scale-invariant together in one list.
            lead: number of leading axes of every parameter.
        """
        self._together, self._lead = together, lead
        self.norms = [joint_norm(parameters, lead) for parameters in together]

    @torch.no_grad()
    def project(self) -> None:
        """Make the norms what they were: w <- w r/||w||; w = 0 stays."""
        for parameters, norm in zip(self._together, self.norms, strict=True):
            factor = norm / joint_norm(parameters, self._lead).clamp_min(SMALLEST)
            for parameter in parameters:
                parameter.mul_(beside(factor, parameter))

    def renew(self, changed: Iterable[nn.Parameter]) -> None:
        """Take the norms of now where any of the `changed` parameters belongs, initialised anew."""
        anew = set(changed)
        for parameters, norm in zip(self._together, self.norms, strict=True):
            if anew.intersection(parameters):
                norm.copy_(joint_norm(parameters, self._lead))

    def state_dict(self) -> dict[str, Tensor]:
        """The norms, in order."""
        return {str(i): norm.clone() for i, norm in enumerate(self.norms)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take back what `state_dict` gave."""
        for i, norm in enumerate(self.norms):
            norm.copy_(state[str(i)])
