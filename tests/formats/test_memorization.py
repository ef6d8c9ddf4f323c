"""Scores of training samples, in every format they are published in, joined by id."""

import json
import pickle

import numpy as np
import pytest

from plastiscope.data.restricted_pickle import load_restricted
from plastiscope.error import DataError
from plastiscope.formats.memorization import IdKind, read_memorization

SCORES = np.array([0.5, -0.125, np.nan, 0.25, 1.0])
LABELS = np.array([3, 1, 4, 1, 5])


@pytest.fixture
def feldman_zhang(tmp_path):
    """A file as cifar100_infl_matrix.npz, five samples."""
    influence = {"infl_matrix_class1": np.zeros((2, 1)), "tr_classidx_1": np.array([1, 3])}
    path = tmp_path / "infl_matrix.npz"
    np.savez(path, tr_labels=LABELS, tr_mem=SCORES, tt_labels=LABELS[:2], **influence)
    return path


def test_feldman_zhang_is_in_official_order_and_its_labels_are_checked(feldman_zhang):
    memorization = read_memorization(feldman_zhang)
    assert memorization.id_kind is IdKind.official_order
    joined = memorization.join([3, 0, 2], [1, 3, 4])
    np.testing.assert_array_equal(joined.scores, [0.25, 0.5, np.nan])
    assert joined[1:] == (0, 2, 3)
    with pytest.raises(DataError, match="gives 1 of 3 samples another class, first sample 0 class 3 for 2"):
        memorization.join([3, 0, 2], [1, 2, 4])
    with pytest.raises(DataError, match="holds 5 scores in official order, and there is a sample 5"):
        memorization.join([5])


def test_negative_ids_are_unknown_and_match_nothing(feldman_zhang):
    joined = read_memorization(feldman_zhang).join([-1, 4, -1, -3], [0, 5, 0, 0])
    np.testing.assert_array_equal(joined.scores, [np.nan, 1.0, np.nan, np.nan])
    assert joined[1:] == (3, 4, 1)


def test_imagenet_is_joined_by_shuffled_file_names(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"n{i % 7:08d}_{i}.JPEG" for i in range(50)]
    scores = rng.random(50)
    shuffled = rng.permutation(50)
    arrays = {"tr_filenames": np.array(names, "S")[shuffled], "tr_mem": scores[shuffled]}
    np.savez(tmp_path / "imagenet_index.npz", tr_labels=np.arange(50)[shuffled] % 7, **arrays)
    ours = [f"train/n{i % 7:08d}/{names[i]}" for i in rng.permutation(50)[:30]] + ["train/n1/other.JPEG"]
    memorization = read_memorization(tmp_path / "imagenet_index.npz", file_names=ours)
    joined = memorization.join(np.arange(31))
    expected = [scores[names.index(name.rpartition("/")[2])] for name in ours[:30]]
    np.testing.assert_array_equal(joined.scores, [*expected, np.nan])
    assert joined[1:] == (1, 20, 30)
    assert memorization.id_kind is IdKind.file_name
    np.testing.assert_array_equal(memorization.labels, [int(name[-20:].split("_")[1][:-5]) % 7 for name in ours[:30]])
    with pytest.raises(DataError, match="these data have no file names"):
        read_memorization(tmp_path / "imagenet_index.npz")
    with pytest.raises(DataError, match=r"n00000000_0.JPEG comes twice in the data"):
        read_memorization(tmp_path / "imagenet_index.npz", ["a/n00000000_0.JPEG", "b/n00000000_0.JPEG"])


def test_plain_vectors_whatever_their_suffix(tmp_path):
    np.save(tmp_path / "kozal.npy", SCORES.astype(np.float32))
    with open(tmp_path / "csl.npy", "wb") as file:
        np.savez(file, data=SCORES)
    with open(tmp_path / "scores.pkl", "wb") as file:
        pickle.dump(SCORES, file)
    for name in ("kozal.npy", "csl.npy", "scores.pkl"):
        memorization = read_memorization(tmp_path / name, labels=LABELS)
        np.testing.assert_array_equal(memorization.scores, SCORES)
        np.testing.assert_array_equal(memorization.ids, np.arange(5))
        with pytest.raises(DataError, match="another class"):
            memorization.join([0], [1])


def test_csv_relatives(tmp_path):
    path = tmp_path / "sample_class_map.csv"
    path.write_text("sample_id,class_label,memorization_score\n1234.0,7,0.5\n12.0,3,\n7.0,3,-0.25\n")
    memorization = read_memorization(path)
    assert memorization.ids.dtype == np.int64
    np.testing.assert_array_equal(memorization.ids, [7, 12, 1234])
    np.testing.assert_array_equal(memorization.scores, [-0.25, np.nan, 0.5])
    joined = memorization.join([1234, 12, 5], [7, 3, 0])
    np.testing.assert_array_equal(joined.scores, [0.5, np.nan, np.nan])
    assert joined[1:] == (1, 1, 2)
    path.write_text("sample_id,aum\n3,0.25\n1,0.5\n-1,0.75\n")
    np.testing.assert_array_equal(read_memorization(path).join([3, -1, 1]).scores, [0.25, np.nan, 0.5])


