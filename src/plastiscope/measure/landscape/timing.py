"""Which route to curvature products, and which micro-batch, is the fastest here: measured, then chosen.

No route wins everywhere, on a CPU neither does a size of batch; so each is timed on samples of the frozen set itself.
What was chosen goes into the record, and a run that goes on takes it from there, so that equal runs stay equal.
"""

import gc
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import torch

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.krylov import freed
from plastiscope.measure.landscape.memory import Adaptation, budget, is_out_of_memory
from plastiscope.measure.landscape.operator import KEPT, Backend, FrozenOperator, HessianOperator, NonFiniteProduct
from plastiscope.measure.loss import Loss

MICRO_BATCHES = (32, 128, 512)
TIMED = (Backend.retained, Backend.rebuilt, Backend.jvp)
"""Routes that are always timed."""
PART = 128
"""Samples that a smaller micro-batch is timed on, so that kept graphs do not all fit into a cache."""
LINEARISE_ABOVE = 30.0
"""Planned seconds from which tracing the gradient can pay: it takes seconds for each micro-batch of a deep network."""
FAR_OFF = 2.0
"""A first product, which also warms up, takes less than so many later ones."""
CLOSE = 1.3
"""A route that is so much slower with one size is not tried with others."""
RIVAL = 1.5
"""What seems no more than so much slower than the best is timed again, in a race."""
ROUNDS = 3
"""Of a race."""
ROWS = 16
"""Vectors of the basis that the bookkeeping of a Lanczos step is timed with."""
AGAIN_FROM = 150
"""Planned products from which timing again is cheap."""


