"""Networks from elsewhere: any callable that returns a torch.nn.Module."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.event import undisturbed


@dataclass(frozen=True)
class Foreign:
    """A network made by a callable that is not ours, checked before anything is trained."""

    factory: Callable[[], nn.Module]
    """Calls the target of the config with its other keys."""
    name: str = "the network"
    """The target, for error texts."""

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """The network as its callable initialises it.

        Raises:
            ConfigError: when it is no module, does not take these inputs, or has other outputs than needed.
        """
        try:
            net = self.factory()
        # Code we do not know can raise anything; its own words go into the message.
        except Exception as error:
            raise ConfigError(
                f"net._target_={self.name} failed ({type(error).__name__}: {error}); check its arguments under net."
            ) from error
        if not isinstance(net, nn.Module):
            raise ConfigError(f"net._target_={self.name} gave a {type(net).__name__}; it must give a torch.nn.Module.")
        try:
            with undisturbed(net), torch.no_grad():
                result = net(torch.zeros(2, *input_shape))
        except Exception as error:
            raise ConfigError(
                f"{self.name} cannot take inputs of shape {input_shape} ({type(error).__name__}: {error}); change its "
                "arguments under net, or the inputs (data.resize changes the number of pixels)."
            ) from error
        shape = tuple(result.shape) if isinstance(result, torch.Tensor) else type(result).__name__
        if shape != (2, outputs):
            raise ConfigError(
                f"{self.name} gives outputs of shape {shape} for two samples, where (2, {outputs}) is needed; set its "
                f"number of outputs, such as +net.num_classes={outputs}."
            )
        return net
