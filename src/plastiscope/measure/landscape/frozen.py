"""The loss whose landscape is looked at: a network, a frozen set of samples, a loss, and the chosen parameters."""

import hashlib
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.space import ParameterSpace
from plastiscope.measure.loss import Loss, correct, per_sample_loss


@dataclass(frozen=True, eq=False, kw_only=True)
class FrozenLoss:
    """L(theta) = (1/N) sum_n l_n(theta) over a frozen set, in evaluation mode.

    Attributes:
        net: the network; its parameters are the point theta, and are as before after every call here.
        inputs, targets: the samples, [n, ...] and [n] or [n, k], on the network's device.
        loss: of each sample.
        active_outputs: the loss sees the first so many outputs.
        space: the chosen parameters; the others are constants.
        micro_batch: samples in a forward; results depend on it in the last bits only.
        weight_decay: lambda of an added (lambda/2) ||theta||^2.
    """

    net: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss
    active_outputs: int
    space: ParameterSpace
    micro_batch: int = 128
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        """Refuse a network whose samples depend on each other or that is random."""
        for name, module in self.net.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm | nn.Dropout) and module.training:
                raise ConfigError(
                    f"the landscape of a network in training mode changes with every look (module {name}); "
                    "call net.eval() first"
                )

    def __len__(self) -> int:
        return len(self.inputs)

    def with_micro_batch(self, size: int) -> "FrozenLoss":
        """The same loss, evaluated so many samples at a time."""
        return replace(self, micro_batch=size)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The samples in their order, `micro_batch` at a time, the last batch ragged."""
        return zip(self.inputs.split(self.micro_batch), self.targets.split(self.micro_batch), strict=True)

    def outputs(self, inputs: Tensor) -> Tensor:
        """Active outputs [b, k] at the live parameters."""
        return self.net(inputs)[:, : self.active_outputs]

    def sum_of(self, inputs: Tensor, targets: Tensor, parameters: Mapping[str, Tensor] | None = None) -> Tensor:
        """Summed loss of one batch, differentiable; at `parameters` by name instead of the live ones."""
        if parameters is None:
            outputs = self.net(inputs)
        else:
            outputs = torch.func.functional_call(self.net, dict(parameters), (inputs,))
        return per_sample_loss(self.loss, outputs[:, : self.active_outputs], targets).sum()

    @torch.no_grad()
    def losses(self) -> Tensor:
        """Loss of each sample float64 [n] at the live parameters, without the penalty."""
        return torch.cat([per_sample_loss(self.loss, self.outputs(x), y).double() for x, y in self.batches()])

    @torch.no_grad()
    def hits(self) -> Tensor | None:
        """Whether each sample is classified rightly, bool [n]; None for regression."""
        found = [correct(self.loss, self.outputs(x), y) for x, y in self.batches()]
        return None if found[0] is None else torch.cat([hit for hit in found if hit is not None])

    def value(self) -> Tensor:
        """L at the live parameters, float64 scalar on the device: no wait for the host."""
        mean = self.losses().sum() / len(self)
        return mean + self.penalty() if self.weight_decay else mean

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """(lambda/2) ||theta||^2 over the chosen parameters, float64 scalar."""
        norms = torch.stack([p.double().square().sum() for p in self.space.of(self.net)])
        return 0.5 * self.weight_decay * norms.sum()

    def gradient(self) -> Tensor:
        """Gradient of L over the chosen parameters, [D] in their dtype; `.grad` is not touched."""
        parameters = self.space.of(self.net)
        total = [torch.zeros_like(p) for p in parameters]
        with asking_for_gradients(parameters):
            for x, y in self.batches():
                grads = torch.autograd.grad(self.sum_of(x, y), parameters, allow_unused=True)
                for sum_, grad in zip(total, grads, strict=True):
                    if grad is not None:
                        sum_ += grad
        flat = self.space.flat(total) / len(self)
        return flat + self.weight_decay * self.space.values(self.net) if self.weight_decay else flat

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of inputs and targets."""
        digest = hashlib.sha256()
        for tensor in (self.inputs, self.targets):
            digest.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).tobytes())
        return digest.hexdigest()


@contextmanager
def asking_for_gradients(parameters: list[nn.Parameter]) -> Iterator[None]:
    """Inside, just these parameters ask for gradients, whatever they did before."""
    flags = [p.requires_grad for p in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for parameter, flag in zip(parameters, flags, strict=True):
            parameter.requires_grad_(flag)


@contextmanager
def moved(net: nn.Module, space: ParameterSpace) -> Iterator[list[nn.Parameter]]:
    """Inside, the chosen parameters may be written over; afterwards they hold the same bits as before."""
    parameters = space.of(net)
    kept = [p.detach().clone(memory_format=torch.preserve_format) for p in parameters]
    try:
        yield parameters
    finally:
        with torch.no_grad():
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)


@contextmanager
def preserved(net: nn.Module) -> Iterator[None]:
    """Around a whole analysis: weights, buffers, modes, flags, `.grad`, generators and precision are as before.

    Inside, the network is in evaluation mode, no parameter asks for gradients, and products are exact float32.
    """
    state = {name: tensor.detach().clone() for name, tensor in net.state_dict().items()}
    modes = [(module, module.training) for module in net.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in net.parameters()]
    precision = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    numpy_state, python_state = np.random.get_state(), random.getstate()
    devices = sorted({p.device.index or 0 for p in net.parameters() if p.device.type == "cuda"})
    try:
        with torch.random.fork_rng(devices):
            net.eval()
            net.requires_grad_(False)
            torch.set_float32_matmul_precision("highest")
            torch.backends.cudnn.benchmark = torch.backends.cudnn.allow_tf32 = False
            yield
    finally:
        torch.set_float32_matmul_precision(precision[0])
        torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = precision[1:]
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        own = net.state_dict()
        with torch.no_grad():
            for name, tensor in state.items():
                own[name].copy_(tensor)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
