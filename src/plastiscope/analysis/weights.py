"""Sizes of a network's weights and how far they have come, layer by layer."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from plastiscope.analysis.parameters import TOTAL, by_layer, parameters_of, rows_of
from plastiscope.event import Context
from plastiscope.learner.effective_lr import EFFECTIVE_LR
from plastiscope.measure.optimisation import distance, effective_lr, norm, unit_norms
from plastiscope.measure.rank_dynamics import weight_sv_gini
from plastiscope.measure.weight import weight_mag_all, weight_mag_layer, weight_mag_weights
from plastiscope.net.projection import SquareMap
from plastiscope.net.scale_invariance import scale_invariant
from plastiscope.net.svd import Factors

LayerNumbers = dict[tuple[str, str], float]
"""Numbers by (layer or "total", quantity)."""


def magnitudes(net: nn.Module, parts: Mapping[str, list[Tensor]]) -> LayerNumbers:
    """weight_mag_layer of each layer, weight_mag_all and weight_mag_weights of the network."""
    numbers = {(name, "weight_mag_layer"): weight_mag_layer(part) for name, part in parts.items() if name != TOTAL}
    numbers[TOTAL, "weight_mag_all"] = weight_mag_all(net)
    numbers[TOTAL, "weight_mag_weights"] = weight_mag_weights(net)
    return numbers


def sizes(context: Context, parts: Mapping[str, list[Tensor]]) -> LayerNumbers:
    """weight_norm by layer, and effective_lr of the hidden layers: NaN where the weights are not scale-invariant.

    weight_norm is that of the matrices; before a norm over several units (layer, group) their bias belongs to it, as
    only together they are scale-invariant. Filters that are normalised one by one, by a norm or as weight-normalised
    rows, also have effective_lr_unit, the mean over filters of lr / ||w_i||^2.
    """
    net, adaptive = context.net, is_adaptive(context.optimizer)
    parameters = parameters_of(net)
    numbers = {(name, "weight_norm"): norm(_matrices(part)).item() for name, part in parts.items()}
    for layer in context.units.layers:
        if not layer.incoming:
            continue
        numbers[layer.name, "effective_lr"] = float("nan")
        invariant = scale_invariant(net, layer.incoming, layer.norm)
        if invariant is None:
            continue
        own = rows_of(layer, invariant.wires, parameters)
        size = norm(own)
        lr = step_size(context.optimizer, net.get_parameter(invariant.wires[0].parameter), size)
        if invariant.by_filter:
            rates = effective_lr(lr, unit_norms(own[0]), adaptive)
            numbers[layer.name, "effective_lr_unit"] = rates.mean().item()
        numbers[layer.name, "weight_norm"] = size.item()
        numbers[layer.name, "effective_lr"] = effective_lr(lr, size, adaptive).item()
    return numbers


def singular_values_of(net: nn.Module) -> LayerNumbers:
    """smallest_singular_value (and of layers of factors the largest) of layers that hold a square map or factors."""
    found: LayerNumbers = {}
    for path, module in net.named_modules():
        if isinstance(module, SquareMap | Factors):
            found |= {(path, quantity): value for quantity, value in module.numbers().items()}
    return found


def weight_ginis(net: nn.Module) -> LayerNumbers:
    """weight_sv_gini of each weight of two or more dimensions, kernels as [outputs, inputs h w], by its module."""
    return {
        (name.removesuffix(".weight"), "weight_sv_gini"): weight_sv_gini(torch.linalg.svdvals(p.flatten(1).double()))
        for name, p in parameters_of(net).items()
        if p.ndim >= 2
    }


def distances(parts: Mapping[str, list[Tensor]], origin: Mapping[str, list[Tensor]], quantity: str) -> LayerNumbers:
    """||theta - origin||_2 by layer, biases included."""
    return {(name, quantity): distance(part, origin[name]).item() for name, part in parts.items()}


def drift(context: Context, initial: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> LayerNumbers:
    """dist_init and dist_init_rel if `initial` is known, dist_task if `first` is.

    Args:
        context: of the run.
        initial: parameters at initialisation, by name, or empty.
        first: parameters as the task began, or empty.
    """
    parameters = parameters_of(context.net)
    parts = by_layer(context.units, parameters)
    numbers: LayerNumbers = {}
    if initial:
        origin = by_layer(context.units, {name: initial[name].to(p.device) for name, p in parameters.items()})
        numbers = distances(parts, origin, "dist_init")
        relative = {name: numbers[name, "dist_init"] / norm(part) for name, part in origin.items()}
        numbers |= {(name, "dist_init_rel"): value.item() for name, value in relative.items()}
    if first:
        begun = by_layer(context.units, {name: first[name].to(p.device) for name, p in parameters.items()})
        numbers |= distances(parts, begun, "dist_task")
    return numbers


def is_adaptive(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the step's size does not depend on the gradient's scale, as in Adam and its kind."""
    return not isinstance(optimizer, torch.optim.SGD)


def step_size(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, size: Tensor) -> float:
    """The step size in force for a parameter; 0 for one that is not trained.

    Where the effective rate is held constant, the step size is that rate times ||w||^2 (Adam and its kind: ||w||).

    Args:
        optimizer: of the run.
        parameter: of its layer's scale-invariant weights.
        size: ||w|| of all of these.
    """
    for group in optimizer.param_groups:
        if any(p is parameter for p in group["params"]):
            if EFFECTIVE_LR in group:
                return float(group[EFFECTIVE_LR] * size ** (1 if is_adaptive(optimizer) else 2))
            return float(group["lr"])
    return 0.0


def _matrices(part: list[Tensor]) -> list[Tensor]:
    return [tensor for tensor in part if tensor.ndim >= 2]
