"""The store of per-sample values: what is marked is whole, what is damaged is refused, and a kill changes nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from forks import killed
from plans import make_plan
from plastiscope import experiment
from plastiscope.error import RunError
from plastiscope.run import sample_store
from plastiscope.run.matrix_file import MatrixFile
from plastiscope.run.sample_store import SampleBlock, SampleLabels, SampleStore

TESTS = Path(__file__).parents[1]
AXIS = [1, 2, 3, 4]
IDS = [7, -3, 5]


def labels(ids: list[int], task: int = 0, split: int = 0) -> SampleLabels:
    given, n = np.array(ids, np.int64), len(ids)
    return SampleLabels(
        ids=given, labels=given % 3, labels_trained=given % 2,
        split=np.full(n, split, np.uint8), entry_task=np.full(n, task, np.int16),
    )  # fmt: skip


def row(epoch: int, n: int = 3) -> np.ndarray:
    return (10 * epoch + np.arange(n)).astype(np.float32)


def filled(folder: Path, epochs: list[int], metric: str = "loss") -> SampleBlock:
    """A block of three samples with these rows, closed."""
    store = SampleStore(folder / "samples")
    block = store.open(0, labels(IDS), AXIS)
    for epoch in epochs:
        block.write(metric, epoch, row(epoch))
    store.close()
    return SampleStore(folder / "samples").block(0)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_what_is_written_is_read(tmp_path):
    block = filled(tmp_path, AXIS)
    np.testing.assert_array_equal(block.matrix("loss"), [row(e) for e in AXIS])
    assert block.done("loss").all() and block.metrics() == ["loss"]
    assert block.ids.tolist() == IDS and block.ids.dtype == np.int64
    assert block.about.labels.tolist() == [1, 0, 2] and block.about.labels_trained.tolist() == [1, 1, 1]
    assert np.load(tmp_path / "samples/task_0000/loss.npy").dtype == np.float32


def test_a_row_counts_after_the_next_sync_and_not_before(tmp_path):
    store = SampleStore(tmp_path / "samples")
    block = store.open(0, labels(IDS), AXIS)
    block.write("loss", 1, row(1))
    reader = SampleStore(tmp_path / "samples").block(0)
    assert not reader.done("loss").any() and reader.rows("loss") == {}
    assert block.is_written("loss", 1) and not reader.is_written("loss", 1) and not block.is_written("loss", 2)
    store.sync()
    assert reader.done("loss").tolist() == [True, False, False, False] and reader.is_written("loss", 1)
    block.write("loss", 1, row(9))
    assert not reader.done("loss").any()
    store.close()
    np.testing.assert_array_equal(reader.rows("loss")[1], row(9))


def test_the_marks_follow_the_values_to_the_disk(tmp_path, monkeypatch):
    store, to_disk, calls = SampleStore(tmp_path / "samples"), sample_store.to_disk, []

    def watched(paths):
        paths = list(paths)
        calls.append(sorted(path.name for path in paths))
        assert not np.isnan(store.block(0).matrix("loss")[len(calls) // 3]).any()
        assert store.block(0).done("loss").sum() == len(calls) // 2
        to_disk(paths)

    monkeypatch.setattr(sample_store, "to_disk", watched)
    for epoch in (1, 2):
        for metric in ("loss", "margin"):
            store.open(0, labels(IDS), AXIS).write(metric, epoch, row(epoch))
        store.sync()
        store.sync()
    store.close()
    small = ["entry_task.npy", "epochs_completed.npy", "ids.npy", "labels.npy", "labels_trained.npy", "split.npy"]
    values, marks = ["loss.npy", "margin.npy"], ["loss.done", "margin.done"]
    assert calls == [sorted([*values, *small, "samples", "task_0000"]), marks, values, marks]


def test_a_kill_at_any_place_changes_nothing(tmp_path):
    program = TESTS / "run" / "sample_store_kills.py"
    count = int(subprocess.check_output([sys.executable, "-W", "ignore", program, tmp_path], text=True))
    assert count > 40
    whole = contents(tmp_path / "whole")
    assert any(name.endswith("margin.epochs.npy") for name in whole)
    for event in range(1, count + 1):
        killed = contents(tmp_path / f"{event:05d}")
        assert killed.keys() == whole.keys(), event
        assert [name for name in whole if whole[name] != killed[name]] == [], event


def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    plan = ["data.samples_per_class=12", "num_tasks=2", "epochs=3", "batch_size=16", "threads=1", "net=mlp",
            "net.widths=[8]", "analysis=[csl]", "csl.mode=both", "checkpoint_every_s=0", "selection=last"]  # fmt: skip
    write, left = MatrixFile.write, 18

    def killing(self, row, values):
        nonlocal left
        write(self, row, values)
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    with monkeypatch.context() as patch:
        patch.setattr(MatrixFile, "write", killing)
        assert killed(lambda: experiment.run(make_plan(*plan), tmp_path / "killed"))
    block = SampleStore(tmp_path / "killed/samples").block(0)
    assert 0 < block.done("loss").sum() < 3
    for folder in ("killed", "whole"):
        experiment.run(make_plan(*plan), tmp_path / folder)
    ours, whole = contents(tmp_path / "killed/samples"), contents(tmp_path / "whole/samples")
    assert ours.keys() == whole.keys() and [name for name in whole if whole[name] != ours[name]] == []


def test_cutting_back_forgets_later_rows_and_leaves_the_others(tmp_path):
    filled(tmp_path, AXIS)
    SampleStore(tmp_path / "samples").cut_back(2)
    block = SampleStore(tmp_path / "samples").block(0)
    assert list(block.rows("loss")) == [1, 2]
    np.testing.assert_array_equal(block.rows("loss")[2], row(2))
    SampleStore(tmp_path / "samples").cut_back(0)
    assert SampleStore(tmp_path / "samples").tasks() == []


def test_another_axis_for_a_metric_that_is_measured_more_seldom(tmp_path):
    store = SampleStore(tmp_path / "samples")
    block = store.open(0, labels(IDS), AXIS)
    block.write("loss", 1, row(1), epochs=AXIS)
    block.write("trace", 4, row(4), epochs=[2, 4])
    store.close()
    assert not (block.folder / "loss.epochs.npy").exists()
    assert block.epochs("trace").tolist() == [2, 4] and block.done("trace").tolist() == [False, True]
    with pytest.raises(RunError, match=r"trace.npy has rows for the epochs \[2, 4\] of 3 samples; epoch 3"):
        block.write("trace", 3, row(3))
    with pytest.raises(RunError, match=r"epoch 4 of \(2,\) does not fit"):
        block.write("trace", 4, row(4, 2))
    block.close()


def test_rows_can_be_filled_in_any_order_and_by_several_starts(tmp_path):
    for epoch in (3, 1, 4, 2):
        filled(tmp_path, [epoch])
    block = filled(tmp_path, [3])
    np.testing.assert_array_equal(block.matrix("loss"), [row(e) for e in AXIS])
    assert block.done("loss").all()


def test_a_block_without_samples(tmp_path):
    store = SampleStore(tmp_path / "samples")
    block = store.open(0, labels([]), AXIS)
    block.write("loss", 2, row(2, 0))
    store.close()
    assert block.matrix("loss").shape == (4, 0) and block.done("loss").tolist() == [False, True, False, False]


@pytest.mark.parametrize("task", [0, 12_345])
def test_folders_that_are_no_blocks_are_left_alone(tmp_path, task):
    store = SampleStore(tmp_path / "samples")
    store.open(task, labels(IDS), AXIS).write("loss", 1, row(1))
    (tmp_path / "samples/task_notes").mkdir()
    store.close()
    assert store.tasks() == [task]


def test_a_block_is_found_by_ascending_ids(tmp_path):
    block = filled(tmp_path, AXIS)
    where, columns = block.find(np.array([-9, -3, 0, 5, 6, 7, 99]))
    assert np.arange(7)[where].tolist() == [1, 3, 5] and np.arange(3)[columns].tolist() == [1, 2, 0]
    for nothing in ([], [-5], [6], [100]):
        where, columns = block.find(np.array(nothing, np.int64))
        assert len(np.arange(7)[where]) == len(np.arange(3)[columns]) == 0


def refuses(folder: Path, said: str) -> None:
    with pytest.raises(RunError, match=said):
        SampleStore(folder / "samples").block(0).matrix("loss")
    with pytest.raises(RunError, match=said):
        SampleStore(folder / "samples").open(0, labels(IDS), AXIS).write("loss", 1, row(1))


def test_a_matrix_that_is_cut_short_names_its_first_lost_epoch(tmp_path):
    block = filled(tmp_path, AXIS)
    path = block.folder / "loss.npy"
    os.truncate(path, path.stat().st_size - 13)
    refuses(tmp_path, "loss.npy is cut short: the row of epoch 3 and those after it are gone")
    os.truncate(path, 20)
    refuses(tmp_path, "loss.npy cannot be read")
    path.unlink()
    refuses(tmp_path, "loss.npy cannot be read")


@pytest.mark.parametrize("other", [np.zeros((4, 2), np.float32), np.zeros((4, 3)), np.zeros((3, 4), np.float32).T])
def test_a_matrix_of_another_shape_type_or_order_is_refused(tmp_path, other):
    block = filled(tmp_path, AXIS)
    np.save(block.folder / "loss.npy", other)
    refuses(tmp_path, "loss.npy (has shape|cannot be read)")


@pytest.mark.parametrize("length", [0, 3, 5])
def test_marks_that_are_damaged_are_refused(tmp_path, length):
    block = filled(tmp_path, AXIS)
    (block.folder / "loss.done").write_bytes(b"\1" * length)
    for call in (lambda: block.done("loss"), lambda: SampleStore(tmp_path / "samples").cut_back(9)):
        with pytest.raises(RunError, match=f"loss.done is damaged: {length} marks for 4 epochs"):
            call()


@pytest.mark.parametrize("name", ["ids", "labels", "split", "entry_task"])
def test_small_files_that_are_damaged_are_refused(tmp_path, name):
    block = filled(tmp_path, AXIS)
    os.truncate(block.folder / f"{name}.npy", 0)
    with pytest.raises(RunError, match=f"{name}.npy cannot be read"):
        SampleBlock(block.folder).about.ids  # noqa: B018


def test_ids_that_repeat_are_refused(tmp_path):
    with pytest.raises(RunError, match="one id is given to several samples"):
        SampleStore(tmp_path / "samples").open(0, labels([4, 9, 4]), AXIS)
    block = filled(tmp_path, AXIS)
    np.save(block.folder / "ids.npy", np.array([4, 9, 4]))
    with pytest.raises(RunError, match=r"ids.npy: one id is given to several"):
        SampleBlock(block.folder).ids  # noqa: B018


@pytest.mark.parametrize("others", [[7, -3], [7, 5, -3], [1, 2, 3]])
def test_a_block_of_other_samples_is_not_written_into(tmp_path, others):
    filled(tmp_path, AXIS)
    with pytest.raises(RunError, match="task_0000 belongs to other samples"):
        SampleStore(tmp_path / "samples").open(0, labels(others), AXIS)
    store = SampleStore(tmp_path / "samples")
    store.open(0, labels(IDS), AXIS)
    with pytest.raises(RunError, match="belongs to other samples"):
        store.open(0, labels(others), AXIS)


def test_what_is_not_there_says_what_is(tmp_path):
    block = filled(tmp_path, AXIS)
    with pytest.raises(RunError, match="has no metric margin; there are: loss"):
        block.done("margin")
    with pytest.raises(RunError, match="no per-sample values of task 3"):
        SampleStore(tmp_path / "samples").block(3)
