"""Trees epoch_%04d, flat files and the root of a CSL tree: round trips, and what is refused."""

import json

import numpy as np
import pytest

from plastiscope.error import DataError
from plastiscope.formats.csl_files import read_csl_table, write_csl_root
from plastiscope.formats.csv_columns import read_columns, read_text_columns, write_columns
from plastiscope.formats.flat_files import read_curvature, read_dormancy, write_curvature, write_dormancy
from plastiscope.formats.sample_trees import EpochScores, Tree, epochs_of, main_file, read_epoch, write_epoch
from plastiscope.formats.scoring_facts import facts_path

IDS, LABELS = np.array([7, 2, 9]), np.array([1, 0, 1])
QUANTITIES = {
    Tree.dormancy: ("dormant_prop",),
    Tree.curvature: ("curvature", "directional_eig"),
    Tree.loss: ("loss", "loss_grad"),
}
FILES = {
    Tree.dormancy: {
        "per_sample_dormant_props.npy", "per_sample_dormant_props.csv", "per_sample_sample_ids.npy",
        "per_sample_labels.npy", "combined_dormant_data.csv", "metadata.json", "done",
    },
    Tree.curvature: {
        "per_image_curvature.npy", "per_image_directional_eig.npy", "per_image_labels.npy", "per_image_sample_ids.csv",
        "metadata.json", "done",
    },
    Tree.loss: {
        "per_sample_losses.npy", "per_sample_grads.npy", "per_sample_labels.npy", "per_sample_ids.csv",
        "combined_loss_data.csv", "done",
    },
}  # fmt: skip


def scores(tree, epoch=200, **metadata):
    values = {name: np.array([0.1, 2.5, 1e-9], np.float32) + k for k, name in enumerate(QUANTITIES[tree])}
    return EpochScores(epoch, IDS, LABELS, values, metadata)


@pytest.mark.parametrize("tree", Tree)
def test_a_tree_comes_back(tree, tmp_path):
    written = scores(tree, compute_time_seconds=1.5)
    assert write_epoch(tmp_path, tree, written) == main_file(tmp_path, tree, 200)
    assert {path.name for path in (tmp_path / "epoch_0200").iterdir()} == FILES[tree]
    found = read_epoch(tmp_path, tree, 200)
    assert found.ids.tolist() == IDS.tolist() and found.labels.tolist() == LABELS.tolist()
    for name in QUANTITIES[tree]:
        assert found.values[name].tobytes() == written.values[name].tobytes()


def test_metadata_are_the_published_ones(tmp_path):
    write_epoch(tmp_path, Tree.dormancy, scores(Tree.dormancy, compute_time_seconds=1.5))
    facts = json.loads((tmp_path / "epoch_0200" / "metadata.json").read_text())
    props = scores(Tree.dormancy).values["dormant_prop"].astype(float)
    assert facts == {
        "epoch": 200,
        "total_samples": 3,
        "dormant_props_stats": {"mean": props.mean(), "std": props.std(), "min": props.min(), "max": props.max()},
        "compute_time_seconds": 1.5,
    }


def test_tables_of_a_tree_read_back_the_same_float32(tmp_path):
    write_epoch(tmp_path, Tree.loss, scores(Tree.loss))
    path = tmp_path / "epoch_0200" / "combined_loss_data.csv"
    assert path.read_text().splitlines()[0] == "sample_id,class_label,loss,loss_grad"
    table = read_columns(path, ["sample_id", "loss_grad"])
    assert table["sample_id"].tolist() == IDS.tolist()
    assert table["loss_grad"].astype(np.float32).tobytes() == scores(Tree.loss).values["loss_grad"].tobytes()


def test_epochs_come_in_numeric_order_whatever_their_zeros(tmp_path):
    for epoch in (10000, 400, 0):
        write_epoch(tmp_path, Tree.dormancy, scores(Tree.dormancy, epoch))
    assert list(epochs_of(tmp_path)) == [0, 400, 10000]
    (tmp_path / "epoch_0400").rename(tmp_path / "epoch_400")
    assert read_epoch(tmp_path, Tree.dormancy, 400).epoch == 400
    (tmp_path / "epoch_00400").mkdir()
    with pytest.raises(DataError, match="both stand for epoch 400"):
        epochs_of(tmp_path)
    with pytest.raises(DataError, match="has no folders epoch_0000"):
        epochs_of(tmp_path / "epoch_0000")


@pytest.mark.parametrize("tree", Tree)
def test_an_epoch_without_its_main_array_is_not_complete(tree, tmp_path):
    write_epoch(tmp_path, tree, scores(tree)).unlink()
    with pytest.raises(DataError, match=r"epoch_0200 \(epoch 200\) has no \S+: it is not complete"):
        read_epoch(tmp_path, tree, 200)
    with pytest.raises(DataError, match="no folder of epoch 400"):
        read_epoch(tmp_path, tree, 400)


def test_rows_without_ids_are_refused_unless_given(tmp_path):
    write_epoch(tmp_path, Tree.curvature, scores(Tree.curvature))
    (tmp_path / "epoch_0200" / "per_image_sample_ids.csv").unlink()
    with pytest.raises(DataError, match="row i is not sample i"):
        read_epoch(tmp_path, Tree.curvature, 200)
    assert read_epoch(tmp_path, Tree.curvature, 200, IDS + 1).ids.tolist() == [8, 3, 10]


