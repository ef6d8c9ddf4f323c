"""The trainer's steps against the shortest loop that PyTorch allows, on the same network, data and optimiser.

python -m benchmarks.step

Runs an experiment as the command line does, and beside each epoch trains a copy of the network by the bare loop:
gather by index from float tensors, zero_grad, forward, mean cross entropy, backward, step. The two take turns in one
process, so under one allocator; who comes first alternates.

    steps            Trainer._train_epoch, which also draws the order and keeps each presentation's loss and hit
    whole epoch      the same and Trainer._end_epoch: evaluation, row, status, checkpoint; the bare loop has none of it
    default format   as `steps`, the bare network in torch's default memory format, whatever the trainer's is in
"""

import contextlib
import copy
import io
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.plans import make_plan, random_images
from benchmarks.timing import clocked, machine, ratios, seconds, spread
from plastiscope import experiment
from plastiscope.learner.optimizer import make_optimizer
from plastiscope.task_shift_mode.task import Task
from plastiscope.trainer import Trainer

WARM_UP = 2


@dataclass(frozen=True)
class Case:
    """A network and its data: `images` random ones in `classes`, or the digits when there are none."""

    name: str
    wanted: float
    pairs: int
    overrides: list[str]
    images: int = 0
    classes: int = 10


CASES = [
    Case("digits mlp, batch 64", 1.08, 200, ["data=digits", "net=mlp", "batch_size=64"]),
    Case("convnet, batch 100", 1.02, 40, ["net=convnet", "batch_size=100"], images=1000, classes=2),
    Case("resnet18 width 16, batch 90", 1.02, 24, ["net=resnet18", "net.width=16", "batch_size=90"], 450, classes=10),
]


@dataclass
class BareLoop:
    """Trains a network on float tensors."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Tensor
    targets: Tensor
    batch_size: int

    @classmethod
    def beside(cls, trainer: Trainer, task: Task) -> "BareLoop":
        """On a copy of the trainer's network, with all training samples gathered and normalised beforehand."""
        net = copy.deepcopy(trainer.learner.net)
        samples = task.train.gather(torch.arange(len(task.train)))
        optimizer = make_optimizer(trainer.learner.config, net.parameters())
        return cls(net, optimizer, samples.inputs, samples.targets, trainer.batch_size)

    def epoch(self) -> None:
        """One epoch in random order."""
        self.net.train()
        for rows in torch.randperm(len(self.targets)).split(self.batch_size):
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.net(self.inputs[rows]), self.targets[rows])
            loss.backward()
            self.optimizer.step()


def measure(case: Case) -> dict[str, list[float]]:
    """Seconds of each epoch: `steps` and `end` of the trainer, `same` and `default` format of the bare loop."""
    times: dict[str, list[float]] = {"steps": [], "same": [], "default": []}
    loops: dict[str, BareLoop] = {}
    train_epoch = Trainer._train_epoch

    def in_turns(trainer: Trainer, tasks: list[Task]) -> None:
        if not loops:
            loops.update({key: BareLoop.beside(trainer, tasks[0]) for key in ("same", "default")})
            loops["default"].net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        sides = {"steps": lambda: train_epoch(trainer, tasks), **{key: loop.epoch for key, loop in loops.items()}}
        for key in sorted(sides, reverse=bool(trainer.position.epoch % 2)):
            times[key].append(seconds(sides[key]))

    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        data = random_images(folder, case.images, case.classes) if case.images else []
        length = ["selection=last", "num_tasks=1", f"epochs={case.pairs + WARM_UP}"]
        Trainer._train_epoch = in_turns
        try:
            with clocked(Trainer, "_end_epoch") as ends:
                experiment.run(make_plan(*case.overrides, *data, *length), folder / "run")
        finally:
            Trainer._train_epoch = train_epoch
    return {key: values[WARM_UP:] for key, values in {**times, "end": ends}.items()}


def main() -> None:
    print(f"The trainer against the bare loop, one thread; ratios of pairs: median [quartiles]\n{machine()}")
    print(f"{'':30}{'pairs':>5}{'wanted':>8}  {'steps':22}{'whole epoch':22}{'default format':22}ms a bare epoch")
    for case in CASES:
        t = measure(case)
        whole = [a + b for a, b in zip(t["steps"], t["end"], strict=True)]
        columns = ratios(t["steps"], t["same"]), ratios(whole, t["same"]), ratios(t["steps"], t["default"])
        shown = "".join(f"{spread(column):22}" for column in columns)
        print(f"{case.name:30}{case.pairs:5}{case.wanted:8.2f}  {shown}{1e3 * statistics.median(t['same']):.1f}")


if __name__ == "__main__":
    main()
