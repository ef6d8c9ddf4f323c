"""Orders of presentation as a run records them, against the ids that its steps saw."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_context import make_context

from plans import make_plan
from plastiscope.analysis.tracking import Tracking, targets_of
from plastiscope.error import ConfigError, RunError
from plastiscope.experiment import run
from plastiscope.learner.learner import Learner
from plastiscope.make import load_tasks
from plastiscope.measure.presentation import order_change
from plastiscope.presentation import epoch_order
from plastiscope.run.log import read_rows
from plastiscope.run.presentation_log import presented_tasks, write_order

SMALL = ("num_tasks=3", "epochs=2", "batch_size=16", "threads=1", "data.samples_per_class=12", "analysis=[tracking]")


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> tuple[Path, list[tuple[list[int], list[int]]]]:
    """A run, and (ids, targets) of each of its steps."""
    folder, steps = tmp_path_factory.mktemp("tracking") / "run", []
    step = Learner.step

    def watched(self, batch):
        steps.append((batch.ids.tolist(), batch.targets.tolist()))
        return step(self, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "step", watched)
        run(make_plan(*SMALL), folder)
    return folder, steps


def test_the_record_gives_back_the_ids_and_targets_of_every_step(recorded):
    folder, steps = recorded
    tasks = presented_tasks(folder)
    assert [task.task for task in tasks] == [0, 1, 2]
    found = []
    for task in tasks:
        size = task.about["batch_size"]
        for epoch in range(task.epochs):
            rows = task.order(epoch)
            for start in range(0, len(rows), size):
                some = rows[start : start + size]
                found.append((task.ids[some].tolist(), task.targets[some].tolist()))
    assert found == steps


def test_files_are_as_documented(recorded):
    folder, _ = recorded
    shift = load_tasks(make_plan(*SMALL), torch.device("cpu"))[1]
    for k in range(3):
        task, place = shift.task(k), folder / f"task_{k:04d}_mlp" / "tracking"
        orders = np.load(place / "order.npy")
        assert (orders.dtype, orders.shape) == (np.uint32, (2, len(task.train)))
        for epoch in range(2):
            np.testing.assert_array_equal(orders[epoch], epoch_order(0, k, epoch, len(task.train)))
        np.testing.assert_array_equal(np.load(place / "ids.npy"), task.train.ids)
        about = json.loads((place / "summary.json").read_text())
        assert about["classes"] == list(task.classes)
        assert (about["first_epoch"], about["batch_size"], about["order"]) == (2 * k, 16, "random")
        assert about["generator"] == "torch.randperm(n), seeded with named_seed(seed, 'order', task, epoch)"


def test_numbers(recorded):
    folder, _ = recorded
    rows = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "epoch"]
    assert [row["tracking/train/total/presentations"] for row in rows] == [24.0, 24.0, 48.0, 48.0, 72.0, 72.0]
    changes = [row.get("tracking/train/total/order_change") for row in rows]
    assert changes[::2] == [None] * 3
    one, other = epoch_order(0, 2, 1, 72), epoch_order(0, 2, 0, 72)
    assert changes[-1] == order_change(one, other)


def test_order_change_by_hand_and_of_random_orders():
    order = torch.tensor([2, 0, 1])
    assert order_change(order, order) == 0
    assert order_change(torch.tensor([0, 2, 1]), order) == pytest.approx((1 + 0 + 1) / 3 / (8 / 9))
    assert order_change(torch.arange(100).flip(0), torch.arange(100)) == pytest.approx(1.5 * 1e4 / 9999)
    generator = torch.Generator().manual_seed(0)
    orders = [torch.randperm(500, generator=generator) for _ in range(40)]
    changes = [order_change(a, b) for a, b in zip(orders[::2], orders[1::2], strict=True)]
    assert np.mean(changes) == pytest.approx(1, abs=4 * np.std(changes) / 20**0.5)


def test_a_fixed_order_does_not_change_and_says_its_name(tmp_path):
    np.save(tmp_path / "scores.npy", np.random.default_rng(0).random(1437))
    given = ("data.order=middle_out", f"data.scores_file={tmp_path / 'scores.npy'}", "num_tasks=1", "epochs=3")
    run(make_plan(*SMALL, *given), tmp_path / "run")
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "epoch"]
    assert [row.get("tracking/train/total/order_change") for row in rows] == [None, 0.0, 0.0]
    (task,) = presented_tasks(tmp_path / "run")
    assert (task.about["order"], task.about["generator"]) == ("middle_out", None)
    np.testing.assert_array_equal(task.order(0), task.order(2))
    scores = np.load(tmp_path / "scores.npy")[task.ids[task.order(0)]]
    assert scores[0] == np.sort(scores)[(len(scores) - 1) // 2]


@pytest.mark.parametrize("one_hot", [False, True])
def test_targets_are_positions_of_the_class(tmp_path, one_hot):
    overrides = ("data.targets=one_hot",) if one_hot else ()
    task = make_context(tmp_path / "run", *overrides, task=2).current_task
    labels = task.train.labels.numpy()
    np.testing.assert_array_equal(np.array(task.classes)[targets_of(task)], labels)


def test_targets_of_a_regression_are_values(tmp_path):
    task = make_context(tmp_path / "run", "task_shift_mode=drifting_values", task=1).current_task
    targets = targets_of(task)
    assert (targets.dtype, targets.shape) == (np.float32, (len(task.train), 1))
    np.testing.assert_array_equal(targets[:, 0], task.train.targets)


def test_saved_weights_have_no_order(tmp_path):
    context = make_context(tmp_path / "run")
    with pytest.raises(
        ConfigError, match="tracking records in which order training presents the samples; leave it out"
    ):
        Tracking().on_epoch_end(context)
    assert Tracking().needs_training()


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match=r"tracking.every=2: must be 1"):
        make_plan("analysis=[tracking]", "tracking.every=2")
    with pytest.raises(ConfigError, match=r"tracking.suffix=a/b: must be part of a file name"):
        make_plan("analysis=[tracking]", "tracking.suffix=a/b")
    with pytest.raises(ConfigError, match=r"tracking.scores_file=x.npy: is for the exported file"):
        make_plan("analysis=[tracking]", "tracking.scores_file=x.npy")


def test_what_is_not_whole_is_not_read(recorded, tmp_path):
    shutil.copytree(recorded[0], tmp_path / "run")
    (tmp_path / "run" / "task_0001_mlp" / "tracking" / "summary.json").unlink()
    assert [task.task for task in presented_tasks(tmp_path / "run")] == [0, 2]
    place = tmp_path / "run" / "task_0000_mlp" / "tracking"
    orders = np.load(place / "order.npy")
    orders[1, 3] = orders[1, 4]
    np.save(place / "order.npy", orders)
    first = presented_tasks(tmp_path / "run")[0]
    assert len(first.order(0)) == 24
    with pytest.raises(RunError, match=r"order.npy is damaged: the row of epoch 1 of the task is no permutation"):
        first.order(1)
    (place / "order.npy").write_bytes((place / "order.npy").read_bytes()[:200])
    with pytest.raises(RunError, match=r"order.npy cannot be read"):
        presented_tasks(tmp_path / "run")[0].order(0)
    with pytest.raises(RunError, match=r"was the run made with analysis=\[tracking\]"):
        presented_tasks(tmp_path)


def test_rows_are_written_alone(tmp_path):
    """A row lands in its place and leaves the others; a file of another shape is begun anew."""
    write_order(tmp_path, 2, 4, np.array([1, 0, 2]))
    write_order(tmp_path, 0, 4, np.array([2, 1, 0]))
    assert np.load(tmp_path / "order.npy").tolist() == [[2, 1, 0], [0, 0, 0], [1, 0, 2], [0, 0, 0]]
    write_order(tmp_path, 1, 2, np.array([0]))
    assert np.load(tmp_path / "order.npy").tolist() == [[0], [0]]
    assert [path.name for path in tmp_path.iterdir()] == ["order.npy"]


def test_a_replay_refuses_it_by_name(recorded, tmp_path):
    message = "nothing is trained: tracking records in which order training presents the samples; leave it out"
    with pytest.raises(ConfigError, match=message):
        run(make_plan(*SMALL, f"replay.folder={recorded[0]}"), tmp_path / "replay")
