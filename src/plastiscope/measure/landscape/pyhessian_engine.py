"""PyHessian as a second engine: top eigenvalues and trace of the same loss by another implementation (Yao et al. 2020).

PyHessian 0.1 finds eigenpairs by power iteration with deflation, in the order of magnitude, and the trace by plain
Hutchinson probes. Left to itself it averages what the loss function returns, stops its trace by a rule that is divided
by a signed mean, leaves graphs in `.grad` and the network in evaluation mode, and draws from the global generator.
None of this gets in or out here. Its density does not run on a current torch, and is not offered.
"""

import gc
import math
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.eigenpairs import Eigenpairs
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.memory import is_out_of_memory
from plastiscope.measure.landscape.operator import HessianOperator
from plastiscope.measure.landscape.trace import Estimate

POWER_ITERATIONS, TOLERANCE = 100, 1e-7
"""Limit of the power iteration for each eigenvalue, and the relative change it stops at."""
NEVER = -math.inf
"""A tolerance that the trace's stop rule never meets, so that exactly as many probes are drawn as are asked for."""
EIGENVALUE_GATE, GAP_GATE, TRACE_GATE = 1e-3, 1e-2, 4.0


@dataclass(frozen=True)
class SecondOpinion:
    """What PyHessian says.

    Attributes:
        values: float64 [k], by descending magnitude as far as power iteration sees it.
        vectors: unit rows [k, D]; zero at parameters without influence.
        residuals: ||H y - theta y|| by our own product, float64 [k].
        trace: mean and standard error of all probes; NaN where none was asked for.
        samples: v^T H v of each probe, float64 [n].
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    trace: Estimate
    samples: Tensor


def second_opinion(
    frozen: FrozenLoss, *, top: int, probes: int, seed: int, power_iters: int = POWER_ITERATIONS, tol: float = TOLERANCE
) -> SecondOpinion:
    """Top eigenpairs and trace of the Hessian of a frozen loss by PyHessian.

    Where the set fits into one micro-batch, it is one to PyHessian, too, and the graph is kept; else it goes over the
    batches of the frozen loss, weighted by their size.

    Args:
        frozen: the loss; on a CPU or a CUDA device, and of this process alone.
        top: eigenpairs, at most as many as there are parameters with influence.
        probes: of the trace, exactly.
        seed: of PyHessian's draws.
        power_iters: steps at most for each eigenpair.
        tol: relative change of an eigenvalue at which its iteration stops.

    Raises:
        ConfigError: another kind of device, samples on several processes, or a loss that PyHessian cannot take a second
            derivative of.
    """
    if frozen.shards or frozen.inputs.device.type not in ("cpu", "cuda"):
        raise ConfigError(
            "engine=pyhessian computes on one CPU or CUDA device, with all samples in one process; use engine=native"
        )
    unused = () if frozen.weight_decay else frozen.without_influence()
    used = [name for name in frozen.space.names if name not in unused]
    if not used:
        raise ConfigError("engine=pyhessian: the loss does not depend on any chosen parameter; use engine=native")
    top = min(top, sum(dict(frozen.net.named_parameters())[name].numel() for name in used))

    def ask() -> tuple[list[float], list[list[Tensor]], list[float]]:
        with _engine(frozen, used, seed) as engine:
            values, vectors = engine.eigenvalues(maxIter=power_iters, tol=tol, top_n=top) if top else ([], [])
            return values, vectors, engine.trace(maxIter=probes, tol=NEVER) if probes else []

    values, vectors, samples = frozen.fitting(ask)
    rows = [_whole(frozen, used, vector) for vector in vectors]
    found = torch.tensor(samples, dtype=torch.float64)
    return SecondOpinion(
        values=torch.tensor(values, dtype=torch.float64),
        vectors=torch.stack(rows) if rows else torch.empty(0, frozen.space.dimension),
        residuals=_residuals(frozen, values, rows),
        trace=Estimate.of(found) if probes else Estimate(math.nan, math.nan, 0),
        samples=found,
    )


class _ActiveOutputs(nn.Module):
    """The network as PyHessian sees it: from inputs to the outputs that count."""

    def __init__(self, frozen: FrozenLoss) -> None:
        super().__init__()
        self.net = frozen.net
        self.outputs = frozen.outputs

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outputs(inputs)


@contextmanager
def _engine(frozen: FrozenLoss, used: Sequence[str], seed: int) -> Iterator[Any]:
    """PyHessian's object; inside, it may do what it does, afterwards everything is as before."""
    from pyhessian import hessian

    device, parameters = frozen.inputs.device, dict(frozen.net.named_parameters())

    def mean(outputs: Tensor, targets: Tensor) -> Tensor:
        penalty = sum(parameters[name].square().sum() for name in used) if frozen.weight_decay else 0.0
        return frozen.per_sample(outputs, targets).mean() + 0.5 * frozen.weight_decay * penalty

    with ExitStack() as stack:
        stack.enter_context(_only_asking(parameters, used))
        stack.enter_context(_draws_of(seed, device))
        stack.enter_context(_as_default(frozen.parameters[0].dtype))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(torch.enable_grad())
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))
        stack.enter_context(warnings.catch_warnings())
        warnings.filterwarnings("ignore", message="Using backward\\(\\) with create_graph=True", category=UserWarning)
        batches = list(frozen.batches())
        data = {"data": batches[0]} if len(batches) == 1 else {"dataloader": batches}
        try:
            engine = hessian(_ActiveOutputs(frozen), mean, **data, cuda=device.type == "cuda")
            for name in used:  # the constructor has copied what it needs, and a graph hangs on each
                parameters[name].grad = None
            yield engine
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise ConfigError(
                f"PyHessian cannot take a second derivative here ({str(error).splitlines()[0]}); use engine=native"
            ) from None
        finally:
            engine = None
            gc.collect()  # graphs hang on it in a cycle