@dataclass(frozen=True)
class Timing:
    """Seconds of one candidate over the samples of this process.

    Attributes:
        backend: the route.
        micro_batch: samples at a time.
        build: seconds once.
        product: seconds of each product.
        reason: why it is out of the question, else "".
    """

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
    backends: Sequence[Backend] | None = None,
    micro_batches: Sequence[int] = MICRO_BATCHES,
    kind: type[FrozenOperator] = HessianOperator,
) -> list[Timing]:
    """Time the products of every candidate that has a chance.

    All routes are timed with the middle size, those that come close to the fastest with the others, too; each on a few
    samples only, and given up where its first product shows that it cannot be the best. Few samples favour one size
    and few micro-batches another, so what is close to the best is then timed on like terms: on the same samples, the
    largest micro-batch of all, in turns. The smallest time counts: what disturbs the machine only ever makes a time
    longer. No other process takes part.

    Args:
        frozen: the loss.
        planned: products that will be asked for.
        backends: routes. By default `TIMED`, and then `linearised` with the best size, where more than LINEARISE_ABOVE
            seconds are planned and the loss is a `Loss`: torch 2.13 crashes, beyond any rescue, where it traces the
            gradient of its own `mse_loss`, which a user's loss may call.
        micro_batches: sizes; those above the set's are one. Where samples depend on each other, the loss' own alone.
        kind: of operator.
    """
    sizes = _sizes(frozen, micro_batches)
    middle = sizes.pop(len(sizes) // 2)
    found: list[Timing] = []

    def add(backend: Backend, size: int) -> None:
        found.append(_Candidate(frozen, kind, backend, size).timed(planned, _best(found, planned)))

    routes = list(backends or TIMED)
    for backend in routes:
        add(backend, middle)
    close = {timing.backend for timing in _close(found, planned)}
    for backend in routes:
        for size in sizes:
            if backend in close or not close:
                add(backend, size)
    best = _best(found, planned)
    if best and backends is None and isinstance(frozen.loss, Loss) and best.total(planned) > LINEARISE_ABOVE:
        add(Backend.linearised, best.micro_batch)
    rivals = [timing for timing in _close(found, planned, RIVAL) if timing.backend is not Backend.linearised]
    if planned < AGAIN_FROM or len(rivals) < 2:
        return found
    raced = _race(rivals, frozen, kind)
    return [raced.get(timing, timing) for timing in found]


def choose_candidate(timings: Sequence[Timing], planned: int) -> Timing:
    """The one that is the fastest for so many products.

    Raises:
        ConfigError: none can be used.
    """
    best = _best(timings, planned)
    if best is None:
        reasons = "; ".join(f"{t.backend.value}, {t.micro_batch}: {t.reason}" for t in timings)
        raise ConfigError(f"no route to products with the Hessian can be used ({reasons})")
    return best


def _best(timings: Sequence[Timing], planned: int) -> Timing | None:
    usable = [timing for timing in timings if not timing.reason]
    return min(usable, key=lambda timing: timing.total(planned), default=None)


def _close(timings: Sequence[Timing], planned: int, factor: float = CLOSE) -> list[Timing]:
    """Those that come close to the best, with it."""
    best = _best(timings, planned)
    return [t for t in timings if best and not t.reason and t.total(planned) <= factor * best.total(planned)]


def _race(rivals: Sequence[Timing], frozen: FrozenLoss, kind: type[FrozenOperator]) -> dict[Timing, Timing]:
    """The same candidates with the time of a product on the same samples; not of those that memory has no room for."""
    samples = max(PART, *(timing.micro_batch for timing in rivals))
    racers: dict[Timing, _Candidate] = {}
    try:
        for timing in rivals:
            candidate = _Candidate(frozen, kind, timing.backend, timing.micro_batch, samples)
            racers[timing] = candidate
            if not candidate.warmed_up():
                del racers[timing]
        taken = [{timing: candidate.seconds() for timing, candidate in racers.items()} for _ in range(ROUNDS)]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return {}
    finally:
        for candidate in racers.values():
            candidate.operator.release()
    return {timing: replace(timing, product=min(times[timing] for times in taken)) for timing in racers}


def _sizes(frozen: FrozenLoss, micro_batches: Sequence[int]) -> list[int]:
    """The sizes that are tried, ascending."""
    tried = [frozen.micro_batch] if frozen.coupling_modules else micro_batches
    return sorted({min(size, len(frozen)) for size in tried})


class _Candidate:
    """One route with one size, over the first samples: a `PART`, or as many as are asked for, one micro-batch at least.

    One only where a forward is traced, or where samples of a batch depend on each other.
    """

    def __init__(
        self, frozen: FrozenLoss, kind: type[FrozenOperator], backend: Backend, size: int, samples: int = PART
    ) -> None:
        alone = backend is Backend.linearised or frozen.coupling_modules
        n = min(size if alone else max(size, samples), len(frozen))
        part = replace(
            frozen.alone(),
            inputs=frozen.inputs[:n],
            targets=frozen.targets[:n],
            micro_batch=size,
            adaptation=Adaptation(),
        )
        self.backend, self.size, self.scale = backend, size, len(frozen) / n
        room = int(budget(frozen.inputs.device, sharing=frozen.sharing) / self.scale)
        self.operator = kind(part, backend, adapts=False, memory=room)

    def timed(self, planned: int, best: Timing | None) -> Timing:
        """Its timing, for all samples; with a reason if it cannot be used, or not be the best."""
        limit = best.total(planned) if best else float("inf")
        try:
            first = self.seconds()
            if self.operator.backend is not self.backend:
                return self._without(self.operator.notes[-1])
            if first > limit or (self.backend not in KEPT and planned * first > FAR_OFF * limit):
                return self._without(f"its first product took {first:.2g} s, too long to be the fastest")
            later = min(self.seconds() for _ in range(2))
            return Timing(self.backend, self.size, max(first - later, 0.0) if self.backend in KEPT else 0.0, later)
        except RuntimeError as error:  # NotImplementedError, too, is one
            why = "it does not fit into memory" if is_out_of_memory(error) else str(error).splitlines()[0]
            return self._without(why)
        finally:
            self.operator.release()
            if self.backend in KEPT:
                gc.collect()  # what was traced hangs together in cycles

    def warmed_up(self) -> bool:
        """Take the first product; whether the graphs that the route keeps have found room."""
        self.seconds()
        return self.operator.backend is self.backend

    def seconds(self) -> float:
        """Of one product over all samples, judged by these; one that is not finite takes as long."""
        vector = torch.ones(self.operator.space.dimension, dtype=self.operator.dtype, device=self.operator.device)
        began = time.perf_counter()
        with suppress(NonFiniteProduct):
            self.operator(vector)
        if vector.is_cuda:
            torch.cuda.synchronize(vector.device)
        return self.scale * (time.perf_counter() - began)

    def _without(self, reason: str) -> Timing:
        return Timing(self.backend, self.size, 0.0, 0.0, reason)


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


def time_row(frozen: FrozenLoss) -> float:
    """Seconds that a Lanczos step takes beside its product, for each vector it has kept, the smaller of two.

    A step frees its product from all vectors before it, so m steps take m (m + 1) / 2 times as long.
    """
    first, dimension = frozen.parameters[0], frozen.space.dimension
    basis = first.new_full((ROWS, dimension), 1 / dimension).detach()
    vector = frozen.space.normals(0, "timing", 0, first.device).to(first.dtype)
    taken = []
    for _ in range(2):
        began = time.perf_counter()
        freed(vector, basis)
        taken.append(time.perf_counter() - began)
    return min(taken) / ROWS
