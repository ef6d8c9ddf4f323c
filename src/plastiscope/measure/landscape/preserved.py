"""Around every look at a landscape: whatever happens inside, the network and the process are as before afterwards."""

import random
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.measure.landscape.frozen import FrozenLoss, PerSampleLoss
from plastiscope.measure.landscape.space import ALL, ParameterSpace, choose
from plastiscope.measure.loss import Loss


@contextmanager
def landscape_of(
    net: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    loss: Loss | PerSampleLoss,
    active_outputs: int,
    params: str | Sequence[str] = ALL,
    micro_batch: int = 128,
    weight_decay: float = 0.0,
) -> Iterator[FrozenLoss]:
    """The frozen loss of a network, which is in evaluation mode inside and as before afterwards (see `preserved`).

    Args:
        net: the network.
        inputs: of the frozen set; copied, so that no later change of them moves the landscape.
        targets: of the frozen set; copied.
        loss: of each sample.
        active_outputs: the loss sees the first so many outputs.
        params: chosen parameters, see `choose`.
        micro_batch: samples in a forward.
        weight_decay: lambda of the penalty.
    """
    with preserved(net):
        yield FrozenLoss(
            net=net,
            inputs=inputs.detach().clone(memory_format=_layout(net, inputs)),
            targets=targets.detach().clone(),
            loss=loss,
            active_outputs=active_outputs,
            space=choose(net, params),
            micro_batch=micro_batch,
            weight_decay=weight_decay,
        )


def _layout(net: nn.Module, inputs: Tensor) -> torch.memory_format:
    """The order in memory that the network's convolutions work in, so that no forward has to change it."""
    weights = [p for p in net.parameters() if p.ndim == 4 and not p.is_contiguous()]
    return torch.channels_last if inputs.ndim == 4 and weights else torch.preserve_format


@contextmanager
def preserved(net: nn.Module) -> Iterator[None]:
    """Around a whole analysis: weights, buffers, modes, flags, `.grad`, generators and precision are as before.

    Inside, the network is in evaluation mode, no parameter asks for gradients, autocast is off and products are exact
    float32.
    """
    devices = {p.device for p in net.parameters()}
    with ExitStack() as stack:
        stack.enter_context(_network(net))
        stack.enter_context(_generators(devices))
        stack.enter_context(_precision())
        for kind in sorted({device.type for device in devices}):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def _network(net: nn.Module) -> Iterator[None]:
    values = [(p, p.detach().clone(memory_format=torch.preserve_format)) for p in net.parameters()]
    buffers = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
    modes = [(module, module.training) for module in net.modules()]
    flags = [(p, p.requires_grad, p.grad) for p in net.parameters()]
    try:
        net.eval()
        net.requires_grad_(False)
        yield
    finally:
        own = dict(net.named_buffers())
        with torch.no_grad():
            for parameter, value in values:
                parameter.copy_(value)
            for name, buffer in buffers.items():
                own[name].copy_(buffer)
        for module, training in modes:
            module.training = training
        for parameter, requires_grad, grad in flags:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad


@contextmanager
def _generators(devices: set[torch.device]) -> Iterator[None]:
    numpy_state, python_state = np.random.get_state(), random.getstate()
    places = sorted({d.index or 0 for d in devices if d.type == "cuda"})
    try:
        with torch.random.fork_rng(places):
            yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)


@contextmanager
def _precision() -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.allow_tf32, cudnn.deterministic
    try:
        torch.set_float32_matmul_precision("highest")
        cudnn.benchmark, cudnn.allow_tf32, cudnn.deterministic = False, False, True
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.benchmark, cudnn.allow_tf32, cudnn.deterministic = before[1:]


@contextmanager
def moved(net: nn.Module, space: ParameterSpace) -> Iterator[list[nn.Parameter]]:
    """Inside, the chosen parameters may be written over; afterwards they hold the same bits as before."""
    parameters = space.of(net)
    kept = [p.detach().clone(memory_format=torch.preserve_format) for p in parameters]
    try:
        yield parameters
    finally:
        put(parameters, kept)


@torch.no_grad()
def put(parameters: Sequence[nn.Parameter], parts: Sequence[Tensor]) -> None:
    """Write values into parameters."""
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.copy_(part)