@contextmanager
def _only_asking(parameters: dict[str, nn.Parameter], used: Sequence[str]) -> Iterator[None]:
    """Inside, only these parameters ask for gradients and none has one."""
    before = {name: (p.requires_grad, p.grad) for name, p in parameters.items()}
    try:
        for name, parameter in parameters.items():
            parameter.requires_grad_(name in used)
            parameter.grad = None
        yield
    finally:
        for name, parameter in parameters.items():
            parameter.requires_grad_(before[name][0])
            parameter.grad = before[name][1]


@contextmanager
def _draws_of(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the global generators are seeded; afterwards they are as before."""
    of_numpy, of_python = np.random.get_state(), random.getstate()
    try:
        with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
    finally:
        np.random.set_state(of_numpy)
        random.setstate(of_python)


@contextmanager
def _as_default(dtype: torch.dtype) -> Iterator[None]:
    """Inside, new tensors are of this type, as PyHessian takes for granted."""
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        yield
    finally:
        torch.set_default_dtype(before)


def _whole(frozen: FrozenLoss, used: Sequence[str], vector: Sequence[Tensor]) -> Tensor:
    """A vector over the used parameters as a unit vector [D] over all chosen ones."""
    own = dict(zip(used, vector, strict=True))
    parts = zip(frozen.space.names, frozen.parameters, strict=True)
    flat = frozen.space.flat([own[name].detach() if name in own else torch.zeros_like(p) for name, p in parts])
    return flat / flat.double().norm().to(flat.dtype)


def _residuals(frozen: FrozenLoss, values: Sequence[float], rows: Sequence[Tensor]) -> Tensor:
    operator = HessianOperator(frozen)
    pairs = [(operator(row).double() - value * row.double()).norm() for value, row in zip(values, rows, strict=True)]
    return torch.stack(pairs).cpu() if pairs else torch.empty(0, dtype=torch.float64)


@dataclass(frozen=True)
class CrossCheck:
    """How far two engines differ.

    Attributes:
        eigenvalue: largest relative difference of the eigenvalues that both must have found; NaN if there is none.
        compared: how many these are.
        trace_z: difference of the traces in units of both standard errors together.
    """

    eigenvalue: float
    compared: int
    trace_z: float

    @property
    def agrees(self) -> bool:
        """Whether both lie inside the gates: 1e-3 relative, and 4 standard errors."""
        return not (self.eigenvalue > EIGENVALUE_GATE or abs(self.trace_z) >= TRACE_GATE)


def cross_check(pairs: Eigenpairs, trace: Estimate, other: SecondOpinion) -> CrossCheck:
    """Compare our eigenpairs and trace with PyHessian's.

    Eigenvalues are compared one by one in the order of magnitude, as far down as ours are known to be all there are,
    and only those which differ by more than 1 % from their neighbours in magnitude: power iteration does not settle
    between others. Ours should hold some at both ends, or those of the largest magnitude.
    """
    certain = _certain(pairs)
    differences = [
        abs(value - theirs) / abs(value)
        for (value, gap), theirs in zip(certain, other.values.tolist(), strict=False)
        if gap > GAP_GATE * abs(value)
    ]
    error = math.hypot(trace.standard_error, other.trace.standard_error)
    difference = trace.value - other.trace.value
    z = difference / error if error else math.copysign(math.inf, difference) if difference else 0.0
    return CrossCheck(max(differences, default=math.nan), len(differences), z)


def _certain(pairs: Eigenpairs) -> list[tuple[float, float]]:
    """Our values by descending magnitude, each with its gap in magnitude to whatever else there may be."""
    sizes, missing = pairs.values.abs(), _largest_missing(pairs)
    found = []
    for place in sizes.argsort(descending=True).tolist():
        others = torch.cat([sizes[:place], sizes[place + 1 :]])
        neighbour = (others - sizes[place]).abs().min().item() if len(others) else math.inf
        gap = min(neighbour, pairs.gaps[place].item(), sizes[place].item() - missing)
        if gap < 0:
            break
        found.append((pairs.values[place].item(), gap))
    return found


def _largest_missing(pairs: Eigenpairs) -> float:
    """Bound of the magnitude of what was not found: inwards of the last value at each end, by its gap."""
    if pairs.is_by_magnitude and pairs.num_top:
        return pairs.top[-1].abs().item()
    if not len(pairs.top) or not len(pairs.bottom):
        return math.inf
    highest = pairs.top[-1] - pairs.gaps[pairs.num_top - 1]
    lowest = pairs.bottom[-1] + pairs.gaps[pairs.num_top]
    return max(highest.item(), -lowest.item(), 0.0)
