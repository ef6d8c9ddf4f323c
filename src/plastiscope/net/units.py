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

    Block is 1 but where a convolution feeds a linear layer: a channel owns H*W columns. `offset` is the column of
    unit 0.
    """

    parameter: str
    axis: int
    block: int = 1
    offset: int = 0


@dataclass(frozen=True)
class Layer:
    """One hidden layer.

    Attributes:
        name: of the layer in logs and files.
        width: number of units (channels, neurons, MLP hidden units).
        site: where its features appear, after the activation.
        incoming: weight and bias rows of each unit.
        norm: path of the normalisation that directly follows the incoming weights, or None.
        consumers: every parameter that reads the units, in order of execution (of a block: convolution, shortcut).
        residual_group: name of the group of layers whose units are tied by identity paths, or None; a unit of the group
            is unit i of all its layers, read by the consumers of all of them.
        replaceable: whether a unit can be reset completely without touching an identity path.
        reason: why not, when it is not replaceable.
        unit_axis: of the features: 1 for [b, units] and [b, units, *positions], 2 for [b, tokens, units].
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


def rows(net: nn.Module, module: str) -> tuple[Wire, ...]:
    """Incoming wires of the units of a linear layer or convolution: weight rows and, where there is one, the bias."""
    has_bias = getattr(net.get_submodule(module), "bias", None) is not None
    return tuple(Wire(f"{module}.{name}", 0) for name in (("weight", "bias") if has_bias else ("weight",)))


def width_of(net: nn.Module, module: str) -> int:
    """Number of units (or outputs) of a linear layer or convolution."""
    return net.get_parameter(f"{module}.weight").shape[0]


def columns(module: str, block: int = 1) -> Wire:
    """The wire by which a linear layer or convolution reads units: `block` columns of its weight each."""
    return Wire(f"{module}.weight", 1, block)


def by_unit(feature: Tensor, unit_axis: int) -> Tensor:
    """Features as [b, units, positions], whatever the layer; positions = 1 for [b, units]. A view where that can be."""
    if unit_axis != 1:
        feature = feature.movedim(unit_axis, 1)
    return feature.unsqueeze(2) if feature.ndim == 2 else feature.flatten(2)
