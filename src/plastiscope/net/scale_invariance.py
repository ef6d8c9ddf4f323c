"""Which weights are scale-invariant: L(c w) = L(w) for every c > 0, by the unit description, never guessed from names.

Weights that a batch norm follows directly are so filter by filter, and their bias has no effect; before layer or group
norm weights and bias are so together; of weight-normalised layers the raw vectors are, whatever follows. Exact up to
the norm's eps.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from plastiscope.net.units import UnitDescription, Wire
from plastiscope.net.weight_normalised import WeightNormalised

FILTER_NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.SyncBatchNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
"""Normalisations that act on each filter by itself and take away its bias."""


@dataclass(frozen=True)
class ScaleInvariant:
    """Parts of parameters that are scale-invariant together.

    Attributes:
        wires: of the parts.
        by_filter: whether each row is so by itself.
    """

    wires: tuple[Wire, ...]
    by_filter: bool


def scale_invariant(net: nn.Module, wires: Sequence[Wire], norm: str | None) -> ScaleInvariant | None:
    """What of a layer's incoming weights is scale-invariant; None when nothing is.

    Args:
        net: the network.
        wires: weight and bias rows of the layer, the weight first.
        norm: path of the normalisation that directly follows them, or None.
    """
    if not wires:
        return None
    if isinstance(net.get_submodule(wires[0].parameter.rpartition(".")[0]), WeightNormalised):
        return ScaleInvariant((wires[0],), by_filter=True)
    if norm is None:
        return None
    if isinstance(net.get_submodule(norm), FILTER_NORMS):
        return ScaleInvariant((wires[0],), by_filter=True)
    return ScaleInvariant(tuple(wires), by_filter=False)


def scale_invariant_parameters(net: nn.Module, units: UnitDescription, lead: int = 0) -> list[list[nn.Parameter]]:
    """The trained parameters that are scale-invariant, those that are so together in one list; from the input on.

    Shortcut layers are lists of their own. A parameter that holds rows of several layers is left out.

    Args:
        net: the network.
        units: its description.
        lead: number of leading axes of every parameter.
    """
    sets = []
    for layer in units.layers:
        for wires, norm in ((layer.incoming, layer.norm), (layer.shortcut, layer.shortcut_norm)):
            found = scale_invariant(net, wires, norm)
            if found is None:
                continue
            parameters = [net.get_parameter(wire.parameter) for wire in found.wires]
            rows = [p.shape[lead + wire.axis] for p, wire in zip(parameters, found.wires, strict=True)]
            are_whole = rows == [layer.width * wire.block for wire in found.wires]
            if are_whole and all(p.requires_grad for p in parameters):
                sets.append(parameters)
    head = net.get_submodule(units.head) if units.head else None
    if isinstance(head, WeightNormalised) and isinstance(head.weight, nn.Parameter):
        sets.append([head.weight])
    return sets
