"""The view over all tasks: values at their places, NaN elsewhere, in whole or in parts."""

from pathlib import Path

import numpy as np
import pytest

from plastiscope.error import RunError
from plastiscope.run import sample_view
from plastiscope.run.sample_store import SampleLabels, SampleStore
from plastiscope.run.sample_view import SampleView, union

IDS = ([7, 3, -2, 100], [3, 8], [], [8, 7, 200, 5, -2])
NAN = np.nan


def labels(ids: list[int], task: int) -> SampleLabels:
    given, n = np.array(ids, np.int64), len(ids)
    zeros = np.zeros(n, np.int64)
    return SampleLabels(
        ids=given, labels=zeros, labels_trained=zeros,
        split=np.zeros(n, np.uint8), entry_task=np.full(n, task, np.int16),
    )  # fmt: skip


def make_store(folder: Path, leave_out: tuple[int, ...] = (), epochs: int = 2) -> tuple[SampleStore, np.ndarray]:
    """A store of four tasks, and what the view over it must be."""
    store, ids = SampleStore(folder), sorted({i for task in IDS for i in task})
    rows = []
    for task, own in enumerate(IDS):
        axis = range(task * epochs + 1, (task + 1) * epochs + 1)
        block = store.open(task, labels(own, task), axis)
        for epoch in axis:
            if epoch not in leave_out:
                block.write("loss", epoch, np.array([1000 * epoch + i for i in own], np.float32))
                rows.append([1000 * epoch + i if i in own else NAN for i in ids])
    store.close()
    return SampleStore(folder), np.array(rows, np.float32)


def test_two_tasks_with_different_samples_by_hand(tmp_path):
    store = SampleStore(tmp_path)
    store.open(0, labels([5, 1], 0), [1]).write("loss", 1, np.array([0.5, 0.1], np.float32))
    store.open(1, labels([9, 5], 1), [2]).write("loss", 2, np.array([0.9, 0.6], np.float32))
    store.close()
    view = SampleView(store, "loss")
    assert view.ids.tolist() == [1, 5, 9] and view.epochs_completed.tolist() == [1, 2]
    np.testing.assert_array_equal(view.values, np.array([[0.1, 0.5, NAN], [NAN, 0.6, 0.9]], np.float32))


def test_all_of_it(tmp_path):
    store, expected = make_store(tmp_path)
    view = SampleView(store, "loss")
    assert view.ids.tolist() == [-2, 3, 5, 7, 8, 100, 200] and view.shape == expected.shape
    assert view.epochs_completed.tolist() == list(range(1, 9)) and view.tasks.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    np.testing.assert_array_equal(view.values, expected)
    assert view.values.dtype == np.float32 and view.missing == []


@pytest.mark.parametrize("size", [1, 2, 3, 100])
@pytest.mark.parametrize("at_once", [1, 5, 1 << 19])
def test_in_parts(tmp_path, monkeypatch, size, at_once):
    monkeypatch.setattr(sample_view, "VALUES_AT_ONCE", at_once)
    store, expected = make_store(tmp_path)
    view = SampleView(store, "loss")
    parts = [np.stack([row for _, _, row in view.rows(samples)]) for samples in view.slices(size)]
    np.testing.assert_array_equal(np.concatenate(parts, 1), expected)
    found = np.full(expected.shape, NAN, np.float32)
    for samples in view.slices(size):
        for piece in view.pieces(samples):
            assert piece.values.size <= max(at_once, len(IDS[piece.task]))
            columns = np.arange(samples.start, samples.stop)[piece.where]
            found[np.ix_(piece.epochs - 1, columns)] = piece.values
            assert set(view.tasks[piece.epochs - 1]) == {piece.task}
    np.testing.assert_array_equal(found, expected)


def test_some_epochs_of_one_task(tmp_path):
    store, _ = make_store(tmp_path)
    pieces = list(SampleView(store, "loss").pieces(slice(None), np.array([1, 4, 7], np.int32), task=3))
    assert [(p.task, p.epochs.tolist()) for p in pieces] == [(3, [7])]
    assert pieces[0].values.tolist() == [[6998, 7005, 7007, 7008, 7200]]
    assert SampleView(store, "loss", tasks=[1]).ids.tolist() == [3, 8]


def test_ids_that_are_asked_for(tmp_path):
    store, expected = make_store(tmp_path)
    view = SampleView(store, "loss", ids=np.array([3, 4, 200]))
    np.testing.assert_array_equal(view.values, np.column_stack([expected[:, 1], np.full(8, NAN), expected[:, 6]]))
    for wrong in ([3, 3], [4, 3]):
        with pytest.raises(RunError, match="do not ascend"):
            SampleView(store, "loss", ids=np.array(wrong))


def test_rows_that_are_not_whole_are_not_there(tmp_path):
    store, expected = make_store(tmp_path, leave_out=(2, 3))
    view = SampleView(store, "loss")
    assert view.epochs_completed.tolist() == [1, 4, 5, 6, 7, 8] and view.missing == [(0, 2), (1, 3)]
    np.testing.assert_array_equal(view.values, expected)
    asked = np.array([1, 2, 3, 4], np.int32)
    assert [p.epochs.tolist() for p in view.pieces(slice(None), asked) if len(p.epochs)] == [[1], [4]]


@pytest.mark.parametrize("left", ["loss.npy", "loss.epochs.npy"])
def test_without_marks_all_rows_of_a_block_are_missing(tmp_path, left):
    _, expected = make_store(tmp_path)
    np.save(tmp_path / "task_0001/loss.epochs.npy", np.array([3, 4], np.int32))
    for name in {"loss.done", "loss.npy", "loss.epochs.npy"} - {left}:
        (tmp_path / "task_0001" / name).unlink()
    view = SampleView(SampleStore(tmp_path), "loss")
    assert view.missing == [(1, 3), (1, 4)]
    np.testing.assert_array_equal(view.values, np.delete(expected, [2, 3], 0))


def test_a_metric_that_is_not_there_says_what_is(tmp_path):
    store, _ = make_store(tmp_path)
    with pytest.raises(RunError, match="has no metric margin; there are: loss"):
        SampleView(store, "margin")
    with pytest.raises(RunError, match="has no metric loss; there are: none"):
        SampleView(SampleStore(tmp_path / "empty"), "loss")


def test_more_than_the_memory_is_refused_before_it_is_taken(tmp_path, monkeypatch):
    store, _ = make_store(tmp_path)
    view = SampleView(store, "loss")
    monkeypatch.setattr(sample_view.os, "sysconf", lambda name: 10)
    with pytest.raises(RunError, match=r"8 epochs and 7 samples takes .* more than the memory"):
        view.values  # noqa: B018


@pytest.mark.parametrize("at_once", [1, 4, 100])
def test_union(at_once):
    some = [np.array(ids, np.int64) for ids in IDS]
    assert union(some, at_once).tolist() == [-2, 3, 5, 7, 8, 100, 200]
    assert union([]).tolist() == [] and union([np.array([3, 1])]).tolist() == [1, 3]
    assert union([np.array([1, 3]), np.array([1, 3])]).tolist() == [1, 3]
