"""Magnitudes of weights, in the unit of the parameters, and the margin by which units are alive."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def mean_magnitude(tensors: Iterable[Tensor]) -> float:
    """Mean |w| over all elements of the tensors together, summed in float64; NaN when there are none."""
    tensors = list(tensors)
    elements = sum(w.numel() for w in tensors)
    total = sum(w.detach().abs().sum(dtype=torch.float64).item() for w in tensors)
    return total / elements if elements else torch.nan


def weight_mag_all(net: nn.Module) -> float:
    """Mean |w| over every parameter, norms and biases included (Dohare et al. 2024, CIFAR)."""
    return mean_magnitude(net.parameters())


def weight_mag_layer(parameters: Iterable[Tensor]) -> float:
    """Mean |w| over a layer's weights: those of its parameters with 2 or more dimensions (Dohare et al. 2024, RL)."""
    return mean_magnitude(w for w in parameters if w.ndim >= 2)


def weight_mag_weights(net: nn.Module) -> float:
    """Mean |w| over weight matrices and kernels (Dohare et al. 2024, MNIST): parameters with 2 or more dimensions.

    Biases and the scales and shifts of norms have one dimension; a transformer's position embedding counts.
    """
    return weight_mag_layer(net.parameters())


def weight_mag_module(net: nn.Module) -> dict[str, float]:
    """Mean |w| of each parameter with 2 or more dimensions, by the parameter's name."""
    return {name: mean_magnitude([w]) for name, w in net.named_parameters() if w.ndim >= 2}


def unit_margin(preactivations: Tensor, unit_axis: int = 1) -> Tensor:
    """Largest pre-activation of each unit over samples and positions [units]; over batches: `torch.maximum` of them.

    Args:
        preactivations: [b, units], [b, units, *positions], or [b, tokens, units] with unit_axis 2.
        unit_axis: of the pre-activations.
    """
    return preactivations.detach().movedim(unit_axis, 0).flatten(1).amax(1)


def unit_margin_shares(margin: Tensor, risk: float = 0.1) -> dict[str, float]:
    """Share of units with margin < 0 ("dead" under ReLU) and with margin < `risk` ("at_risk", the dead included).

    NaN when a margin is not finite.
    """
    if not margin.isfinite().all():
        return {"dead": torch.nan, "at_risk": torch.nan}
    return {"dead": (margin < 0).double().mean().item(), "at_risk": (margin < risk).double().mean().item()}
