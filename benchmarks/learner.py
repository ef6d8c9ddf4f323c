"""Learners against the shortest loop that PyTorch allows without the method: zero_grad, forward, loss, backward, step.

python -m benchmarks.learner [case ...]

Runs an experiment as the command line does, and beside each epoch trains a fresh copy of the network by the bare loop
on the same samples with the same optimiser, gathered and normalised beforehand. The two take turns in one process, and
who comes first alternates. Given is the ratio of the trainer's epoch (`Trainer._train_epoch`, with all that the loop
keeps of each presentation) to the bare one.

Settings are those of the published studies where there are any: rate, maturity, utility, decay.
"""

import contextlib
import copy
import io
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.plans import make_plan, random_images
from benchmarks.timing import machine, ratios, seconds, spread
from plastiscope import experiment
from plastiscope.learner.optimizer import make_optimizer
from plastiscope.measure.loss import Loss
from plastiscope.task_shift_mode.task import Task
from plastiscope.trainer import Trainer

WARM_UP = 2
ONLINE = ["batch_size=1", "learner.momentum=0"]
CBP = "learner=continual_backprop"


@dataclass(frozen=True)
class Problem:
    """A network, its data (`samples` random ones of `shape`) and the rounds that are timed."""

    name: str
    shape: tuple[int, ...]
    classes: int
    samples: int
    rounds: int
    overrides: list[str]


@dataclass(frozen=True)
class Case:
    """A learner on a problem, and the ratio that is wanted."""

    name: str
    problem: str
    wanted: float
    overrides: list[str] = field(default_factory=list)


def _mlp(width: int) -> list[str]:
    return ["net=mlp", f"net.widths=[{width},{width},{width}]", *ONLINE]


PROBLEMS = {
    "regression": Problem("20-5-1, batch 1", (20,), 0, 500, 60, ["net=mlp", "net.widths=[5]", *ONLINE]),
    "mnist100": Problem("784-100-100-100-10, batch 1", (784,), 10, 300, 60, _mlp(100)),
    "mnist2000": Problem("784-2000-2000-2000-10, batch 1", (784,), 10, 10, 30, _mlp(2000)),
    "convnet": Problem("convnet, batch 100", (3, 32, 32), 2, 500, 60, ["net=convnet", "batch_size=100"]),
    "resnet18": Problem("resnet18 width 64, batch 90", (3, 32, 32), 10, 90, 8, ["net=resnet18", "batch_size=90"]),
}
ADAPTABLE = [CBP, "learner.util_type=adaptable_contribution"]
RESIDUAL = [CBP, "learner.init=normal", "learner.replacement_rate=1e-5", "learner.maturity_threshold=1000"]
REDO = ["learner=redo", "learner.reset_period=1000"]
NOISY = ["learner=shrink_and_perturb", "learner.weight_decay=1e-5"]
CASES = {
    f"{problem}_{learner}": Case(f"{learner}, {PROBLEMS[problem].name}", problem, wanted, overrides)
    for problem, learner, wanted, overrides in (
        ("regression", "backprop", 1.25, []),
        ("regression", "cbp", 1.60, [*ADAPTABLE, "learner.replacement_rate=1e-3"]),
        ("mnist100", "backprop", 1.25, []),
        ("mnist100", "cbp", 1.60, [*ADAPTABLE, "learner.replacement_rate=1e-6"]),
        ("mnist2000", "backprop", 1.25, []),
        ("mnist2000", "cbp", 1.60, [*ADAPTABLE, "learner.replacement_rate=1e-6"]),
        ("convnet", "cbp", 1.06, [*ADAPTABLE, "learner.init=default", "learner.replacement_rate=3e-4"]),
        ("convnet", "redo", 1.05, REDO),
        ("convnet", "shrink_and_perturb", 1.10, NOISY),
        ("convnet", "l2_init", 1.10, ["learner=l2_init"]),
        ("resnet18", "cbp", 1.03, RESIDUAL),
        ("resnet18", "cbp_legacy", 1.03, [*RESIDUAL, "learner.residual_mode=legacy"]),
        ("resnet18", "redo", 1.05, REDO),
        ("resnet18", "shrink_and_perturb", 1.10, NOISY),
        ("resnet18", "l2_init", 1.10, ["learner=l2_init"]),
    )
}


