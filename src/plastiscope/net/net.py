"""What a component of the config group `net` is."""

from typing import Protocol

import torch
from torch import nn

from plastiscope.measure.keyed import named_seed


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


def fresh_net(config: NetConfig, input_shape: tuple[int, ...], outputs: int, seed: int, k: int = 0) -> nn.Module:
    """The k-th freshly initialised network of a run on the CPU, always the same bits.

    Args:
        config: makes it.
        input_shape: of one sample.
        outputs: of the head.
        seed: of the run.
        k: 0 is the network that the run trains, above 0 are those of its resets, below 0 those of a probe.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(named_seed(seed, "net", k))
        return config.make(input_shape, outputs)
