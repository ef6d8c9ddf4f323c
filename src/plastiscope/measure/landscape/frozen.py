"""The loss whose landscape is looked at: a network, a frozen set of samples, a loss, and the chosen parameters."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.space import ParameterSpace
from plastiscope.measure.loss import Loss, correct, per_sample_loss

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Losses [b] of active outputs [b, k] and targets."""


@dataclass(frozen=True)
class Point:
    """What is measured at one weight vector.

    Attributes:
        loss: L, with the penalty.
        standard_error: of the mean over samples; NaN of one sample.
        accuracy: share of samples that are classified rightly; NaN of regression.
    """

    loss: float
    standard_error: float
    accuracy: float


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenLoss:
    """L(theta) = (1/N) sum_n l_n(theta) + (lambda/2) ||theta||^2 over a frozen set, in evaluation mode.

    Attributes:
        net: the network; its parameters are the point theta, and are as before after every call here.
        inputs, targets: the samples, [n, ...] and [n] or [n, k], on the network's device.
        loss: of each sample; a task's loss, or any function of outputs and targets.
        active_outputs: the loss sees the first so many outputs.
        space: the chosen parameters; the others are constants.
        micro_batch: samples in a forward; results depend on it in the last bits only.
        weight_decay: lambda of the penalty on the chosen parameters; it counts in the value, in the gradient, in
            products with the Hessian and in what is measured at a point, but not in the losses of samples.
    """

    net: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss | PerSampleLoss
    active_outputs: int
    space: ParameterSpace
    micro_batch: int = 128
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a network that changes or is random when it is looked at, and a set without samples."""
        training = [name or "the network" for name, module in self.net.named_modules() if module.training]
        if training:
            raise ConfigError(
                f"the landscape of a network in training mode changes with every look ({training[0]}); "
                "call net.eval() first"
            )
        if not len(self.inputs) or len(self.inputs) != len(self.targets):
            raise ConfigError(f"{len(self.inputs)} inputs and {len(self.targets)} targets: there must be a target each")
        if self.micro_batch < 1:
            raise ConfigError(f"micro_batch={self.micro_batch}: must be 1 or more")

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The chosen parameters themselves."""
        return self.space.of(self.net)

    @property
    def coupling_modules(self) -> list[str]:
        """Modules that make the samples of a micro-batch depend on each other: batch norms without statistics.

        With any, the size of a micro-batch is part of the loss and must not be tuned.
        """
        kinds = nn.modules.batchnorm._BatchNorm
        return [name for name, m in self.net.named_modules() if isinstance(m, kinds) and m.running_mean is None]

    def with_micro_batch(self, size: int) -> "FrozenLoss":
        """The same loss, evaluated so many samples at a time."""
        return replace(self, micro_batch=size)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples in their order, `micro_batch` at a time, the last batch ragged."""
        return zip(self.inputs.split(self.micro_batch), self.targets.split(self.micro_batch), strict=True)

    def sum_of(self, inputs: Tensor, targets: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Summed loss of one batch, differentiable; at `parameters` by name instead of the live ones."""
        if parameters is None:
            outputs = self.net(inputs)
        else:
            outputs = torch.func.functional_call(self.net, dict(parameters), (inputs,))
        return self._per_sample(outputs[:, : self.active_outputs], targets).sum()

    @torch.no_grad()
    def losses(self) -> Tensor:
        """Loss of each sample float64 [n] at the live parameters, without the penalty."""
        return torch.cat([self._per_sample(self._outputs(x), y).double() for x, y in self.batches()])

    def value(self) -> Tensor:
        """L at the live parameters, float64 scalar on the device: no wait for the host."""
        return self._mean(self.losses())

    @torch.no_grad()
    def measure(self) -> Point:
        """Loss, its standard error and the accuracy at the live parameters, from one pass."""
        losses, hits = [], []
        for x, y in self.batches():
            outputs = self._outputs(x)
            losses.append(self._per_sample(outputs, y).double())
            hits.append(correct(self.loss, outputs, y) if isinstance(self.loss, Loss) else None)
        all_losses = torch.cat(losses)
        error = all_losses.std(correction=1).item() / math.sqrt(len(self)) if len(self) > 1 else math.nan
        right = [hit for hit in hits if hit is not None]
        return Point(
            self._mean(all_losses).item(), error, torch.cat(right).double().mean().item() if right else math.nan
        )

    def gradient(self) -> Tensor:
        """Gradient of L over the chosen parameters, [D] in their dtype; `.grad` is not touched."""
        total = [torch.zeros_like(p) for p in self.parameters]
        for grads in self._gradients():
            for sum_, grad in zip(total, grads, strict=True):
                if grad is not None:
                    sum_ += grad
        flat = self.space.flat(total) / len(self)
        return flat + self.weight_decay * self.space.values(self.net) if self.weight_decay else flat

    def without_influence(self) -> tuple[str, ...]:
        """Chosen parameters that the losses of the samples do not depend on; their derivatives are zeros."""
        used = [False] * len(self.space.names)
        for grads in self._gradients():
            used = [before or grad is not None for before, grad in zip(used, grads, strict=True)]
        return tuple(name for name, is_used in zip(self.space.names, used, strict=True) if not is_used)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of inputs and targets."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()

    def _outputs(self, inputs: Tensor) -> Tensor:
        return self.net(inputs)[:, : self.active_outputs]

    def _per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if isinstance(self.loss, Loss):
            return per_sample_loss(self.loss, outputs, targets)
        return self.loss(outputs, targets)

    @torch.no_grad()
    def _mean(self, losses: Tensor) -> Tensor:
        """Mean of the samples' losses and the penalty."""
        mean = losses.sum() / len(self)
        if not self.weight_decay:
            return mean
        norms = torch.stack([p.double().square().sum() for p in self.parameters])
        return mean + 0.5 * self.weight_decay * norms.sum()

    def _gradients(self) -> Iterator[Sequence[Tensor | None]]:
        """Gradient of each micro-batch's summed loss; None where there is no influence."""
        parameters = self.parameters
        for x, y in self.batches():
            with asking_for_gradients(parameters):
                total = self.sum_of(x, y)
                depends = total.requires_grad
                yield torch.autograd.grad(total, parameters, allow_unused=True) if depends else [None] * len(parameters)


@contextmanager
def asking_for_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, these parameters ask for gradients and graphs are recorded, whatever held before."""
    flags = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)
