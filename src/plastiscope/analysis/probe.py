"""Trainability probe: how well a copy of the network still learns a held-out task, beside fresh networks.

Held-out task, samples, order of batches and head are the same for every look and every network; the optimiser is that
of the run at a task's start, with no state. The run itself is not touched.
"""

import time
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.analysis.analysis import Analysis
from plastiscope.analysis.held_out import HeldOut, HeldOutKind, held_out
from plastiscope.error import ConfigError, require
from plastiscope.event import Context, Numbers, undisturbed
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.trainee import Trainee
from plastiscope.measure.evaluation import score
from plastiscope.measure.keyed import named_seed
from plastiscope.measure.trainability import Curve, trainability
from plastiscope.net.describe import describe
from plastiscope.net.net import NetConfig, fresh_net
from plastiscope.run.storage import write_by, write_json
from plastiscope.task_shift_mode.task import NewHead


class ProbeHead(Enum):
    """How the head of every network begins."""

    zeros = "zeros"
    """Outputs are 0 on all inputs."""
    initial = "initial"
    """As the run's own network was initialised."""


class ProbeLearner(Enum):
    """What trains the copies."""

    plain = "plain"
    """The optimiser of the run's learner, without what the learner adds."""
    own = "own"
    """The run's learner, begun anew."""


