"""dry_run=true: what it says of a run, against the run itself."""

import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from plans import make_plan
from plastiscope import app, loop, trial
from plastiscope.error import ConfigError
from plastiscope.event import Callback, Context, EpochRecord
from plastiscope.experiment import run
from plastiscope.rehearsal import rehearse
from plastiscope.run.forecast import Cost, Forecast, amount, duration
from plastiscope.run.storage import read_json
from run.interruption import Interruption

RUN = (
    *("num_tasks=4", "epochs=3", "batch_size=16", "threads=1", "data.samples_per_class=20", "net.widths=[30]"),
    *("analysis=[representation,continual,csl,curvature]", "representation.samples=40", "representation.every=2"),
    *("curvature.every=2", "snapshots.every=2", "data.test_samples_per_class=5"),
)


@dataclass(kw_only=True)
class Steps(Callback):
    """Counts steps and presentations."""

    name = "steps"
    steps: int = 0
    presentations: int = 0

    def on_batch_end(self, context: Context) -> None:
        assert context.batch is not None
        self.steps += 1
        self.presentations += len(context.batch.ids)


def weight(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module", autouse=True)
def short():
    """Fewer steps are timed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trial, "STEPS_S", 0.1)
        yield


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A run, its counts, and the forecast of it."""
    folder, counts = tmp_path_factory.mktemp("runs") / "run", Steps()
    forecast = rehearse(make_plan(*RUN), folder, None)
    assert not folder.exists()
    plan = make_plan(*RUN)
    plan.analyses.append(counts)
    run(plan, folder)
    return folder, counts, forecast


def test_steps_and_presentations(both):
    _, counts, forecast = both
    assert (forecast.steps, forecast.presentations) == (counts.steps, counts.presentations)


def test_looks(both):
    folder, _, forecast = both
    assert {name: cost.looks for name, cost in forecast.analyses.items()} == {
        "representation": len(list(folder.glob("task_*/representation/summary.json"))),
        "continual": 4,
        "csl": 12,
        "curvature": 8,  # after epochs 2, 3, 4, 6, 8, 9, 10, 12
    }


def test_sizes(both):
    folder, _, forecast = both
    assert forecast.sizes["snapshots"] == pytest.approx(weight(folder / "snapshots"), rel=0.01)
    assert forecast.sizes["checkpoint"] == pytest.approx(weight(folder / "checkpoint"), rel=0.1)
    written = weight(folder / "samples") + sum(weight(path) for path in folder.glob("task_*"))
    assert sum(cost.size for cost in forecast.analyses.values()) == pytest.approx(written, rel=0.5)


def test_seconds_are_there_and_add_up(both):
    forecast = both[2]
    each = [cost.seconds for cost in forecast.analyses.values()]
    assert min([*each, forecast.training, forecast.evaluation]) > 0
    assert forecast.seconds == pytest.approx(sum(each) + forecast.training + forecast.evaluation)


@dataclass
class Clock:
    """A clock that goes a little each time it is asked, and where somebody says that something has taken long."""

    now: float = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-3
        return self.now


CLOCK = Clock()


@pytest.fixture
def clock(monkeypatch):
    """Seconds of a rehearsal are those of `CLOCK`."""
    monkeypatch.setattr(trial, "time", CLOCK)
    return CLOCK


@dataclass(kw_only=True)
class Listener(Callback):
    """Takes 100 s in each step and 1,000 s in the last one of an epoch; may hear that one alone."""

    name = "listener"
    every: int = 1
    only_last: bool = False
    writes: bool = False

    def hears(self, event: str, is_last: bool) -> bool:
        return super().hears(event, is_last) and (is_last or not self.only_last)

    def on_backward(self, context: Context) -> None:
        assert all(parameter.grad is not None for parameter in context.net.parameters())
        CLOCK.now += 400.0 if context.is_last_batch else 40.0

    def on_batch_end(self, context: Context) -> None:
        assert context.batch.targets.ndim == context.losses.ndim == 1
        CLOCK.now += 600.0 if context.is_last_batch else 60.0

    def on_epoch_end(self, context: Context) -> None:
        if self.writes:
            (context.folder(self.name) / f"{context.epochs_completed}").write_bytes(bytes(10))


HEARD = ("num_tasks=4", "epochs=3", "batch_size=16", "threads=1", "data.samples_per_class=20", "analysis=[]")


@pytest.mark.parametrize(
    ("listener", "changes", "steps", "last_steps"),
    [
        ({}, (), 4 * 3 * 12, 4 * 3),  # 200 samples: 13 steps an epoch, one of them the last
        ({"only_last": True}, (), 0, 4 * 3),
        ({"every": 2}, (), 4 * 3 * 12, 4 * 3),  # tasks are looked at every other time, steps always
        ({"every": 2, "writes": True}, (), 8 * 12, 8),  # after epochs 2, 3, 4, 6, 8, 9, 10, 12
        ({}, ("batch_size=200",), 0, 4 * 3),  # each step is an epoch's last one
        ({}, ("replicas=3", "learner.autograd=false"), 4 * 3 * 12, 4 * 3),
    ],
)
def test_what_an_analysis_does_in_the_steps_counts(clock, listener, changes, steps, last_steps):
    plan = make_plan(*HEARD, "task_shift_mode=permuted_input", *changes)
    plan.analyses.append(Listener(**listener))
    said = rehearse(plan, Path("none"), None)
    assert said.analyses["listener"].seconds == pytest.approx(100 * steps + 1_000 * last_steps, rel=1e-3)
    assert said.training < 10  # their time is not the steps' own


def test_each_step_of_an_epoch_is_heard_once_if_there_is_time(clock, monkeypatch):
    heard = []
    monkeypatch.setattr(Steps, "on_batch_end", lambda self, context: heard.append(context.batch_index))
    plan = make_plan(*HEARD, "task_shift_mode=permuted_input")
    plan.analyses.append(Steps())
    rehearse(plan, Path("none"), None)
    assert heard == list(range(13))


def test_an_analysis_that_takes_too_long_in_a_step_is_given_up(monkeypatch):
    monkeypatch.setattr(trial, "LOOK_S", 1e-6)
    plan = make_plan(*HEARD)
    plan.analyses.append(Steps())
    monkeypatch.setattr(Steps, "on_batch_end", lambda self, context: [None for _ in range(10**9)])
    assert rehearse(plan, Path("none"), None).analyses["steps"].note == "a look takes more than 0 s"


def test_an_analysis_that_keeps_what_the_steps_saw_may_see_a_part_of_them(monkeypatch):
    monkeypatch.setattr(trial, "STEPS_S", 0.0)
    said = rehearse(make_plan(*HEARD, "analysis=[csl]", "csl.mode=online"), Path("none"), None)
    assert said.analyses["csl"].looks == 12


def test_samples_that_are_evaluated(clock, monkeypatch, tmp_path):
    """After every other epoch and a task's last one, and once more of the weights that the task ends with."""
    few = (*HEARD, "eval_every=2", "epochs=5")
    scored, evaluate = 0, loop.evaluate

    def counted(net, task, samples, epochs_completed):
        nonlocal scored
        scored += len(samples)
        return evaluate(net, task, samples, epochs_completed)

    def slow(net, task, samples, epochs_completed):
        CLOCK.now += 100.0 * len(samples)

    monkeypatch.setattr(loop, "evaluate", counted)
    monkeypatch.setattr(trial, "evaluate", slow)
    said = rehearse(make_plan(*few), tmp_path / "run", None)
    run(make_plan(*few), tmp_path / "run")
    assert said.evaluation == pytest.approx(100 * scored, rel=1e-3)


def test_a_checkpoint_within_an_epoch_holds_a_loss_and_a_hit_of_each_sample():
    few = ("num_tasks=2", "epochs=1", "threads=1", "analysis=[]", "task_shift_mode=permuted_input", "net.widths=[4]")
    said = [rehearse(make_plan(*few, f"data.samples_per_class={n}"), Path("none"), None) for n in (20, 60)]
    record = EpochRecord.empty(10 * (60 - 20), torch.device("cpu"))
    slots = 2
    each = record.losses.nbytes + record.correct.nbytes
    assert said[1].sizes["checkpoint"] - said[0].sizes["checkpoint"] == slots * each


def test_the_middle_of_classes_that_add_up_is_their_mean():
    plan = make_plan("num_tasks=5", "epochs=1", "threads=1", "analysis=[]", "data.samples_per_class=20")
    said = rehearse(plan, Path("none"), None)
    assert said.presentations == 20 * (2 + 4 + 6 + 8 + 10)
    assert said.facts["tasks"] == "5 of 1 epochs, 40 to 200 training samples each"


def test_many_tasks_are_not_all_built():
    sizes = {"task_shift_mode=permuted_input": 60, "task_shift_mode=binary_pairs": 12}
    for shift, size in sizes.items():
        few = ("data.samples_per_class=6", "num_tasks=5000", "epochs=2", "batch_size=4", "analysis=[]", "threads=1")
        said = rehearse(make_plan(*few, shift), Path("none"), None)
        assert (said.presentations, said.steps) == (5000 * 2 * size, 5000 * 2 * size // 4)


def test_replicas_and_steps_without_autograd():
    stream = ("experiment=slowly_changing_regression", "threads=1", "num_tasks=3", "representation.samples=50")
    few = ("task_shift_mode.examples_per_task=400", "replicas=3", "learner.autograd=false")
    said = rehearse(make_plan(*stream, *few), Path("none"), None)
    assert (said.runs, said.steps) == (3, 1200)
    assert said.seconds == pytest.approx(
        said.training + said.evaluation + 3 * sum(cost.seconds for cost in said.analyses.values())
    )


def test_an_analysis_that_can_tell_is_not_tried():
    few = ("num_tasks=4", "epochs=1", "threads=1", "data.samples_per_class=10", "net.widths=[8]")
    said = rehearse(make_plan(*few, "analysis=[lla]", "lla.profile=smoke", "lla.every=2"), Path("none"), None)
    cost = said.analyses["lla"]
    assert cost.looks == 2 and cost.seconds > 0


def test_a_look_that_takes_too_long_is_given_up(monkeypatch):
    monkeypatch.setattr(trial, "LOOK_S", 1e-4)
    few = ("num_tasks=2", "epochs=1", "threads=1", "data.samples_per_class=10", "analysis=[representation]")
    said = rehearse(make_plan(*few), Path("none"), None)
    assert said.analyses["representation"].seconds is None
    assert "representation" in said.text().splitlines()[-2]  # what the sum is without


def test_looks_that_were_given_up_are_counted_as_they_are_due(monkeypatch):
    """Every 2: of 2 tasks one; of 6 epochs 2, 3, 4 and 6, for that of a task's end is always looked at."""
    monkeypatch.setattr(trial, "LOOK_S", 0.5)
    few = ("num_tasks=2", "epochs=3", "threads=1", "data.samples_per_class=10", "analysis=[representation,curvature]")
    plan = make_plan(*few, "representation.every=2", "curvature.every=2")
    of_tasks, of_epochs = plan.analyses
    monkeypatch.setattr(type(of_tasks), "on_task_end", lambda self, context: signal.pause())
    monkeypatch.setattr(type(of_epochs), "on_epoch_end", lambda self, context: signal.pause())
    said = rehearse(plan, Path("none"), None)
    assert {name: (cost.looks, cost.seconds) for name, cost in said.analyses.items()} == {
        "representation": (1, None),
        "curvature": (4, None),
    }


def test_a_branch_counts_its_own_tasks(both):
    folder = both[0]
    said = rehearse(make_plan(*RUN, f"init_from={folder}", "init_from_task=1"), Path("none"), None)
    assert said.facts["tasks"].startswith("2 (2 to 3) of 3 epochs")


def test_mistakes_show_as_in_the_run():
    with pytest.raises(ConfigError, match="csl"):
        rehearse(make_plan("experiment=slowly_changing_regression", "analysis=[csl]", "threads=1"), Path("none"), None)
    with pytest.raises(ConfigError, match="dry_run"):
        make_plan("dry_run=true", "replay.folder=somewhere")


def test_the_command_prints_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    given = ["use_wandb=false", "device=cpu", "threads=1", "num_tasks=1", "epochs=1", "analysis=[]", "dry_run=true"]
    monkeypatch.setattr("sys.argv", ["plastiscope", *given])
    app.main()
    assert list(tmp_path.iterdir()) == []
    said = capsys.readouterr().out
    first_words = [line.split("  ")[0] for line in said.splitlines()]
    assert first_words == ["dry run", "run", "network", "tasks", "steps", "training", "evaluation", "in all", "disk"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """The same run, stopped after 7 batches of epoch 1 of task 2, and its counts."""
    folder, counts, plan = tmp_path_factory.mktemp("runs") / "stopped", Steps(), make_plan(*RUN)
    plan.analyses.extend([counts, Interruption(task=2, batch=6)])
    plan.analyses[-1].name = "interruption"
    with pytest.raises(SystemExit):
        run(plan, folder)
    return folder, counts


def test_what_is_left_of_a_run(both, stopped):
    counts, (folder, before) = both[1], stopped
    whole = both[2]
    said = rehearse(make_plan(*RUN), folder, read_json(folder / "run.json"))
    assert (said.steps, said.presentations) == (whole.steps, whole.presentations)
    assert said.left.steps == counts.steps - before.steps
    assert said.left.presentations == counts.presentations - before.presentations
    assert {name: cost.looks for name, cost in said.left.analyses.items()} == {
        "representation": 1,  # after task 3
        "continual": 2,
        "csl": 5,  # after epochs 8 to 12
        "curvature": 4,  # after epochs 8, 9, 10, 12
    }
    assert said.left.sizes["snapshots"] < said.sizes["snapshots"]
    assert f"left of it      {said.left.steps:,} steps, about " in said.text()


def test_of_a_run_without_a_checkpoint_all_is_left(stopped, tmp_path):
    folder = stopped[0]
    shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("checkpoint"))
    few = [*RUN, "analysis=[]"]
    chosen = [one for one in few if not one.startswith(("analysis=[r", "representation", "curvature"))]
    said = rehearse(make_plan(*chosen), tmp_path / "run", read_json(tmp_path / "run" / "run.json"))
    assert said.left.steps == said.steps


def test_of_a_run_that_is_done_the_tasks_are_left_that_are_added(both):
    folder, _, whole = both
    said = rehearse(make_plan(*RUN, "num_tasks=5"), folder, read_json(folder / "run.json"))
    added = 3 * 13  # ten classes, 200 samples
    assert (said.steps, said.left.steps) == (whole.steps + added, added)
    assert said.left.analyses["continual"].looks == 1


def test_a_run_that_stands_is_left_as_it_is(both, monkeypatch, capsys):
    folder = both[0]
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.setattr("sys.argv", ["plastiscope-resume", str(folder), "num_tasks=5", "dry_run=true"])
    app.resume()
    assert "tasks           5 of 3 epochs" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert json.loads((folder / "status.json").read_text())["state"] == "done"


def test_numbers_for_people():
    assert [duration(s) for s in (0.0123, 9.9, 50, 150, 7_200, 200_000)] == [
        *("0.012 s", "9.9 s", "50 s", "2.5 min", "2.0 h", "2.3 days"),
    ]
    assert [amount(size) for size in (12, 1_500, 2.5e6, 44.9e6, 1.2e12)] == [
        *("12 bytes", "1.5 kB", "2.5 MB", "44.9 MB", "1.2e+03 GB"),
    ]
    costs = {"a": Cost(2, 3.0, 5e6), "b": Cost(4, None, note="too long")}
    said = Forecast({}, 10, 20, 2.0, 1.0, costs, {"snapshots": 1e6}, runs=2)
    assert said.seconds == 2 + 1 + 2 * 3
    assert said.text().splitlines()[-2:] == [
        "in all          about 9 s, without b",
        "disk            about 11 MB: snapshots 1 MB, analyses 10 MB",
    ]
