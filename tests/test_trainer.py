"""The loop: its updates against a plain PyTorch loop, the order of its events, selection, and what it never touches."""

import json
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F

from plans import make_plan
from plastiscope.error import ConfigError, RunError
from plastiscope.event import Callback, Context
from plastiscope.experiment import run
from plastiscope.make import load_tasks, make_net
from plastiscope.presentation import epoch_order
from plastiscope.run.log import read_rows

TINY = ("num_tasks=2", "epochs=3", "threads=1", "analysis=[]", "data.samples_per_class=20")


def weights(folder, epochs_completed):
    return torch.load(folder / "snapshots" / f"epoch_{epochs_completed:06d}.pt", weights_only=True)


def test_updates_equal_those_of_a_plain_loop(tmp_path):
    """Two class-incremental tasks by hand: active outputs only, momentum kept, epoch losses from before each update."""
    plan = make_plan(*TINY, "selection=last", "batch_size=16")
    run(plan, tmp_path / "run")
    data, shift = load_tasks(plan, torch.device("cpu"))
    net = make_net(plan, data.input_shape, shift.outputs)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "epoch"]
    for k in range(2):
        task = shift.task(k)
        everything = task.train.gather(torch.arange(len(task.train)))
        for epoch in range(3):
            losses, hits = [], 0
            for some in epoch_order(0, k, epoch, len(task.train)).split(16):
                outputs = net(everything.inputs[some])[:, : 2 * (k + 1)]
                loss = F.cross_entropy(outputs, everything.targets[some])
                losses.append(loss.item() * len(some))
                hits += (outputs.argmax(1) == everything.targets[some]).sum().item()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            row = rows[3 * k + epoch]
            assert row["epoch_loss"] == pytest.approx(sum(losses) / len(task.train), rel=1e-4)
            assert row["epoch_accuracy"] == pytest.approx(hits / len(task.train))
            assert row["global_epoch"] == 3 * k + epoch
            with torch.no_grad():
                test = task.test.gather(torch.arange(len(task.test)))
                right = (net(test.inputs)[:, : 2 * (k + 1)].argmax(1) == test.targets).double().mean().item()
            assert row["test_accuracy"] == pytest.approx(right)
        stored = weights(tmp_path / "run", 3 * (k + 1))
        for name, value in net.state_dict().items():
            torch.testing.assert_close(stored[name], value, rtol=1e-4, atol=1e-5)


def test_order_is_a_permutation_that_changes_with_the_epoch():
    orders = [epoch_order(0, task, epoch, 50).tolist() for task in range(2) for epoch in range(2)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert epoch_order(0, 1, 1, 50).tolist() == orders[3]
    assert epoch_order(1, 1, 1, 50).tolist() != orders[3]


@dataclass(kw_only=True)
class Witness(Callback):
    """Writes down every event with the position at which it comes."""

    seen: list[str] = field(default_factory=list)

    def note(self, event: str, context: Context) -> None:
        self.seen.append(f"{event} {context.task_idx} {context.epoch} {context.epochs_completed}")

    def on_run_begin(self, context):
        self.note("run_begin", context)

    def on_task_begin(self, context):
        self.note("task_begin", context)
        return {"witness/begin": 1.0}

    def on_epoch_begin(self, context):
        self.note("epoch_begin", context)

    def on_backward(self, context):
        assert all(p.grad is not None for p in context.net.parameters())
        self.note("backward", context)

    def on_update(self, context):
        self.note("update", context)

    def on_batch_end(self, context):
        assert context.batch is not None
        assert len(context.losses) == len(context.logits) == len(context.batch.ids)
        self.note("batch_end", context)

    def on_epoch_end(self, context):
        assert "test_accuracy" in context.epoch_row
        self.note("epoch_end", context)

    def on_task_end(self, context):
        self.note("task_end", context)

    def on_run_end(self, context):
        self.note("run_end", context)


def test_events_come_in_the_order_of_the_pseudocode(tmp_path):
    plan = make_plan(*TINY, "epochs=1", "batch_size=1000", "selection=last")
    witness = Witness()
    witness.name = "witness"
    plan.analyses.append(witness)
    run(plan, tmp_path / "run")
    step = ["backward", "update", "batch_end"]
    expected = ["run_begin 0 0 0"]
    for k in range(2):
        expected += [f"task_begin {k} 0 {k}", f"epoch_begin {k} 0 {k}"]
        expected += [f"{event} {k} 0 {k}" for event in step]
        expected += [f"epoch_end {k} 0 {k + 1}", f"task_end {k} 0 {k + 1}"]
    assert witness.seen == [*expected, "run_end 1 0 2"]
    ends = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "task_end"]
    assert [row["witness/begin"] for row in ends] == [1.0, 1.0]
    assert [row["global_epoch"] for row in ends] == [0, 1]


