"""Tables of presentations: what a run writes, and what is read of other programs' files."""

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from plans import make_plan
from plastiscope.error import DataError, RunError
from plastiscope.experiment import run
from plastiscope.formats import tracking_csv
from plastiscope.formats.tracking_csv import COLUMNS, export_tracking, read_epoch_orders, read_tracking_csv
from plastiscope.make import load_tasks
from plastiscope.run.presentation_log import finish, write_order

SMALL = ("num_tasks=2", "epochs=2", "batch_size=16", "threads=1", "data.samples_per_class=12", "analysis=[tracking]")
ORDER = "task_shift_mode.class_order=[7,2,0,1,3,4,5,6,8,9]"


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """The folder of a run that exported its table; the scores of all even ids are known."""
    folder = tmp_path_factory.mktemp("export")
    known = {str(i): i / 1024 for i in range(0, 1437, 2)}
    (folder / "scores.json").write_text(json.dumps(known))
    options = ("tracking.export_csv=true", "tracking.suffix=_final", f"tracking.scores_file={folder / 'scores.json'}")
    run(make_plan(*SMALL, *options, ORDER), folder / "run")
    return folder / "run"


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_a_presentation_with_the_published_columns(exported):
    rows = table(exported / "sample_tracking_data_final.csv")
    assert tuple(rows[0]) == COLUMNS
    assert ",".join(COLUMNS) == "sample_id,memo_score,true_label,class_id,epoch_num,batch_num,task_num"
    shift = load_tasks(make_plan(*SMALL, ORDER), torch.device("cpu"))[1]
    place = 0
    for k in range(2):
        train = shift.task(k).train
        labels = dict(zip(train.ids.tolist(), train.labels.tolist(), strict=True))
        orders = np.load(exported / f"task_{k:04d}_mlp" / "tracking" / "order.npy")
        for epoch in range(2):
            for j, sample in enumerate(train.ids[torch.from_numpy(orders[epoch].astype(np.int64))].tolist()):
                position = [7, 2, 0, 1].index(labels[sample])
                one_hot = [0.0] * (2 * k + 2)
                one_hot[position] = 1.0
                assert rows[place] == {
                    "sample_id": str(sample),
                    "memo_score": "" if sample % 2 else repr(sample / 1024),
                    "true_label": str(one_hot),
                    "class_id": str(position),
                    "epoch_num": str(2 * k + epoch),
                    "batch_num": str(j // 16),
                    "task_num": str(k),
                }
                place += 1
    assert place == len(rows) == 2 * 24 + 2 * 48


def test_its_companion_says_what_the_columns_mean(exported):
    about = json.loads((exported / "sample_tracking_data_final.json").read_text())
    assert (about["rows"], about["id_kind"]) == (144, "sample_id")
    assert [task["classes"] for task in about["tasks"]] == [[7, 2], [7, 2, 0, 1]]
    rows = table(exported / "sample_tracking_data_final.csv")
    known = [{row["sample_id"] for row in rows if row["memo_score"] and row["task_num"] == str(k)} for k in range(2)]
    assert [task["samples_with_score"] for task in about["tasks"]] == [len(ids) for ids in known]


def test_export_afterwards_gives_the_same_bytes_in_any_chunks(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking_csv, "ROWS_AT_ONCE", 7)
    path = export_tracking(exported, "_final", exported.parent / "scores.json", folder=tmp_path / "new")
    assert path == tmp_path / "new" / "sample_tracking_data_final.csv"
    for name in ("sample_tracking_data_final.csv", "sample_tracking_data_final.json"):
        assert (tmp_path / "new" / name).read_bytes() == (exported / name).read_bytes()
    without = table(export_tracking(exported, folder=tmp_path))
    assert {row["memo_score"] for row in without} == {""}
    with pytest.raises(RunError, match="no whole record of presentations"):
        export_tracking(tmp_path)


def test_own_table_is_read_back(exported):
    shift = load_tasks(make_plan(*SMALL, ORDER), torch.device("cpu"))[1]
    parts = list(read_tracking_csv(exported / "sample_tracking_data_final.csv", rows_at_once=50))
    assert [len(part.sample_ids) for part in parts] == [50, 50, 44]
    assert {part.id_kind for part in parts} == {"sample_id"}
    labels = dict(zip(shift.task(1).train.ids.tolist(), shift.task(1).train.labels.tolist(), strict=True))
    for part in parts:
        assert part.classes.tolist() == [labels[i] for i in part.sample_ids.tolist()]
        expected = np.where(part.sample_ids % 2, np.nan, part.sample_ids / 1024)
        np.testing.assert_array_equal(part.memo_scores, expected)
    np.testing.assert_array_equal(
        np.concatenate([part.epochs for part in parts]), np.repeat(range(4), [24, 24, 48, 48])
    )
    np.testing.assert_array_equal(np.concatenate([part.active for part in parts]), np.repeat([2, 4], [48, 96]))


def test_targets_that_are_no_classes(tmp_path):
    """A task of real values: their text in true_label, class_id empty."""
    place = tmp_path / "task_0001_mlp" / "tracking"
    place.mkdir(parents=True)
    write_order(place, 0, 1, np.array([2, 0, 1]))
    about = {"task": 1, "first_epoch": 5, "epochs": 1, "batch_size": 2, "classes": [], "active_outputs": 1}
    finish(place, np.array([40, 50, 60]), np.array([[0.5], [1.5], [-2.0]], np.float32), about)
    path = export_tracking(tmp_path)
    rows = [",".join(row.values()) for row in table(path)]
    assert rows == ["60,,[-2.0],,5,0,1", "40,,[0.5],,5,0,1", "50,,[1.5],,5,1,1"]
    (part,) = read_tracking_csv(path)
    assert part.sample_ids.tolist() == [60, 40, 50]
    assert part.classes.tolist() == part.positions.tolist() == [-1, -1, -1]


PUBLISHED = [
    ",".join(COLUMNS),
    '1234.0,0.7543,"[0.0, 1.0]",1,0,5,0',
    '12.0,0.0,"[1.0, 0.0]",0,0,6,0',
    '3.0,0.25,"[0.0, 0.0, 0.0, 1.0]",3,1,0,1',
    '8.0,0.5,"[0.0, 1.0, 0.0, 0.0]",1,1,0,1',
]


def published(folder: Path, *lines: str) -> Path:
    path = folder / "sample_tracking_data.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_published_table(tmp_path):
    """Classes through the class order; ids before all classes are active are marked; 0.0 may mean unknown."""
    path = published(tmp_path, *PUBLISHED)
    (part,) = read_tracking_csv(path, class_order=[30, 10, 0, 20])
    assert part.sample_ids.tolist() == [1234, 12, 3, 8]
    assert part.positions.tolist() == [1, 0, 3, 1]
    assert part.classes.tolist() == [10, 30, 20, 10]
    assert part.is_filtered_position.tolist() == [True, True, False, False]
    assert part.id_kind == "mixed"
    np.testing.assert_array_equal(part.memo_scores, [0.7543, np.nan, 0.25, 0.5])
    assert (part.batches.tolist(), part.tasks.tolist(), part.epochs.tolist()) == (
        [5, 6, 0, 0],
        [0, 0, 1, 1],
        [0, 0, 1, 1],
    )
    parts = list(read_tracking_csv(path, [30, 10, 0, 20], zero_is_unknown=False, rows_at_once=2))
    assert [part.id_kind for part in parts] == ["filtered_position", "sample_id"]
    assert parts[0].memo_scores.tolist() == [0.7543, 0.0]


@pytest.mark.parametrize(
    ("lines", "order", "message"),
    [
        (PUBLISHED, None, "give class_order="),
        (PUBLISHED, [30, 10, 0], "has the class position 3 in task 1; class_order is short"),
        (PUBLISHED, [30, 10, 0, 10], "class_order holds sample id 10 2 times|class_order holds 10 2 times"),
        ([PUBLISHED[0], '1,0.5,"[0.0, 1.0]",0,0,0,0'], [0, 1], "in row 2 class_id is 0 and true_label says 1"),
        ([PUBLISHED[0], '1,0.5,"[1.0, 1.0]",0,0,0,0'], [0, 1], "in row 2 class_id is 0 and true_label says -1"),
        ([PUBLISHED[0], '1.5,0.5,"[1.0, 0.0]",0,0,0,0'], [0, 1], "ids or counts that are no integers"),
        (["sample_id,memo_score", "1,0.5"], [0, 1], "has the columns sample_id, memo_score"),
    ],
)
def test_bad_tables_are_refused(tmp_path, lines, order, message):
    with pytest.raises(DataError, match=message):
        list(read_tracking_csv(published(tmp_path, *lines), order))


def test_orders_of_epochs_and_their_pickled_twin(tmp_path):
    orders = {0: [5, 3, 4], 1: [3, 4, 5], 2: [9, 0, 3, 4, 5]}
    np.savez_compressed(
        tmp_path / "epoch_sample_orders_task_1.npz", **{f"epoch_{e}": np.array(o, np.int32) for e, o in orders.items()}
    )
    seeds = {0: {"numpy": np.random.RandomState(0).get_state(), "torch": torch.get_rng_state()}}
    twin = {"epoch_sample_orders": orders, "epoch_random_seeds": seeds, "experiment_info": {"task_id": 1}}
    (tmp_path / "epoch_sample_orders_task_1.pkl").write_bytes(pickle.dumps(twin, protocol=pickle.HIGHEST_PROTOCOL))
    for suffix in ("npz", "pkl"):
        read = read_epoch_orders(tmp_path / f"epoch_sample_orders_task_1.{suffix}")
        assert {epoch: order.tolist() for epoch, order in read.orders.items()} == orders
        assert read.orders[0].dtype == np.int64
        assert [read.is_filtered_position(epoch) for epoch in range(3)] == [True, True, False]
    read = read_epoch_orders(tmp_path / "epoch_sample_orders_task_1.npz", samples=6)
    assert read.is_filtered_position(2)


def test_orders_that_are_none_are_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return (print, ("executed",))

    path = tmp_path / "orders.pkl"
    path.write_bytes(pickle.dumps({"epoch_sample_orders": {0: Harmful()}}))
    with pytest.raises(DataError, match=r"a pickle that holds \w+\.print"):
        read_epoch_orders(path)
    np.savez(tmp_path / "orders.npz", other=np.arange(3))
    with pytest.raises(DataError, match="holds other, and orders of epochs"):
        read_epoch_orders(tmp_path / "orders.npz")
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="holds no orders of epochs"):
        read_epoch_orders(path)
