"""The unit description: what the hidden units of a network are, and how they are wired; data, made once.

Ranks, dormancy, unit replacement and replicas all read this one description.
"""

from dataclasses import dataclass


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
    """Part of a parameter that belongs to each unit of a layer: unit i owns columns i*block .. (i+1)*block - 1 of `axis`.

    Block is 1 but where a convolution feeds a linear layer: a channel owns H*W columns. `offset` is the column of unit 0.
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
        consumers: every parameter that reads the units.
        residual_group: name of the group of layers whose units are tied by identity paths, or None.
        replaceable: whether a unit can be reset completely without touching an identity path.
        reason: why not, when it is not replaceable.
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


@dataclass(frozen=True)
class UnitDescription:
    """The hidden layers of a network in order from the input, and its head.

    `head` is the path of the module that gives the outputs ("" when it is not known).
    """

    layers: tuple[Layer, ...]
    head: str

    @property
    def num_units(self) -> int:
        """All hidden units."""
        return sum(layer.width for layer in self.layers)
