"""Norms of per-sample parameter gradients without the gradients: "ghost" norms (Goodfellow 2015; Li et al. 2022).

The gradient of a sample with respect to the weights of a linear layer is A^T B: A [t, i] are the layer's inputs at the
sample's t positions, B [t, o] the gradients of the loss with respect to its outputs there. Its squared norm is
||a||^2 ||b||^2 for one position, otherwise <A A^T, B B^T> or ||A^T B||^2, whichever takes fewer products. A
convolution is such a layer on unfolded inputs. Biases, the scales of norms and parameters of shape [1, ...] are small,
so their gradients are written out. One forward and one backward that computes gradients of activations only.

What is used several times (a module called twice, a weight that two modules share) has the sum as its gradient: its
calls count as further positions.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from plastiscope.measure.loss import Loss, per_sample_loss

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
TREATED = (nn.Linear, *CONVOLUTIONS, *BATCH_NORMS, nn.LayerNorm, nn.GroupNorm)
"""Modules whose weight and bias are understood."""

ELEMENTS_AT_ONCE = {"cpu": 1 << 20, "cuda": 1 << 26}
"""Elements of unfolded inputs that are held together: on a CPU what stays in the cache, measured on ResNet-18."""


class NoGhost(Exception):
    """The network has something whose ghost norm is not known; the text says what."""


def ghost_norms(
    net: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, active_outputs: int, names: Collection[str]
) -> Tensor:
    """||d loss_i / d theta||_2 of each sample, [b], over the parameters `names`.

    Args:
        net: network in evaluation mode, whose samples do not see each other; flags of parameters do not matter.
        loss: of a sample.
        inputs: [b, ...].
        targets: as `loss` wants them.
        active_outputs: the loss sees the first so many outputs.
        names: of parameters, as `named_parameters` has them.

    Raises:
        NoGhost: a module is not treated, or does something that its kind does not.
    """
    found = _Collected(len(inputs))
    treated, others = _sorted_out(net, names)
    direct = _parameters_of_their_own(others, len(inputs))
    anchor = torch.zeros((), device=inputs.device, requires_grad=True)
    with torch.enable_grad(), _watched(treated, found, anchor):
        outputs = functional_call(net, direct, (inputs.detach(),)) if direct else net(inputs.detach())
        total = per_sample_loss(loss, outputs[:, :active_outputs], targets).sum()
        gradients = torch.autograd.grad(total, (anchor, *direct.values()), allow_unused=True)
    squares = found.squares(total)
    for gradient in gradients[1:]:
        if gradient is not None:
            squares += gradient.flatten(1).square().sum(1)
    return squares.sqrt()


class _Owner(NamedTuple):
    """A module, its path, and those of its own parameters whose gradients are wanted."""

    path: str
    module: nn.Module
    wanted: dict[str, nn.Parameter]


def _sorted_out(net: nn.Module, names: Collection[str]) -> tuple[list[_Owner], list[_Owner]]:
    """Owners of the parameters `names`: those that are treated, and the others. One walk, as each batch takes one."""
    owned = [(path, module, dict(module.named_parameters(recurse=False))) for path, module in net.named_modules()]
    wanted = {  # one that is shared has several owners
        p for path, _, parameters in owned for own, p in parameters.items() if f"{path}.{own}".lstrip(".") in names
    }
    treated: list[_Owner] = []
    others: list[_Owner] = []
    for path, module, parameters in owned:
        owner = _Owner(path, module, {own: p for own, p in parameters.items() if p in wanted})
        if owner.wanted:
            (treated if _is_treated(module, parameters) else others).append(owner)
    return treated, others


def _is_treated(module: nn.Module, own: Collection[str]) -> bool:
    """Whether it is one of TREATED with that one's forward and no parameters of its own but weight and bias."""
    return {*own} <= {"weight", "bias"} and any(type(module).forward is kind.forward for kind in TREATED)


def _parameters_of_their_own(owners: list[_Owner], b: int) -> dict[str, Tensor]:
    """Parameters of modules that are not treated, each as a leaf with one copy for each sample.

    Only shapes [1, ...] can be: such a parameter meets the batch by broadcasting along its first axis, like the class
    token and the positions of a transformer.
    """
    found = {}
    for path, module, wanted in owners:
        for own, parameter in wanted.items():
            name = f"{path}.{own}".lstrip(".")
            if parameter.ndim < 2 or parameter.shape[0] != 1:
                raise NoGhost(f"{name} belongs to a {type(module).__name__}")
            found[name] = parameter.detach().expand(b, *parameter.shape[1:]).requires_grad_()
    return found


