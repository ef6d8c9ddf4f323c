"""The wiring of a network's units, read off its torch.fx graph.

From each activation two walks: backwards to the weights that make the units (through normalisation, pooling, dropout),
and forwards to the parameters that read them (through pooling, dropout, flattening). Sums are identity paths.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.fx import Node

from plastiscope.net.activation import BothSigns, Concatenated, MaxOut
from plastiscope.net.capture import ACTIVATION_FUNCTIONS, function_name
from plastiscope.net.layers import LEAVES, WEIGHTS
from plastiscope.net.units import Site, Wire, column_obstacle, columns, row_obstacle

NORMS = (
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.BatchNorm3d,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)

_UNIT_WISE = frozenset(
    f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_max", "adaptive_avg") for d in (1, 2, 3)
) | frozenset(("dropout", "dropout1d", "dropout2d", "dropout3d", "identity", "contiguous"))
_RESHAPES = frozenset(("flatten", "view", "reshape", "squeeze"))
_ADDITIONS = frozenset(("add", "iadd"))
_MODULE_OPERATIONS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.Flatten: "flatten",
    nn.Dropout: "dropout",
    nn.Dropout1d: "dropout1d",
    nn.Dropout2d: "dropout2d",
    nn.Dropout3d: "dropout3d",
    **{getattr(nn, f"MaxPool{d}d"): f"max_pool{d}d" for d in (1, 2, 3)},
    **{getattr(nn, f"AvgPool{d}d"): f"avg_pool{d}d" for d in (1, 2, 3)},
    **{getattr(nn, f"AdaptiveMaxPool{d}d"): f"adaptive_max_pool{d}d" for d in (1, 2, 3)},
    **{getattr(nn, f"AdaptiveAvgPool{d}d"): f"adaptive_avg_pool{d}d" for d in (1, 2, 3)},
}


@dataclass
class Source:
    """One summand of a layer's pre-activations: weights, perhaps with a normalisation; or an obstacle."""

    module: str = ""
    norm: str | None = None
    depth: int = 0
    is_identity: bool = False
    obstacle: str = ""


@dataclass
class Readers:
    """What reads a layer's units: parameters, later sites over identity paths; and what cannot be described."""

    wires: list[Wire] = field(default_factory=list)
    tied_to: list[Site] = field(default_factory=list)
    is_tied: bool = False
    is_output: bool = False
    obstacles: list[str] = field(default_factory=list)


class _Place(NamedTuple):
    """Where the units are in a tensor: `block` entries of `axis` each, and that once or, as parts, several times."""

    axis: int
    block: int = 1
    parts: int = 1


