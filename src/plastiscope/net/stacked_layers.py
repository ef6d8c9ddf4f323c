"""Layers of networks that advance together: [R, b, ...] in and out, every parameter and buffer with a leading axis R.

Each is a layer of torch or of ours with another forward. Layers of images work on [b, R c, h, w] inside, where the
channels of all networks lie side by side; between such layers the change of form is a view.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastiscope.net.activation import BothSigns, Concatenated, MaxOut
from plastiscope.net.weight_normalised import InputStatistic, WeightNormConv2d, WeightNormLinear


def side_by_side(x: Tensor) -> Tensor:
    """[R, b, c, ...] -> [b, R c, ...]: the channels of all networks in one."""
    return x.transpose(0, 1).flatten(1, 2)


def apart(x: Tensor, networks: int) -> Tensor:
    """[b, R c, ...] -> [R, b, c, ...], a view."""
    return x.unflatten(1, (networks, -1)).transpose(0, 1)


def beside(vector: Tensor, x: Tensor, axis: int) -> Tensor:
    """Values of each network [R, n, ...], ready to broadcast against x [R, b, ...] from its axis `axis` on."""
    own = vector.shape[1:]
    return vector.reshape(vector.shape[0], *(1,) * (axis - 1), *own, *(1,) * (x.ndim - axis - len(own)))


def _flat(values: Tensor | None) -> Tensor | None:
    """Values of each network [R, n] as those of R n channels, a view."""
    return None if values is None else values.view(-1)


class _BatchedLinear(torch.autograd.Function):
    """x W^T + b of each network.

    Autograd's own backward of the batched product makes the weights' gradient in another layout and copies it; of
    single samples it is an outer product, for which products of matrices are slow.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[R, b, inputs], [R, outputs, inputs], [R, outputs] -> [R, b, outputs]."""
        ctx.save_for_backward(x, weight)
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of the inputs, the weights, the bias."""
        (x, weight), gradient = ctx.saved_tensors, gradients[0]
        of_x, of_weight, of_bias = ctx.needs_input_grad
        outer = torch.mul if x.shape[1] == 1 else torch.bmm
        return (
            torch.bmm(gradient, weight) if of_x else None,
            outer(gradient.mT, x) if of_weight else None,
            gradient.sum(1) if of_bias else None,
        )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if torch.is_autocast_enabled(x.device.type):  # which has rules of its own for what is saved for the backward pass
        return torch.bmm(x, weight.mT) if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)
    outputs: Tensor = _BatchedLinear.apply(x, weight, bias)
    return outputs


class StackedLinear(nn.Linear):
    """y_r = W_r x_r + b_r as one batched product."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, ..., inputs] -> [R, b, ..., outputs]."""
        x = input if input.ndim == 3 else input.flatten(1, -2)
        outputs = _linear(x, self.weight, self.bias)
        return outputs if input.ndim == 3 else outputs.unflatten(1, input.shape[1:-1])


class StackedWeightNormLinear(WeightNormLinear):
    """Weight-normalised; without a statistic of its inputs."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, inputs] -> [R, b, outputs]."""
        outputs = _linear(input, self.weight, None) * self.factors().unsqueeze(1)
        return outputs if self.bias is None else outputs + self.bias.unsqueeze(1)


def _convolve(conv: nn.Conv2d, input: Tensor, weight: Tensor) -> Tensor:
    """A grouped convolution: the networks are its groups."""
    networks, bias = len(input), None if conv.bias is None else conv.bias.flatten()
    outputs = F.conv2d(
        side_by_side(input),
        weight.flatten(0, 1),
        bias,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups * networks,
    )
    return apart(outputs, networks)


class StackedConv2d(nn.Conv2d):
    """A convolution with zeros around the image."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, inputs, h, w] -> [R, b, outputs, h', w']."""
        return _convolve(self, input, self.weight)


class StackedWeightNormConv2d(WeightNormConv2d):
    """Weight-normalised; without a statistic of its inputs."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, inputs, h, w] -> [R, b, outputs, h', w']."""
        return _convolve(self, input, self.effective_weight())


class _StackedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch statistics of each network apart."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, c, ...] -> the same shape."""
        networks, counts = len(input), self.num_batches_tracked
        if self.training and counts is not None:
            counts.add_(1)
        mean, variance = _flat(self.running_mean), _flat(self.running_var)
        by_batch = self.training or mean is None
        # One without a momentum is refused: its share would be a number from the device.
        share, x = self.momentum or 0.0, side_by_side(input)
        outputs = F.batch_norm(x, mean, variance, _flat(self.weight), _flat(self.bias), by_batch, share, self.eps)
        return apart(outputs, networks)


class StackedBatchNorm1d(_StackedBatchNorm, nn.BatchNorm1d):
    """Of fully connected layers."""


class StackedBatchNorm2d(_StackedBatchNorm, nn.BatchNorm2d):
    """Of convolutions."""


