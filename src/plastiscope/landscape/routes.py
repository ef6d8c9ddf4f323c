"""How products and losses are computed in a look, and what they cost here: chosen at a run's first look, then kept."""

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from plastiscope.landscape.settings import BackendChoice, LandscapeSettings
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.operator import Backend
from plastiscope.measure.landscape.timing import (
    MICRO_BATCHES,
    Timing,
    choose_candidate,
    time_candidates,
    time_forward,
    time_row,
)


@dataclass(frozen=True)
class Routes:
    """A route to products, sizes of batches, and seconds over the whole set.

    Attributes:
        backend: route to products with the Hessian.
        product_batch: samples in a micro-batch of products.
        forward_batch: of losses and gradients in planes and curves.
        samples: N, of which the seconds are.
        build: seconds before the first product.
        product, forward, gradient: seconds of one; 0 of what is not needed.
        table: what was timed, a line each.
        is_timed: whether the choice was made by timing, or is that of the settings.
        row: seconds that a Lanczos step takes for each vector it has kept, see `time_row`.
    """

    backend: str
    product_batch: int
    forward_batch: int
    samples: int
    build: float
    product: float
    forward: float
    gradient: float
    table: tuple[dict[str, Any], ...]
    is_timed: bool
    row: float = 0.0

    @classmethod
    def restored(cls, facts: dict[str, Any]) -> "Routes":
        """Of what `asdict` gave."""
        return cls(**{**facts, "table": tuple(facts["table"])})

    @property
    def facts(self) -> dict[str, Any]:
        """As plain containers."""
        return {**asdict(self), "table": [dict(line) for line in self.table]}


def choose_routes(frozen: FrozenLoss, settings: LandscapeSettings, products: int, *, may_time: bool) -> Routes:
    """The fastest route for so many products; what the settings name is taken as it is, and timed for the forecast.

    Args:
        frozen: the loss; its micro-batch is the largest that may be chosen. Where samples of a batch depend on each
            other it is the only one.
        settings: of the look, filled in.
        products: that are planned.
        may_time: several processes that work apart would choose differently: without it graphs are kept, and batches
            are as large as they may be.
    """
    largest, choice = frozen.micro_batch, settings.spectrum.backend
    is_open = choice is BackendChoice.auto and may_time
    sizes = sorted({*(size for size in MICRO_BATCHES if size < largest and is_open), largest})
    timings: list[Timing] = []
    chosen = Timing(Backend.retained if choice is BackendChoice.auto else Backend(choice.value), largest, 0.0, 0.0)
    if products and is_open:
        timings = time_candidates(frozen, products, micro_batches=sizes)
        chosen = choose_candidate(timings, products)
    elif products:
        timings = time_candidates(frozen, max(products, 50), [chosen.backend], sizes)
        chosen = replace(timings[0], backend=chosen.backend, micro_batch=largest)
    forwards = time_forward(frozen, sizes)
    batch = min(forwards, key=lambda size: forwards[size])
    began = time.perf_counter()
    frozen.with_micro_batch(batch).gradient().sum().item()
    return Routes(
        backend=chosen.backend.value,
        product_batch=chosen.micro_batch,
        forward_batch=batch,
        samples=len(frozen),
        build=chosen.build,
        product=chosen.product,
        forward=forwards[batch],
        gradient=time.perf_counter() - began,
        table=(*map(_line, timings), *({"forward": True, "micro_batch": s, "seconds": t} for s, t in forwards.items())),
        is_timed=is_open,
        row=time_row(frozen) if products else 0.0,
    )


def _line(timing: Timing) -> dict[str, Any]:
    facts = {**asdict(timing), "backend": timing.backend.value}
    return {key: value for key, value in facts.items() if value != ""}
