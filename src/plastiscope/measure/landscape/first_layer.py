"""The first layer on a line through the weights: its outputs are affine in the place, so two products do for a line.

    x (W + b D)^T = x W^T + b x D^T

In an mlp the first layer has most of the weights and of the arithmetic, and its inputs never move. Everything behind
it is computed as ever. The weights are written at each place all the same: whoever reads them sees the place itself.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastiscope.measure.landscape.frozen import FrozenLoss

HELD = 2**28
"""Bytes that the outputs of a first layer may take; they are held twice."""
Batch = tuple[int, int]
"""Where a batch lies in memory, and its length."""


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """A linear layer whose inputs are the frozen samples themselves, on lines of one direction.

    Attributes:
        frozen: the loss.
        module: the layer.
        direction: D by name of the parameter; what is not there stays where it is.
    """

    frozen: FrozenLoss
    module: nn.Linear
    direction: Mapping[str, Tensor]

    @cached_property
    def along(self) -> dict[Batch, Tensor]:
        """Outputs x D^T of each batch."""
        return self._outputs([self.direction.get(name, torch.zeros_like(p)) for name, p in self.parameters.items()])

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Its weight, and its bias if it has one, by name."""
        own = {id(parameter): name for name, parameter in self.frozen.net.named_parameters()}
        return {own[id(p)]: p for p in self.module.parameters(recurse=False)}

    def _outputs(self, values: Sequence[Tensor]) -> dict[Batch, Tensor]:
        """Outputs of each batch at these values of its parameters."""

        def all_batches() -> dict[Batch, Tensor]:
            batches = (x for x, _ in self.frozen.batches())
            return {(x.data_ptr(), len(x)): F.linear(x.reshape(len(x), -1), *values) for x in batches}

        return self.frozen.fitting(all_batches)

    @contextmanager
    def on_line(self, base: Mapping[str, Tensor]) -> Iterator[Callable[[float], None]]:
        """Inside, the layer knows its outputs on the line base + b D; afterwards it is as before.

        It takes them where it meets a whole batch and nothing is to be differentiated, and its weights are those that
        were written last before the place was told; everywhere else it multiplies.

        Args:
            base: the parameters at b = 0 by name; what is not there is as it is now.

        Yields:
            What is to be called with b, after the weights of that place have been written.
        """
        module, live = self.module, self.parameters
        weight, bias = module.weight, module.bias
        start, along = self._outputs([base.get(name, p) for name, p in live.items()]), self.along
        place, written = 0.0, [-1]

        def versions() -> list[int]:
            return [parameter._version for parameter in live.values()]

        def tell(b: float) -> None:
            nonlocal place, written
            place, written = b, versions()

        def forward(x: Tensor) -> Tensor:
            is_live = module.weight is weight and module.bias is bias and not torch.is_grad_enabled()
            if is_live and written == versions() and x.is_contiguous() and x.shape == (len(x), module.in_features):
                batch = x.data_ptr(), len(x)
                if batch in start and batch in along:
                    return torch.add(start[batch], along[batch], alpha=place) if place else start[batch].clone()
            return F.linear(x, module.weight, module.bias)

        module.forward = forward  # type: ignore[method-assign, assignment]
        try:
            yield tell
        finally:
            del module.forward


def first_layer(frozen: FrozenLoss, direction: Mapping[str, Tensor]) -> FirstLayer | None:
    """The linear layer that meets the samples as they are; None where there is none, or its outputs would be large."""
    x = frozen.inputs[:2]
    met: list[nn.Linear] = []
    plain = [m for m in frozen.net.modules() if type(m) is nn.Linear and _is_plain(m)]

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        is_input = arguments[0].data_ptr() == x.data_ptr() and arguments[0].shape == (len(x), x[0].numel())
        if is_input and isinstance(module, nn.Linear):
            met.append(module)

    hooks = [module.register_forward_pre_hook(note) for module in plain]
    try:
        if hooks and x.is_contiguous():
            with torch.no_grad():
                frozen.net(x)
    finally:
        for hook in hooks:
            hook.remove()
    if not met or len(frozen) * met[0].out_features * x.element_size() > HELD:
        return None
    return FirstLayer(frozen, met[0], direction)


def _is_plain(module: nn.Linear) -> bool:
    """Whether it multiplies by parameters of its own, and by nothing that is made of them."""
    return isinstance(module.weight, nn.Parameter) and "forward" not in vars(module)


@contextmanager
def as_ever() -> Iterator[Callable[[float], None]]:
    """In place of `FirstLayer.on_line` where there is no such layer."""
    yield lambda b: None
