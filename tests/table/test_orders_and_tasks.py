"""What figures over orders and tasks are drawn of, against loops over the files."""

from pathlib import Path

import numpy as np
import pytest

from plastiscope.run.presentation_log import finish, write_order
from plastiscope.run.sample_store import SampleStore
from plastiscope.table.file import Table, TableWriter
from plastiscope.table.pictures import _difficulty, loss_by_entry_task
from plastiscope.table.tracking import order_effect, places, tracking_sources
from table.stores import labels_of, write_block

NAN = float("nan")
EPOCHS = 4


def tracked(folder: Path, task: int, ids: list[int], orders: np.ndarray) -> None:
    """A record of the orders of one task."""
    path = folder / f"task_{task:04d}_mlp" / "tracking"
    path.mkdir(parents=True)
    for epoch, order in enumerate(orders):
        write_order(path, epoch, len(orders), order)
    about = {"task": task, "first_epoch": task * EPOCHS, "epochs": len(orders)}
    finish(path, np.array(ids), np.zeros(len(ids), np.int64), about)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two tasks of 40 and 60 samples, the second with the first's; the block's columns are in another order."""
    random = np.random.default_rng(0)
    for task, n in enumerate((40, 60)):
        ids = (3 * np.arange(n) + 1).tolist()
        losses = random.random((EPOCHS, n))
        losses[2, :5] = NAN
        epochs = [task * EPOCHS + e + 1 for e in range(EPOCHS)]
        shuffled = random.permutation(ids)
        write_block(
            tmp_path,
            task,
            labels_of(shuffled.tolist(), entry_task=[0 if i < 121 else 1 for i in shuffled]),
            epochs,
            {"loss": losses},
        )
        tracked(tmp_path, task, ids, np.array([random.permutation(n) for _ in range(EPOCHS)]))
    return tmp_path


def test_places_of_an_order():
    assert places(np.array([2, 0, 1], np.uint32)).tolist() == [0.5, 1.0, 0.0]
    assert places(np.array([0], np.uint32)).tolist() == [0.0]


def test_presentations_over_two_tasks(folder):
    (source,) = tracking_sources(folder)
    (rows,) = source.slices()
    assert rows["sample_id"].tolist() == (3 * np.arange(60) + 1).tolist()
    assert rows["n_presentations"].tolist() == [8] * 40 + [4] * 20
    assert rows["first_epoch"].tolist() == [1] * 40 + [5] * 20
    assert rows["last_epoch"].tolist() == [8] * 60
    seen = np.zeros(60)
    for task, n in enumerate((40, 60)):
        orders = np.load(folder / f"task_{task:04d}_mlp" / "tracking" / "order.npy")
        for order in orders:
            for place, row in enumerate(order):
                seen[row] += place / (n - 1)
    np.testing.assert_allclose(rows["position_mean"], seen / rows["n_presentations"], rtol=1e-6)
    assert tracking_sources(folder / "nothing") == []


def test_the_effect_of_the_place_equals_a_loop(folder):
    """Changes within a task only, each less the mean of its epoch; NaN left out."""
    parts: list[list[float]] = [[] for _ in range(10)]
    for task, n in enumerate((40, 60)):
        block = SampleStore(folder / "samples").block(task)
        column = {int(i): c for c, i in enumerate(block.ids)}
        losses = np.asarray(block.matrix("loss"), np.float64)
        orders = np.load(folder / f"task_{task:04d}_mlp" / "tracking" / "order.npy")
        for epoch in range(1, EPOCHS):
            change = {r: losses[epoch, column[3 * r + 1]] - losses[epoch - 1, column[3 * r + 1]] for r in range(n)}
            mean = np.nanmean(list(change.values()))
            for place, row in enumerate(orders[epoch].tolist()):
                if np.isfinite(change[row]):
                    parts[min(int(10 * place / (n - 1)), 9)].append(change[row] - mean)
    found = order_effect(folder, SampleStore(folder / "samples"))
    assert found is not None
    assert found.n.tolist() == [len(part) for part in parts]
    np.testing.assert_allclose(found.mean, [np.mean(part) for part in parts], rtol=1e-10)
    errors = [np.std(part, ddof=1) / np.sqrt(len(part)) for part in parts]
    np.testing.assert_allclose(found.error, errors, rtol=1e-10)


def test_no_effect_without_losses_or_without_a_record(tmp_path):
    store = write_block(tmp_path, 0, labels_of([1, 2]), [1, 2], {"correct": [[1, 0], [1, 1]]})
    assert order_effect(tmp_path, store) is None
    tracked(tmp_path, 0, [1, 2], np.array([[0, 1], [1, 0]]))
    assert order_effect(tmp_path, store) is None


def test_loss_of_those_that_entered_with_a_task(folder):
    store = SampleStore(folder / "samples")
    epochs, curves = loss_by_entry_task(store, [0, 1])
    assert epochs.tolist() == list(range(1, 9))
    for task, curve in curves.items():
        for e, value in enumerate(curve):
            block = store.block(e // EPOCHS)
            row, entry = np.asarray(block.matrix("loss"))[e % EPOCHS], block.about.entry_task
            wanted = row[(entry == task) & np.isfinite(row)].astype(np.float64)
            np.testing.assert_allclose(value, wanted.mean() if len(wanted) else NAN, rtol=1e-12)
    assert np.isnan(curves[1][:4]).all() and np.isfinite(curves[1][4:]).all()


def test_validation_samples_have_no_part_in_the_loss_by_entry_task(tmp_path):
    store = write_block(tmp_path, 0, labels_of([1, 2, 3], split=[0, 0, 1]), [1, 2], {"loss": [[1, 3, 9], [2, 2, 9]]})
    epochs, curves = loss_by_entry_task(store, [0])
    assert epochs.tolist() == [1, 2] and curves[0].tolist() == [2.0, 2.0]


def test_difficulty_has_standard_errors_and_boundaries_where_tasks_begin(folder):
    """Of CSL by task of entry: std (n - 1) / sqrt(n); the second task begins when 4 epochs are completed."""
    csl, entry = np.array([1.0, 2.0, 3.0, 6.0, 5.0, 9.0]), np.array([0, 0, 0, 0, 1, 1])
    with TableWriter(folder / "t.parquet", {}) as writer:
        writer.write({"sample_id": np.arange(6), "entry_task": entry, "csl_mean": csl})
    left, right = _difficulty(Table(folder / "t.parquet"), csl, "csl_mean", SampleStore(folder / "samples")).axes
    (segments,) = [bars.get_segments() for bars in left.containers[0].lines[2]]
    halves = [(segment[1, 1] - segment[0, 1]) / 2 for segment in segments]
    np.testing.assert_allclose(halves, [np.std(csl[:4], ddof=1) / 2, np.std(csl[4:], ddof=1) / np.sqrt(2)])
    dotted = [line.get_xdata()[0] for line in right.get_lines() if line.get_linestyle() == ":"]
    assert dotted == [4]
