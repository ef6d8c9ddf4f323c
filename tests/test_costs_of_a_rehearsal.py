"""What a forecast adds up, on a clock that shows what it is told: every event counts as often as the run has it."""

from dataclasses import dataclass

import pytest

from plans import make_plan
from plastiscope import loop, trial
from plastiscope.event import Callback, Context
from plastiscope.experiment import run
from plastiscope.rehearsal import rehearse
from plastiscope.run.storage import read_json
from run.interruption import Interruption

FEW = (
    *("num_tasks=4", "epochs=3", "batch_size=16", "threads=1", "task_shift_mode=permuted_input", "analysis=[]"),
    *("data.samples_per_class=20", "data.test_samples_per_class=5", "net.widths=[8]"),
)


class Clock:
    """A clock that goes a little each time it is asked, and where somebody says that something has taken long."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-3
        return self.now


CLOCK = Clock()


@pytest.fixture(autouse=True)
def told_seconds(monkeypatch):
    """Seconds of a rehearsal are those of `CLOCK`; a scored sample takes 100 of them."""

    def slow(net, task, samples, epochs_completed):
        CLOCK.now += 100.0 * len(samples)

    monkeypatch.setattr(trial, "time", CLOCK)
    monkeypatch.setattr(trial, "evaluate", slow)


@pytest.fixture
def scored(monkeypatch):
    """Sizes of the sets that a run has scored, in order."""
    sizes, evaluate = [], loop.evaluate

    def counted(net, task, samples, epochs_completed):
        sizes.append(len(samples))
        return evaluate(net, task, samples, epochs_completed)

    monkeypatch.setattr(loop, "evaluate", counted)
    return sizes


@dataclass(kw_only=True)
class Ends(Callback):
    """Takes 10,000 s as a task ends and 100 s as an epoch ends; may write there, every so many epochs."""

    name = "ends"
    every: int = 1
    writes: bool = False

    def on_epoch_end(self, context: Context) -> None:
        CLOCK.now += 100.0
        if self.writes:
            (context.folder(self.name) / f"{context.epochs_completed}").write_bytes(bytes(10))

    def on_task_end(self, context: Context) -> None:
        CLOCK.now += 10_000.0


@pytest.mark.parametrize(
    ("ends", "epochs", "tasks"),
    [
        ({}, 12, 4),
        ({"every": 2}, 12, 2),
        ({"writes": True}, 12, 4),
        ({"writes": True, "every": 2}, 8, 4),  # after epochs 2, 3, 4, 6, 8, 9, 10, 12; each task ends after one of them
    ],
)
def test_the_end_of_a_task_counts_once_a_task_and_that_of_an_epoch_once_an_epoch(tmp_path, ends, epochs, tasks):
    plan = make_plan(*FEW)
    plan.analyses.append(Ends(**ends))
    said = rehearse(plan, tmp_path / "run", None)
    assert said.analyses["ends"].seconds == pytest.approx(10_000 * tasks + 100 * epochs, rel=1e-3)


def test_each_run_of_a_group_is_evaluated(scored, tmp_path):
    plan = make_plan(*FEW, "replicas=3", "eval_every=2")
    said = rehearse(plan, tmp_path / "group", None)
    run(plan, tmp_path / "group")
    assert len(scored) == 3 * 4 * (2 + 1) * 2  # runs; tasks; after epochs 2 and 3, and at the end; two sets
    assert said.evaluation == pytest.approx(100 * sum(scored), rel=1e-3)


@pytest.mark.parametrize("eval_every", [1, 2])
def test_evaluations_that_are_done_are_not_left(scored, tmp_path, eval_every):
    """Stopped in the second epoch of a task; with `eval_every=1` the first one is evaluated, with 2 none is."""
    overrides = (*FEW, f"eval_every={eval_every}")
    plan = make_plan(*overrides)
    plan.analyses.append(Interruption(task=2, batch=6))
    plan.analyses[-1].name = "interruption"
    with pytest.raises(SystemExit):
        run(plan, tmp_path / "run")
    done = sum(scored)
    said = rehearse(plan, tmp_path / "run", read_json(tmp_path / "run" / "run.json"))
    run(plan, tmp_path / "run")
    assert said.left is not None
    assert said.left.evaluation == pytest.approx(100 * (sum(scored) - done), rel=1e-3)
    assert said.evaluation == pytest.approx(100 * sum(scored), rel=1e-3)
