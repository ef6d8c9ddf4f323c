"""Steps of learners without the trainer: several runs at once, with autograd and without, against the bare loop.

python -m benchmarks.replicas [regression] [mnist100] [mnist2000] [memory]

The bare loop is the shortest that PyTorch allows, of one run with plain SGD: zero_grad, forward, loss, backward, step.
Given is how many run-steps a learner makes in the time of one step of that loop. The sides take turns on the same
random samples, which lie ready; CPU time, one thread. `memory` gives what R runs of a network hold.
"""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import fresh_process, in_turns, machine, ratios, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.data.samples import ArraySource, Batch, Samples
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_statistics import UtilityType
from plastiscope.measure.loss import Loss
from plastiscope.net.mlp import Mlp
from plastiscope.net.stacked import stack
from plastiscope.task_shift_mode.task import NewHead, Task

LR = 1e-3


@dataclass(frozen=True)
class Problem:
    """A network, batch 1, and the steps of a round."""

    inputs: int
    widths: tuple[int, ...]
    outputs: int
    loss: Loss
    rate: float
    steps: int
    rounds: int

    def nets(self, number: int) -> list[nn.Module]:
        """Networks of so many seeds."""
        made = []
        for seed in range(number):
            torch.manual_seed(seed)
            made.append(Mlp(widths=list(self.widths)).make((self.inputs,), self.outputs).train())
        return made

    def block(self, runs: int) -> Batch:
        """Random samples of a round, for no leading axis (0) or so many runs."""
        shape = (self.steps, *((runs,) if runs else ()), 1)
        is_real = self.loss is Loss.mse
        targets = torch.randn(*shape, self.outputs) if is_real else torch.randint(self.outputs, shape)
        return Batch(torch.randn(*shape, self.inputs), targets, torch.zeros(shape, dtype=torch.int64))

    def task(self) -> Task:
        """What a learner needs to know of a task."""
        rows = torch.arange(1)
        samples = Samples(
            source=ArraySource(torch.zeros(1, self.inputs), rows),
            split="train",
            rows=rows,
            labels=rows,
            clean_labels=rows,
            targets=rows,
        )
        return Task(
            index=0,
            train=samples,
            validation=None,
            test=samples,
            new_train=samples,
            new_test=samples,
            classes=(),
            active_outputs=self.outputs,
            loss=self.loss,
            new_head=NewHead.keep,
            numbers={},
        )


PROBLEMS = {
    "regression": Problem(20, (5,), 1, Loss.mse, 1e-3, steps=200, rounds=25),
    "mnist100": Problem(784, (100, 100, 100), 10, Loss.cross_entropy, 1e-6, steps=40, rounds=15),
    "mnist2000": Problem(784, (2000, 2000, 2000), 10, Loss.cross_entropy, 1e-6, steps=5, rounds=15),
}


@dataclass(frozen=True)
class Side:
    """A learner of so many runs (0 = no leading axis), and the gain that is wanted."""

    kind: str
    runs: int
    autograd: bool
    wanted: float = 0.0

    @property
    def name(self) -> str:
        """For the table."""
        return f"{self.kind}, R = {max(self.runs, 1)}, {'autograd' if self.autograd else 'without autograd'}"

    def config(self, problem: Problem) -> LearnerConfig:
        """The learner's settings, as in published studies."""
        shared: dict[str, Any] = {"lr": LR, "momentum": 0.0, "autograd": self.autograd}
        if self.kind == "continual_backprop":
            kind = UtilityType.adaptable_contribution
            return ContinualBackprop(**shared, util_type=kind, replacement_rate=problem.rate)
        if self.kind == "adam":
            return Backprop(**shared, optimizer=Optimizer.adam)
        return Backprop(**shared | {"momentum": 0.9 if self.kind == "momentum" else 0.0})


BP, CBP = "backprop", "continual_backprop"
SIDES = {
    "regression": (
        Side(BP, 0, autograd=True),
        Side(CBP, 0, autograd=True),
        Side(BP, 0, autograd=False, wanted=3.0),
        Side(CBP, 0, autograd=False),
        Side("momentum", 0, autograd=False),
        Side("adam", 0, autograd=False),
        Side(BP, 100, autograd=True, wanted=60.0),
        Side(CBP, 100, autograd=True, wanted=40.0),
        Side(BP, 100, autograd=False, wanted=150.0),
        Side(CBP, 100, autograd=False, wanted=80.0),
        Side("adam", 100, autograd=False),
    ),
    "mnist100": (
        Side(BP, 0, autograd=True),
        Side(BP, 0, autograd=False, wanted=2.0),
        Side(CBP, 0, autograd=False),
        Side(BP, 30, autograd=True, wanted=2.0),
        Side(CBP, 30, autograd=True),
        Side(BP, 30, autograd=False, wanted=6.0),
        Side(CBP, 30, autograd=False),
    ),
    "mnist2000": (
        Side(BP, 0, autograd=True),
        Side(BP, 0, autograd=False, wanted=1.5),
        Side(CBP, 0, autograd=False),
    ),
}


