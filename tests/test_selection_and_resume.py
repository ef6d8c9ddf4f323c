"""What goes on into the next task, and what the loop must not forget: the schedule, the best weights, each loss."""

import signal
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from plans import make_plan
from plastiscope import trainer
from plastiscope.data.augmentation import CropFlipRotate, augment
from plastiscope.error import RunError
from plastiscope.event import Callback
from plastiscope.experiment import run
from plastiscope.make import load_tasks, make_net
from plastiscope.presentation import epoch_order
from plastiscope.run.checkpoint import Checkpoints
from plastiscope.run.log import read_rows

TINY = ("epochs=3", "threads=1", "analysis=[]", "data.samples_per_class=20", "batch_size=16")


def weights(folder, epochs_completed):
    return torch.load(folder / "snapshots" / f"epoch_{epochs_completed:06d}.pt", weights_only=True)


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def script(monkeypatch, **columns):
    """Evaluations say what is written here: one number for each completed epoch."""
    real = trainer.TrainedRun.evaluate

    def scripted(self, task):
        row = real(self, task)
        assert columns.keys() <= row.keys()
        return row | {key: values[self.context.epochs_completed - 1] for key, values in columns.items()}

    monkeypatch.setattr(trainer.TrainedRun, "evaluate", scripted)


def run_with(folder, callback, *overrides):
    plan = make_plan(*TINY, *overrides)
    callback.name = "watcher"
    plan.analyses.append(callback)
    run(plan, folder)


@dataclass(kw_only=True)
class StepSizes(Callback):
    """Notes the step size of every update."""

    seen: list[float] = field(default_factory=list)

    def on_update(self, context):
        self.seen.append(context.optimizer.param_groups[0]["lr"])


@dataclass(kw_only=True)
class Stop(Callback):
    """Sends SIGTERM after batch 1 of epoch 1, once."""

    stopped: bool = False

    def on_batch_end(self, context):
        if (context.epoch, context.batch_index) == (1, 1) and not self.stopped:
            self.stopped = True
            signal.raise_signal(signal.SIGTERM)


@dataclass(kw_only=True)
class Spoiler(Callback):
    """Puts an infinity into a weight after the last step of an epoch; every loss of the epoch was finite."""

    def on_batch_end(self, context):
        if context.is_last_batch:
            next(iter(context.net.parameters())).data[0, 0] = float("inf")


def test_the_schedule_restarts_with_each_task(tmp_path):
    sizes = StepSizes()
    run_with(tmp_path / "run", sizes, "num_tasks=2", "learner.milestones=[1,2]", "learner.decay=0.5", "batch_size=1000")
    assert sizes.seen == [0.05, 0.025, 0.0125] * 2


@pytest.mark.parametrize(("selection", "best"), [("val_best", 2), ("test_oracle", 1)])
def test_each_selection_looks_at_its_own_split(tmp_path, monkeypatch, selection, best):
    script(monkeypatch, validation_accuracy=[0.5, 0.9, 0.7], test_accuracy=[0.9, 0.5, 0.7])
    run(make_plan(*TINY, "num_tasks=1", "snapshots.every=1", f"selection={selection}"), tmp_path / "run")
    chosen = weights(tmp_path / "run", 3)
    assert [equal(chosen, weights(tmp_path / "run", epoch)) for epoch in (1, 2)] == [best == 1, best == 2]


@pytest.mark.parametrize(("selection", "best"), [("val_best", 2), ("test_oracle", 1)])
def test_regression_selects_the_least_loss(tmp_path, monkeypatch, selection, best):
    script(monkeypatch, validation_loss=[3.0, 1.0, 2.0], test_loss=[1.0, 3.0, 2.0])
    overrides = ("task_shift_mode=drifting_values", "learner.lr=0.001", "num_tasks=1", "snapshots.every=1")
    run(make_plan(*TINY, *overrides, f"selection={selection}"), tmp_path / "run")
    chosen = weights(tmp_path / "run", 3)
    assert [equal(chosen, weights(tmp_path / "run", epoch)) for epoch in (1, 2)] == [best == 1, best == 2]


def test_the_best_of_an_earlier_task_is_forgotten(tmp_path, monkeypatch):
    script(monkeypatch, validation_accuracy=[0.8, 0.9, 0.7, 0.1, 0.3, 0.2])
    run(make_plan(*TINY, "num_tasks=2", "snapshots.every=1", "selection=val_best"), tmp_path / "run")
    assert equal(weights(tmp_path / "run", 3), weights(tmp_path / "run", 2))
    assert equal(weights(tmp_path / "run", 6), weights(tmp_path / "run", 5))


