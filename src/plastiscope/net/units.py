"""The unit description: what the hidden units of a network are, and how they are wired; data, made once.

Ranks, dormancy, unit replacement and replicas all read this one description.
"""

from dataclasses import dataclass

from torch import Tensor, nn

TIED = "an identity path ties its units to those of other layers"
"""The reason why units of a residual group are not replaceable one layer at a time."""


@dataclass(frozen=True)
class Site:
    """Where a layer's features appear: the output of the `call`-th call of a module in one forward.

    `module` is a path as in `named_modules()`. A functional activation has the path of the module in whose forward it
    runs and `function` set to its name (such as "relu"); `call` then counts that function's calls within that module.
    """

    module: str
    call: int = 0
    function: str | None = None


@dataclass(frozen=True)
class Wire:
    """Part of a parameter that belongs to each unit of a layer: unit i owns `block` columns from i*block of `axis`.

    Block is 1 but where a convolution feeds a linear layer: a channel owns H*W columns; and before maxout, where a unit
    has as many rows as pieces. `offset` is the column of unit 0. `fresh` is what a fresh unit has in an incoming
    parameter of one value a row: 0 in a bias, 1 in the scale of weight-normalised rows; weights are drawn.
    """

    parameter: str
    axis: int
    block: int = 1
    offset: int = 0
    fresh: float = 0.0


@dataclass(frozen=True)
class Layer:
    """One hidden layer.

    Attributes:
        name: of the layer in logs and files.
        width: number of units (channels, neurons, MLP hidden units).
        site: where its features appear, after the activation.
        incoming: weight and bias rows of each unit, the weight first; none when no rows are single units' own.
        norm: path of the normalisation that directly follows the incoming weights, or None; see `norm_rows`.
        consumers: every parameter that reads the units, in order of execution (of a block: convolution, shortcut).
            After CReLU each has two wires in a row: the columns of the positive parts, those of the negative.
        residual_group: name of the group of layers whose units are tied by identity paths, or None; a unit of the group
            is unit i of all its layers, read by the consumers of all of them.
        replaceable: whether a unit can be reset completely without touching an identity path.
        reason: why not, when it is not replaceable.
        unit_axis: of the features: 1 for [b, units] and [b, units, *positions], 2 for [b, tokens, units]. The two parts
            of CReLU are positions of one unit, [b, units, 2, *positions].
        activation: its name in torch.nn.functional, such as "relu"; "" when there is none.
        shortcut: weight and bias rows of the shortcut layer that is added to the same units before the activation.
        shortcut_norm: path of the normalisation of the shortcut layer, or None.
    """

    name: str
    width: int
    site: Site
    incoming: tuple[Wire, ...]
    norm: str | None = None
    consumers: tuple[Wire, ...] = ()
    residual_group: str | None = None
    replaceable: bool = True
    reason: str = ""
    unit_axis: int = 1
    activation: str = ""
    shortcut: tuple[Wire, ...] = ()
    shortcut_norm: str | None = None


@dataclass(frozen=True)
class UnitDescription:
    """The hidden layers of a network in order from the input, and its head.

    `head` is the path of the module that gives the outputs ("" when it is not known). Transformers have more sites,
    which are no hidden layers: `attention_outputs` and `norm_outputs`, one unit per embedding dimension.
    """

    layers: tuple[Layer, ...]
    head: str
    attention_outputs: tuple[Layer, ...] = ()
    norm_outputs: tuple[Layer, ...] = ()

    @property
    def num_units(self) -> int:
        """All hidden units."""
        return sum(layer.width for layer in self.layers)


def rows(net: nn.Module, module: str, block: int = 1) -> tuple[Wire, ...]:
    """Incoming wires of the units of a linear layer or convolution, `block` rows of each parameter a unit.

    Weight rows and, where there is one, the bias; a weight-normalised layer also has a `scale` for each row. None where
    rows are not units' own (`row_obstacle`).
    """
    layer = net.get_submodule(module)
    if row_obstacle(net, module):
        return ()
    names = [name for name in ("weight", "scale", "bias") if isinstance(getattr(layer, name, None), Tensor)]
    return tuple(Wire(f"{module}.{name}", 0, block, fresh=float(name == "scale")) for name in names)


def width_of(net: nn.Module, module: str) -> int:
    """Number of outputs of a linear layer or convolution."""
    layer = net.get_submodule(module)
    return int(getattr(layer, "out_features", None) or layer.out_channels)  # type: ignore[arg-type]


def row_obstacle(net: nn.Module, module: str) -> str:
    """Why the rows of a layer's weights are not those of single units; "" when they are."""
    return str(getattr(net.get_submodule(module), "row_obstacle", "")).format(path=module)


def column_obstacle(net: nn.Module, module: str) -> str:
    """Why the columns of a layer's weights do not belong to single inputs; "" when they do."""
    return str(getattr(net.get_submodule(module), "column_obstacle", "")).format(path=module)


def columns(module: str, block: int = 1, offset: int = 0) -> Wire:
    """The wire by which a linear layer or convolution reads units: `block` columns of its weight each."""
    return Wire(f"{module}.weight", 1, block, offset)


def norm_rows(net: nn.Module, layer: Layer) -> tuple[Wire, ...]:
    """What belongs to each unit in the layer's normalisation: scale, shift, running mean and variance, where it has it.

    A unit has as many entries there as it has rows in its incoming weights.
    """
    if layer.norm is None:
        return ()
    block = layer.incoming[0].block if layer.incoming else 1
    norm = net.get_submodule(layer.norm)
    names = ("weight", "bias", "running_mean", "running_var")
    return tuple(Wire(f"{layer.norm}.{name}", 0, block) for name in names if getattr(norm, name, None) is not None)


def by_unit(feature: Tensor, unit_axis: int) -> Tensor:
    """Features as [b, units, positions], whatever the layer; positions = 1 for [b, units]. A view where that can be."""
    if unit_axis != 1:
        feature = feature.movedim(unit_axis, 1)
    return feature.unsqueeze(2) if feature.ndim == 2 else feature.flatten(2)
