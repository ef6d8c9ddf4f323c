"""The units of a network as slices of its parameters, for learners that replace units.

The unit description names parameters and columns; here they are bound to the tensors of one module. Every tensor may
have leading axes (replicas that advance together): axes of a wire count from the right of the unstacked shape.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from math import prod

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.net.units import TIED, Layer, UnitDescription, Wire
from plastiscope.net.weight_normalised import WeightNormalised


class ResidualMode(Enum):
    """Which units of a residual network are replaced."""

    inner_only = "inner_only"
    """Those no identity path ties to others: the inner channels of each block."""
    group = "group"
    """Those too; channels tied by identity paths are one unit, with all their consumers."""
    legacy = "legacy"
    """Every layer by itself, with its first consumer only; tied units stay visible to the others (as published)."""


@dataclass(frozen=True, eq=False)
class Slices:
    """What of one tensor belongs to each unit of a layer.

    Attributes:
        name: of the parameter or buffer.
        tensor: the parameter or buffer itself, [*lead, ...].
        axis: of the units in the unstacked tensor.
        width: number of units.
        block: entries of the axis for each unit.
        offset: the entry of unit 0.
        lead: number of leading axes.
        fresh: what a fresh unit has there, if it is not drawn.
        normed: the layer, where it divides the rows of the parameter by their lengths.
    """

    name: str
    tensor: Tensor
    axis: int
    width: int
    block: int = 1
    offset: int = 0
    lead: int = 0
    fresh: float = 0.0
    normed: WeightNormalised | None = None

    def effective(self) -> Tensor:
        """What inputs are multiplied with, of the parameter's shape; without its derivatives."""
        return self.tensor.detach() if self.normed is None else self.normed.effective_weight().detach()

    def view(self, tensor: Tensor | None = None) -> Tensor:
        """A tensor of the parameter's shape (by default its own) as a view [*lead, units, ...]."""
        tensor = self.tensor.detach() if tensor is None else tensor
        axis = self.axis + self.lead
        part = tensor.narrow(axis, self.offset, self.width * self.block).unflatten(axis, (self.width, self.block))
        return part.movedim(axis, self.lead)

    def along_axis(self, vector: Tensor) -> Tensor:
        """A vector [*lead, n] with one value for each entry of the axis, as a view [*lead, units, block]."""
        return vector.narrow(-1, self.offset, self.width * self.block).unflatten(-1, (self.width, self.block))

    @property
    def is_bias(self) -> bool:
        """Whether a unit owns one value a row, a bias or a scale, which is not drawn."""
        return self.tensor.ndim - self.lead == 1

    @property
    def fan_in(self) -> int:
        """Inputs of each of a unit's rows."""
        return prod(self.tensor.shape[self.lead :]) // self.tensor.shape[self.lead + self.axis]

    @property
    def fan_out(self) -> int:
        """Outputs that each input reaches, times the positions of a kernel."""
        return self.tensor.shape[self.lead] * prod(self.tensor.shape[self.lead + 2 :])


@dataclass(frozen=True, eq=False)
class Consumer:
    """A parameter that reads the units; its bias, if there is one.

    `is_normalised`: a normalisation by the statistics of each of its units follows, which takes a constant shift away.
    """

    weight: Slices
    bias: Tensor | None
    is_normalised: bool

    @contextmanager
    def keeping_others(self) -> Iterator[None]:
        """Inside, columns are set to 0; what the other units are multiplied with stays."""
        with ExitStack() as stack:
            if self.weight.normed is not None:
                stack.enter_context(self.weight.normed.keeping_effective_weights())
            yield


@dataclass(frozen=True, eq=False)
class Part:
    """One layer whose units are replaced.

    Attributes:
        layer: of the unit description.
        incoming: weights and biases that make the units.
        consumers: what reads them.
        norm: parameters and buffers of the normalisation, with the value of a fresh unit.
    """

    layer: Layer
    incoming: tuple[Slices, ...]
    consumers: tuple[Consumer, ...]
    norm: tuple[tuple[Slices, float], ...]

    @property
    def weights(self) -> tuple[Slices, ...]:
        """The incoming weights without the biases."""
        return tuple(slices for slices in self.incoming if not slices.is_bias)


