"""Curvature of each sample's loss with respect to its input, from differences of gradients along random signs.

H is the Hessian of a sample's loss in its input (not in the weights). With signs v in {-1, +1}^d and a step h,

    forward:  dg = g(x + h v) - g(x),               dg / h = H v + O(h)
    central:  dg = (g(x + h v) - g(x - h v)) / 2,   dg / h = H v + O(h^2)

E ||H v||^2 = ||H||_F^2 and E v^T H v = tr H (Hutchinson). The difference itself is the definition: in a ReLU network H
is almost everywhere the softmax's part alone, while the difference sees the kinks within reach of h (after Garg & Roy
2023, "Samples with low loss curvature improve data efficiency").
"""

import copy
import math
from dataclasses import dataclass
from enum import Enum
from functools import cache

import torch
from torch import Tensor, nn

from plastiscope.measure.keyed import keyed_bits
from plastiscope.measure.loss import Loss
from plastiscope.measure.sample_gradient import InputGradients, input_gradient, input_gradients, sample_norms

PURPOSE = "input_curvature"
"""Key of the directions among the random numbers of a run."""
ROWS_AT_ONCE = 512
"""Rows of a forward up to which several directions share it; measured, benchmarks/input_curvature.py."""


class Difference(Enum):
    """How gradients are compared."""

    forward = "forward"
    """With the gradient at the sample, which all directions share; error O(h)."""
    central = "central"
    """On both sides of the sample; twice the cost, error O(h^2)."""

    @property
    def default_step(self) -> float:
        """The h where truncation and float32 rounding are in balance."""
        return 1e-3 if self is Difference.forward else 1e-2


@dataclass(frozen=True, kw_only=True)
class Probe:
    """How the curvature is probed.

    Attributes:
        seed: of the run, for the directions.
        directions: n, how many.
        difference: forward or central.
        step: h, in normalised units, or in pixel units if `unit` is given; None = the default of `difference`.
        temperature: outputs are divided by it before the loss.
        unit: size of a pixel unit in normalised units, broadcasting against one input (1 / std of each channel): then
            H is that of the loss in pixel units, by the chain rule.
    """

    seed: int
    directions: int = 10
    difference: Difference = Difference.forward
    step: float | None = None
    temperature: float = 1.0
    unit: Tensor | None = None

    @property
    def h(self) -> float:
        """The step in use."""
        return self.difference.default_step if self.step is None else self.step


@dataclass(frozen=True, eq=False, kw_only=True)
class InputCurvature:
    """Curvature of the samples of a batch, each [b]; in loss per squared unit of the input.

    Attributes:
        norm: `input_curv_norm` = mean_k ||dg_k|| / h.
        fro2: `input_curv_fro2` = mean_k ||dg_k||^2 / h^2, unbiased for ||H||_F^2 but for the step's error.
        trace: `input_trace` = mean_k v_k^T dg_k / h, unbiased for tr H likewise.
        rayleigh_mean: `input_rayleigh_mean` = trace / d, the mean eigenvalue.
        noise: what rounding alone gives for `norm`, an estimate; a `norm` that is not above it says nothing.
        losses: at the sample.
        gradient_norms: `grad_input_l2` at the sample, in normalised units.
        h: the step.
    """

    norm: Tensor
    fro2: Tensor
    trace: Tensor
    rayleigh_mean: Tensor
    noise: Tensor
    losses: Tensor
    gradient_norms: Tensor
    h: float

    @property
    def legacy_curv(self) -> Tensor:
        """`legacy_curv` = mean_k ||dg_k||, not divided by h: the published quantity, proportional to the step."""
        return self.norm * self.h

    @property
    def legacy_directional_eig(self) -> Tensor:
        """`legacy_directional_eig` = mean_k (h v_k)^T dg_k = h^2 `trace`; it is no eigenvalue."""
        return self.trace * self.h**2


