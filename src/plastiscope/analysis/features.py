"""Features of a network's layers on a sample: one pass, reduced where they appear."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plastiscope.analysis.sample import Sample
from plastiscope.measure.dormant import UnitActivity, activity
from plastiscope.net.activation import MaxOut
from plastiscope.net.capture import capture
from plastiscope.net.units import Layer, Site, by_unit


@dataclass
class LayerFeatures:
    """What a pass leaves of a layer.

    Attributes:
        matrix: [n, units] means over positions, float64; or [n, units * positions] as they are, float32.
        activity: of its units over the sample.
    """

    matrix: Tensor
    activity: UnitActivity


def collect(
    net: nn.Module,
    layers: Sequence[Layer],
    sample: Sample,
    batch_size: int,
    flatten: bool = False,
    weights: Mapping[str, Tensor] | None = None,
) -> dict[str, LayerFeatures]:
    """Features of `layers`, by name.

    Args:
        net: in evaluation mode.
        layers: of its unit description.
        sample: clean inputs, in its order.
        batch_size: samples in a forward.
        flatten: keep positions apart instead of averaging over them; takes n * units * positions floats a layer.
        weights: a state dict to look with instead of the network's own, which is left as it is.

    Raises:
        ConfigError: an activation did not run.
    """
    by_site = {layer.site: layer for layer in layers}
    matrices: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    activities: dict[str, UnitActivity] = {}

    def receive(site: Site, feature: Tensor) -> None:
        layer = by_site[site]
        positions = by_unit(feature, layer.unit_axis)
        # both make new tensors: a later in-place module may overwrite the feature
        reduced = positions.flatten(1).clone() if flatten else positions.mean(2, dtype=torch.float64)
        matrices[layer.name].append(reduced)
        seen = activity(feature, layer.activation, layer.unit_axis)
        activities[layer.name] = activities[layer.name] + seen if layer.name in activities else seen

    with torch.no_grad(), capture(net, by_site, receive):
        for batch in sample.batches(batch_size):
            if weights is None:
                net(batch.inputs)
            else:
                torch.func.functional_call(net, dict(weights), (batch.inputs,))
    return {name: LayerFeatures(torch.cat(rows), activities[name]) for name, rows in matrices.items()}


def unused_pieces(net: nn.Module, layers: Sequence[Layer], sample: Sample, batch_size: int) -> dict[str, float]:
    """`maxout_unused` of the layers with maxout, by name: the share of their pieces that never win on a sample.

    Args:
        net: in evaluation mode.
        layers: of its unit description.
        sample: clean inputs.
        batch_size: samples in a forward.
    """
    modules = {layer.name: net.get_submodule(layer.site.module) for layer in layers if layer.site.function is None}
    wins: dict[str, Tensor] = {}

    def count(name: str, module: MaxOut, z: Tensor) -> None:
        wins[name] = wins[name] + module.wins(z)

    with torch.no_grad(), ExitStack() as stack:
        for name, module in modules.items():
            if isinstance(module, MaxOut):
                hook = module.register_forward_pre_hook(lambda module, given, name=name: count(name, module, given[0]))
                stack.callback(hook.remove)
                wins[name] = torch.zeros((), dtype=torch.int64, device=sample.ids.device)
        if wins:
            for batch in sample.batches(batch_size):
                net(batch.inputs)
    return {name: (found == 0).double().mean().item() for name, found in wins.items()}