class _Watched(torch.autograd.Function):
    """The identity; hands over the gradient as it comes by. The anchor makes it part of the graph."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, receive: Callable[[Tensor], None]) -> Tensor:
        ctx.receive = receive
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None]:
        ctx.receive(gradient)
        return gradient if ctx.needs_input_grad[0] else None, None, None


@contextmanager
def _watched(owners: list[_Owner], found: "_Collected", anchor: Tensor) -> Iterator[None]:
    """Inside, inputs and output gradients of each call of the owners, all treated, are collected."""

    def hook(path: str, module: nn.Module, wanted: Collection[str]) -> Callable[..., Tensor]:
        def watch(_: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            if len(arguments) != 1 or len(arguments[0]) != found.b:
                raise NoGhost(f"{path} is called with something else than one tensor of the batch")
            (given,) = arguments
            found.expect(module, wanted)
            return _Watched.apply(output, anchor, partial(found.receive, module, wanted, given.detach()))

        return watch

    with ExitStack() as stack:
        for owner in owners:
            stack.callback(owner.module.register_forward_hook(hook(*owner)).remove)
        yield


Call = tuple[nn.Module, Tensor, Tensor]
"""A module, what it was given and the gradient of its output."""


class _Collected:
    """What the calls of the modules leave behind, by parameter; a weight is done with after its last call."""

    def __init__(self, b: int) -> None:
        self.b = b
        self._expected: Counter[Tensor] = Counter()
        self._calls: dict[Tensor, list[Call]] = defaultdict(list)
        self._gradients: dict[Tensor, Tensor] = {}
        self._squares: Tensor | None = None

    def expect(self, module: nn.Module, wanted: Collection[str]) -> None:
        """A call has been made."""
        self._expected.update(getattr(module, own) for own in wanted)

    def receive(self, module: nn.Module, wanted: Collection[str], given: Tensor, gradient: Tensor) -> None:
        """The gradient of a call's output has come."""
        if isinstance(module, nn.Linear) and given.ndim == 2 and self._only_once(module, wanted):
            inputs = torch.linalg.vector_norm(given, dim=1).square() if "weight" in wanted else 0.0
            outputs = torch.linalg.vector_norm(gradient, dim=1).square()
            self._add_squares(outputs * (inputs + float("bias" in wanted)))
        elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            if "bias" in wanted:
                assert module.bias is not None
                axis = -1 if isinstance(module, nn.Linear) else 1
                self._add(module.bias, _sum_to_axis(gradient, axis))
            if "weight" in wanted:
                calls = self._calls[module.weight]
                calls.append((module, given, gradient))
                if len(calls) == self._expected[module.weight]:
                    self._finish(module.weight)
        else:
            for own, values in _norm_gradients(module, given, gradient).items():
                if own in wanted:
                    self._add(getattr(module, own), values)

    def squares(self, like: Tensor) -> Tensor:
        """Squared norms [b]; calls whose outputs the loss does not see have no gradient."""
        for weight in list(self._calls):
            self._finish(weight)
        total = torch.zeros(self.b, dtype=like.dtype, device=like.device) if self._squares is None else self._squares
        for gradient in self._gradients.values():
            total = total + gradient.square().sum(1)
        return total

    def _add(self, parameter: Tensor, values: Tensor) -> None:
        """Gradients [b, size] of one more use of a small parameter."""
        known = self._gradients.get(parameter)
        self._gradients[parameter] = values if known is None else known + values

    def _only_once(self, module: nn.Module, wanted: Collection[str]) -> bool:
        return all(self._expected[getattr(module, own)] == 1 for own in wanted)

    def _finish(self, weight: Tensor) -> None:
        self._add_squares(_weight_squares(self._calls.pop(weight)))

    def _add_squares(self, squares: Tensor) -> None:
        self._squares = squares if self._squares is None else self._squares + squares


def _sum_to_axis(values: Tensor, axis: int) -> Tensor:
    """[b, ...] summed over all but the batch and `axis`: [b, size of axis]."""
    others = [i for i in range(1, values.ndim) if i != axis % values.ndim]
    return values.sum(others) if others else values


