"""Which route to Hessian products, and which micro-batch, is the fastest here: measured, then chosen.

No route wins everywhere, on a CPU neither does a size of batch; so each is timed on the frozen set itself. What was
chosen goes into the record, and a run that goes on takes it from there, so that equal runs stay equal.
"""

import gc
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.memory import Adaptation
from plastiscope.measure.landscape.operator import Backend, HessianOperator

MICRO_BATCHES = (32, 128, 512)
LINEARISE_FROM = 50
"""Planned products from which building a linearisation can pay."""
NOT_IMPLEMENTED = (NotImplementedError, RuntimeError)
"""What torch raises where a layer has no forward mode."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate: `build` once, then `product` each; `reason` why it cannot be used, else ""."""

    backend: Backend
    micro_batch: int
    build: float
    product: float
    reason: str = ""

    def total(self, planned: int) -> float:
        """Seconds of so many products."""
        return self.build + planned * self.product


def time_candidates(
    frozen: FrozenLoss,
    planned: int,
    backends: Sequence[Backend] = (Backend.retained, Backend.rebuilt, Backend.linearised, Backend.jvp),
    micro_batches: Sequence[int] = MICRO_BATCHES,
) -> list[Timing]:
    """Time two products of every candidate; the smaller counts.

    Args:
        frozen: the loss.
        planned: products that will be asked for.
        backends: routes; `linearised` is left out below LINEARISE_FROM products.
        micro_batches: sizes; those above the set's are one. Where samples depend on each other, the loss' own alone.
    """
    sizes = _sizes(frozen, micro_batches)
    found = []
    for backend in backends:
        if backend is Backend.linearised and planned < LINEARISE_FROM:
            continue
        found += [_timed(frozen.with_micro_batch(size), backend) for size in sizes]
    return found


def choose_candidate(timings: Sequence[Timing], planned: int) -> Timing:
    """The one that is the fastest for so many products.

    Raises:
        ConfigError: none can be used.
    """
    usable = [timing for timing in timings if not timing.reason]
    if not usable:
        reasons = "; ".join(f"{t.backend.value}, {t.micro_batch}: {t.reason}" for t in timings)
        raise ConfigError(f"no route to products with the Hessian can be used ({reasons})")
    return min(usable, key=lambda timing: timing.total(planned))


def _sizes(frozen: FrozenLoss, micro_batches: Sequence[int]) -> list[int]:
    """The sizes that are tried, ascending."""
    tried = [frozen.micro_batch] if frozen.coupling_modules else micro_batches
    return sorted({min(size, len(frozen)) for size in tried})


def _timed(frozen: FrozenLoss, backend: Backend) -> Timing:
    operator = HessianOperator(frozen, backend, adapts=False)
    vector = torch.ones(operator.space.dimension, dtype=operator.dtype, device=operator.device)
    try:
        first = _seconds(operator, vector)
        later = min(_seconds(operator, vector) for _ in range(2))
        return Timing(backend, frozen.micro_batch, max(first - later, 0.0), later)
    except torch.OutOfMemoryError:
        return Timing(backend, frozen.micro_batch, 0.0, 0.0, "it does not fit into memory")
    except NOT_IMPLEMENTED as error:
        return Timing(backend, frozen.micro_batch, 0.0, 0.0, str(error).splitlines()[0])
    finally:
        operator.release()
        gc.collect()


def _seconds(operator: HessianOperator, vector: Tensor) -> float:
    began = time.perf_counter()
    product = operator(vector)
    if product.is_cuda:
        torch.cuda.synchronize(product.device)
    return time.perf_counter() - began


def time_forward(frozen: FrozenLoss, micro_batches: Sequence[int] = MICRO_BATCHES) -> dict[int, float]:
    """Seconds of one evaluation of this process' samples by micro-batch size, the smaller of two.

    A size that does not fit into memory stands for the largest half, quarter, ... that does.
    """
    found = {}
    for size in _sizes(frozen, micro_batches):
        sized = replace(frozen.alone(), micro_batch=size, adaptation=Adaptation())
        sized.value().item()
        taken = []
        for _ in range(2):
            began = time.perf_counter()
            sized.value().item()
            taken.append(time.perf_counter() - began)
        found[sized.batch_size] = min(taken)
    return found