class BareLoop:
    """Trains a fresh copy of a trainer's network, with none of its hooks, on float tensors."""

    def __init__(self, trainer: Trainer, task: Task) -> None:
        """Gather the task's samples and copy the weights."""
        learner, of_run = trainer.learner, trainer.runs[0].net
        self.net = copy.deepcopy(of_run) if learner.lead else learner.initial_net(0)
        self.net.load_state_dict(of_run.state_dict())
        if getattr(self.net, "prefers_channels_last", False):
            self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        samples = task.train.gather(torch.arange(len(task.train)))
        self.inputs, self.targets, self.batch_size = samples.inputs, samples.targets, trainer.batch_size
        self.optimizer = make_optimizer(learner.config, self.net.parameters())
        self.loss = F.mse_loss if task.loss is Loss.mse else F.cross_entropy
        if task.loss is Loss.mse and self.targets.ndim == 1:
            self.targets = self.targets.unsqueeze(1)

    def epoch(self) -> None:
        """One epoch in random order."""
        self.net.train()
        for rows in torch.randperm(len(self.targets)).split(self.batch_size):
            self.optimizer.zero_grad()
            self.loss(self.net(self.inputs[rows]), self.targets[rows]).backward()
            self.optimizer.step()


def write_data(folder: Path, problem: Problem) -> list[str]:
    """Overrides for random data of the problem's shape."""
    if len(problem.shape) == 3:
        return random_images(folder, problem.samples, problem.classes)
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", problem.samples), ("test", 10)):
        arrays[f"x_{split}"] = rng.random((n, *problem.shape), dtype=np.float32)
        labels = np.arange(n) % problem.classes if problem.classes else rng.random((n, 1), dtype=np.float32)
        arrays[f"y_{split}"] = labels
    np.savez(folder / "data.npz", **arrays)
    kind = [] if problem.classes else ["data.targets=real"]
    return ["data=arrays", f"data.file={folder / 'data.npz'}", "data.num_classes=null", *kind]


def measure(case: Case) -> dict[str, list[float]]:
    """CPU seconds of each epoch of the trainer and of the bare loop."""
    problem = PROBLEMS[case.problem]
    times: dict[str, list[float]] = {"trainer": [], "bare": []}
    loops: list[BareLoop] = []
    train_epoch = Trainer._train_epoch

    def in_turns(trainer: Trainer, tasks: list[Task]) -> None:
        if not loops:
            loops.append(BareLoop(trainer, tasks[0]))
        sides = {"trainer": lambda: train_epoch(trainer, tasks), "bare": loops[0].epoch}
        for key in sorted(sides, reverse=bool(trainer.position.epoch % 2)):
            times[key].append(seconds(sides[key], time.process_time))

    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        data = write_data(folder, problem)
        length = ["selection=last", "num_tasks=1", f"epochs={problem.rounds + WARM_UP}", "figures=false"]
        length += ["checkpoint_every_s=100000", "eval_every=1000", "learner.lr=1e-3"]
        Trainer._train_epoch = in_turns
        try:
            experiment.run(make_plan(*problem.overrides, *case.overrides, *data, *length), folder / "run")
        finally:
            Trainer._train_epoch = train_epoch
    return {key: values[WARM_UP:] for key, values in times.items()}


def main() -> None:
    """Time the cases that are named, or all."""
    print(f"Learners through the trainer against the bare loop, one thread, CPU time\n{machine()}")
    print(f"{'':44}{'rounds':>7}{'wanted':>8}  {'ratio':24}ms a bare step")
    for key in sys.argv[1:] or CASES:
        case = CASES[key]
        times, problem = measure(case), PROBLEMS[case.problem]
        steps = -(
            -problem.samples // (1 if ONLINE[0] in problem.overrides else int(problem.overrides[-1].split("=")[1]))
        )
        bare = 1e3 * statistics.median(times["bare"]) / steps
        ratio = spread(ratios(times["trainer"], times["bare"]))
        print(f"{case.name:44}{problem.rounds:7}{case.wanted:8.2f}  {ratio:24}{bare:.3f}", flush=True)


if __name__ == "__main__":
    main()
