"""Networks of the same form as one module: every parameter and buffer gets a leading axis R, inputs and outputs too.

Chains of layers and residual networks are stacked layer by layer: linear layers become batched products, convolutions
grouped ones. Hooks at the same paths see the same features as in one network, with the leading axis before them. A
layer without a batched form (factors of a singular value decomposition, projections) is mapped over its networks by
vmap; so is a whole network whose forward is not known to take the axis, of which no part can be heard then.
"""

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.net.stacked_layers import Vmapped, mapped, stacked_form

DRAWS = (nn.modules.dropout._DropoutNd, nn.RReLU)
"""Layers that draw from the global generator."""


def stack(nets: Sequence[nn.Module], example_input: Tensor | None = None) -> nn.Module:
    """One module for R networks; each output and gradient is that of its network alone, up to rounding.

    Args:
        nets: networks with the same modules and shapes; they are left as they are.
        example_input: [b, ...], tried where a network can only be mapped as a whole.

    Returns:
        A module with the paths and state-dict keys of one network, every tensor [R, ...]; forward [R, b, ...] ->
        [R, b, outputs]. It is in the mode of the first network.

    Raises:
        ConfigError: the networks differ in form, or one of their layers cannot be stacked; names it and the reason.
    """
    first = nets[0]
    _check_alike(nets)
    for path, layer in _leaves(first):
        _check_layer(path, layer)
    stacked = copy.deepcopy(first)
    for _, layer in list(_leaves(stacked)):
        form = stacked_form(layer)
        if form is None:
            mapped(layer)
        else:
            layer.__class__ = form
    _join(stacked, nets)
    stacked.prefers_channels_last = False  # type: ignore[assignment]
    if isinstance(stacked, Vmapped) and example_input is not None:
        _try(stacked, example_input, len(nets))
    return stacked


def _takes_leading_axis(module: nn.Module) -> bool:
    """Whether a module only passes on to its parts, and keeps to axes counted from the right."""
    is_chain = isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    return is_chain or getattr(module, "counts_axes_from_right", False)


def _leaves(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Paths and modules that are stacked as a whole, each once."""
    if not _takes_leading_axis(module):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _leaves(child, f"{path}.{name}".lstrip("."))


def is_whole(stacked: nn.Module) -> bool:
    """Whether a stacked network was mapped as a whole, so that none of its parts can be heard."""
    return isinstance(stacked, Vmapped)


def loses_on_cpu(net: nn.Module) -> bool:
    """Whether runs of such a network are faster one after another on a CPU: all with convolutions, as measured."""
    convolutions = ("Conv1d", "Conv2d", "Conv3d")
    return any(type(module).__name__.endswith(convolutions) for module in net.modules())


def _check_layer(path: str, layer: nn.Module) -> None:
    """Refuse a layer that cannot be stacked in any way."""
    for name, part in layer.named_modules(prefix=path):
        if isinstance(part, DRAWS) and getattr(part, "p", 1.0) > 0:
            reason = (
                "it draws from the generator that all runs would share, so each would draw other numbers than alone"
            )
            raise _refusal(name, part, reason)
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.momentum is None:
            raise _refusal(name, part, "its running statistics have no fixed momentum")


def _refusal(path: str, layer: nn.Module, reason: str) -> ConfigError:
    named = f"layer {path} ({type(layer).__name__})" if path else type(layer).__name__
    return ConfigError(
        f"runs of this network cannot advance together: {named}: {reason}. Leave it out, or run one process per seed"
    )


def _check_alike(nets: Sequence[nn.Module]) -> None:
    def form(net: nn.Module) -> dict[str, object]:
        tensors = [*net.named_parameters(remove_duplicate=False), *net.named_buffers(remove_duplicate=False)]
        kinds: dict[str, object] = {f"module {path!r}": type(module) for path, module in net.named_modules()}
        return kinds | {name: (tensor.shape, tensor.dtype) for name, tensor in tensors}

    forms = [form(net) for net in nets]
    for other in forms[1:]:
        if other != forms[0]:
            name = next(name for name in {**forms[0], **other} if forms[0].get(name) != other.get(name))
            raise ConfigError(
                f"networks that advance together must have one form, but they differ in {name}; use a net whose form "
                "does not depend on the seed"
            )


def _join(stacked: nn.Module, nets: Sequence[nn.Module]) -> None:
    """Put the values of all networks into the tensors of `stacked`; what is shared stays shared."""
    done: dict[int, nn.Parameter] = {}
    modules = [dict(net.named_modules(remove_duplicate=False)) for net in nets]
    for path, module in stacked.named_modules():
        owners = [of_net[path] for of_net in modules]
        for name, parameter in owners[0]._parameters.items():
            if parameter is None:
                continue
            if id(parameter) not in done:
                values = torch.stack([owner.get_parameter(name).detach() for owner in owners])
                done[id(parameter)] = nn.Parameter(values, requires_grad=parameter.requires_grad)
            module.register_parameter(name, done[id(parameter)])
        for name, buffer in owners[0]._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.stack([owner.get_buffer(name) for owner in owners])


def _try(stacked: nn.Module, example_input: Tensor, networks: int) -> None:
    """Run a network that is mapped as a whole."""
    trial = copy.deepcopy(stacked).train()
    try:
        with torch.no_grad():
            outputs = trial(example_input.expand(networks, *example_input.shape))
    # Code we do not know can raise anything; its own words go into the message.
    except Exception as error:
        raise _refusal("", stacked._one, f"vmap fails on it ({type(error).__name__}: {error})") from error  # type: ignore[arg-type]
    if not isinstance(outputs, Tensor) or outputs.shape[:2] != (networks, len(example_input)):
        raise _refusal("", stacked._one, "its forward gives no [R, b, ...] under vmap")  # type: ignore[arg-type]


def unstacked_state(stacked: nn.Module, r: int) -> dict[str, Tensor]:
    """The state dict of network r, views into the stacked one."""
    return {name: tensor[r] for name, tensor in stacked.state_dict().items()}


def unstack(stacked: nn.Module, r: int, into: nn.Module) -> nn.Module:
    """Copy network r into a network of its form, and return that."""
    into.load_state_dict(unstacked_state(stacked, r))
    return into


@torch.no_grad()
def put_back(stacked: nn.Module, r: int, state: dict[str, Tensor]) -> None:
    """Give network r the values of a state dict of one network.

    Raises:
        ConfigError: the state dict is of another network.
    """
    own = unstacked_state(stacked, r)
    if own.keys() != state.keys() or any(own[name].shape != state[name].shape for name in own):
        raise ConfigError("these weights are of a network of another form; stack networks of one config")
    for name, tensor in own.items():
        tensor.copy_(state[name])
