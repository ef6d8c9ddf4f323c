"""A plane of 512 samples against its bare forwards, and against the ways it is usually computed; one thread.

python -m benchmarks.plane [mlp resnet18]

    overhead           a row of the plane over as many bare forwards of the same micro-batches at weights that stay
    loaded / ours      a state dict copied, moved out of place and loaded for every cell, same micro-batches, over ours
    one batch / ours   ours in one batch of 512 over ours in the micro-batch that was the fastest
    robust / plain     a row of the robust surface and of the plane, over that of the plane

Each in fresh processes, in which all sides take turns: with the allocator that keeps freed pages and the network's
order in memory, as this package runs, and as torch comes: pages given back, channels first. The last line is from one
to the other. The clock is that of the process, so that others on the machine count less. Rows cost the same. The mlp
begins with a linear layer, whose outputs on a row are two products: so a row costs less than its bare forwards.
"""

import copy
import json
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import fresh_process, in_turns, machine, ratios, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.measure.landscape.direction import random_direction
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.plane import Plane, offsets, robust_loss
from plastiscope.measure.landscape.space import choose
from plastiscope.measure.landscape.timing import time_forward
from plastiscope.measure.loss import Loss
from plastiscope.net.mlp import Mlp
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18

SAMPLES, OUTPUTS, SHAPE, SPAN = 512, 10, (3, 32, 32), 0.5
CASES: dict[str, tuple[NetConfig, int, int, int]] = {  # name: network, cells of a row, rounds, processes
    "mlp": (Mlp(widths=[256, 256]), 21, 10, 3),
    "resnet18": (ResNet18(width=16), 3, 2, 2),
}
ARMS = {"kept": "as this package runs", "given back": "as torch comes"}
WANTED = {
    "overhead": "overhead over bare forwards (wanted <= 1.05)",
    "loaded": "loaded / ours (wanted >= 1.3 on the mlp)",
    "one batch": "one batch / ours (wanted >= 2.5 on resnet18)",
    "robust": "robust / plain",
}


class Sides:
    """What is timed, on one network and frozen set."""

    def __init__(self, config: NetConfig, cells: int, as_it_runs: bool) -> None:
        torch.manual_seed(0)
        self.net = config.make(SHAPE, OUTPUTS).eval().requires_grad_(False)
        if as_it_runs and getattr(self.net, "prefers_channels_last", False):
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.inputs, self.targets = torch.randn(SAMPLES, *SHAPE), torch.randint(OUTPUTS, (SAMPLES,))
        whole = FrozenLoss(
            net=self.net, inputs=self.inputs, targets=self.targets, loss=Loss.cross_entropy, active_outputs=OUTPUTS,
            space=choose(self.net), micro_batch=SAMPLES,
        )  # fmt: skip
        self.seconds = time_forward(whole)
        self.size = min(self.seconds, key=lambda size: self.seconds[size])
        weights = whole.space.values(self.net)
        first, second = (random_direction(whole.space, weights, seed=0, k=k) for k in (0, 1))
        self.cells = offsets(SPAN, cells)
        self.plane = Plane(whole.with_micro_batch(self.size), first, second, self.cells, self.cells)
        self.large = Plane(whole, first, second, self.cells, self.cells)
        self.named = [whole.space.named(direction) for direction in (first, second)]

    def row(self) -> Tensor:
        """One row of the plane."""
        return self.plane.row(1)

    def in_one_batch(self) -> Tensor:
        """The same with all samples at once."""
        return self.large.row(1)

    @torch.no_grad()
    def forwards(self) -> list[Tensor]:
        """Losses of as many cells at weights that stay."""
        return [self._loss(self.net) for _ in self.cells]

    @torch.no_grad()
    def loaded(self) -> list[float]:
        """Each cell by a state dict that is copied, moved and loaded; a number on the host for each."""
        a, found = self.cells[1].item(), []
        start, (first, second) = copy.deepcopy(self.net.state_dict()), self.named
        for b in self.cells.tolist():
            state = copy.deepcopy(start)
            for name in first:
                state[name] = state[name] + a * first[name] + b * second[name]
            self.net.load_state_dict(state)
            found.append(self._loss(self.net).item())
        self.net.load_state_dict(start)
        return found

    def robust(self) -> Tensor:
        """One row of the robust surface; the plain losses are known."""
        known = iter(self.plane.row(1))
        return self.plane.row(1, lambda: robust_loss(self.plane.frozen, 0.05, here=next(known)))

    def _loss(self, net: nn.Module) -> Tensor:
        pairs = zip(self.inputs.split(self.size), self.targets.split(self.size), strict=True)
        return torch.stack([F.cross_entropy(net(x), y, reduction="sum") for x, y in pairs]).sum() / SAMPLES


def child(name: str, keeps: bool) -> dict[str, float]:
    """Medians of the ratios of one process, and CPU milliseconds of a cell, tuned and in one batch."""
    torch.set_num_threads(1)
    if keeps:
        assert keep_freed_pages()
    config, cells, rounds, _ = CASES[name]
    sides = Sides(config, cells, keeps)
    assert torch.allclose(torch.tensor(sides.loaded(), dtype=torch.float64), sides.row(), rtol=1e-4)

    def compared(calls: list[Callable[[], object]], rounds: int) -> list[list[float]]:
        return in_turns(calls, rounds, clock=time.process_time)

    ours, bare, loaded, large = compared([sides.row, sides.forwards, sides.loaded, sides.in_one_batch], rounds)
    pairs = {"overhead": (ours, bare), "loaded": (loaded, ours), "one batch": (large, ours)}
    if name == "mlp":
        plain, robust = compared([sides.row, sides.robust], max(2, rounds // 3))
        pairs["robust"] = robust, plain
    found = {label: statistics.median(ratios(*pair)) for label, pair in pairs.items()}
    cell = 1e3 / cells
    return found | {
        "micro-batch": sides.size,
        "tuned ms": cell * statistics.median(ours),
        "whole ms": cell * statistics.median(large),
    }


def main(names: list[str]) -> None:
    print(f"Plane, {SAMPLES} samples, one thread; ratios, medians of processes [quartiles]\n{machine()}")
    for name in names or CASES:
        found: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
        for _ in range(CASES[name][3]):
            for arm, processes in found.items():
                processes.append(fresh_process("plane", name, arm))
        for arm, processes in found.items():
            each = ", ".join(f"{p['micro-batch']:.0f}: {p['tuned ms']:.1f} ms a cell" for p in processes)
            print(f"{name}, {ARMS[arm]}; micro-batches {each}")
            for label, text in WANTED.items():
                if label in processes[0]:
                    print(f"  {text:48}{spread([process[label] for process in processes])}")
        gained = [b["whole ms"] / a["tuned ms"] for a, b in zip(found["kept"], found["given back"], strict=True)]
        print(f"  {'one batch as torch comes / ours as it runs':48}{spread(gained)}")


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[2] in ARMS:
        print(json.dumps(child(sys.argv[1], sys.argv[2] == "kept")))
    else:
        main(sys.argv[1:])