class _Tracer(fx.Tracer):
    """Leaves layers and activations of our own whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = (*LEAVES, MaxOut, BothSigns, Concatenated)
        return isinstance(m, ours) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs the graph and notes the shape of each node's output."""

    def run_node(self, n: Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def is_linear(module: nn.Module | None) -> bool:
    """Whether it reads the last axis of its inputs, as nn.Linear does, and not axis 1."""
    return hasattr(module, "out_features")


class Graph:
    """A traced network with the shapes of one forward."""

    def __init__(self, net: nn.Module, example: Tensor) -> None:
        """Trace `net` (in evaluation mode, without gradients) and run it once; whatever torch.fx raises comes out."""
        self.net = net
        graph = _Tracer().trace(net)
        _Shapes(fx.GraphModule(net, graph)).run(example)
        self.nodes = [node for node in graph.nodes if "shape" in node.meta or node.op == "output"]
        self.modules = dict(net.named_modules())
        owners = Counter(id(p) for module in net.modules() for p in module.parameters(recurse=False))
        self.parameters = {name for name, parameter in net.named_parameters() if owners[id(parameter)] == 1}
        self.calls = Counter(node.target for node in self.nodes if node.op == "call_module")
        self.sites: dict[Node, Site] = {}
        self.depth: dict[Node, int] = {}
        for node in graph.nodes:
            self.depth[node] = 1 + max((self.depth[n] for n in node.all_input_nodes), default=0)

    def locate(self, sites: Mapping[Site, Any]) -> dict[Site, Node]:
        """The node of each site that the graph shows; the walks end at them."""
        counts: Counter[tuple[str, str | None]] = Counter()
        for node in self.nodes:
            key = self._call_of(node)
            if key is not None:
                site = Site(key[0], counts[key], key[1])
                counts[key] += 1
                if site in sites:
                    self.sites[node] = site
        return {site: node for node, site in self.sites.items()}

    def _call_of(self, node: Node) -> tuple[str, str | None] | None:
        if node.op == "call_module":
            return str(node.target), None
        operation = self._operation(node)
        if operation not in ACTIVATION_FUNCTIONS:
            return None
        owners = list(node.meta.get("nn_module_stack", {}).values())
        return (owners[-1][0] if owners else ""), operation

    def _module(self, node: Node) -> nn.Module | None:
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def _operation(self, node: Node) -> str:
        module = self._module(node)
        if module is not None:
            return _MODULE_OPERATIONS.get(type(module), type(module).__name__)
        if node.op == "call_method":
            return str(node.target).rstrip("_")
        return function_name(node.target) if node.op == "call_function" else node.op

    def _is_addition(self, node: Node) -> bool:
        operands = node.args[:2]
        return self._operation(node) in _ADDITIONS and all(isinstance(operand, Node) for operand in operands)

    def pooled(self, node: Node) -> tuple[Node, Site]:
        """The global average pooling that alone reads the site at `node`, where there is one, else the site itself.

        The published taps take the last block's features after pooling.
        """
        users = [user for user in node.users if "shape" in user.meta]
        pools = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
        if len(users) == 1 and isinstance(self._module(users[0]), pools) and prod(users[0].meta["shape"][2:]) == 1:
            earlier = self.nodes[: self.nodes.index(users[0])]
            call = sum(other.op == "call_module" and other.target == users[0].target for other in earlier)
            return users[0], Site(str(users[0].target), call)
        return node, self.sites[node]

    def sources_of(self, site_node: Node) -> list[Source]:
        """The summands that make the units of a site: what its activation gets, or (no activation) its own weights."""
        if isinstance(self._module(site_node), (*WEIGHTS, *NORMS)):
            return self._sources(site_node, is_start=True)
        return self._sources(site_node.all_input_nodes[0])

    def _sources(self, node: Node, is_start: bool = False) -> list[Source]:
        module, below = self._module(node), next(iter(node.all_input_nodes), None)
        if node in self.sites and not is_start:
            return [Source(is_identity=True)]
        if isinstance(module, WEIGHTS):
            source = self._weights(str(node.target), self.depth[node])
            source.obstacle = row_obstacle(self.net, source.module) or source.obstacle
            return [source]
        if self._is_addition(node):
            return [source for operand in node.all_input_nodes for source in self._sources(operand)]
        if below is not None and isinstance(module, NORMS):
            sources = self._sources(below)
            if len(sources) == 1 and sources[0].module and sources[0].norm is None:
                sources[0].norm = str(node.target)
                return sources
            return [Source(obstacle=f"the normalisation {node.target} does not follow the weights of one layer")]
        if below is not None and self._operation(node) in _UNIT_WISE:
            return self._sources(below)
        return [Source(obstacle=f"its units are made by {self._operation(node)!r}")]

    def _weights(self, path: str, depth: int) -> Source:
        obstacle = column_obstacle(self.net, path)
        if obstacle:
            pass  # it says why, whatever else there is
        elif f"{path}.weight" not in self.parameters:
            obstacle = f"the weight of {path} is no plain parameter of its own"
        elif self.calls[path] > 1:
            obstacle = f"{path} is called {self.calls[path]} times"
        return Source(module=path, depth=depth, obstacle=obstacle)

    def readers(self, node: Node, width: int, unit_axis: int) -> Readers:
        """What reads the `width` units at `node`, which lie along `unit_axis`."""
        found = Readers()
        self._read(node, width, _Place(unit_axis), found)
        return found

    def _read(self, node: Node, width: int, place: _Place, found: Readers) -> None:
        for user in node.users:
            if user.op == "output":
                found.is_output = True
            elif "shape" not in user.meta:
                continue  # reads the shape, not the units
            elif self._is_addition(user):
                found.is_tied = True
                found.tied_to += self._sites_after(user)
            elif isinstance(self._module(user), WEIGHTS):
                self._read_by_weights(user, node.meta["shape"], width, place, found)
            elif (after := self._passed(user, node.meta["shape"], place)) is not None:
                self._read(user, width, after, found)
            else:
                found.obstacles.append(f"its units are read by {self._operation(user)!r}")

    def _read_by_weights(self, user: Node, before: tuple[int, ...], width: int, place: _Place, found: Readers) -> None:
        path, module = str(user.target), self._module(user)
        source = self._weights(path, 0)
        along = len(before) - 1 if is_linear(module) else 1
        owned = width * place.block
        if source.obstacle:
            found.obstacles.append(source.obstacle)
        elif getattr(module, "groups", 1) != 1:
            found.obstacles.append(f"its units are read by the grouped convolution {path}")
        elif place.axis != along or module.weight.shape[1] != owned * place.parts:  # type: ignore[union-attr, index]
            found.obstacles.append(f"the columns of {path} do not belong to single units")
        else:
            found.wires += [columns(path, place.block, part * owned) for part in range(place.parts)]

    def _passed(self, node: Node, before: tuple[int, ...], place: _Place) -> _Place | None:
        """Where the units are after an operation that keeps them apart, or None when it does not."""
        operation, after = self._operation(node), node.meta["shape"]
        if operation in _UNIT_WISE or (operation in _RESHAPES and after == before):
            return place
        if isinstance(self._module(node), Concatenated):
            return place._replace(parts=2 * place.parts)
        if place.axis != 1:
            return None
        if operation in _RESHAPES and len(after) == 2 and after[1] == prod(before[1:]):
            return place._replace(block=place.block * prod(before[2:]))
        if operation == "mean" and self._is_over_positions(node, len(before)):
            return place
        return None

    @staticmethod
    def _is_over_positions(node: Node, ndim: int) -> bool:
        dims: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        dims = [dims] if isinstance(dims, int) else dims
        return isinstance(dims, list | tuple) and all(dim % ndim >= 2 for dim in dims)

    def _sites_after(self, node: Node) -> list[Site]:
        """The nearest sites that a sum leads to, through normalisation, pooling and further sums."""
        found = []
        for user in node.users:
            if user in self.sites:
                found.append(self.sites[user])
            elif (
                self._is_addition(user) or isinstance(self._module(user), NORMS) or self._operation(user) in _UNIT_WISE
            ):
                found += self._sites_after(user)
        return found

    def head(self) -> str:
        """Path of the linear layer or convolution whose output is the network's output; "" when it is none."""
        node: Any = self.nodes[-1].args[0]
        while isinstance(node, Node) and node.args:
            if isinstance(self._module(node), WEIGHTS):
                return str(node.target)
            node = node.args[0]
        return ""
