"""The parameters of each hidden layer, as views, by the unit description."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from plastiscope.net.units import Layer, UnitDescription, Wire

TOTAL = "total"
Parts = dict[str, list[Tensor]]


def parameters_of(net: nn.Module) -> dict[str, Tensor]:
    """All parameters by name, detached, sharing memory with the network's."""
    return {name: parameter.detach() for name, parameter in net.named_parameters()}


def by_layer(units: UnitDescription, parameters: Mapping[str, Tensor]) -> Parts:
    """Views by layer: incoming weights and biases of each hidden layer, all of the head, and "total", everything.

    Args:
        units: description of the network; layers of which no incoming weights are known are left out.
        parameters: tensors by the names of the network's parameters: values, gradients, copies.
    """
    parts = {layer.name: incoming(layer, parameters) for layer in units.layers if layer.incoming}
    if units.head:
        parts[units.head] = [tensor for name, tensor in parameters.items() if name.startswith(f"{units.head}.")]
    return {**parts, TOTAL: list(parameters.values())}


def incoming(layer: Layer, parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """The rows of its incoming weights and biases, in the order of its wires."""
    return rows_of(layer, layer.incoming, parameters)


def rows_of(layer: Layer, wires: Sequence[Wire], parameters: Mapping[str, Tensor]) -> list[Tensor]:
    """What belongs to the units of a layer along some of its wires."""
    return [parameters[w.parameter].narrow(w.axis, w.offset, layer.width * w.block) for w in wires]
