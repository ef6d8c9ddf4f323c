"""The unit description of any network."""

from torch import Tensor, nn

from plastiscope.net.discover import discover
from plastiscope.net.units import UnitDescription


def describe(net: nn.Module, example_input: Tensor) -> UnitDescription:
    """What the network says of itself (`unit_description()`), or what discovery finds.

    Args:
        net: any module that takes one tensor.
        example_input: [b, ...], a small batch such as two samples, on the network's device.
    """
    own = getattr(net, "unit_description", None)
    return own() if callable(own) else discover(net, example_input)
