"""Which parameters a rule acts on."""

from enum import Enum

from torch import nn


class Scope(Enum):
    """Which parameters a rule acts on."""

    all = "all"
    """Every parameter, those of norms included."""
    weights_biases = "weights_biases"
    """Weight matrices and kernels, and the biases beside them; nothing of a norm, no slope of an activation."""


def within(net: nn.Module, scope: Scope, lead: int = 0) -> list[nn.Parameter]:
    """The trained parameters of a network that are in the scope, in its order.

    Args:
        net: every parameter has `lead` leading axes.
        scope: which.
        lead: number of leading axes.
    """
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    if scope is Scope.all:
        return trained
    chosen = set[nn.Parameter]()
    for module in net.modules():
        own = dict(module.named_parameters(recurse=False))
        weights = {name for name, parameter in own.items() if parameter.ndim - lead >= 2}
        biases = {name for name in own if name.endswith("bias")} if weights else set()
        chosen |= {own[name] for name in weights | biases}
    return [parameter for parameter in trained if parameter in chosen]
