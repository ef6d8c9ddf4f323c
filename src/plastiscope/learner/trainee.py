"""What a learner is given to train."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from plastiscope.measure.keyed import Seed
from plastiscope.net.units import UnitDescription

InitialNet = Callable[[int], nn.Module]
"""k -> a freshly initialised network; k = 0 is the run's own, k > 0 are others, each always the same bits."""


@dataclass(frozen=True)
class Trainee:
    """A network, and what is known of it; of one run, or of several that advance together."""

    net: nn.Module
    """Every parameter and buffer has `lead` leading axes."""
    units: UnitDescription
    """Its description, of the network without these axes."""
    initial_net: InitialNet
    """Gives fresh networks of the same kind."""
    seed: Seed
    """Of the run; or of each run along the leading axis."""
    lead: int = 0
    """Number of leading axes, 0 or 1: runs that advance together."""