def test_selection_takes_the_first_best_epoch(tmp_path, monkeypatch):
    """Scripted validation accuracies .5 .8 .8: the second epoch's weights go into the snapshot and the next task."""
    from plastiscope import trainer

    script = {"validation": iter([0.5, 0.8, 0.8, 0.1] * 2)}
    real = trainer.TrainedRun.evaluate

    def scripted(self, task):
        row = real(self, task)
        row["validation_accuracy"] = next(script["validation"])
        return row

    monkeypatch.setattr(trainer.TrainedRun, "evaluate", scripted)
    run(make_plan(*TINY, "selection=val_best", "snapshots.every=1"), tmp_path / "best")
    best, last = weights(tmp_path / "best", 3), weights(tmp_path / "best", 2)
    assert all(torch.equal(best[name], last[name]) for name in best)
    assert not all(torch.equal(best[name], weights(tmp_path / "best", 1)[name]) for name in best)


def test_selection_by_validation_needs_validation_samples(tmp_path):
    with pytest.raises(ConfigError, match="selection=val_best needs validation samples"):
        run(make_plan(*TINY, "data.validation_share=0"), tmp_path / "run")


@pytest.mark.parametrize(("every", "keep", "left"), [("1", "null", [0, 1, 2, 3, 4, 5, 6]), ("1", "1", [0, 3, 5, 6])])
def test_snapshots_by_the_keep_policy(tmp_path, every, keep, left):
    run(make_plan(*TINY, f"snapshots.every={every}", f"snapshots.keep={keep}"), tmp_path / "run")
    assert [int(path.stem[-6:]) for path in sorted((tmp_path / "run" / "snapshots").iterdir())] == left


def test_first_bad_step_is_named(tmp_path, monkeypatch):
    """A NaN planted in the fifth batch of the second epoch of task 1."""
    from plastiscope.learner.learner import Learner

    step, steps = Learner.step, 0

    def planted(self, batch):
        nonlocal steps
        if self.task.index == 1:
            steps += 1
            if steps == 3 + 2:
                batch.inputs.fill_(float("nan"))
        return step(self, batch)

    monkeypatch.setattr(Learner, "step", planted)
    plan = make_plan(*TINY, "batch_size=30")
    with pytest.raises(RunError, match="at step 1 of epoch 1 of task 1"):
        run(plan, tmp_path / "run")
    kinds = [row["kind"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert kinds == ["epoch"] * 3 + ["task_end"] + ["epoch"]


def test_test_samples_are_clean_unless_asked(tmp_path, monkeypatch):
    """With data.augment_test the test images change with the epoch, and only then."""
    for augment, same in (("false", True), ("true", False)):
        plan = make_plan("data.augmentation=crop_flip", f"data.augment_test={augment}")
        _, shift = load_tasks(plan, torch.device("cpu"))
        first, second = (next(shift.task(0).test.batches(50, epoch=epoch)).inputs for epoch in (1, 2))
        assert torch.equal(first, second) is same
        train = [next(shift.task(0).train.batches(50, epoch=epoch)).inputs for epoch in (1, 2)]
        assert not torch.equal(*train)


def test_equal_runs_write_equal_files(tmp_path):
    for name in ("one", "two"):
        run(make_plan(*TINY), tmp_path / name)
    for file in ("metrics.jsonl", "config.yaml", "snapshots/epoch_000006.pt"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    differ = json.loads((tmp_path / "one" / "run.json").read_text()).keys()
    assert {"versions", "revision", "command", "overrides", "seed", "threads", "config_hash", "data"} <= differ


def test_evaluation_every_few_epochs_and_always_at_the_end(tmp_path):
    run(make_plan(*TINY, "epochs=5", "eval_every=2", "num_tasks=1"), tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "epoch"]
    assert ["test_accuracy" in row for row in rows] == [False, True, False, True, True]


def test_verbose_says_accuracy_and_seconds(tmp_path, capsys):
    run(make_plan(*TINY, "verbose=true", "batch_size=1", "num_tasks=1", "epochs=1"), tmp_path / "run")
    out = capsys.readouterr().out
    assert "batch 25: train accuracy" in out
    assert "seconds=" in out


def test_load_run(tmp_path):
    import plastiscope

    run(make_plan(*TINY), tmp_path / "run")
    loaded = plastiscope.load_run(tmp_path / "run")
    assert list(loaded.metrics["kind"]) == ["epoch", "epoch", "epoch", "task_end"] * 2
    assert loaded.config["learner"]["lr"] == 0.05
    assert loaded.status["state"] == "done"
    assert set(loaded.timings["global_epoch"]) == set(range(6))
    stored, net = weights(tmp_path / "run", 6), loaded.net(task=1)
    assert all(torch.equal(value, stored[name]) for name, value in net.state_dict().items())
    assert not net.training
    initial = make_net(make_plan(*TINY), (1, 8, 8), 10).state_dict()
    assert all(torch.equal(value, initial[name]) for name, value in loaded.net(epochs_completed=0).state_dict().items())
    task = loaded.task(1)
    assert len(task.classes) == 4
    end = loaded.metrics[loaded.metrics["kind"] == "task_end"].iloc[1]
    with torch.no_grad():
        test = task.test.gather(torch.arange(len(task.test)))
        accuracy = (net(test.inputs)[:, :4].argmax(1) == test.targets).double().mean().item()
    assert accuracy == pytest.approx(end["task_test_accuracy"])
    with pytest.raises(RunError, match="there are: 0, 3, 6"):
        loaded.net(epochs_completed=5)
