"""Gradients of each sample's own loss: with respect to its input, and the norm with respect to the parameters.

A sum of losses has each sample's gradient as its gradient with respect to that sample's input, as long as samples do
not see each other: one backward serves the batch. Batch normalisation in training mode couples them, and dropout in
training mode makes another network of each pass, so both are refused.
"""

import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import Enum
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from plastiscope.error import ConfigError
from plastiscope.measure.ghost_norm import NoGhost, ghost_norms
from plastiscope.measure.loss import Loss, per_sample_loss


@dataclass(frozen=True, eq=False)
class InputGradients:
    """Loss and gradient of each sample of a batch.

    Attributes:
        losses: [b], in the unit of the loss.
        outputs: [b, k], the active outputs, detached.
        inputs: d loss_i / d x_i, of the inputs' shape, in loss per unit of the (normalised) input.
        by_outputs: d loss_i / d outputs_i, [b, k].
    """

    losses: Tensor
    outputs: Tensor
    inputs: Tensor
    by_outputs: Tensor


def input_gradients(
    net: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, active_outputs: int, temperature: float = 1.0
) -> InputGradients:
    """Gradient of each sample's loss with respect to its input: one forward, one backward of the summed loss.

    `.grad`, flags and modes stay as they are, whether parameters ask for gradients or not.

    Args:
        net: network in evaluation mode.
        loss: of a sample.
        inputs: [b, ...], floating point.
        targets: [b] or [b, k], as `loss` wants them.
        active_outputs: the loss sees the first so many outputs.
        temperature: outputs are divided by it before the loss.

    Raises:
        ConfigError: samples would see each other, or chance would; names the module.
    """
    require_separate_samples(net)
    with torch.enable_grad():
        x, outputs, losses = _forward(net, loss, inputs, targets, active_outputs, temperature)
        by_inputs, by_outputs = torch.autograd.grad(losses.sum(), (x, outputs))
    return InputGradients(losses.detach(), outputs.detach(), by_inputs, by_outputs)


def input_gradient(
    net: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, active_outputs: int, temperature: float = 1.0
) -> Tensor:
    """Each sample's d loss_i / d x_i alone, as of `input_gradients`, for a network that it has not refused."""
    with torch.enable_grad():
        x, _, losses = _forward(net, loss, inputs, targets, active_outputs, temperature)
        return torch.autograd.grad(losses.sum(), x)[0]


def _forward(
    net: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, active_outputs: int, temperature: float = 1.0
) -> tuple[Tensor, Tensor, Tensor]:
    """The inputs as a leaf, active outputs and losses; what the arguments are is said at `input_gradients`."""
    x = inputs.detach().requires_grad_()
    outputs = net(x)
    if outputs.shape[1] > active_outputs:
        outputs = outputs[:, :active_outputs]
    return x, outputs, per_sample_loss(loss, outputs if temperature == 1.0 else outputs / temperature, targets)