def test_rows_that_a_padded_sampler_doubled_are_refused(tmp_path):
    write_epoch(tmp_path, Tree.dormancy, scores(Tree.dormancy))
    np.save(tmp_path / "epoch_0200" / "per_sample_sample_ids.npy", np.array([7, 2, 7]))
    with pytest.raises(DataError, match="sample id 7 2 times"):
        read_epoch(tmp_path, Tree.dormancy, 200)
    np.save(tmp_path / "epoch_0200" / "per_sample_sample_ids.npy", np.array([7, 2, 3, 4]))
    with pytest.raises(DataError, match=r"\(epoch 200\) has 3 labels and 4 sample ids"):
        read_epoch(tmp_path, Tree.dormancy, 200)


def test_flat_dormancy_comes_back_with_its_own_samples_each_epoch(tmp_path):
    write_dormancy(tmp_path, scores(Tree.dormancy, 1000))
    few = EpochScores(200, IDS[:2], LABELS[:2], {"dormant_prop": np.array([0.5, 0.25], np.float32)}, {})
    write_dormancy(tmp_path, few)
    first, second = read_dormancy(tmp_path)
    assert (first.epoch, second.epoch) == (200, 1000)
    assert first.ids.tolist() == [7, 2] and first.values["dormant_prop"].tolist() == [0.5, 0.25]
    assert second.labels.tolist() == LABELS.tolist()
    (tmp_path / "sample_ids_epoch_200.npy").unlink()
    with pytest.raises(DataError, match=r"dormant_props_epoch_200\.npy \(epoch 200\) has no sample_ids_epoch_200"):
        read_dormancy(tmp_path)
    with pytest.raises(DataError, match="has no files dormant_props_epoch_0"):
        read_dormancy(tmp_path / "none")


def test_flat_curvature_needs_a_word_on_its_rows(tmp_path):
    written = scores(Tree.curvature, 3, h=1e-3)
    write_curvature(tmp_path, "cifar100", written)
    found = read_curvature(tmp_path)
    assert found.ids.tolist() == IDS.tolist()
    assert found.values["directional_eig"].tobytes() == written.values["directional_eig"].tobytes()
    summary = json.loads((tmp_path / "curvature_summary_cifar100.json").read_text())
    assert summary["parameters"] == {"h": 1e-3} and summary["total_samples"] == 3
    table = read_columns(tmp_path / "curvature_results_cifar100_3.csv", ["sample_id", "class_label", "curvature"])
    assert table["sample_id"].tolist() == IDS.tolist() and table["class_label"].tolist() == LABELS.tolist()
    (tmp_path / "per_image_sample_ids.npy").unlink()
    with pytest.raises(DataError, match="give the ids, or the classes that were scored"):
        read_curvature(tmp_path)
    labels = np.array([5, 1, 5, 0, 1])
    found = read_curvature(tmp_path, allowed_classes=[0, 1], labels_of_data=labels)
    assert found.ids.tolist() == [1, 3, 4]
    with pytest.raises(DataError, match="are not those of the samples"):
        read_curvature(tmp_path, ids=np.array([3, 1, 4]), labels_of_data=labels)
    with pytest.raises(DataError, match="has 3 rows, and 2 samples"):
        read_curvature(tmp_path, allowed_classes=[5], labels_of_data=labels)


def test_the_root_of_a_csl_tree(tmp_path):
    csl, lt = np.array([0.5, np.nan, 0.0]), np.array([0.1, np.nan, 0.2])
    write_csl_root(tmp_path, "cifar100", [4, 5, 6], csl, lt)
    facts = json.loads((tmp_path / "metadata_cifar100_csl.json").read_text())
    assert (facts["total_samples"], facts["active_samples"], facts["valid_samples"]) == (3, 2, 1)
    table = read_csl_table(tmp_path)
    assert table["sample_id"].tolist() == [0, 2] and table["csl"].tolist() == [0.5, 0.0]
    np.testing.assert_array_equal(np.load(tmp_path / "csl_results_full.npy"), csl.astype(np.float32))


def test_tables_say_what_is_wrong(tmp_path):
    path = tmp_path / "t.csv"
    write_columns(path, {"sample_id": np.array([1, 2]), "x": np.array([0.1, np.nan])})
    assert path.read_text() == "sample_id,x\n1,0.1\n2,\n"
    np.testing.assert_array_equal(read_columns(path, ["x"])["x"], [0.1, np.nan])
    with pytest.raises(DataError, match="has no column y; it has sample_id, x"):
        read_columns(path, ["y"])
    path.write_text("sample_id,x\n1\n")
    with pytest.raises(DataError, match="line 2: 1 fields, and the header has 2"):
        read_text_columns(path, ["x"])
    path.write_text("sample_id,x\n1,much\n")
    with pytest.raises(DataError, match="no number"):
        read_columns(path, ["x"])
    with pytest.raises(DataError, match="There is no file"):
        read_columns(tmp_path / "none.csv", ["x"])


def test_the_mark_goes_before_a_folder_is_written_anew(tmp_path, monkeypatch):
    scores = EpochScores(3, np.arange(2), np.zeros(2, np.int64), {"loss": np.ones(2, np.float32)}, {})
    write_epoch(tmp_path, Tree.loss, scores)
    facts_path(tmp_path, "loss").write_text('{"experiment_index": 0}')
    assert read_epoch(tmp_path, Tree.loss, 3).values["loss"].tolist() == [1, 1]

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr("plastiscope.formats.sample_trees.write_array", full_disk)
    with pytest.raises(OSError, match="no space"):
        write_epoch(tmp_path, Tree.loss, scores)
    with pytest.raises(DataError, match=r"epoch_0003 \(epoch 3\) has no mark `done`"):
        read_epoch(tmp_path, Tree.loss, 3)
