"""Gradients of plain fully connected networks without autograd, exact up to rounding.

With h_0 = x, z_l = W_l h_(l-1) + b_l, h_l = phi(z_l) and outputs z_L, the loss of a step is sum_i w_i loss_i / b. From
d_L = dloss/dz_L and d_l = (d_(l+1) W_(l+1)) phi'(z_l) follow dW_l = d_l^T h_(l-1) and db_l = sum over samples of d_l.
Written into buffers that every step uses again; for small networks the calls are what a step costs, and autograd makes
several times as many. Runs that advance together are one batched product, and a single run is a batch of one.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError
from plastiscope.measure.loss import Loss

aten = torch.ops.aten
SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


class Form(NamedTuple):
    """An activation and its derivative.

    Attributes:
        apply: (z, h) -> None: h = phi(z); h is z itself unless `keeps_input`.
        chain: (d, kept) -> None: d *= phi'; kept is z if `keeps_input`, else h.
        keeps_input: whether phi' needs z.
    """

    apply: Callable[[Tensor, Tensor], object]
    chain: Callable[[Tensor, Tensor], object]
    keeps_input: bool = False


def _relu(_: nn.Module) -> Form:
    backward = aten.threshold_backward.grad_input
    return Form(lambda z, h: z.relu_(), lambda d, h: backward(d, h, 0, grad_input=d))


def _leaky_relu(module: nn.LeakyReLU) -> Form | None:
    slope, backward = module.negative_slope, aten.leaky_relu_backward.grad_input
    if slope < 0:
        return None
    return Form(lambda z, h: F.leaky_relu_(z, slope), lambda d, h: backward(d, h, slope, True, grad_input=d))


def _elu(module: nn.ELU) -> Form | None:
    alpha, backward = module.alpha, aten.elu_backward.grad_input
    if alpha < 0:
        return None
    return Form(lambda z, h: F.elu_(z, alpha), lambda d, h: backward(d, alpha, 1, 1, True, h, grad_input=d))


def _selu(_: nn.Module) -> Form:
    backward = aten.elu_backward.grad_input
    return Form(lambda z, h: torch.selu_(z), lambda d, h: backward(d, SELU_ALPHA, SELU_SCALE, 1, True, h, grad_input=d))


def _tanh(_: nn.Module) -> Form:
    backward = aten.tanh_backward.grad_input
    return Form(lambda z, h: z.tanh_(), lambda d, h: backward(d, h, grad_input=d))


def _sigmoid(_: nn.Module) -> Form:
    backward = aten.sigmoid_backward.grad_input
    return Form(lambda z, h: z.sigmoid_(), lambda d, h: backward(d, h, grad_input=d))


def _gelu(module: nn.GELU) -> Form:
    kind, forward, backward = module.approximate, aten.gelu.out, aten.gelu_backward.grad_input
    return Form(
        lambda z, h: forward(z, approximate=kind, out=h),
        lambda d, z: backward(d, z, approximate=kind, grad_input=d),
        True,
    )


def _silu(_: nn.Module) -> Form:
    forward, backward = aten.silu.out, aten.silu_backward.grad_input
    return Form(lambda z, h: forward(z, out=h), lambda d, z: backward(d, z, grad_input=d), True)


FORMS: dict[type[nn.Module], Callable[..., Form | None]] = {
    nn.ReLU: _relu,
    nn.LeakyReLU: _leaky_relu,
    nn.ELU: _elu,
    nn.SELU: _selu,
    nn.Tanh: _tanh,
    nn.Sigmoid: _sigmoid,
    nn.GELU: _gelu,
    nn.SiLU: _silu,
}
"""Activations with a derivative here."""


@dataclass(frozen=True, eq=False)
class Dense:
    """A linear layer and the activation after it.

    Attributes:
        module: the linear layer.
        site: path of the module whose outputs are the layer's features.
        form: of the activation; None = there is none.
        lead: number of leading axes of the parameters, 0 or 1.
    """

    module: nn.Linear
    site: str
    form: Form | None
    lead: int

    @cached_property
    def weight(self) -> Tensor:
        """[R, out, in], R = 1 without a leading axis."""
        weight = self.module.weight.detach()
        return weight if self.lead else weight.unsqueeze(0)

    @cached_property
    def bias(self) -> Tensor | None:
        """[R, 1, out], or None."""
        if self.module.bias is None:
            return None
        bias = self.module.bias.detach()
        return bias.unsqueeze(1) if self.lead else bias.expand(1, 1, -1)


def dense_layers(net: nn.Module, lead: int) -> list[Dense]:
    """The layers of a chain of linear layers and activations.

    Raises:
        ConfigError: the network is no such chain; names the layer.
    """
    is_chain = isinstance(net, nn.Sequential) and type(net).forward is nn.Sequential.forward
    if not is_chain:
        raise _refusal(f"{type(net).__name__} is no chain of layers")
    modules = [(name, module) for name, module in net.named_children() if not isinstance(module, nn.Flatten)]
    layers: list[Dense] = []
    while modules:
        name, linear = modules.pop(0)
        if not isinstance(linear, nn.Linear) or type(linear).__name__ not in ("Linear", "StackedLinear"):
            raise _refusal(f"layer {name} ({type(linear).__name__})")
        if not all(parameter.requires_grad for parameter in linear.parameters()):
            raise _refusal(f"layer {name} has parameters that are not trained")
        form, site = None, name
        if modules and type(modules[0][1]) in FORMS:
            site, activation = modules.pop(0)
            form = FORMS[type(activation)](activation)
            if form is None:
                raise _refusal(f"layer {site}, whose slope is negative,")
        layers.append(Dense(linear, site, form, lead))
    if not layers or layers[-1].form is not None:
        raise _refusal("what ends in no linear layer")
    return layers


def _refusal(what: str) -> ConfigError:
    return ConfigError(
        f"learner.autograd=false is for chains of linear layers and activations, and has no gradient of its own for "
        f"this network: {what}. Use learner.autograd=true"
    )


class _Buffers:
    """What a step writes, for one size of batch and number of active outputs."""

    def __init__(self, layers: Sequence[Dense], size: int, active: int) -> None:
        weight = layers[0].weight
        self.hidden: list[tuple[Tensor, Tensor]] = []
        self.deltas: list[Tensor] = []
        self.ones = weight.new_ones(len(weight), 1, size)
        for layer in layers[:-1]:
            z = weight.new_empty(len(weight), size, layer.weight.shape[1])
            keeps_input = layer.form is not None and layer.form.keeps_input
            self.hidden.append((z, torch.empty_like(z) if keeps_input else z))
            self.deltas.append(torch.empty_like(z))
        self.deltas.append(weight.new_empty(len(weight), size, active))
        self.features = [h if layers[0].lead else h[0] for _, h in self.hidden]
        # (weight, its transpose, bias) of each layer, of the head as far as the loss sees it
        self.bound = [
            (
                layer.weight.narrow(1, 0, delta.shape[-1]),
                layer.weight.narrow(1, 0, delta.shape[-1]).mT,
                None if layer.bias is None else layer.bias.narrow(2, 0, delta.shape[-1]),
            )
            for layer, delta in zip(layers, self.deltas, strict=True)
        ]


class ExplicitGradient:
    """Forward and backward of a plain fully connected network, for blocks of steps.

    `start` takes a block; `backward(i)` is the i-th step up to its derivatives; then `descend` or `fill_gradients`.

    Attributes:
        layers: of the network.
    """

    def __init__(self, net: nn.Module, lead: int) -> None:
        """Bind to the parameters of `net`, which must stay where they are.

        Raises:
            ConfigError: the network is no chain of linear layers and activations; names the layer.
        """
        self.layers, self.lead = dense_layers(net, lead), lead
        self._all_buffers: dict[tuple[int, int], _Buffers] = {}
        self._gradients: list[tuple[Tensor, Tensor | None]] | None = None

    @torch.no_grad()
    def start(self, batches: Batch, loss: Loss, active_outputs: int) -> Tensor:
        """Take a block of n steps.

        Args:
            batches: inputs [n, *lead, b, ...], targets [n, *lead, b] or [n, *lead, b, k], weights [n, *lead, b].
            loss: of the task.
            active_outputs: the loss sees the first so many outputs.

        Returns:
            Outputs [n, *lead, b, active outputs], filled step by step.
        """
        inputs = batches.inputs if self.lead else batches.inputs.unsqueeze(1)
        n, networks, size = inputs.shape[:3]
        self._inputs = inputs.reshape(n, networks, size, -1).unbind()
        active = min(active_outputs, self.layers[-1].weight.shape[1])
        key = (size, active)
        if key not in self._all_buffers:
            self._all_buffers[key] = _Buffers(self.layers, size, active)
        self._buffers = self._all_buffers[key]
        outputs = self.layers[0].weight.new_empty(n, networks, size, active)
        self._outputs = outputs.unbind()
        self._derive = self._derivative(loss, batches.targets, outputs.shape)
        self._weights = None
        if batches.weights is not None:
            self._weights = batches.weights.view(n, -1, size, 1).unbind()
        return outputs if self.lead else outputs.squeeze(1)

    def _derivative(self, loss: Loss, targets: Tensor, shape: Sequence[int]) -> Callable[[int], None]:
        """The function that writes dloss/dz of step i but for `_share`, the constant factor of each sample."""
        delta, outputs = self._buffers.deltas[-1], self._outputs
        *_, size, k = shape
        self._share = 1.0 / size
        if loss is Loss.cross_entropy:
            return self._softmax(targets, shape, delta)
        rows = targets.view(shape).unbind()
        if loss is Loss.mse:
            self._share *= 2.0 / k

            def of_squares(i: int) -> None:
                torch.sub(outputs[i], rows[i], out=delta)

            return of_squares
        self._share /= k

        def of_logistic(i: int) -> None:
            torch.sigmoid(outputs[i], out=delta)
            delta.sub_(rows[i])

        return of_logistic

    def _softmax(self, targets: Tensor, shape: Sequence[int], delta: Tensor) -> Callable[[int], None]:
        outputs = self._outputs
        if targets.ndim == 2 + self.lead:
            indices = targets.reshape(*shape[:-1], 1)
            rows = torch.zeros(shape, dtype=delta.dtype, device=delta.device).scatter_(-1, indices, 1.0).unbind()
            totals = None
        else:
            whole = targets.view(shape)
            rows, totals = whole.unbind(), whole.sum(-1, keepdim=True).unbind()

        def of_cross_entropy(i: int) -> None:
            torch.softmax(outputs[i], -1, out=delta)
            if totals is not None:
                delta.mul_(totals[i])
            delta.sub_(rows[i])

        return of_cross_entropy

    def backward(self, i: int) -> None:
        """Outputs, features and derivatives of step i of the block, by the parameters as they are now."""
        buffers, layers = self._buffers, self.layers
        h = self._inputs[i]
        for layer, (_, transposed, bias), (z, after) in zip(layers, buffers.bound, buffers.hidden, strict=False):
            _affine(h, transposed, bias, z)
            if layer.form is not None:
                layer.form.apply(z, after)
            h = after
        _, transposed, bias = buffers.bound[-1]
        _affine(h, transposed, bias, self._outputs[i])
        self._derive(i)
        deltas = buffers.deltas
        if self._weights is not None:
            deltas[-1].mul_(self._weights[i])
        for i_layer in range(len(layers) - 1, 0, -1):
            torch.bmm(deltas[i_layer], buffers.bound[i_layer][0], out=deltas[i_layer - 1])
            form = layers[i_layer - 1].form
            if form is not None:
                form.chain(deltas[i_layer - 1], buffers.hidden[i_layer - 1][0])
        self._step = i

    @property
    def features(self) -> dict[str, Tensor]:
        """Of the last step, [*lead, b, units], by the path of the module that gives them; the next overwrites them."""
        sites = (layer.site for layer in self.layers)
        return dict(zip(sites, self._buffers.features, strict=False))

    @property
    def inputs(self) -> dict[nn.Module, Tensor]:
        """What each linear layer read in the last step, [*lead, b, inputs]; the next may overwrite it."""
        befores = (before if self.lead else before[0] for _, before in self._terms())
        return {layer.module: before for layer, before in zip(self.layers, befores, strict=True)}

    def _terms(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(d, h before it) of each layer, after `backward`."""
        befores = [self._inputs[self._step], *(h for _, h in self._buffers.hidden)]
        return zip(self._buffers.deltas, befores, strict=True)

    def descend(self, rates: Sequence[float]) -> None:
        """Subtract rate * gradient, with no gradient made; a rate for each parameter, in the order of the network's."""
        ones, share, rate_of = self._buffers.ones, self._share, iter(rates)
        for (delta, before), (weight, _, bias) in zip(self._terms(), self._buffers.bound, strict=True):
            scale = -next(rate_of) * share
            if delta.shape[1] == 1:
                weight.addcmul_(delta.mT, before, value=scale)
            else:
                weight.baddbmm_(delta.mT, before, alpha=scale)
            if bias is None:
                continue
            scale = -next(rate_of) * share
            if delta.shape[1] == 1:
                bias.add_(delta, alpha=scale)
            else:
                bias.baddbmm_(ones, delta, alpha=scale)

    def fill_gradients(self) -> None:
        """Put the gradients into `.grad` of the parameters."""
        if self._gradients is None:
            self._gradients = [
                (torch.zeros_like(layer.weight), None if layer.bias is None else torch.zeros_like(layer.bias))
                for layer in self.layers
            ]
        ones, share = self._buffers.ones, self._share
        for layer, (delta, before), (weight, bias) in zip(self.layers, self._terms(), self._gradients, strict=True):
            _product(delta.mT, before, share, weight, 1)
            layer.module.weight.grad = weight.view(layer.module.weight.shape)
            if bias is not None:
                _product(ones, delta, share, bias, 2)
                layer.module.bias.grad = bias.view(layer.module.bias.shape)


def _product(left: Tensor, right: Tensor, scale: float, out: Tensor, axis: int) -> None:
    """Put scale left right into `out` [R, ...]; 0 for outputs, along `axis`, that the loss does not see."""
    seen = (left if axis == 1 else right).shape[axis]
    part = out
    if seen < out.shape[axis]:
        out.zero_()
        part = out.narrow(axis, 0, seen)
    torch.baddbmm(part, left, right, beta=0.0, alpha=scale, out=part)


def _affine(h: Tensor, transposed: Tensor, bias: Tensor | None, out: Tensor) -> None:
    if bias is None:
        torch.bmm(h, transposed, out=out)
    else:
        torch.baddbmm(bias, h, transposed, out=out)
