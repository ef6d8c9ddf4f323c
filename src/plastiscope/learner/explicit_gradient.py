"""Gradients of plain fully connected networks without autograd, exact up to rounding.

With h_0 = x, z_l = W_l h_(l-1) + b_l, h_l = phi(z_l) and outputs z_L, the loss of a step is sum_i w_i loss_i / b. From
d_L = dloss/dz_L and d_l = (d_(l+1) W_(l+1)) phi'(z_l) follow dW_l = d_l^T h_(l-1) and db_l = sum over samples of d_l.
Written into buffers that every step uses again; for small networks the calls are what a step costs, and autograd makes
several times as many. Runs that advance together are one batched product, and a single run is a batch of one.
"""

from collections.abc import Callable, Sequence
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


PIECE = 1 << 17
"""Elements of a large weight that are read, then updated, at a time, so that they stay in the cache."""


class _Piece(NamedTuple):
    """Rows of a weight [R, n, in]; d of their units [R, b, n] and transposed."""

    weight: Tensor
    delta: Tensor
    turned: Tensor


class _Link:
    """A layer as a step sees it, for one size of batch.

    Attributes:
        weight, transposed, bias: as far as the loss sees its outputs.
        form: of the activation.
        z, h, kept: before and after it (one tensor where it can be), and the one that its derivative needs.
        delta: dloss/dz but for the constant factor of each sample, [R, b, out].
        scaled: a place for delta with that factor.
        pieces: of the weight.
    """

    def __init__(self, layer: Dense, size: int, outputs: int) -> None:
        self.form, networks = layer.form, len(layer.weight)
        self.weight = layer.weight.narrow(1, 0, outputs)
        self.transposed = self.weight.mT
        self.bias = None if layer.bias is None else layer.bias.narrow(2, 0, outputs)
        self.z, self.delta, self.scaled = (self.weight.new_empty(networks, size, outputs) for _ in range(3))
        keeps_input = layer.form is not None and layer.form.keeps_input
        self.h = torch.empty_like(self.z) if keeps_input else self.z
        self.kept, self.feature = self.z, self.h if layer.lead else self.h[0]
        rows = outputs if self.weight.numel() <= 8 * PIECE else max(1, PIECE // self.weight[:, 0].numel())
        deltas = self.delta.split(rows, 2)
        self.pieces = [
            _Piece(weight, delta, delta.mT) for weight, delta in zip(self.weight.split(rows, 1), deltas, strict=True)
        ]


class _Buffers:
    """What a step writes, for one size of batch and number of active outputs."""

    def __init__(self, layers: Sequence[Dense], size: int, active: int) -> None:
        widths = [*(layer.weight.shape[1] for layer in layers[:-1]), active]
        self.links = [_Link(layer, size, width) for layer, width in zip(layers, widths, strict=True)]
        self.ones = layers[0].weight.new_ones(len(layers[0].weight), 1, size)


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
        self._gradients: list[_Gradient] = []
        places = iter(range(2 * len(self.layers)))
        # Of the weight and the bias of each layer among the parameters.
        self._places = [(next(places), 0 if layer.bias is None else next(places)) for layer in self.layers]

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
        self._links = self._buffers.links
        outputs = self.layers[0].weight.new_empty(n, networks, size, active)
        self._outputs = outputs.unbind()
        self._derive = self._derivative(loss, batches.targets, outputs.shape)
        self._weights = None
        if batches.weights is not None:
            self._weights = batches.weights.view(n, -1, size, 1).unbind()
        return outputs if self.lead else outputs.squeeze(1)

    def _derivative(self, loss: Loss, targets: Tensor, shape: Sequence[int]) -> Callable[[int], None]:
        """The function that writes dloss/dz of step i but for `_share`, the constant factor of each sample."""
        delta, outputs = self._links[-1].delta, self._outputs
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

    def backward(self, i: int, rates: Sequence[float] | None = None) -> None:
        """Outputs, features and derivatives of step i of the block, by the parameters as they are now.

        Args:
            i: number of the step.
            rates: with them `descend` is part of it, so that large weights are read once for both.
        """
        self._forward(i)
        links = self._links
        for at in range(len(links) - 1, 0, -1):
            link, below = links[at], links[at - 1]
            if len(link.pieces) == 1:
                torch.bmm(link.delta, link.weight, out=below.delta)
                if rates is not None:
                    self._descend(at, rates)
            else:
                scale = None if rates is None else -rates[self._places[at][0]] * self._share
                for k, piece in enumerate(link.pieces):
                    below.delta.baddbmm_(piece.delta, piece.weight, beta=float(k > 0))
                    if scale is not None:
                        _subtract(piece, below.h, scale)
                if rates is not None:
                    self._descend_bias(at, rates)
            if below.form is not None:
                below.form.chain(below.delta, below.kept)
        if rates is not None:
            self._descend(0, rates)

    def _forward(self, i: int) -> None:
        """Up to the derivatives by the outputs."""
        h, links, self._step = self._inputs[i], self._links, i
        for link in links[:-1]:
            _affine(link, h, link.z)
            if link.form is not None:
                link.form.apply(link.z, link.h)
            h = link.h
        _affine(links[-1], h, self._outputs[i])
        self._derive(i)
        if self._weights is not None:
            links[-1].delta.mul_(self._weights[i])

    @property
    def features(self) -> dict[str, Tensor]:
        """Of the last step, [*lead, b, units], by the path of the module that gives them; the next overwrites them."""
        sites = (layer.site for layer in self.layers)
        return dict(zip(sites, [link.feature for link in self._links[:-1]], strict=False))

    @property
    def inputs(self) -> dict[nn.Module, Tensor]:
        """What each linear layer read in the last step, [*lead, b, inputs]; the next may overwrite it."""
        befores = (before if self.lead else before[0] for before in map(self._before, range(len(self.layers))))
        return {layer.module: before for layer, before in zip(self.layers, befores, strict=True)}

    def _before(self, at: int) -> Tensor:
        """What layer number `at` read in the last step, [R, b, in]."""
        return self._links[at - 1].h if at else self._inputs[self._step]

    def descend(self, rates: Sequence[float]) -> None:
        """Subtract rate * gradient, with no gradient made; a rate for each parameter, in the order of the network's."""
        for at in range(len(self._links)):
            self._descend(at, rates)

    def _descend(self, at: int, rates: Sequence[float]) -> None:
        before, scale = self._before(at), -rates[self._places[at][0]] * self._share
        for piece in self._links[at].pieces:
            _subtract(piece, before, scale)
        self._descend_bias(at, rates)

    def _descend_bias(self, at: int, rates: Sequence[float]) -> None:
        link = self._links[at]
        if link.bias is None:
            return
        scale = -rates[self._places[at][1]] * self._share
        if link.delta.shape[1] == 1:
            link.bias.add_(link.delta, alpha=scale)
        else:
            link.bias.baddbmm_(self._buffers.ones, link.delta, alpha=scale)

    def fill_gradients(self) -> None:
        """Put the gradients into `.grad` of the parameters."""
        if not self._gradients:
            self._gradients = [_Gradient(layer) for layer in self.layers]
        for at, (link, gradient) in enumerate(zip(self._links, self._gradients, strict=True)):
            delta = link.delta
            if self._share != 1.0:
                delta = torch.mul(delta, self._share, out=link.scaled)
            gradient.fill(delta, self._before(at))


class _Gradient:
    """Where the gradients of a layer are."""

    def __init__(self, layer: Dense) -> None:
        self.parameters = [p for p in (layer.module.weight, layer.module.bias) if p is not None]
        self.whole = [torch.zeros_like(p, requires_grad=False) for p in self.parameters]
        self.weight, *rest = self.whole
        if not layer.lead:
            self.weight = self.weight.unsqueeze(0)
        self.bias = [gradient.view(len(self.weight), 1, -1) for gradient in rest]

    def fill(self, delta: Tensor, before: Tensor) -> None:
        """Take the gradients; 0 for outputs that the loss does not see."""
        active, of_weight, of_bias = delta.shape[2], self.weight, self.bias
        if active < of_weight.shape[1]:
            for gradient in self.whole:
                gradient.zero_()
            of_weight, of_bias = of_weight.narrow(1, 0, active), [bias.narrow(2, 0, active) for bias in of_bias]
        product = torch.mul if delta.shape[1] == 1 else torch.bmm
        product(delta.mT, before, out=of_weight)
        for bias in of_bias:
            torch.sum(delta, 1, keepdim=True, out=bias)
        for parameter, gradient in zip(self.parameters, self.whole, strict=True):
            parameter.grad = gradient


def _subtract(piece: _Piece, before: Tensor, scale: float) -> None:
    """Add scale d^T h to rows of a weight."""
    if before.shape[1] == 1:
        piece.weight.addcmul_(piece.turned, before, value=scale)
    else:
        piece.weight.baddbmm_(piece.turned, before, alpha=scale)


def _affine(link: _Link, h: Tensor, out: Tensor) -> None:
    if link.bias is None:
        torch.bmm(h, link.transposed, out=out)
    else:
        torch.baddbmm(link.bias, h, link.transposed, out=out)
