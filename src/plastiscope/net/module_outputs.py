"""Raw outputs of a network's convolutions and linear layers as sites: what hooks on modules of these types see."""

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.event import undisturbed
from plastiscope.net.capture import watch
from plastiscope.net.layers import COMPOSED
from plastiscope.net.units import Layer, Site, rows
from plastiscope.net.wiring import is_linear

MEASURED = (nn.Conv2d, nn.Linear, *COMPOSED)


def module_outputs(net: nn.Module, example_input: Tensor) -> tuple[Layer, ...]:
    """Outputs of all nn.Conv2d and nn.Linear modules, before norm and activation, in order of execution.

    Layers that hold factors of their weights count as one of these.
    Shortcut convolutions and the head are among them. A module that is called several times gives a site for each call.
    The output projection of nn.MultiheadAttention is never called as a module; its outputs are those of the attention.

    Args:
        net: any module that takes one tensor.
        example_input: [b, ...], a small batch such as two samples.

    Raises:
        ConfigError: a module is not called in a forward, so its outputs cannot be seen.
    """
    modules = {path: module for path, module in net.named_modules() if isinstance(module, MEASURED)}
    attentions = {path: m for path, m in net.named_modules() if isinstance(m, nn.MultiheadAttention) and m.batch_first}
    shapes: dict[Site, tuple[int, ...]] = {}

    def note(site: Site, output: Tensor) -> None:
        shapes[site] = tuple(output.shape)

    with undisturbed(net), torch.no_grad(), watch(net, {**modules, **attentions}, False, note):
        net(example_input)
    called = {_weights_of(site, attentions) for site in shapes}
    silent = [path for path in modules if path not in called]
    if silent:
        raise ConfigError(
            f"{len(silent)} of the {len(modules)} convolutions and linear layers are not called in a forward, such as "
            f"{silent[0]}: their outputs cannot be seen. Make the network call them (nn.MultiheadAttention: "
            "batch_first=True), or take the outputs of activations instead"
        )
    return tuple(_layer(net, site, _weights_of(site, attentions), shape) for site, shape in shapes.items())


def _weights_of(site: Site, attentions: dict[str, nn.MultiheadAttention]) -> str:
    """Path of the module whose weights make the outputs at a site."""
    return f"{site.module}.out_proj".lstrip(".") if site.module in attentions else site.module


def _layer(net: nn.Module, site: Site, path: str, shape: tuple[int, ...]) -> Layer:
    axis = len(shape) - 1 if is_linear(net.get_submodule(path)) else 1
    return Layer(
        name=path + (f"_{site.call}" if site.call else ""),
        width=shape[axis],
        site=site,
        incoming=rows(net, path),
        replaceable=False,
        reason="its outputs are raw, before norm and activation",
        unit_axis=axis,
    )