def _norm_gradients(module: nn.Module, given: Tensor, gradient: Tensor) -> dict[str, Tensor]:
    """Gradients [b, size] of weight and bias of a norm: sums of gradient * normalised input, and of gradient."""
    if isinstance(module, BATCH_NORMS):
        assert module.running_mean is not None and module.running_var is not None
        bias, product = _sum_to_axis(gradient, 1), _sum_to_axis(gradient * given, 1)
        return {
            "weight": (product - module.running_mean * bias) * (module.running_var + module.eps).rsqrt(),
            "bias": bias,
        }
    if isinstance(module, nn.GroupNorm):
        normalised = F.group_norm(given, module.num_groups, eps=module.eps)
        return {"weight": _sum_to_axis(gradient * normalised, 1), "bias": _sum_to_axis(gradient, 1)}
    assert isinstance(module, nn.LayerNorm)
    normalised = F.layer_norm(given, module.normalized_shape, eps=module.eps)
    leading = list(range(1, given.ndim - len(module.normalized_shape)))
    weight, bias = gradient * normalised, gradient
    return {
        "weight": (weight.sum(leading) if leading else weight).flatten(1),
        "bias": (bias.sum(leading) if leading else bias).flatten(1),
    }


def _weight_squares(calls: list[Call]) -> Tensor:
    """||sum over calls and positions of a b^T||_F^2 of each sample, [b]."""
    given = calls[0][1]
    elements = sum(_unfolded_elements(*call) for call in calls)
    size = max(1, ELEMENTS_AT_ONCE.get(given.device.type, 1 << 20) // elements)
    squares = [
        _product_squares([_factors(m, a[i : i + size], g[i : i + size]) for m, a, g in calls])
        for i in range(0, len(given), size)
    ]
    return torch.cat(squares)


def _unfolded_elements(module: nn.Module, given: Tensor, gradient: Tensor) -> int:
    """Elements of a sample's A."""
    if isinstance(module, nn.Linear):
        return given[0].numel()
    assert isinstance(module, nn.modules.conv._ConvNd)
    kernel = module.weight[0, 0].numel()
    return gradient[0, 0].numel() * given.shape[1] * kernel


def _product_squares(factors: list[tuple[Tensor, Tensor]]) -> Tensor:
    """||A^T B||_F^2 summed over groups, [b], of A [b, groups, t, i] and B [b, groups, t, o]; calls along t."""
    a, b = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2) for parts in zip(*factors, strict=True))
    positions, fan_in, fan_out = a.shape[2], a.shape[3], b.shape[3]
    if positions * (fan_in + fan_out) < fan_in * fan_out:
        return (a @ a.transpose(2, 3)).mul_(b @ b.transpose(2, 3)).sum((1, 2, 3))
    return (a.transpose(2, 3) @ b).square_().sum((1, 2, 3))


def _factors(module: nn.Module, given: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
    """A [b, groups, t, i] and B [b, groups, t, o] of a call; i runs over the weight's inputs in an order of its own."""
    if isinstance(module, nn.Linear):
        return given.reshape(len(given), 1, -1, given.shape[-1]), gradient.reshape(
            len(given), 1, -1, gradient.shape[-1]
        )
    assert isinstance(module, nn.modules.conv._ConvNd)
    a = _unfolded(module, given)
    b = gradient.flatten(2).transpose(1, 2)
    if module.groups == 1:
        return a.flatten(2).unsqueeze(1), b.unsqueeze(1)
    groups, n, t = module.groups, len(given), a.shape[1]
    a = a.reshape(n, t, -1, groups, given.shape[1] // groups).permute(0, 3, 1, 2, 4).flatten(3)
    return a, b.reshape(n, t, groups, -1).transpose(1, 2)


def _unfolded(module: nn.modules.conv._ConvNd, given: Tensor) -> Tensor:
    """What each position of a convolution sees: [b, positions, kernel positions, channels]."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(given, module._reversed_padding_repeated_twice, mode=mode).movedim(1, -1)
    axes = len(module.kernel_size)
    for axis, (kernel, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=1
    ):
        x = x.unfold(axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    x = x.movedim(axes + 1, -1)  # [b, positions..., kernel..., channels]: rows of channels are copied whole
    return x.flatten(1 + axes, -2).flatten(1, axes)