def test_a_sample_of_several_pairs_has_one_score(tmp_path):
    path = tmp_path / "pairs.csv"
    path.write_text("infl,mem,tr_idx,tr_class,tt_idx,tt_class\n.2,.5,9,1,3,1\n.3,.75,4,2,8,2\n.4,.5,9,1,5,1\n")
    memorization = read_memorization(path)
    np.testing.assert_array_equal(memorization.ids, [4, 9])
    np.testing.assert_array_equal(memorization.scores, [0.75, 0.5])
    np.testing.assert_array_equal(memorization.labels, [2, 1])
    arrays = {"tr_idx": np.array([9, 4, 9]), "tt_idx": np.array([3, 8, 5]), "infl": np.array([0.2, 0.3, 0.4])}
    np.savez(tmp_path / "pairs.npz", mem=np.array([0.5, 0.75, 0.5]), **arrays)
    np.testing.assert_array_equal(read_memorization(tmp_path / "pairs.npz").scores, [0.75, 0.5])
    np.savez(tmp_path / "pairs.npz", mem=np.array([0.5, 0.75, 0.25]), **arrays)
    with pytest.raises(DataError, match="gives sample 9 more than one score"):
        read_memorization(tmp_path / "pairs.npz")


def test_json_by_global_index(tmp_path):
    path = tmp_path / "focl.json"
    path.write_text(json.dumps({"30": 1.5, "2": None, "7": -1}))
    memorization = read_memorization(path)
    np.testing.assert_array_equal(memorization.ids, [2, 7, 30])
    np.testing.assert_array_equal(memorization.scores, [np.nan, -1, 1.5])
    path.write_text('{"3": 1.0, "3": 2.0}')
    with pytest.raises(DataError, match="holds sample id 3 2 times"):
        read_memorization(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample_id,memorization_score\n1,0.5\n1,0.5\n", "holds sample id 1 2 times"),
        ("sample_id,memorization_score\n1.5,0.5\n", "sample ids that are no integers"),
        ("sample_id,memorization_score\n1,inf\n", "gives sample 1 an infinite score"),
        ("sample_id,memorization_score\n1,high\n", "numbers both, are needed"),
        ("memorization_score\n1\n", "a column of ids"),
        ("a,b\n1,2,3\n1,2\n1,2,3,4\n", "cannot be read as a table|a column of ids"),
        ('{"one": 1.0}', "no JSON of scores by sample id"),
        ("", "cannot be read as a table"),
    ],
)
def test_bad_tables_are_refused(tmp_path, text, message):
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_memorization(tmp_path / "scores.csv")


def test_bad_arrays_are_refused(tmp_path, feldman_zhang):
    np.savez(tmp_path / "other.npz", infl=np.zeros(3), tt_idx=np.arange(3))
    with pytest.raises(DataError, match="holds infl, tt_idx, and no scores"):
        read_memorization(tmp_path / "other.npz")
    with pytest.raises(DataError, match="There is no file"):
        read_memorization(tmp_path / "none.npy")
    with pytest.raises(DataError, match="the samples asked for holds sample id 1 2 times"):
        read_memorization(feldman_zhang).join([1, 2, 1])
    np.save(tmp_path / "objects.npy", np.array([{}, 1], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="Python objects"):
        read_memorization(tmp_path / "objects.npy")


def test_real_scores_meet_the_images_that_are_known(real_data):
    positions = np.load(real_data / "cifar-100-python-mini" / "orig_train_index.npy")
    labels = np.load(real_data / "memorization" / "cifar100_fine_labels.npy")
    ours = np.array(load_restricted(real_data / "cifar-100-python-mini" / "train", "latin1")["fine_labels"])
    path = real_data / "memorization" / "cifar100_mem_kozal.npy"
    joined = read_memorization(path, labels=labels).join(positions, ours)
    assert joined[1:] == (7_500, 47_500, 2_500)
    known = positions >= 0
    np.testing.assert_array_equal(joined.scores[known], np.load(path)[positions[known]].astype(np.float64))
    assert np.isnan(joined.scores[~known]).all()
    assert len(np.unique(ours[known])) == 25
    wrong = np.where(known, (ours + 1) % 100, ours)
    with pytest.raises(DataError, match="gives 2500 of 2500 samples another class"):
        read_memorization(path, labels=labels).join(positions, wrong)
