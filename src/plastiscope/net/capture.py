"""Features where they appear: activation calls are watched during a forward, and reduced on the spot.

A tensor is handed over inside the hook and must be reduced there: in-place modules modify it later in the same forward.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from plastiscope.error import ConfigError
from plastiscope.net.activation import BothSigns, MaxOut
from plastiscope.net.layers import LEAVES
from plastiscope.net.units import Layer, Site, by_unit

ACTIVATION_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.PReLU: "prelu",
    nn.RReLU: "rrelu",
    nn.ELU: "elu",
    nn.SELU: "selu",
    nn.CELU: "celu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.Mish: "mish",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Softplus: "softplus",
    nn.Softsign: "softsign",
    nn.Hardtanh: "hardtanh",
    nn.Hardswish: "hardswish",
    nn.Hardsigmoid: "hardsigmoid",
    MaxOut: "maxout",
    BothSigns: "crelu",
}
"""Activation modules, and the functions of torch, torch.nn.functional or torch.Tensor that most of them stand for."""

ACTIVATION_FUNCTIONS = frozenset(ACTIVATION_MODULES.values())

Receive = Callable[[Site, Tensor], None]


def activation_name(module: nn.Module) -> str:
    """Name of an activation module's function, such as "relu"; "" for other modules."""
    return next((name for kind, name in ACTIVATION_MODULES.items() if isinstance(module, kind)), "")


def function_name(function: object) -> str:
    """Name of a function of torch without the underscore of its in-place form."""
    return str(getattr(function, "__name__", "")).rstrip("_")


class _Functions(TorchFunctionMode):
    """Calls `receive` with the name and the output of each functional activation."""

    def __init__(self, receive: Callable[[str, Tensor], None]) -> None:
        super().__init__()
        self.receive = receive

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = function(*args, **(kwargs or {}))
        if function_name(function) in ACTIVATION_FUNCTIONS:
            self.receive(function_name(function), output)
        return output


@contextmanager
def watch(net: nn.Module, modules: Mapping[str, nn.Module], functions: bool, receive: Receive) -> Iterator[None]:
    """Call `receive(site, output)` at each call of `modules` and, if `functions`, at each functional activation.

    Calls are counted from 0 in each forward of `net`. Of several outputs the first is handed over, such as that of
    nn.MultiheadAttention, which also gives its weights. A functional call inside an activation module is that module's
    own and is left out, and so is one between the factors of a layer's weights. Hooks keep torch's transformer layers
    off their fused path, which hides activations.
    """
    counts: Counter[tuple[str, str | None]] = Counter()
    running: list[tuple[str, bool]] = []
    paths = dict(net.named_modules()) if functions else {}

    def hand_over(path: str, function: str | None, output: Any) -> None:
        call = counts[path, function]
        counts[path, function] += 1
        receive(Site(path, call, function), output[0] if isinstance(output, tuple) else output)

    def functional(name: str, output: Tensor) -> None:
        path, is_activation = running[-1] if running else ("", True)
        if not is_activation:
            hand_over(path, name, output)

    def leave(*_: object) -> None:
        running.pop()

    def begin(*_: object) -> None:
        counts.clear()
        running.clear()

    with ExitStack() as stack:
        stack.callback(net.register_forward_pre_hook(begin).remove)
        for path, module in paths.items():
            entry = (path, isinstance(module, (*ACTIVATION_MODULES, *LEAVES)))
            stack.callback(module.register_forward_pre_hook(lambda *_, entry=entry: running.append(entry)).remove)
            stack.callback(module.register_forward_hook(leave, always_call=True).remove)
        for path, module in modules.items():
            hook = module.register_forward_hook(lambda _, __, output, path=path: hand_over(path, None, output))
            stack.callback(hook.remove)
        if functions:
            stack.enter_context(_Functions(functional))
        yield


@contextmanager
def capture(net: nn.Module, sites: Iterable[Site], receive: Receive, detached: bool = True) -> Iterator[None]:
    """Inside, every forward of `net` calls `receive(site, feature)` once for each site, in order of execution.

    Args:
        net: unwrapped network, in the mode the caller wants.
        sites: of the features wanted.
        receive: reduces the feature at once and keeps no reference; see `units.by_unit` for its axes.
        detached: hand the feature over without its derivatives.

    Raises:
        ConfigError: when a site does not exist, or did not fire in a forward.
    """
    wanted = frozenset(sites)
    paths = dict(net.named_modules())
    missing = [site for site in wanted if site.module not in paths]
    if missing:
        raise ConfigError(f"The network has no module {missing[0].module!r}; the unit description is of another net.")
    fired: set[Site] = set()

    def filtered(site: Site, output: Tensor) -> None:
        if site in wanted:
            fired.add(site)
            receive(site, output.detach() if detached else output)

    def check(*_: object) -> None:
        silent = sorted(map(str, wanted - fired))
        fired.clear()
        if silent:
            raise ConfigError(
                f"{len(silent)} activation(s) did not run in a forward, such as {silent[0]}: they were passed by (a "
                "fused path, or a branch not taken). Make the network call them, or leave these layers out."
            )

    modules = {site.module: paths[site.module] for site in wanted if site.function is None}
    functions = any(site.function is not None for site in wanted)
    with watch(net, modules, functions, filtered):
        handle = net.register_forward_hook(check)
        try:
            yield
        finally:
            handle.remove()


def features(
    net: nn.Module, layers: Sequence[Layer], inputs: Tensor, reduce: Callable[[Tensor], Tensor]
) -> dict[str, Tensor]:
    """What `reduce` makes of each layer's features in one forward, without gradients.

    Args:
        net: unwrapped network; the caller sets the mode (`event.undisturbed` for evaluation).
        layers: of the unit description.
        inputs: [b, ...].
        reduce: gets [b, units, positions] (positions = 1 in fully connected layers), detached, and must return a new
            tensor: later in-place modules may overwrite what it got.

    Returns:
        Reduced features by layer name, in the order of `layers`.

    Raises:
        ConfigError: when a site did not fire.
    """
    by_site = {layer.site: layer for layer in layers}
    reduced: dict[str, Tensor] = {}

    def receive(site: Site, feature: Tensor) -> None:
        layer = by_site[site]
        reduced[layer.name] = reduce(by_unit(feature, layer.unit_axis))

    with torch.no_grad(), capture(net, by_site, receive):
        net(inputs)
    return {layer.name: reduced[layer.name] for layer in layers}


def differentiable_features(
    net: nn.Module, layers: Sequence[Layer], outputs: str
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Features of layers and the outputs of the network as a function of inputs [b, ...], for derivatives by these.

    Args:
        net: unwrapped network; the caller sets the mode.
        layers: of the unit description.
        outputs: name of the network's outputs among the features.

    Returns:
        A function that gives copies of the features as they appear, by layer name in the order of `layers`.
    """
    by_site = {layer.site: layer.name for layer in layers}

    def features_of(inputs: Tensor) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}

        def receive(site: Site, feature: Tensor) -> None:
            found[by_site[site]] = feature.clone()

        with capture(net, by_site, receive, detached=False):
            found[outputs] = net(inputs)
        return {name: found[name] for name in (*by_site.values(), outputs)}

    return features_of
