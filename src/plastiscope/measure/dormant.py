"""Dormant units of a layer over a data set: sums over batches, and the rules that read it.

The site is the post-activation; the scope is all samples given (a data set, or one batch). Numbers of different rules
are never compared. A unit is a channel (over its positions), a neuron or a hidden unit of a block (over tokens).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

_SATURATED: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": lambda h: (h < 0.01) | (h > 0.99),
    "tanh": lambda h: h.abs() > 0.99,
    "elu": lambda h: h < -0.99,
    "selu": lambda h: h < -1.7,
}
"""Saturation by activation. ReLU's is 0; leaky ReLU, SiLU and GELU have none."""


def _unsaturated(h: Tensor, non_zero: Tensor, activation: str) -> Tensor:
    if activation == "relu":
        return non_zero
    if activation not in _SATURATED:
        return torch.full_like(non_zero, h[:, 0].numel())
    return (~_SATURATED[activation](h)).sum((0, 2))


@dataclass(frozen=True, eq=False)
class UnitActivity:
    """What the dormancy rules need to know of a layer; the sum of two is the activity over both sets of samples.

    A data set is summed batch by batch, or shard by shard, and need not be held: `total = total + activity(batch)`.

    Attributes:
        samples: number of samples.
        values: number of samples times positions.
        absolute: sum of |h|, float64 [units].
        non_zero: number of values h != 0, int64 [units].
        tiny: number of values |h| < 1e-7, int64 [units].
        active_samples: number of samples with h > 0 at some position, int64 [units].
        unsaturated: number of values outside the saturation of the layer's activation, int64 [units].
    """

    samples: int
    values: int
    absolute: Tensor
    non_zero: Tensor
    tiny: Tensor
    active_samples: Tensor
    unsaturated: Tensor

    def __add__(self, other: "UnitActivity") -> "UnitActivity":
        """Activity over the samples of both."""
        return UnitActivity(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def mean_absolute(self) -> Tensor:
        """Mean of |h| over samples and positions, float64 [units]."""
        return self.absolute / self.values


def activity(features: Tensor, activation: str = "", unit_axis: int = 1) -> UnitActivity:
    """Activity of a layer's units over one batch, on the device, without a host copy.

    Args:
        features: post-activation, [b, units], [b, units, *positions], or [b, tokens, units] with unit_axis 2.
        activation: name of the activation, such as "relu"; "" has no saturation.
        unit_axis: of the features.
    """
    h = features.detach().movedim(unit_axis, 1)
    h = h.unsqueeze(2) if h.ndim == 2 else h.flatten(2)
    size = h.abs()
    non_zero = h.count_nonzero((0, 2))
    return UnitActivity(
        samples=h.shape[0],
        values=h.shape[0] * h.shape[2],
        absolute=size.sum((0, 2), dtype=torch.float64),
        non_zero=non_zero,
        tiny=(size < 1e-7).sum((0, 2)),
        active_samples=(h.amax(2) > 0).sum(0),
        unsaturated=_unsaturated(h, non_zero, activation),
    )


def dormant_rate(units: UnitActivity, theta: float = 0.01) -> Tensor:
    """Share of non-zero values over samples and positions < theta (Dohare et al. 2024, CIFAR)."""
    return units.non_zero.double() / units.values < theta


def dormant_dead(units: UnitActivity) -> Tensor:
    """Exactly zero on all samples (Dohare et al. 2024, MNIST)."""
    return units.non_zero == 0


def dormant_rl(units: UnitActivity, share: float = 0.01) -> Tensor:
    """Active (h > 0, at any position) in no more than this share of the samples (Dohare et al. 2024, RL).

    Made for ReLU: a unit that is always negative counts as dormant, whatever its activation.
    """
    return units.active_samples.double() / units.samples <= share


def dormant_redo(units: UnitActivity, tau: float = 0.025) -> Tensor:
    """Mean |h| <= tau times its mean over the layer (Sokar et al. 2023, ReDo); every unit of an all-zero layer.

    The paper's tau is 0.025 for analysis and 0.1 for recycling.
    """
    return units.mean_absolute <= tau * units.mean_absolute.mean()


def dormant_absmean(units: UnitActivity, threshold: float = 0.01) -> Tensor:
    """Mean |h| < threshold, in the activation's own unit: depends on its scale."""
    return units.mean_absolute < threshold


def saturated(units: UnitActivity) -> Tensor:
    """Every value saturated.

    ReLU 0; sigmoid < 0.01 or > 0.99; tanh |h| > 0.99; ELU < -0.99; SELU < -1.7; other activations never.
    """
    return units.unsaturated == 0


def dead_aj(units: UnitActivity, share: float = 0.95) -> Tensor:
    """Share of values |h| < 1e-7 over samples and positions > `share` (public code of ajoudaki/loss-of-plasticity)."""
    return units.tiny.double() / units.values > share


DORMANCY_RULES: dict[str, Callable[[UnitActivity], Tensor]] = {
    "dormant_rate": dormant_rate,
    "dormant_dead": dormant_dead,
    "dormant_rl": dormant_rl,
    "dormant_redo": dormant_redo,
    "dormant_absmean": dormant_absmean,
    "saturated": saturated,
    "dead_aj": dead_aj,
}
"""By key: which units of a layer are dormant, bool [units]; with the published thresholds."""


def dormant_share(units: UnitActivity, rule: Callable[[UnitActivity], Tensor]) -> float:
    """Share of a layer's units that a rule calls dormant; NaN when activations are not finite."""
    return rule(units).double().mean().item() if units.absolute.isfinite().all() else torch.nan


def total_shares(shares: Sequence[float], widths: Sequence[int]) -> tuple[float, float]:
    """Total over layers of the share of dormant units: weighted by units (dormant over all units), and layer mean."""
    if not shares:
        return torch.nan, torch.nan
    weighted = sum(share * width for share, width in zip(shares, widths, strict=True)) / sum(widths)
    return weighted, sum(shares) / len(shares)
