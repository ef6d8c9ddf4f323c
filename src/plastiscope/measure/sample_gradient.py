"""Gradients of each sample's own loss: with respect to its input, and the norm with respect to the parameters.

A sum of losses has each sample's gradient as its gradient with respect to that sample's input, as long as samples do
not see each other: one backward serves the batch. Batch normalisation in training mode couples them, and dropout in
training mode makes another network of each pass, so both are refused.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from plastiscope.error import ConfigError
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
        x = inputs.detach().requires_grad_()
        outputs = net(x)[:, :active_outputs]
        losses = per_sample_loss(loss, outputs if temperature == 1.0 else outputs / temperature, targets)
        by_inputs, by_outputs = torch.autograd.grad(losses.sum(), (x, outputs))
    return InputGradients(losses.detach(), outputs.detach(), by_inputs, by_outputs)


def loss_and_input_gradient(
    net: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, active_outputs: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [b], `grad_input_l2` = ||d loss_i / d x_i||_2 [b] and the active outputs [b, k] of a batch.

    As `input_gradients`, which says what the arguments are and what is refused.
    """
    found = input_gradients(net, loss, inputs, targets, active_outputs)
    return found.losses, sample_norms(found.inputs), found.outputs


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
