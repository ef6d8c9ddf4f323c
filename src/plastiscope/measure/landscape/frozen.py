"""The loss whose landscape is looked at: a network, a frozen set of samples, a loss, and the chosen parameters."""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.memory import Adaptation, is_out_of_memory
from plastiscope.measure.landscape.shards import Shards, SumOverProcesses
from plastiscope.measure.landscape.space import ParameterSpace
from plastiscope.measure.loss import Loss, correct, per_sample_loss

PerSampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Losses [b] of active outputs [b, k] and targets."""
Found = TypeVar("Found")
PIECE = 2**24
"""Bytes of samples that processes show each other at a time."""


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
        adaptation: what was changed for lack of memory; shared by all copies.
        shards: where other processes hold further samples, see `sharded`; then whatever is a mean over samples is over
            all of them, and is asked for by all processes in the same order.
        sharing: processes that take from the memory of this device.
        coupling: what else than a module was found to make the samples of a micro-batch depend on each other, in words.
    """

    net: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss | PerSampleLoss
    active_outputs: int
    space: ParameterSpace
    micro_batch: int = 128
    weight_decay: float = 0.0
    adaptation: Adaptation = field(default_factory=Adaptation)
    shards: Shards | None = None
    sharing: int = 1
    coupling: str = ""

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
        """Samples of this process."""
        return len(self.inputs)

    @property
    def total_samples(self) -> int:
        """N, the samples of all processes."""
        return self.shards.samples if self.shards else len(self)

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The chosen parameters themselves."""
        return self.space.of(self.net)

    @property
    def coupling_modules(self) -> list[str]:
        """What makes the samples of a micro-batch depend on each other: batch norms without statistics, `coupling`.

        With any, the size of a micro-batch is part of the loss and must not be tuned.
        """
        return coupling_modules(self.net) + ([self.coupling] if self.coupling else [])

    def with_micro_batch(self, size: int) -> "FrozenLoss":
        """The same loss, evaluated so many samples at a time."""
        return replace(self, micro_batch=size)

    def sharded(self, total: SumOverProcesses, first: int = 0) -> "FrozenLoss":
        """The loss over the samples of all processes, of which this one holds its own; all of them call this.

        Args:
            total: sum of a tensor over the processes.
            first: place of the first own sample among those of all processes, which lie in the order of their ranks;
                only `every` and `fingerprint` ask for it.
        """
        count = total(torch.tensor([len(self)], dtype=torch.float64, device=self.inputs.device))
        return replace(self, shards=Shards(int(count.item()), total, first))

    def every(self, own: Tensor) -> Tensor:
        """Values [N, ...] of the samples of all processes, of those [n, ...] of this one's."""
        return self.shards.every(own) if self.shards else own

    def alone(self) -> "FrozenLoss":
        """The loss over the samples of this process, which waits for no other."""
        return replace(self, shards=None)

    @property
    def batch_size(self) -> int:
        """Samples in a forward: `micro_batch`, or fewer where there are or memory has room for fewer."""
        return min(self.micro_batch, len(self), self.adaptation.largest or self.micro_batch)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples in their order, `batch_size` at a time, the last batch ragged."""
        return zip(self.inputs.split(self.batch_size), self.targets.split(self.batch_size), strict=True)

    def halve(self) -> bool:
        """Take half as many samples at a time from now on, and note it; False if that cannot be.

        It cannot where one sample is taken already, or the samples of a batch depend on each other.
        """
        size = self.batch_size
        if size == 1 or self.coupling_modules:
            return False
        self.adaptation.largest = size // 2
        self.adaptation.notes.append(f"out of memory: micro-batches of {size} became {size // 2}")
        return True

    def fitting(self, work: Callable[[], Found]) -> Found:
        """Do `work` over the batches; where memory ends, begin it again with half as many samples at a time."""
        while True:
            try:
                return work()
            except RuntimeError as error:
                if not (is_out_of_memory(error) and self.halve()):
                    raise

    def outputs(self, inputs: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Active outputs of one batch, differentiable; at `parameters` by name instead of the live ones."""
        if parameters is None:
            found = self.net(inputs)
        else:
            found = torch.func.functional_call(self.net, dict(parameters), (inputs,))
        return rows(found)[:, : self.active_outputs]

    def per_sample(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each sample [b] from active outputs.

        Raises:
            ConfigError: a loss of one's own gives something else.
        """
        if isinstance(self.loss, Loss):
            return per_sample_loss(self.loss, outputs, targets)
        found = self.loss(outputs, targets)
        if not isinstance(found, Tensor) or found.shape != (len(outputs),):
            raise ConfigError(
                f"the loss must give one number for each sample, [{len(outputs)}], and gives {_shape(found)}: "
                'use reduction="none", and targets in the shape of the outputs where they are subtracted'
            )
        return found

    def sum_of(self, inputs: Tensor, targets: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Summed loss of one batch, differentiable; at `parameters` by name instead of the live ones."""
        return self.per_sample(self.outputs(inputs, parameters), targets).sum()

    @torch.no_grad()
    def losses(self) -> Tensor:
        """Loss of each sample of this process, float64 [n], at the live parameters, without the penalty."""
        return self.fitting(
            lambda: torch.cat([self.per_sample(self.outputs(x), y).double() for x, y in self.batches()])
        )

    def value(self) -> Tensor:
        """L at the live parameters, float64 scalar on the device: no wait for the host."""
        return self._total(self.losses().sum()) / self.total_samples + self._penalty()

    @torch.no_grad()
    def losses_and_hits(self) -> tuple[Tensor, Tensor]:
        """As `losses`, and from the same pass whether each sample is classified rightly (NaN of regression), [n]."""

        def passed() -> tuple[Tensor, Tensor]:
            losses, hits = [], []
            for x, y in self.batches():
                outputs = self.outputs(x)
                losses.append(self.per_sample(outputs, y).double())
                hit = correct(self.loss, outputs, y) if isinstance(self.loss, Loss) else None
                hits.append(torch.full_like(losses[-1], math.nan) if hit is None else hit.double())
            return torch.cat(losses), torch.cat(hits)

        return self.fitting(passed)

    @torch.no_grad()
    def measure(self) -> Point:
        """Loss, its standard error and the accuracy at the live parameters, from one pass."""
        (losses, hits), n = self.losses_and_hits(), self.total_samples
        loss, accuracy = self._total(torch.stack([losses.sum(), hits.sum()])) / n
        squares = self._total((losses - loss).square().sum()).item()
        error = math.sqrt(squares / (n - 1) / n) if n > 1 else math.nan
        return Point((loss + self._penalty()).item(), error, accuracy.item())

    def gradient(self) -> Tensor:
        """Gradient of L over the chosen parameters, [D] in their dtype; `.grad` is not touched."""
        flat = self._total(self.fitting(self._summed_gradient)) / self.total_samples
        return flat + self.weight_decay * self.space.values(self.net) if self.weight_decay else flat

    def without_influence(self) -> tuple[str, ...]:
        """Chosen parameters that the losses of the samples do not depend on; their derivatives are zeros."""

        def used() -> Tensor:
            found = torch.zeros(len(self.space.names), device=self.inputs.device)
            for grads in self._gradients():
                found += torch.tensor([grad is not None for grad in grads], device=found.device)
            return found

        times = self._total(self.fitting(used)).tolist()
        return tuple(name for name, count in zip(self.space.names, times, strict=True) if not count)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of inputs and targets of all processes, the same as if one held them; all of them ask for it."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            for rows in self._everyones(tensor.detach()):
                digest.update(np.ascontiguousarray(rows.cpu().numpy()).tobytes())
        return digest.hexdigest()

    def _everyones(self, own: Tensor) -> Iterator[Tensor]:
        """Rows of all processes in their order, some at a time; as bytes, whose sum with nothing but zeros is exact."""
        if self.shards is None:
            yield own
            return
        shards, size = self.shards, max(1, PIECE // max(1, own[0].nbytes))
        for start in range(0, shards.samples, size):
            stop = min(start + size, shards.samples)
            piece = torch.zeros(stop - start, own[0].nbytes, dtype=torch.uint8)
            low, high = max(start, shards.first), min(stop, shards.first + len(own))
            if low < high:
                mine = own[low - shards.first : high - shards.first].cpu().contiguous()
                piece[low - start : high - start] = mine.reshape(high - low, -1).view(torch.uint8)
            yield shards.total(piece)

    def _total(self, sums: Tensor) -> Tensor:
        """What this process has summed over its samples, over all processes."""
        return self.shards.total(sums) if self.shards else sums

    @torch.no_grad()
    def _penalty(self) -> Tensor | float:
        """(lambda / 2) ||theta||^2."""
        if not self.weight_decay:
            return 0.0
        return 0.5 * self.weight_decay * torch.stack([p.double().square().sum() for p in self.parameters]).sum()

    def _summed_gradient(self) -> Tensor:
        total = [torch.zeros_like(p) for p in self.parameters]
        for grads in self._gradients():
            pairs = [(sum_, grad) for sum_, grad in zip(total, grads, strict=True) if grad is not None]
            if pairs:
                torch._foreach_add_([sum_ for sum_, _ in pairs], [grad for _, grad in pairs])
        return self.space.flat(total)

    def _gradients(self) -> Iterator[Sequence[Tensor | None]]:
        """Gradient of each micro-batch's summed loss; None where there is no influence."""
        parameters = self.parameters
        for x, y in self.batches():
            with asking_for_gradients(parameters):
                total = self.sum_of(x, y)
                depends = total.requires_grad
                yield torch.autograd.grad(total, parameters, allow_unused=True) if depends else [None] * len(parameters)


def coupling_modules(net: nn.Module) -> list[str]:
    """Modules that make the samples of a batch depend on each other in evaluation, too."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [name for name, m in net.named_modules() if isinstance(m, kinds) and m.running_mean is None]


def rows(outputs: Tensor) -> Tensor:
    """The outputs of a network, if they are [b, k].

    Raises:
        ConfigError: they are not.
    """
    if not isinstance(outputs, Tensor) or outputs.ndim != 2:
        raise ConfigError(
            f"the network must give outputs [b, k], k for each of b samples, and gives {_shape(outputs)}: wrap it in "
            "one that does, a single output as [b, 1]"
        )
    return outputs


def _shape(found: object) -> str:
    return str(list(found.shape)) if isinstance(found, Tensor) else f"a {type(found).__name__}"


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