def loss_and_input_gradient(
    net: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, active_outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [b], `grad_input_l2` = ||d loss_i / d x_i||_2 [b] and the active outputs [b, k] of a batch.

    As `input_gradients`, which says what the arguments are and what is refused.
    """
    require_separate_samples(net)
    with torch.enable_grad():
        x, outputs, losses = _forward(net, loss, inputs, targets, active_outputs)
        (by_inputs,) = torch.autograd.grad(losses.sum(), x)
    return losses.detach(), sample_norms(by_inputs), outputs.detach()


def sample_norms(values: Tensor) -> Tensor:
    """Euclidean norm of each sample's values: [b, ...] -> [b]."""
    return torch.linalg.vector_norm(values, dim=tuple(range(1, values.ndim)))


def require_separate_samples(net: nn.Module) -> None:
    """Refuse a network in which a sample's loss depends on the other samples of its batch, or on chance.

    Raises:
        ConfigError: batch normalisation by the batch's own statistics, or dropout at work; names the module.
    """
    for name, module in net.named_modules():
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
            raise ConfigError(
                f"{name or 'the network'} ({type(module).__name__}) normalises by the statistics of the batch, so a "
                "sample has no gradient of its own; use evaluation mode and a norm that keeps running statistics"
            )
        if isinstance(module, _DropoutNd) and module.training and module.p > 0:
            raise ConfigError(
                f"{name or 'the network'} ({type(module).__name__}) drops activations at random, so a sample's "
                "gradient is not defined; use evaluation mode"
            )


class Engine(Enum):
    """How the norms of per-sample parameter gradients are computed."""

    ghost = "ghost"
    """From activations and their gradients, one forward and one backward (`ghost_norms`)."""
    vmap = "vmap"
    """Each sample's gradient written out, several samples at a time."""
    loop = "loop"
    """One sample after the other."""


VMAP_ELEMENTS = 1 << 25
"""Elements of gradients that vmap holds together."""
CHECKED, TIMED_BY_LOOP = 2, 8
"""Samples on which an engine is compared with the loop; samples by which the loop is timed."""
AGREEMENT = 1e-3
"""Relative difference from the loop above which an engine is not trusted; float32 gives about 1e-6."""


def parameter_gradient_norms(
    net: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    active_outputs: int,
    engine: Engine = Engine.loop,
    parameters: Collection[str] | None = None,
) -> Tensor:
    """`grad_param_l2` = ||d loss_i / d theta||_2 of each sample, [b]; `.grad`, flags and modes stay as they are.

    Args:
        net: network in evaluation mode.
        loss: of a sample.
        inputs: [b, ...].
        targets: [b] or [b, k], as `loss` wants them.
        active_outputs: the loss sees the first so many outputs.
        engine: how; they differ by rounding only.
        parameters: names of those in theta; by default those that ask for gradients, all of them if none does.

    Raises:
        ConfigError: samples would see each other, or chance would; names the module.
        NoGhost: the engine is `ghost`, and the network has something that it does not treat.
    """
    require_separate_samples(net)
    names = _names(net, parameters)
    if engine is Engine.ghost:
        return ghost_norms(net, loss, inputs, targets, active_outputs, names)
    leaves = {name: p.detach() for name, p in net.named_parameters() if name in names}

    def squared_norm(x: Tensor, y: Tensor) -> Tensor:
        def loss_of(theta: dict[str, Tensor]) -> Tensor:
            outputs = functional_call(net, theta, (x.unsqueeze(0),))[:, :active_outputs]
            return per_sample_loss(loss, outputs, y.unsqueeze(0))[0]

        return torch.stack([g.square().sum() for g in grad(loss_of)(leaves).values()]).sum()

    with torch.enable_grad():
        if engine is Engine.loop:
            return torch.stack([squared_norm(x, y) for x, y in zip(inputs, targets, strict=True)]).sqrt().detach()
        size = max(1, VMAP_ELEMENTS // sum(p.numel() for p in leaves.values()))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # it is timed, not assumed
            return vmap(squared_norm, chunk_size=size)(inputs, targets).sqrt().detach()


def _names(net: nn.Module, parameters: Collection[str] | None) -> set[str]:
    if parameters is not None:
        return set(parameters)
    flags = {name: p.requires_grad for name, p in net.named_parameters()}
    return {name for name, asks in flags.items() if asks} or set(flags)


@dataclass(frozen=True)
class Choice:
    """An engine and why it is that one."""

    engine: Engine
    reason: str


def choose_engine(
    net: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    active_outputs: int,
    by_timing: bool = False,
    parameters: Collection[str] | None = None,
) -> Choice:
    """The engine for a network: ghost, else vmap, else the loop; or the one that takes the least time on this batch.

    An engine must run and agree with the loop on the first samples, so that a network which uses its parameters in a
    way that the engine does not see is caught. Without timing the choice follows from network and batch alone.

    Args:
        net: as of `parameter_gradient_norms`, like the five others.
        loss: of a sample.
        inputs: [b, ...].
        targets: [b] or [b, k].
        active_outputs: the loss sees the first so many outputs.
        by_timing: run each engine on the batch and take the fastest.
        parameters: names of those in theta.
    """

    def norms(engine: Engine, n: int) -> Tensor:
        return parameter_gradient_norms(net, loss, inputs[:n], targets[:n], active_outputs, engine, parameters)

    reasons = {
        engine: why_not(engine, net, loss, inputs, targets, active_outputs, parameters)
        for engine in (Engine.ghost, Engine.vmap)
    }
    told = [f"{engine.value}: {reason}" for engine, reason in reasons.items() if reason]
    able = [engine for engine in (*reasons, Engine.loop) if not reasons.get(engine)]
    if not by_timing:
        return Choice(able[0], "; ".join(told) or "it can treat the network")
    sizes = {engine: min(len(inputs), TIMED_BY_LOOP) if engine is Engine.loop else len(inputs) for engine in able}
    seconds = {engine: _seconds(partial(norms, engine, n)) / n for engine, n in sizes.items()}
    return Choice(min(able, key=lambda engine: seconds[engine]), "; ".join(["the fastest on the first batch", *told]))


def why_not(
    engine: Engine,
    net: nn.Module,
    loss: Loss,
    inputs: Tensor,
    targets: Tensor,
    active_outputs: int,
    parameters: Collection[str] | None = None,
) -> str:
    """Why an engine is not to be used for a network, tried on the first samples; "" when it is.

    The arguments are those of `parameter_gradient_norms`.
    """
    few = net, loss, inputs[:CHECKED], targets[:CHECKED], active_outputs
    expected = parameter_gradient_norms(*few, Engine.loop, parameters)
    try:
        found = parameter_gradient_norms(*few, engine, parameters)
    except (NoGhost, RuntimeError, ValueError, TypeError) as error:  # code we do not know can raise anything in it
        return str(error).splitlines()[0]
    is_equal = torch.allclose(found, expected, rtol=AGREEMENT, atol=AGREEMENT * float(expected.max()))
    return "" if is_equal else "differs from one sample at a time"


def _seconds(call: Callable[[], Tensor]) -> float:
    began = time.perf_counter()
    call().sum().item()  # waits for the device
    return time.perf_counter() - began
