"""Unit descriptions of foreign networks: sites by watching a forward, wiring by torch.fx where it traces."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.fx import Node

from plastiscope.event import undisturbed
from plastiscope.net.activation import BothSigns, MaxOut
from plastiscope.net.capture import ACTIVATION_MODULES, activation_name, watch
from plastiscope.net.layers import WEIGHTS
from plastiscope.net.units import TIED, Layer, Site, UnitDescription, rows
from plastiscope.net.wiring import NORMS, Graph, Readers, Source, is_linear

Shape = tuple[int, ...]
ACTIVATIONS = tuple(ACTIVATION_MODULES)


def discover(net: nn.Module, example_input: Tensor) -> UnitDescription:
    """The hidden layers of any network, from one forward in evaluation mode.

    Every call of an activation (module or function) is a site; in a network without activations the outputs of its
    normalisations are, or else those of its linear layers and convolutions. What a final activation makes of the
    outputs is no hidden layer. Layers whose wiring is not understood are not replaceable and say why.

    Args:
        net: any module that takes one tensor.
        example_input: [b, ...], a small batch such as two samples.
    """
    with undisturbed(net), torch.no_grad():
        sites = _watched(net, example_input)
        try:
            graph = Graph(net, example_input)
        # The trace runs code we do not know on proxies, which can raise anything; the reason stands in each layer.
        except Exception as error:
            reason = f"torch.fx cannot trace the network ({type(error).__name__}: {str(error)[:100]})"
            head = _last_weights(net, example_input)
            return UnitDescription(_distinct(_bare(s, o, reason) for s, o in sites.items() if s.module != head), head)
        return _described(graph, sites, _last_weights(net, example_input))


def _watched(net: nn.Module, example_input: Tensor) -> dict[Site, Shape]:
    """Shape of the output at each site, in order of execution."""
    for kinds in (ACTIVATIONS, NORMS, WEIGHTS):
        sites = _calls(net, example_input, kinds, functions=kinds is ACTIVATIONS)
        if sites:
            return sites
    return {}


def _calls(
    net: nn.Module, example_input: Tensor, kinds: tuple[type[nn.Module], ...], functions: bool
) -> dict[Site, Shape]:
    modules = {path: module for path, module in net.named_modules() if isinstance(module, kinds)}
    shapes: dict[Site, Shape] = {}
    with watch(net, modules, functions, lambda site, output: shapes.update({site: tuple(output.shape)})):
        net(example_input)
    return shapes


def _last_weights(net: nn.Module, example_input: Tensor) -> str:
    calls = _calls(net, example_input, WEIGHTS, functions=False)
    return next(reversed(calls)).module if calls else ""


def _described(graph: Graph, sites: dict[Site, Shape], last_weights: str) -> UnitDescription:
    nodes = graph.locate(sites)
    layers: dict[Site, Layer] = {}
    readers: dict[Site, Readers] = {}
    for site, shape in sites.items():
        layer = _bare(site, shape, "torch.fx does not show its activation")
        if site in nodes:
            layer, read = _wired(graph, nodes[site], layer)
            if read.is_output and not read.wires:
                continue  # an activation of the outputs
            readers[site] = read
        layers[site] = layer
    _tie(layers, readers)
    return UnitDescription(_distinct(layers.values()), graph.head() or last_weights)


def _wired(graph: Graph, node: Node, bare: Layer) -> tuple[Layer, Readers]:
    """The layer whose activation is at `node`, before ties are known."""
    source, shortcut, obstacles = _made_of(graph.sources_of(node))
    site, axis, width = bare.site, bare.unit_axis, bare.width
    ndim = len(node.meta["shape"])
    made_by = graph.modules[site.module]
    if source is not None:
        is_last = is_linear(graph.modules[source.module]) and not isinstance(made_by, BothSigns)
        axis = ndim - 1 if is_last else 1
        width = node.meta["shape"][axis]
    feature_node, feature_site = graph.pooled(node)
    read = graph.readers(feature_node, width, axis)
    obstacles += read.obstacles
    if read.is_output:
        obstacles.append("its units are among the outputs")
    if not (read.wires or read.is_tied):
        obstacles.append("nothing reads its units")
    pieces = made_by.pieces if isinstance(made_by, MaxOut) else 1
    layer = Layer(
        name=source.module if source else bare.name,
        width=width,
        site=feature_site,
        incoming=rows(graph.net, source.module, pieces) if source and not source.obstacle else (),
        norm=source.norm if source else None,
        consumers=tuple(read.wires),
        replaceable=not obstacles,
        reason=obstacles[0] if obstacles else "",
        unit_axis=axis,
        activation=site.function or activation_name(made_by),
        shortcut=rows(graph.net, shortcut.module) if shortcut and not shortcut.obstacle else (),
        shortcut_norm=shortcut.norm if shortcut else None,
    )
    return layer, read


def _made_of(sources: list[Source]) -> tuple[Source | None, Source | None, list[str]]:
    """(the layer that makes the units, its shortcut if any, obstacles); of two summands the deeper is the layer."""
    obstacles = [source.obstacle for source in sources if source.obstacle]
    weights = sorted((source for source in sources if source.module), key=lambda source: -source.depth)
    if not weights:
        return None, None, [*obstacles, "no weights of its own make its units"]
    if len(weights) > 2:
        obstacles.append("its units sum the outputs of more than two layers")
    return weights[0], weights[1] if len(weights) > 1 else None, obstacles


def _tie(layers: dict[Site, Layer], readers: dict[Site, Readers]) -> None:
    """Mark layers on identity paths; those whose group is understood completely get the group's name."""
    groups: list[set[Site]] = []
    for site, read in readers.items():
        if read.is_tied:
            tied = {site, *read.tied_to}
            joined = [group for group in groups if group & tied]
            groups = [group for group in groups if not group & tied] + [tied.union(*joined)]
    for group in groups:
        members = [site for site in layers if site in group]
        is_understood = len(members) == len(group) and all(
            layers[site].replaceable and (readers[site].tied_to or not readers[site].is_tied) for site in members
        )
        name = layers[members[0]].name if is_understood else None
        for site in members:
            reason = layers[site].reason or TIED
            layers[site] = replace(layers[site], residual_group=name, replaceable=False, reason=reason)
    for site, layer in layers.items():
        if layer.replaceable and layer.shortcut:
            layers[site] = replace(layer, replaceable=False, reason="its units sum the outputs of two layers")


def _unit_axis(shape: Shape) -> int:
    """The axis of the units as far as a shape can tell: the last of [b, units] and [b, tokens, units], else 1."""
    return 2 if len(shape) == 3 else 1


def _bare(site: Site, shape: Shape, reason: str) -> Layer:
    """A layer of which only the features are known."""
    parts = [site.module, *([site.function] if site.function else [])]
    name = ".".join(part for part in parts if part) + (f"_{site.call}" if site.call else "")
    axis = _unit_axis(shape)
    return Layer(name, shape[axis], site, (), replaceable=False, reason=reason, unit_axis=axis)


def _distinct(layers: Iterable[Layer]) -> tuple[Layer, ...]:
    """The layers, those of the same name numbered from the second on."""
    seen: Counter[str] = Counter()
    distinct = []
    for layer in layers:
        number = seen[layer.name] = seen[layer.name] + 1
        distinct.append(layer if number == 1 else replace(layer, name=f"{layer.name}_{number}"))
    return tuple(distinct)