@dataclass(kw_only=True)
class Probe(Analysis):
    """Curves of n steps on a held-out task, their areas, and the ratio to those of fresh networks."""

    task: HeldOutKind = HeldOutKind.random_labels
    """random_labels or permuted_input."""
    samples: int = 512
    """N, samples of the held-out task."""
    classes: int = 10
    """K, labels of random_labels."""
    steps: int = 100
    """n, steps of training."""
    batch_size: int = 64
    eval_every: int = 1
    """Steps from one evaluation on all N samples to the next."""
    fresh_nets: int = 3
    """m, fresh networks, trained once in the run."""
    head: ProbeHead = ProbeHead.zeros
    """zeros or initial."""
    learner: ProbeLearner = ProbeLearner.plain
    """plain: the run's optimiser alone; own: the run's learner with all that it does."""

    name = "probe"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        for key, least in (("samples", 1), ("steps", 1), ("batch_size", 1), ("eval_every", 1), ("fresh_nets", 1)):
            require(getattr(self, key) >= least, key, getattr(self, key), f"must be {least} or more")
        require(self.classes >= 2, "classes", self.classes, "must be 2 or more")
        self._net: NetConfig | None = None
        self._learner: LearnerConfig | None = None
        self._held_out: HeldOut | None = None
        self._fresh: list[Curve] = []

    def take_components(self, net: NetConfig, learner: LearnerConfig) -> None:
        """Networks of the run's kind, and how the run trains them."""
        self._net, self._learner = net, learner

    def on_run_begin(self, context: Context) -> None:
        """What would fail at the first look fails before anything is trained."""
        with undisturbed(context.net):
            self._make_learner(context, -1, None)

    def on_task_end(self, context: Context) -> Numbers:
        """Train a copy of the network, in the first look the fresh ones too, and compare."""
        if not self.is_due(context.task_idx + 1):
            return {}
        with undisturbed(context.net):
            if not self._fresh:
                self._train_fresh(context)
            aged = self._curve(context, 0, context.net.state_dict())
        numbers = trainability(aged, self._fresh)
        self._save(context, aged, numbers)
        return {self.key("held_out", "total", name): value for name, value in numbers.items()}

    def state_dict(self) -> dict[str, Any]:
        """Curves of the fresh networks."""
        return {"fresh": [[curve.steps, curve.loss, curve.accuracy] for curve in self._fresh]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._fresh = [Curve(*parts) for parts in state["fresh"]]

    def held_out(self, context: Context) -> HeldOut:
        """The held-out task, made once."""
        if self._held_out is None:
            self._held_out = held_out(
                context,
                kind=self.task,
                samples=self.samples,
                classes=self.classes,
                steps=self.steps,
                batch_size=self.batch_size,
                new_head=NewHead[self.head.name],
            )
        return self._held_out

    def _train_fresh(self, context: Context) -> None:
        """Curves of the fresh networks; says what they cost, which each look will."""
        began, curves = time.perf_counter(), []
        for i in range(1, self.fresh_nets + 1):
            curves.append(self._curve(context, -i, None))
        self._fresh = curves
        each, looks = (time.perf_counter() - began) / self.fresh_nets, context.num_tasks // self.every
        note, n = "", len(self.held_out(context))
        if n < self.samples:
            note = f" ({self.samples} were asked for, the data have no more)"
        print(
            f"{self.name}: a look trains {self.steps} steps and evaluates {n} samples{note} "
            f"{len(self._steps())} times, about {each:.1f} s; {looks} looks, about {looks * each:.0f} s",
            flush=True,
        )
        _write_arrays(context.folder(self.name) / "held_out.npz", _arrays(self.held_out(context)))

    def _curve(self, context: Context, k: int, weights: dict[str, Tensor] | None) -> Curve:
        """The curve of the k-th fresh network, or of one with all `weights` but those of the head."""
        task = self.held_out(context)
        learner = self._make_learner(context, k, weights)
        torch.manual_seed(named_seed(context.seed, "probe", "training"))
        points = [_look(learner.net, task)]
        learner.net.train()
        learner.begin_epoch(0, context.epochs)
        measured = self._steps()[1:]
        for step in range(self.steps):
            learner.step(task.batch(step))
            if step + 1 in measured:
                points.append(_look(learner.net, task))
        losses, hits = zip(*points, strict=True)
        accuracy = None if hits[0] is None else torch.stack([hit for hit in hits if hit is not None]).cpu()
        return Curve.measured(torch.tensor(self._steps()), torch.stack(losses).cpu(), accuracy)

    def _steps(self) -> list[int]:
        """Steps after which the loss is measured."""
        return sorted({*range(0, self.steps, self.eval_every), self.steps})

    def _make_learner(self, context: Context, k: int, weights: dict[str, Tensor] | None) -> Learner:
        """A learner at the beginning of the held-out task.

        Raises:
            ConfigError: the network's head is not known.
        """
        assert self._net is not None and self._learner is not None
        task, net_config = self.held_out(context), self._net
        shape, outputs = tuple(task.inputs.shape[1:]), max(task.task.active_outputs, context.shift.outputs)

        def initial_net(j: int) -> nn.Module:
            return fresh_net(net_config, shape, outputs, context.seed, j)

        net = initial_net(k)
        units = describe(net, torch.zeros(2, *shape))
        if not units.head:
            raise ConfigError(f"{self.name}: the head of this network was not found; leave {self.name} out")
        _take_head(net, initial_net(0), units.head)
        if weights is not None:
            _take_all_but_head(net, weights, units.head)
        net.to(task.inputs.device)
        if getattr(net, "prefers_channels_last", False):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        trainee = Trainee(net, units, initial_net, context.seed)
        is_own = self.learner is ProbeLearner.own
        learner = self._learner.make(trainee) if is_own else Learner(self._learner, trainee)
        learner.take_up(task.task)
        try:
            learner.begin_task(task.task)
        except ConfigError as error:
            raise ConfigError(f"{self.name}.head={self.head.name}: {error}, or {self.name}.head=initial") from None
        return learner

    def _save(self, context: Context, aged: Curve, numbers: Numbers) -> None:
        """All curves, and what they are of."""
        folder, task = context.folder(self.name), self.held_out(context)
        arrays = {"steps": aged.steps, "loss": aged.loss, "fresh_loss": torch.stack([c.loss for c in self._fresh])}
        if aged.accuracy is not None:
            arrays["accuracy"] = aged.accuracy
            arrays["fresh_accuracy"] = torch.stack([c.accuracy for c in self._fresh if c.accuracy is not None])
        _write_arrays(folder / "curves.npz", arrays)
        facts: dict[str, Any] = {"samples": len(task), "asked": task.asked, "outputs": task.task.active_outputs}
        facts |= {"loss": task.task.loss.value, "sha256": task.digest()}
        write_json(folder / "summary.json", {"settings": asdict(self), "held_out": facts, "numbers": numbers})


def _look(net: nn.Module, task: HeldOut) -> tuple[Tensor, Tensor | None]:
    """Mean loss and accuracy on all samples of the held-out task, in evaluation mode; left on the device."""
    scores = score(net, task.batches(), task.task.loss, task.task.active_outputs)
    return scores.losses.double().mean(), None if scores.correct is None else scores.correct.double().mean()


def _take_head(net: nn.Module, other: nn.Module, head: str) -> None:
    """Give the head what another network's head has."""
    net.get_submodule(head).load_state_dict(other.get_submodule(head).state_dict())


def _take_all_but_head(net: nn.Module, weights: dict[str, Tensor], head: str) -> None:
    """Load parameters and buffers, but for those of the head."""
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{head}.")}
    missing = net.load_state_dict(kept, strict=False).missing_keys
    assert all(name.startswith(f"{head}.") for name in missing)


def _arrays(task: HeldOut) -> dict[str, Tensor]:
    """What makes the held-out task again out of the data."""
    arrays = {"ids": task.ids, "targets": task.targets, "order": task.order}
    return arrays if task.permutation is None else {**arrays, "permutation": task.permutation}


def _write_arrays(path: Path, tensors: dict[str, Tensor]) -> None:
    arrays = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
    write_by(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