class StackedLayerNorm(nn.LayerNorm):
    """Over the last axes; scale and shift of each network."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, ..., *normalised] -> the same shape."""
        outputs, axis = (
            F.layer_norm(input, self.normalized_shape, eps=self.eps),
            input.ndim - len(self.normalized_shape),
        )
        if self.weight is not None:
            outputs = outputs * beside(self.weight, input, axis)
        return outputs if self.bias is None else outputs + beside(self.bias, input, axis)


class StackedGroupNorm(nn.GroupNorm):
    """Over groups of channels; scale and shift of each network."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, c, ...] -> the same shape."""
        networks, x = len(input), side_by_side(input)
        groups = self.num_groups * networks
        return apart(F.group_norm(x, groups, _flat(self.weight), _flat(self.bias), self.eps), networks)


class StackedPReLU(nn.PReLU):
    """One slope for a unit, or for the layer, of each network."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, units, ...] -> the same shape."""
        return torch.where(input > 0, input, beside(self.weight, input, 2) * input)


class _ByImage(nn.Module):
    """A layer without parameters that looks at each channel alone."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, c, h, w] -> [R, b, c, h', w']."""
        return apart(super().forward(side_by_side(input)), len(input))


class StackedMaxPool2d(_ByImage, nn.MaxPool2d):
    """Largest of each window."""


class StackedAvgPool2d(_ByImage, nn.AvgPool2d):
    """Mean of each window."""


class StackedAdaptiveAvgPool2d(_ByImage, nn.AdaptiveAvgPool2d):
    """Mean of each of so many windows."""


class StackedFlatten(nn.Flatten):
    """All axes of a sample in one."""

    def forward(self, input: Tensor) -> Tensor:
        """[R, b, ...] -> [R, b, n]."""
        return input.flatten(2)


class StackedMaxOut(MaxOut):
    """Units on axis 2."""

    axis = 2


class StackedBothSigns(BothSigns):
    """Units on axis 2."""

    axis = 2


class StackedConcatenated(Concatenated):
    """Units on axis 2."""

    axis = 2


STACKED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StackedLinear,
    WeightNormLinear: StackedWeightNormLinear,
    nn.Conv2d: StackedConv2d,
    WeightNormConv2d: StackedWeightNormConv2d,
    nn.BatchNorm1d: StackedBatchNorm1d,
    nn.BatchNorm2d: StackedBatchNorm2d,
    nn.LayerNorm: StackedLayerNorm,
    nn.GroupNorm: StackedGroupNorm,
    nn.PReLU: StackedPReLU,
    nn.MaxPool2d: StackedMaxPool2d,
    nn.AvgPool2d: StackedAvgPool2d,
    nn.AdaptiveAvgPool2d: StackedAdaptiveAvgPool2d,
    nn.Flatten: StackedFlatten,
    MaxOut: StackedMaxOut,
    BothSigns: StackedBothSigns,
    Concatenated: StackedConcatenated,
}
"""What stands for a layer of exactly this type."""

ELEMENTWISE = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Tanh,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softsign,
    nn.Hardtanh,
    nn.Hardswish,
    nn.Hardsigmoid,
)
"""Layers that are as they are, whatever axes there are."""


def stacked_form(layer: nn.Module) -> type[nn.Module] | None:
    """The class that stands for `layer`, None when it has no batched form."""
    kind = type(layer)
    if isinstance(layer, ELEMENTWISE) or (isinstance(layer, nn.Dropout) and layer.p == 0):
        return kind
    keeps_statistic = getattr(layer, "input_statistic", InputStatistic.none) is not InputStatistic.none
    pads_otherwise = isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros"
    is_part = isinstance(layer, nn.Flatten) and (layer.start_dim, layer.end_dim) != (1, -1)
    is_indexed = isinstance(layer, nn.MaxPool2d) and layer.return_indices
    return None if keeps_statistic or pads_otherwise or is_part or is_indexed else STACKED.get(kind)


class Vmapped(nn.Module):
    """A layer, or a whole network, without a batched form: one network's forward, mapped over all of them.

    `_one` is such a network without values; those of all networks are put into it.
    """

    _one: nn.Module

    def forward(self, *inputs: Tensor) -> Any:
        """[R, b, ...] -> [R, b, ...]."""
        one, tensors = self._one, {**dict(self.named_parameters()), **dict(self.named_buffers())}
        one.train(self.training)
        return torch.vmap(lambda values, given: torch.func.functional_call(one, values, given))(tensors, inputs)


def mapped(layer: nn.Module) -> nn.Module:
    """`layer` itself, its forward mapped over the leading axis that its tensors will have."""
    one = copy.deepcopy(layer).to("meta")
    layer.__class__ = type(f"Vmapped{type(layer).__name__}", (Vmapped, type(layer)), {})
    layer.__dict__["_one"] = one  # no part of the layer: its tensors are not
    return layer