def input_curvature(
    net: nn.Module, loss: Loss, inputs: Tensor, targets: Tensor, ids: Tensor, active_outputs: int, probe: Probe
) -> InputCurvature:
    """Input curvature of each sample; n + 1 gradient passes (forward differences) or 2 n + 1 (central).

    The directions of a sample depend on (seed, id) alone, bit for bit; its values also on the batch, by the rounding
    of matrix products whose order of summation depends on their shape.

    Args:
        net: network in evaluation mode, of the inputs' type (float64: `in_double`).
        loss: of a sample.
        inputs: [b, ...].
        targets: [b] or [b, k], as `loss` wants them.
        ids: int64 [b], of the samples.
        active_outputs: the loss sees the first so many outputs.
        probe: step, directions and what else there is to say.

    Raises:
        ConfigError: samples would see each other, or chance would; names the module.
    """
    b, d, h = len(inputs), inputs[0].numel(), probe.h
    at_once = max(1, ROWS_AT_ONCE // b)
    base = input_gradients(net, loss, inputs, targets, active_outputs, probe.temperature)
    bits = sign_bits(probe.seed, ids, torch.arange(probe.directions), d)
    several = targets.repeat(at_once, *[1] * (targets.ndim - 1))

    def gradients(shift: Tensor, step: float) -> Tensor:
        x = torch.add(inputs, shift, alpha=step).flatten(0, 1)
        found = input_gradient(net, loss, x, several[: len(x)], active_outputs, probe.temperature)
        return found.unflatten(0, (len(shift), b))

    norms, traces = [], []
    for some in bits.split(at_once):
        v = signs(some, inputs)
        shift = v if probe.unit is None else v * probe.unit
        dg = gradients(shift, h)
        if probe.difference is Difference.forward:
            dg -= base.inputs
        else:
            dg.sub_(gradients(shift, -h)).div_(2)
        dg *= shift  # v is -1 or +1: this is v * (unit dg), which has the norm of unit dg and v^T (unit dg) as its sum
        axes = tuple(range(2, dg.ndim))
        norms.append(torch.linalg.vector_norm(dg, dim=axes))
        traces.append(dg.sum(axes))
    each_norm, each_trace = torch.cat(norms).double() / h, torch.cat(traces).double() / h
    norm, fro2, trace = each_norm.mean(0), each_norm.square().mean(0), each_trace.mean(0)
    return InputCurvature(
        norm=norm,
        fro2=fro2,
        trace=trace,
        rayleigh_mean=trace / d,
        noise=_noise(loss, base, probe),
        losses=base.losses,
        gradient_norms=sample_norms(base.inputs),
        h=h,
    )


def legacy_divisors(n: int, batch_size: int) -> Tensor:
    """Size of the batch in which each of n samples was, float64 [n], if they were taken in order.

    Published scripts differentiate the mean loss of a batch, so their values are those of the sum divided by it; the
    last, ragged batch has a divisor of its own.
    """
    positions = torch.arange(n)
    return (n - positions.div(batch_size, rounding_mode="floor") * batch_size).clamp(max=batch_size).double()


def sign_bits(seed: int, ids: Tensor, ks: Tensor, d: int) -> Tensor:
    """Random bits for the directions of samples, the same on every device and in every batch.

    Pixel j (row-major in one input) of direction k of a sample has bit j mod 64 of the 64 keyed bits with the counter
    k 2^32 + j div 64, so one hash serves 64 pixels.

    Args:
        seed: of the run.
        ids: int64 [b], of the samples.
        ks: int64 [m], which directions.
        d: pixels of a sample, channels included.

    Returns:
        uint8 [m, b, 8 ceil(d / 64)], lowest bits first.
    """
    words = torch.arange(-(-d // 64), device=ids.device)
    counters = (ks.to(ids.device)[:, None, None] << 32) + words
    return keyed_bits(seed, PURPOSE, ids[:, None], counters).view(torch.uint8)  # little-endian, as all devices are


def signs(bits: Tensor, like: Tensor) -> Tensor:
    """The directions of `sign_bits` as -1 (bit 1) or +1, [m, b, ...] of the shape and type of inputs [b, ...]."""
    table = _signs_of_octets(like.dtype, like.device)
    pixels = torch.nn.functional.embedding(bits.int(), table).flatten(2)[..., : like[0].numel()]
    return pixels.reshape(len(bits), *like.shape)


@cache
def _signs_of_octets(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Signs of the bits of each octet, lowest first, [256, 8]."""
    bits = torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device) & 1
    return (1 - 2 * bits).to(dtype)


def in_double(net: nn.Module) -> nn.Module:
    """A copy of the network in float64, with modes and flags as they are."""
    return copy.deepcopy(net).double()


def _noise(loss: Loss, base: InputGradients, probe: Probe) -> Tensor:
    """What rounding alone gives for ||dg|| / h, [b]: an estimate of its order of magnitude.

    A gradient is known to a unit in the last place of itself, and no better than the gradient by the outputs is known:
    that of cross-entropy is p - y, rounded where p is near 1, however small the difference. The gradient by the inputs
    passes this on with the gain ||g|| / ||d loss / d outputs||.
    """
    gradient = base.inputs if probe.unit is None else base.inputs * probe.unit
    norms, by_outputs = sample_norms(gradient).double(), sample_norms(base.by_outputs).double()
    k = base.outputs[0].numel()
    if loss is Loss.mse:
        size = 2 * base.outputs.abs().flatten(1).amax(1).double() / (k * probe.temperature**2)
    else:
        size = torch.ones_like(norms) / (probe.temperature * (1 if loss is Loss.cross_entropy else k))
    gain = torch.where(by_outputs > 0, norms / by_outputs, 0.0)
    gradients = 1 if probe.difference is Difference.forward else 0.5
    return math.sqrt(2) * gradients * torch.finfo(gradient.dtype).eps * (norms + gain * size) / probe.h
