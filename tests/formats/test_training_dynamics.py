"""AUM, cartography, forgetting and second-split files: published layouts, round trips, refusals."""

import json
import pickle

import numpy as np
import pytest
import torch

from plastiscope.error import DataError
from plastiscope.formats.training_dynamics import (
    AUM_RECORD,
    Presentations,
    read_accuracy_mask,
    read_aum,
    read_aum_records,
    read_cartography,
    read_cartography_table,
    read_forgetting,
    read_forgetting_counts,
    write_accuracy_mask,
    write_aum,
    write_aum_records,
    write_cartography,
    write_cartography_table,
    write_forgetting,
    write_forgetting_counts,
)

IDS = np.array([4, 1, 7])


def test_aum_is_sorted_descending(tmp_path):
    path = tmp_path / "aum_values.csv"
    write_aum(path, IDS, np.array([-0.5, 2.25, 0.125]))
    assert path.read_text() == "sample_id,aum\n1,2.25\n7,0.125\n4,-0.5\n"
    ids, aum = read_aum(path)
    assert ids.tolist() == [1, 7, 4] and aum.tolist() == [2.25, 0.125, -0.5]
    path.write_text("sample_id,aum\n1,2\n1,3\n")
    with pytest.raises(DataError, match="sample id 1 2 times"):
        read_aum(path)


def test_aum_records(tmp_path):
    records = {name: np.arange(3) + k for k, name in enumerate(AUM_RECORD)}
    write_aum_records(tmp_path / "r.csv", records)
    found = read_aum_records(tmp_path / "r.csv")
    assert list(found) == list(AUM_RECORD)
    assert all(found[name].tolist() == records[name].tolist() for name in AUM_RECORD)


def test_cartography_comes_back_by_guid(tmp_path):
    logits = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    gold = np.array([3, 0, 1])
    order = [2, 0, 1]
    write_cartography(tmp_path, 0, IDS, logits[0], gold)
    write_cartography(tmp_path, 1, IDS[order], logits[1][order], gold[order])
    first = json.loads((tmp_path / "dynamics_epoch_0.jsonl").read_text().splitlines()[0])
    assert set(first) == {"guid", "logits_epoch_0", "gold"} and first["guid"] == 4
    found = read_cartography(tmp_path)
    by_id = np.argsort(IDS)
    assert found.epochs == [0, 1] and found.ids.tolist() == [1, 4, 7] and found.gold.tolist() == gold[by_id].tolist()
    np.testing.assert_array_equal(found.logits, logits[:, by_id])


def test_cartography_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(DataError, match="has no dynamics_epoch_0"):
        read_cartography(tmp_path)
    for epoch in (0, 2):
        write_cartography(tmp_path, epoch, IDS, np.zeros((3, 2)), np.zeros(3, int))
    with pytest.raises(DataError, match="no dynamics_epoch_1"):
        read_cartography(tmp_path)
    write_cartography(tmp_path, 1, IDS, np.zeros((3, 2)), np.array([0, 0, 1]))
    with pytest.raises(DataError, match=r"\(epoch 1\) has other samples or labels"):
        read_cartography(tmp_path)
    (tmp_path / "dynamics_epoch_1.jsonl").write_text('{"guid": 1}\n')
    with pytest.raises(DataError, match=r"dynamics_epoch_1\.jsonl \(epoch 1\) is damaged"):
        read_cartography(tmp_path)


def test_cartography_table_gives_never_learned_a_thousand(tmp_path):
    path = tmp_path / "td_metrics.jsonl"
    write_cartography_table(path, IDS, [0.5, 0.9, 0.1], [0.2, 0.1, 0.0], [2, 3, 0], [1, 0, 3])
    found = read_cartography_table(path)
    assert found["guid"].tolist() == IDS.tolist() and found["index"].tolist() == [0, 1, 2]
    assert found["confidence"].tolist() == [0.5, 0.9, 0.1] and found["variability"].tolist() == [0.2, 0.1, 0.0]
    np.testing.assert_allclose(found["threshold_closeness"], [0.25, 0.09, 0.09], rtol=1e-12)
    assert found["forgetfulness"].tolist() == [1, 0, 1000] and found["correctness"].tolist() == [2, 3, 0]