def learner_of(problem: Problem, side: Side) -> Learner:
    nets = problem.nets(max(side.runs, 1))
    units = nets[0].unit_description()  # type: ignore[operator]
    net: nn.Module = stack(nets) if side.runs else nets[0]
    seed: Any = list(range(side.runs)) if side.runs else 0
    learner = side.config(problem).make(Trainee(net, units, lambda k: net, seed, 1 if side.runs else 0))
    learner.take_up(problem.task())
    learner.begin_epoch(0)
    return learner


def bare_loop(problem: Problem) -> Callable[[], None]:
    """A round of the bare loop."""
    (net,), block = problem.nets(1), problem.block(0)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, fused=True)
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss if problem.loss is Loss.mse else F.cross_entropy
    samples = list(zip(block.inputs, block.targets, strict=True))

    def go() -> None:
        for inputs, targets in samples:
            optimizer.zero_grad()
            loss(net(inputs), targets).backward()
            optimizer.step()

    return go


def rounds_of(problem: Problem, side: Side) -> Callable[[], object]:
    """A round of a learner."""
    learner, block = learner_of(problem, side), problem.block(side.runs)
    return lambda: learner.step_block(block)


def compare(name: str) -> None:
    """Print the gains on a problem."""
    problem, sides = PROBLEMS[name], SIDES[name]
    calls = [bare_loop(problem), *(rounds_of(problem, side) for side in sides)]
    bare, *others = in_turns(calls, problem.rounds, warm_up=2, clock=time.process_time)
    sizes = "-".join(map(str, (problem.inputs, *problem.widths, problem.outputs)))
    print(f"\n{sizes}, batch 1; a bare step {1e6 * statistics.median(bare) / problem.steps:.0f} us")
    print(f"{'':48}{'wanted':>8}  {'gain':28}us a step")
    for side, times in zip(sides, others, strict=True):
        gains = [max(side.runs, 1) * ratio for ratio in ratios(bare, times)]
        step = 1e6 * statistics.median(times) / problem.steps
        wanted = f"{side.wanted:.1f}" if side.wanted else ""
        print(f"{side.name:48}{wanted:>8}  {spread(gains, 2):28}{step:.0f}", flush=True)


def held(runs: int, autograd: bool) -> float:
    """Resident MiB that a learner of mnist100 adds to the process, after some steps."""

    def resident() -> float:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    problem, before = PROBLEMS["mnist100"], resident()
    learner, block = learner_of(problem, Side(CBP, runs, autograd)), problem.block(runs)
    for batch in list(block.steps())[:3]:
        learner.step(batch)
    return resident() - before


def memory() -> None:
    """Print what R runs hold, each in a process of its own."""
    weights = sum(p.numel() for p in PROBLEMS["mnist100"].nets(1)[0].parameters()) * 4 / 2**20
    print(f"\n784-100-100-100-10, continual_backprop: MiB of R runs; the weights of one are {weights:.2f}")
    for autograd in (True, False):
        found = {
            runs: fresh_process("replicas", "held", str(runs), str(int(autograd)))["mib"] for runs in (10, 30, 100)
        }
        told = ", ".join(f"R = {runs}: {mib:.0f}" for runs, mib in found.items())
        slope = (found[100] - found[30]) / 70
        print(f"{'autograd' if autograd else 'without autograd':20}{told}; {slope:.2f} for each more", flush=True)


def main() -> None:
    """Run what is named, or all."""
    if sys.argv[1:2] == ["held"]:
        print(f'{{"mib": {held(int(sys.argv[2]), sys.argv[3] == "1")}}}')
        return
    keep_freed_pages()
    print(f"Run-steps in the time of a bare step, one thread, CPU time\n{machine()}")
    for name in sys.argv[1:] or [*PROBLEMS, "memory"]:
        if name == "memory":
            memory()
        else:
            compare(name)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
