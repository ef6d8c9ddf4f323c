"""Chosen parameters of a network as one vector."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.measure.keyed import keyed_normal, keyed_sign

ALL, NO_BIAS_NORM = "all", "no_bias_bn"
Draw = Callable[[int, str, Tensor, int], Tensor]


@dataclass(frozen=True)
class ParameterSpace:
    """The coordinates of a weight vector: chosen parameters, in the order of `named_parameters`.

    Attributes:
        names: of the parameters.
        shapes: of each.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Number of coordinates of each parameter."""
        return tuple(shape.numel() for shape in self.shapes)

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return sum(self.sizes)

    def flat(self, parts: Sequence[Tensor]) -> Tensor:
        """One vector [D] of tensors of the parameters' shapes, in order; a copy."""
        return torch.cat([part.reshape(-1) for part in parts])

    def parts(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector [D] (or of vectors [k, D]) with the parameters' shapes."""
        lead = vector.shape[:-1]
        pieces = vector.split(self.sizes, dim=-1)
        return [piece.view(*lead, *shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The parts of a vector by name."""
        return dict(zip(self.names, self.parts(vector), strict=True))

    def values(self, net: nn.Module) -> Tensor:
        """The current values of a network as a vector [D]; a copy."""
        return self.flat([p.detach() for p in self.of(net)])

    def of(self, net: nn.Module) -> list[nn.Parameter]:
        """The parameters themselves."""
        own = dict(net.named_parameters())
        return [own[name] for name in self.names]

    def signs(self, seed: int, purpose: str, k: int, device: torch.device | str = "cpu") -> Tensor:
        """A Rademacher vector [D], float32, keyed by (seed, purpose, parameter name, element, k).

        The same bits on every device, and for the same parameter in every subset and every checkpoint.
        """
        return self._drawn(keyed_sign, seed, purpose, k, device)

    def normals(self, seed: int, purpose: str, k: int, device: torch.device | str = "cpu") -> Tensor:
        """A standard Gaussian vector [D], float32, keyed like `signs`."""
        return self._drawn(keyed_normal, seed, purpose, k, device)

    def _drawn(self, draw: Draw, seed: int, purpose: str, k: int, device: torch.device | str) -> Tensor:
        named = zip(self.names, self.sizes, strict=True)
        return torch.cat([draw(seed, f"{purpose}/{name}", torch.arange(n, device=device), k) for name, n in named])

    def blocks(self) -> Iterator[tuple[str, slice]]:
        """Place of each parameter in a vector, by name."""
        start = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            yield name, slice(start, start + size)
            start += size


def choose(net: nn.Module, which: str | Sequence[str] = ALL) -> ParameterSpace:
    """The space of a network's parameters.

    Args:
        net: network.
        which: "all"; "no_bias_bn", those with two dimensions or more; or regular expressions, of which one must match
            the beginning of a parameter's name ("fc", "layer4", "conv1.weight").

    Raises:
        ConfigError: nothing is chosen; says which parameters there are.
    """
    own: Mapping[str, nn.Parameter] = dict(net.named_parameters())
    if which == ALL:
        names = list(own)
    elif which == NO_BIAS_NORM:
        names = [name for name, parameter in own.items() if parameter.ndim >= 2]
    else:
        patterns = [which] if isinstance(which, str) else list(which)
        names = [name for name in own if any(re.match(pattern, name) for pattern in patterns)]
    if not names:
        raise ConfigError(f"params={which}: chooses no parameter; there are: {', '.join(own)}")
    return ParameterSpace(tuple(names), tuple(own[name].shape for name in names))