@dataclass(frozen=True, eq=False)
class UnitSet:
    """Units that are chosen among each other: those of one layer, or of several that identity paths tie together."""

    name: str
    width: int
    parts: tuple[Part, ...]


FRESH_NORM = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
"""What a normalisation's tensors hold for a fresh unit."""


def unit_sets(net: nn.Module, units: UnitDescription, mode: ResidualMode, lead: int = 0) -> tuple[UnitSet, ...]:
    """The units of `net` that can be replaced, bound to its tensors.

    Args:
        net: the module that is trained.
        units: its description.
        mode: what becomes of units that identity paths tie together.
        lead: number of leading axes of every parameter.

    Raises:
        ConfigError: a layer whose units cannot be replaced completely, or a description that does not fit the module;
            names the layer and the reason.
    """
    binder = _Binder(net, units, mode is ResidualMode.legacy, lead)
    sets: dict[str, UnitSet] = {}
    for layer in units.layers:
        is_tied = layer.reason == TIED and not layer.replaceable
        if not layer.replaceable and (not is_tied or (mode is ResidualMode.group and layer.residual_group is None)):
            raise ConfigError(
                f"the units of layer {layer.name} of this network cannot be replaced: {layer.reason or 'no reason'}. "
                "Use a learner that replaces no units, or another network"
            )
        if is_tied and mode is ResidualMode.inner_only:
            continue
        name = layer.residual_group if is_tied and mode is ResidualMode.group else layer.name
        assert name is not None
        before = sets[name].parts if name in sets else ()
        if before and before[0].layer.width != layer.width:
            raise _misfit(layer, f"has {layer.width} units, the others of its group {before[0].layer.width}")
        sets[name] = UnitSet(name, layer.width, (*before, binder.part(layer)))
    if not sets:
        raise ConfigError("this network has no unit that can be replaced; use a learner that replaces none")
    return tuple(sets.values())


def _misfit(layer: Layer, what: str) -> ConfigError:
    return ConfigError(
        f"the unit description does not fit the network: layer {layer.name} {what}. Mend the network's "
        "unit_description(), or leave it out so that it is discovered"
    )


class _Binder:
    """Binds the wires of a description to the tensors of a module."""

    def __init__(self, net: nn.Module, units: UnitDescription, is_legacy: bool, lead: int) -> None:
        self.net, self.is_legacy, self.lead = net, is_legacy, lead
        self.parameters = dict(net.named_parameters())
        self.normalised: set[str] = set()
        for layer in units.layers:
            for wires, norm in ((layer.incoming, layer.norm), (layer.shortcut, layer.shortcut_norm)):
                if norm is not None and not isinstance(self._norm_module(layer, norm), nn.LayerNorm | nn.GroupNorm):
                    self.normalised |= {wire.parameter for wire in wires}

    def part(self, layer: Layer) -> Part:
        """The tensors of one layer."""
        consumers, incoming, norms = layer.consumers, layer.incoming, [layer.norm]
        if self.is_legacy:
            consumers = consumers[:1]
        else:
            incoming, norms = incoming + layer.shortcut, [layer.norm, layer.shortcut_norm]
        if not consumers or not incoming:
            raise _misfit(layer, "has no weights that make its units" if consumers else "has no consumer")
        try:
            self.net.get_submodule(layer.site.module)
        except AttributeError:
            raise _misfit(layer, f"has its features at {layer.site.module!r}, which is no module") from None
        part = Part(
            layer=layer,
            incoming=tuple(self._slices(layer, wire) for wire in incoming),
            consumers=tuple(self._consumer(layer, wire) for wire in consumers),
            norm=tuple(entry for norm in norms if norm for entry in self._norm(layer, norm)),
        )
        if not part.weights:
            raise _misfit(layer, "has no weights that make its units")
        return part

    def _slices(self, layer: Layer, wire: Wire) -> Slices:
        parameter = self.parameters.get(wire.parameter)
        if parameter is None:
            raise _misfit(layer, f"names the parameter {wire.parameter!r}, which is not there")
        shape = parameter.shape[self.lead :]
        needed = wire.offset + layer.width * wire.block
        if wire.axis >= len(shape) or needed > shape[wire.axis]:
            raise _misfit(layer, f"needs {needed} entries of axis {wire.axis} of {wire.parameter} {tuple(shape)}")
        module = self.net.get_submodule(wire.parameter.rpartition(".")[0])
        normed = module if isinstance(module, WeightNormalised) and parameter is module.weight else None
        place = (wire.axis, layer.width, wire.block, wire.offset, self.lead)
        return Slices(wire.parameter, parameter, *place, wire.fresh, normed)

    def _consumer(self, layer: Layer, wire: Wire) -> Consumer:
        bias = self.parameters.get(f"{wire.parameter.rpartition('.')[0]}.bias")
        return Consumer(self._slices(layer, wire), bias, wire.parameter in self.normalised)

    def _norm_module(self, layer: Layer, path: str) -> nn.Module:
        try:
            return self.net.get_submodule(path)
        except AttributeError:
            raise _misfit(layer, f"has the normalisation {path!r}, which is not there") from None

    def _norm(self, layer: Layer, path: str) -> Iterator[tuple[Slices, float]]:
        norm = self._norm_module(layer, path)
        tensors: list[tuple[str, Tensor]] = [*norm.named_parameters(recurse=False), *norm.named_buffers(recurse=False)]
        for name, tensor in tensors:
            if name not in FRESH_NORM:
                continue  # a count of batches
            block = layer.incoming[0].block  # as many rows as the weights before it have for each unit
            if tensor.ndim == self.lead or tensor.shape[self.lead] != layer.width * block:
                raise _misfit(layer, f"has {layer.width} units, {path}.{name} {tuple(tensor.shape[self.lead :])}")
            yield Slices(f"{path}.{name}", tensor, 0, layer.width, block, lead=self.lead), FRESH_NORM[name]


