"""Feed-forward networks as a chain of hidden layers; what the fully connected and the convolutional ones share."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch import nn

from plastiscope.error import require
from plastiscope.net.activation import Activation
from plastiscope.net.layers import WEIGHTS, FixedProjection, Init, Kind, Layers, kaiming_uniform
from plastiscope.net.units import (
    Layer,
    Site,
    UnitDescription,
    Wire,
    column_obstacle,
    columns,
    row_obstacle,
    rows,
)


class Norm(Enum):
    """The normalisation between the weights and the activation of a hidden layer."""

    none = "none"
    batch = "batch"
    layer = "layer"
    """Over the units of a layer; of a convolution over its channels and positions, with a scale for each channel."""

    def of_units(self, rows: int) -> nn.Module | None:
        """Of a fully connected layer."""
        if self is Norm.none:
            return None
        return nn.BatchNorm1d(rows) if self is Norm.batch else nn.LayerNorm(rows)

    def of_channels(self, rows: int) -> nn.Module | None:
        """Of a convolution."""
        if self is Norm.none:
            return None
        return nn.BatchNorm2d(rows) if self is Norm.batch else nn.GroupNorm(1, rows)


@dataclass(frozen=True)
class Hidden:
    """A hidden layer of a chain.

    Attributes:
        name: of its weights.
        width: its units.
        site: where its features appear.
        norm: path of its normalisation, or None.
        is_projected: a fixed projection stands between its units and what reads them.
    """

    name: str
    width: int
    site: str
    norm: str | None
    is_projected: bool


class Chain:
    """Collects the modules of a network in order, and its hidden layers.

    Attributes:
        modules: so far, by name.
        hidden: layers so far.
        inputs: of the next layer: dimensions or channels.
    """

    def __init__(
        self,
        inputs: int,
        activation: Activation | None,
        layers: Layers,
        called: Callable[[str, str], str],
    ) -> None:
        """Start a chain.

        Args:
            inputs: of the first layer.
            activation: None = linear network.
            layers: how they are parametrised.
            called: name of a layer's weights, and one of norm, pool, activation, project, dropout -> name of that part.
        """
        self.modules: OrderedDict[str, nn.Module] = OrderedDict()
        self.hidden: list[Hidden] = []
        self.inputs, self.activation, self.layers, self.called = inputs, activation, layers, called
        self.pieces = 1 if activation is None else activation.rows(layers.maxout_pieces)
        self.gain = 1.0 if activation is None else activation.gain_of(layers.maxout_pieces)

    def linear(self, name: str, width: int, norm: Norm, dropout: float = 0.0, bias: bool = True) -> None:
        """Add a fully connected hidden layer."""
        made: tuple[nn.Module, nn.Module | None]
        if self.layers.is_mapped:
            made = self.layers.mapped_linear(self.inputs, width, bias)
        else:
            made = self.layers.linear(self.inputs, width * self.pieces, self.gain, bias), None
        self._add(name, width, made, norm.of_units, None, dropout)

    def conv(self, name: str, width: int, kernel_size: int, padding: int, norm: Norm, pool: nn.Module | None) -> None:
        """Add a convolution and what follows it; `pool` None = no pooling."""
        made: tuple[nn.Module, nn.Module | None]
        if self.layers.is_mapped:
            made = self.layers.mapped_conv(self.inputs, width, kernel_size, padding)
        else:
            outputs = width * self.pieces
            made = self.layers.conv(self.inputs, outputs, kernel_size, self.gain, padding=padding), None
        self._add(name, width, made, norm.of_channels, pool, 0.0)

    def _add(
        self,
        name: str,
        width: int,
        made: tuple[nn.Module, nn.Module | None],
        norm: Callable[[int], nn.Module | None],
        pool: nn.Module | None,
        dropout: float,
    ) -> None:
        """Weights, norm, pooling, activation, projection, dropout.

        Pooling stands before the activation: for activations that never fall it is the same function and the same
        gradient as after it, on a quarter of the pixels. CReLU falls in its second part, so there it comes after.
        """
        weights, projection = made
        units = self.inputs if projection is not None else width
        copies = 1 if self.activation is None else self.activation.copies
        activation = None if self.activation is None else self.activation.module(units, self.layers.maxout_pieces)
        pooling, act = ("pool", pool), ("activation", activation)
        order = [("norm", norm(units * self.pieces)), *([act, pooling] if copies > 1 else [pooling, act])]
        self.modules[name] = weights
        for part, module in order:
            if module is not None:
                self.modules[self.called(name, part)] = module
        parts = [self.called(name, part) for part, module in order if module is not None and part != "pool"]
        site = (parts or [name])[-1] + (".both" if copies > 1 else "")
        normed = self.called(name, "norm") if self.called(name, "norm") in self.modules else None
        self.hidden.append(Hidden(name, units, site, normed, projection is not None))
        if projection is not None:
            self.modules[self.called(name, "project")] = projection
        if dropout > 0:
            self.modules[self.called(name, "dropout")] = nn.Dropout(dropout)
        self.inputs = width * copies

    def flatten(self, pixels: int = 1) -> None:
        """Add the flattening of maps of so many pixels."""
        self.modules["flatten"] = nn.Flatten()
        self.inputs *= pixels

    def head(self, name: str, outputs: int, bias: bool = True) -> None:
        """Add the head."""
        self.modules[name] = self.layers.of_head().linear(self.inputs, outputs, 1.0, bias)


class ChainNet(nn.Sequential):
    """The network of a chain."""

    def __init__(self, chain: Chain, head: str, init: Init = Init.default) -> None:
        """Take the modules; draw the weights anew where `init` says so."""
        super().__init__(chain.modules)
        self._hidden, self._head = tuple(chain.hidden), head
        self._copies = 1 if chain.activation is None else chain.activation.copies
        self._pieces = chain.pieces
        self._activation = "" if chain.activation is None else chain.activation.function
        if init is Init.kaiming_uniform:
            for name, module in self.named_children():
                if isinstance(module, (*WEIGHTS, FixedProjection)):
                    kaiming_uniform(module, 1.0 if name == head else chain.gain)

    def unit_description(self) -> UnitDescription:
        """One layer for each hidden layer of the chain."""
        readers = [*(hidden.name for hidden in self._hidden), self._head][1:]
        layers = (self._layer(hidden, reader) for hidden, reader in zip(self._hidden, readers, strict=True))
        return UnitDescription(tuple(layers), head=self._head)

    def _layer(self, hidden: Hidden, reader: str) -> Layer:
        read = () if hidden.is_projected else self._columns(hidden, reader)
        projected = "its units are read by 'FixedProjection'" if hidden.is_projected else ""
        reason = row_obstacle(self, hidden.name) or projected or column_obstacle(self, reader)
        return Layer(
            name=hidden.name,
            width=hidden.width,
            site=Site(hidden.site),
            incoming=rows(self, hidden.name, self._pieces),
            norm=hidden.norm,
            consumers=read,
            replaceable=not reason,
            reason=reason,
            activation=self._activation,
        )

    def _columns(self, hidden: Hidden, reader: str) -> tuple[Wire, ...]:
        if column_obstacle(self, reader):
            return ()
        owned = self.get_parameter(f"{reader}.weight").shape[1] // self._copies
        return tuple(columns(reader, owned // hidden.width, part * owned) for part in range(self._copies))


def check_init(init: Init, layers: Layers) -> None:
    """Refuse an initialisation that layers of factors would not follow."""
    is_followed = init is Init.default or layers.kind is not Kind.svd
    require(
        is_followed,
        "init",
        init.value,
        "must be default with net.layers.kind=svd, whose factors have a start of their own",
    )


def check_activation(activation: Activation | None, layers: Layers) -> None:
    """Refuse an activation that changes the number of units between a square map and its projection."""
    is_fit = not layers.is_mapped or activation not in (Activation.maxout, Activation.crelu)
    name = "none" if activation is None else activation.value
    require(is_fit, "activation", name, "changes the number of units, so net.layers.phi_at must be output")