def test_a_run_stopped_after_its_best_epoch_keeps_it(tmp_path, monkeypatch):
    script(monkeypatch, validation_accuracy=[0.9, 0.5, 0.6])
    stop, overrides = Stop(), ("num_tasks=1", "snapshots.every=1", "selection=val_best")
    with pytest.raises(SystemExit):
        run_with(tmp_path / "run", stop, *overrides)
    run_with(tmp_path / "run", stop, *overrides)
    assert equal(weights(tmp_path / "run", 3), weights(tmp_path / "run", 1))
    assert not equal(weights(tmp_path / "run", 3), weights(tmp_path / "run", 2))


def test_the_record_holds_the_loss_of_each_presentation(tmp_path):
    """Stopped after two batches of the second epoch: 32 losses and hits in the order of presentation, by hand."""
    with pytest.raises(SystemExit):
        run_with(tmp_path / "run", Stop(), "num_tasks=1", "selection=last")
    state = Checkpoints(tmp_path / "run" / "checkpoint").load()[0]
    plan = make_plan(*TINY, "num_tasks=1")
    data, shift = load_tasks(plan, torch.device("cpu"))
    task, net = shift.task(0), make_net(plan, data.input_shape, shift.outputs)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    everything, n = task.train.gather(torch.arange(len(task.train))), len(task.train)
    for epoch, batches in ((0, -(-n // 16)), (1, 2)):
        losses, hits = torch.zeros(n), torch.zeros(n, dtype=torch.bool)
        for i, some in enumerate(epoch_order(0, 0, epoch, n).split(16)[:batches]):
            outputs = net(everything.inputs[some])[:, : task.active_outputs]
            each = F.cross_entropy(outputs, everything.targets[some], reduction="none")
            place = slice(16 * i, 16 * i + len(some))
            losses[place], hits[place] = each.detach(), outputs.argmax(1) == everything.targets[some]
            optimizer.zero_grad()
            each.mean().backward()
            optimizer.step()
    assert losses[:32].std() > 0.01  # what the samples have is not what their batch has
    torch.testing.assert_close(state["record"]["losses"], losses, rtol=1e-3, atol=1e-6)
    assert torch.equal(state["record"]["correct"], hits)


def test_a_bad_weight_stops_the_run_though_every_loss_is_finite(tmp_path):
    with pytest.raises(RunError, match="the weights became NaN or infinite at step 2 of epoch 0 of task 0"):
        run_with(tmp_path / "run", Spoiler(), "num_tasks=1", "epochs=1", "selection=last")
    assert read_rows(tmp_path / "run" / "metrics.jsonl") == []
    assert [path.name for path in (tmp_path / "run" / "snapshots").iterdir()] == ["epoch_000000.pt"]


def test_augmented_test_samples_are_drawn_anew_for_every_evaluation(tmp_path):
    """Losses and accuracies by hand, with the test split's draws at the number of completed epochs."""
    plan = make_plan(
        *TINY, "num_tasks=2", "selection=last", "snapshots.every=1", "data.augmentation=crop_flip",
        "data.augment_test=true",
    )  # fmt: skip
    run(plan, tmp_path / "run")
    data, shift = load_tasks(plan, torch.device("cpu"))
    net = make_net(plan, data.input_shape, shift.outputs).eval()
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "epoch"]
    ends = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "task_end"]
    for completed, row in enumerate(rows, start=1):
        task = shift.task((completed - 1) // 3)
        test = task.test.gather(torch.arange(len(task.test)))
        net.load_state_dict(weights(tmp_path / "run", completed))
        by_key = {}
        for key in {0, completed}:
            draws = CropFlipRotate(seed=0, split="test").draw(test.ids, key)
            with torch.no_grad():
                outputs = net(augment(test.inputs, draws, 4))[:, : task.active_outputs]
            by_key[key] = F.cross_entropy(outputs, test.targets).item()
        assert row["test_loss"] == pytest.approx(by_key[completed], rel=1e-5)
        assert by_key[0] != pytest.approx(by_key[completed], rel=1e-4)
        if completed % 3 == 0:
            assert ends[task.index]["task_test_loss"] == row["test_loss"]