def test_forgetting_pickle_and_our_npz_hold_the_same(tmp_path):
    stats = {i: [[0.5 + i, 0.25], [0, 1], [-1.0, 2.0 + i]] for i in (2, 0, 1)}
    stats["train"] = [[0.5, 0.25], [10.0, 20.0]]
    stats["test"] = [[1.0, 0.75], [5.0, 15.0]]
    path = tmp_path / "stats.pkl"
    path.write_bytes(pickle.dumps(stats, protocol=2))
    found = read_forgetting(path)
    assert found.ids.tolist() == [0, 1, 2]
    assert found.loss.tolist() == [[0.5, 1.5, 2.5], [0.25, 0.25, 0.25]]
    assert found.correct.tolist() == [[0, 0, 0], [1, 1, 1]]
    assert found.margin.tolist() == [[-1, -1, -1], [2, 3, 4]]
    assert found.train.tolist() == stats["train"] and found.test.tolist() == stats["test"]
    write_forgetting(tmp_path / "stats.npz", found)
    again = read_forgetting(tmp_path / "stats.npz")
    for name in ("ids", "loss", "correct", "margin", "train", "test"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_forgetting_that_is_ragged_or_code_is_refused(tmp_path):
    path = tmp_path / "stats.pkl"
    path.write_bytes(pickle.dumps({0: [[1.0], [1], [1.0]], 1: [[1.0, 2.0], [1, 1], [1.0, 1.0]]}))
    with pytest.raises(DataError, match="unequal numbers of presentations"):
        read_forgetting(path)
    path.write_bytes(pickle.dumps({0: [[1.0], [1]]}))
    with pytest.raises(DataError, match="three lists"):
        read_forgetting(path)
    path.write_bytes(pickle.dumps({0: print}))
    with pytest.raises(DataError, match="print"):
        read_forgetting(path)
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(DataError, match="holds a list"):
        read_forgetting(path)


def test_forgetting_without_summaries(tmp_path):
    one = np.ones((2, 3))
    write_forgetting(tmp_path / "s.npz", Presentations(np.arange(3), one, one, one))
    assert read_forgetting(tmp_path / "s.npz").train is None


def test_sorted_forgetting_counts(tmp_path):
    path = tmp_path / "sorted.pkl"
    path.write_bytes(pickle.dumps({"indices": np.array([4, 7, 1]), "forgetting counts": np.array([0, 2, 200])}))
    ids, counts = read_forgetting_counts(path)
    assert ids.tolist() == [4, 7, 1] and counts.tolist() == [0, 2, 200]
    write_forgetting_counts(tmp_path / "sorted.npz", np.array([1, 4, 7]), [200, 0, 2])
    ids, counts = read_forgetting_counts(tmp_path / "sorted.npz")
    assert ids.tolist() == [4, 7, 1] and counts.tolist() == [0, 2, 200]
    path.write_bytes(pickle.dumps({"indices": [1, 2], "forgetting counts": [1]}))
    with pytest.raises(DataError, match="2 indices and 1 forgetting counts"):
        read_forgetting_counts(path)


def test_second_split_accuracy_mask(tmp_path):
    mask = np.array([[0, 1, 1], [1, 1, 0]])
    write_accuracy_mask(tmp_path / "acc.pt", mask)
    assert torch.load(tmp_path / "acc.pt", weights_only=True)["acc_mask"].dtype == torch.bool
    np.testing.assert_array_equal(read_accuracy_mask(tmp_path / "acc.pt"), mask.astype(bool))
    torch.save({"acc_mask": torch.tensor(mask)}, tmp_path / "theirs.pt")
    np.testing.assert_array_equal(read_accuracy_mask(tmp_path / "theirs.pt"), mask.astype(bool))
    torch.save(torch.tensor([[0.5]]), tmp_path / "no.pt")
    with pytest.raises(DataError, match="zeros and ones"):
        read_accuracy_mask(tmp_path / "no.pt")
