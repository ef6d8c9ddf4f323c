"""What a component of the config group `net` is."""

from typing import Protocol

from torch import nn


class NetConfig(Protocol):
    """A dataclass of settings that makes a network."""

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network from the global generator.

        Args:
            input_shape: of one sample, such as (3, 32, 32).
            outputs: of the head.

        Raises:
            ConfigError: when the network cannot take such inputs; says how many pixels it needs (`data.resize`).
        """
