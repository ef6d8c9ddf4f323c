"""Products with the Hessian: the route that is chosen against the best one, and against other libraries; one thread.

OMP_NUM_THREADS=1 python -m benchmarks.hessian [mlp convnet resnet18]

    auto / best           seconds of a product by the chosen route, over those of the fastest of all candidates
    PyHessian / auto      its product over a loader of the same samples, in batches of 128, over ours
    curvlinops / auto     H @ v of its Hessian operator over the same batches, over ours (left out if not installed)
    rebuilt / retained    graphs built for every product over graphs that are kept, batches of 128

All sides in one process, in turns, by CPU time, with the same allocator, memory format and samples.
"""

import gc
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from benchmarks.timing import in_turns, machine, ratios, seconds, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.operator import Backend, HessianOperator
from plastiscope.measure.landscape.preserved import landscape_of
from plastiscope.measure.landscape.timing import MICRO_BATCHES, choose_candidate, time_candidates
from plastiscope.measure.loss import Loss
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18

PLANNED, BATCH, OUTPUTS = 700, 128, 10
CASES: dict[str, tuple[str, NetConfig, int, int]] = {  # name, network, samples, rounds
    "mlp": ("mlp 3072-256-256-10", Mlp(widths=[256, 256]), 512, 25),
    "convnet": ("convnet", ConvNet(), 128, 9),
    "resnet18": ("resnet18 width 16", ResNet18(width=16), 128, 5),
}
Call = Callable[[], object]


@dataclass
class Sides:
    """One network, one frozen set, one vector."""

    frozen: FrozenLoss

    def __post_init__(self) -> None:
        """Draw the vector."""
        self.vector = self.frozen.space.normals(0, "benchmark", 0)

    def ours(self, backend: Backend, micro_batch: int) -> Call:
        """Our product."""
        operator = HessianOperator(self.frozen.with_micro_batch(micro_batch), backend)
        operator(self.vector)
        assert operator.backend is backend, operator.notes
        return lambda: operator(self.vector)

    def pyhessian(self) -> Call:
        """PyHessian's product over a loader."""
        from pyhessian import hessian

        data = list(self.frozen.with_micro_batch(BATCH).batches())
        engine = hessian(self.frozen.net, nn.CrossEntropyLoss(), dataloader=data, cuda=False)
        parts = [part.clone() for part in self.frozen.space.parts(self.vector)]
        return lambda: engine.dataloader_hv_product(parts)

    def curvlinops(self) -> Call | None:
        """curvlinops' product."""  # noqa: D403
        try:
            from curvlinops import HessianLinearOperator
        except ImportError:
            return None
        data = list(self.frozen.with_micro_batch(BATCH).batches())
        parameters = list(self.frozen.net.parameters())
        operator = HessianLinearOperator(
            self.frozen.net, nn.CrossEntropyLoss(), parameters, data, check_deterministic=False
        )
        return lambda: operator @ self.vector


def table(name: str) -> None:
    """Lines of one network."""
    about, config, samples, rounds = CASES[name]
    torch.manual_seed(0)
    net = config.make((3, 32, 32), OUTPUTS).eval()
    if getattr(net, "prefers_channels_last", False):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs, targets = torch.randn(samples, 3, 32, 32), torch.randint(0, OUTPUTS, (samples,))
    with landscape_of(
        net, inputs, targets, loss=Loss.cross_entropy, active_outputs=OUTPUTS, micro_batch=BATCH
    ) as frozen:
        sides = Sides(frozen)
        found = []
        taken = seconds(lambda: found.extend(time_candidates(frozen, PLANNED)))
        auto = choose_candidate(found, PLANNED)
        gradient = min(seconds(frozen.gradient) for _ in range(3))
        print(f"\n{about}, {frozen.space.dimension} weights, {samples} samples; a gradient takes {gradient:.3f} s")
        print(f"  chosen in {taken:.1f} s for {PLANNED} products: {auto.backend.value}, {auto.micro_batch} at a time")
        _against_all(sides, auto.backend, auto.micro_batch, samples, rounds)
        net.requires_grad_()
        ours, ours_128, rebuilt = (
            sides.ours(*which)
            for which in ((auto.backend, auto.micro_batch), (Backend.retained, BATCH), (Backend.rebuilt, BATCH))
        )
        calls = [ours, ours_128, rebuilt, sides.pyhessian()]
        other = sides.curvlinops()
        if other:
            calls.append(other)
        by_us, by_us_128, anew, theirs, *last = in_turns(calls, rounds, clock=time.process_time)
        for other, times in (("PyHessian", theirs), *(("curvlinops", times) for times in last)):
            same_size = spread(ratios(times, by_us_128))
            print(f"  {other + ' / auto':21} {spread(ratios(times, by_us))}; over retained {BATCH} {same_size}")
        print(f"  rebuilt / retained    {spread(ratios(anew, by_us_128))}", flush=True)


def _against_all(sides: Sides, backend: Backend, micro_batch: int, samples: int, rounds: int) -> None:
    """The chosen candidate against every other, one by one so that memory holds the kept graphs of two at most."""
    chosen, factors = sides.ours(backend, micro_batch), {}
    for other in (Backend.retained, Backend.rebuilt, Backend.jvp, Backend.linearised):
        for size in sorted({min(size, samples) for size in MICRO_BATCHES}):
            if (other, size) == (backend, micro_batch) or (other is Backend.linearised and size < BATCH):
                continue
            call = sides.ours(other, size)
            times, against = in_turns([chosen, call], max(3, rounds // 2), clock=time.process_time)
            factors[other.value, size] = ratios(times, against)
            del call
            gc.collect()
    best, worst = max(factors.items(), key=lambda item: sorted(item[1])[len(item[1]) // 2])
    rows = ", ".join(f"{key[0]} {key[1]} {1 / sorted(f)[len(f) // 2]:.2f}" for key, f in factors.items())
    print(
        f"  auto / best           {spread(worst)} (best of the others: {best[0]} {best[1]})\n  each over auto: {rows}"
    )


def main() -> None:
    """The tables."""
    torch.set_num_threads(1)
    keep_freed_pages()
    warnings.filterwarnings("ignore", message=".*create_graph=True", category=UserWarning)
    warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
    warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)  # of curvlinops
    print(f"Products with the Hessian, one thread; CPU time, ratios of rounds: median [quartiles]\n{machine()}")
    for name in sys.argv[1:] or CASES:
        table(name)


if __name__ == "__main__":
    main()