class Chosen(ABC):
    """The units of a set that are replaced, on the device; nothing here asks how many they are."""

    @abstractmethod
    def take(self, view: Tensor) -> Tensor:
        """What a view [*lead, units, ...] holds for the candidates, [*lead, k, ...]."""

    @abstractmethod
    def put(self, view: Tensor, value: Tensor | float) -> None:
        """Write `value` [*lead, k, ...] into the chosen units of a view [*lead, units, ...]."""

    @abstractmethod
    def kept(self, value: Tensor) -> Tensor:
        """`value` [*lead, k, ...] of the candidates, 0 for those that are not chosen."""

    ids: Tensor
    """Candidates, int64 [*lead, k]."""


class ByIndex(Chosen):
    """So many units, named by their indices int64 [*lead, k]."""

    def __init__(self, ids: Tensor) -> None:
        """Choose the units `ids`."""
        self.ids = ids
        grids = torch.meshgrid([torch.arange(n, device=ids.device) for n in ids.shape], indexing="ij")
        self._at = (*grids[:-1], ids)

    def take(self, view: Tensor) -> Tensor:
        """A copy of the chosen units' values."""
        return view[self._at]

    def put(self, view: Tensor, value: Tensor | float) -> None:
        """Write into the chosen units."""
        view[self._at] = value

    def kept(self, value: Tensor) -> Tensor:
        """All candidates are chosen."""
        return value


class ByMask(Chosen):
    """The units where a mask, bool [*lead, units], holds: only the device knows how many."""

    def __init__(self, mask: Tensor) -> None:
        """Choose the units where `mask` holds."""
        self.mask = mask
        self.ids = torch.arange(mask.shape[-1], device=mask.device).expand(mask.shape)

    def take(self, view: Tensor) -> Tensor:
        """All units are candidates."""
        return view

    def put(self, view: Tensor, value: Tensor | float) -> None:
        """Write where the mask holds."""
        view.copy_(torch.where(self._beside(view), value, view))

    def kept(self, value: Tensor) -> Tensor:
        """0 where the mask does not hold; whatever stands there."""
        return torch.where(self._beside(value), value, 0.0)

    def _beside(self, view: Tensor) -> Tensor:
        return self.mask.reshape(self.mask.shape + (1,) * (view.ndim - self.mask.ndim))
