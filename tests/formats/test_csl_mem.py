"""Arrays of the CSL-Mem study: names, orders, parts."""

import numpy as np
import pytest

from plastiscope.error import DataError
from plastiscope.formats.csl_mem import (
    Loader,
    find_csl_mem,
    from_tfds,
    read_csl_mem,
    read_data_index,
    read_second_split,
    write_csl_mem,
)

SCORES = np.arange(8, dtype=np.float32).reshape(2, 4)
INDEX = np.array([2, 0, 3, 1])
MODEL = "cifar10_resnet18_noisy_idx_1_epoch_{}_noise_0.1"


@pytest.mark.parametrize(
    "quantity, name",
    [
        ("loss", "loss_resnet18_wd1_{}.npy"),
        ("loss", f"losses_{MODEL}_tid0.pt"),
        ("loss_grad", "loss_grad_resnet18_wd1_{}.npy"),
        ("curvature", "loss_curvature_resnet18_wd1_{}_h_0.001_n_10.npy"),
        ("curvature", f"loss_curvature_{MODEL}_h0.001_tid0.pt"),
        ("correct", "learning_time_cifar100_resnet18_wd1_{}.pt"),
        ("correct", f"correct_{MODEL}_tid0.pt"),
        ("pred", f"pred_{MODEL}_tid0.pt"),
        ("imagenet_loss", "loss_imagenet_resnet18_wd1_{}.npy"),
    ],
)
def test_published_names_are_read_by_epoch(quantity, name, tmp_path):
    for row, epoch in enumerate((9, 10)):
        write_csl_mem(tmp_path / name.format(epoch), SCORES[row])
    assert (tmp_path / name.format(9)).read_bytes()[:2] == b"PK"
    files = find_csl_mem(tmp_path, quantity)
    found = read_csl_mem(files, Loader.same_index)
    assert found.epochs == [9, 10]
    np.testing.assert_array_equal(found.values, SCORES)
    for other in ("loss", "loss_grad", "curvature", "correct", "prob"):
        if other != quantity:
            with pytest.raises(DataError, match=f"no files with {other}"):
                find_csl_mem(tmp_path, other)


def test_a_loader_in_file_order_is_undone_by_the_index(tmp_path):
    true = SCORES[0]
    stored = np.empty(4, np.float32)
    for a in (0, 2):  # as the program does, batch by batch, its images in file order
        stored[INDEX[a : a + 2]] = true[a : a + 2]
    write_csl_mem(tmp_path / "loss_resnet18_wd1_0.npy", stored)
    write_csl_mem(tmp_path / "data_index_cifar100.pt", INDEX)
    index = read_data_index(tmp_path / "data_index_cifar100.pt")
    files = find_csl_mem(tmp_path, "loss")
    np.testing.assert_array_equal(read_csl_mem(files, Loader.file_order, index).values, [true])
    np.testing.assert_array_equal(read_csl_mem(files, Loader.same_index).values, [stored])
    with pytest.raises(DataError, match="need the data index"):
        read_csl_mem(files, Loader.file_order)
    with pytest.raises(DataError, match="has 3 samples, and the files have 4"):
        read_csl_mem(files, Loader.file_order, np.arange(3))


def test_probabilities_keep_their_classes(tmp_path):
    probabilities = np.random.default_rng(0).random((4, 3))
    write_csl_mem(tmp_path / f"prob_{MODEL.format(5)}_tid0.pt", probabilities)
    found = read_csl_mem(find_csl_mem(tmp_path, "prob"), Loader.file_order, INDEX)
    np.testing.assert_array_equal(found.values, [probabilities[INDEX]])


def test_which_run_is_meant_is_told_by_numbers(tmp_path):
    for idx, noise in ((1, "0.1"), (1, "0.2"), (2, "0.10")):
        name = f"losses_cifar10_resnet18_noisy_idx_{idx}_epoch_3_noise_{noise}_tid0.pt"
        write_csl_mem(tmp_path / name, SCORES[0] + idx + float(noise))
    with pytest.raises(DataError, match="both have loss of epoch 3"):
        find_csl_mem(tmp_path, "loss")
    assert "idx_2" in find_csl_mem(tmp_path, "loss", idx=2, noise=1e-1)[3].name
    assert "0.2" in find_csl_mem(tmp_path, "loss", dataset="cifar10", noise=0.2)[3].name
    with pytest.raises(DataError, match="no files with loss"):
        find_csl_mem(tmp_path, "loss", dataset="cifar100")


def test_unequal_lengths_are_refused(tmp_path):
    write_csl_mem(tmp_path / "loss_resnet18_wd1_0.npy", SCORES[0])
    write_csl_mem(tmp_path / "loss_resnet18_wd1_1.npy", SCORES[0, :3])
    with pytest.raises(DataError, match=r"wd1_1\.npy \(epoch 1\) has shape \[3\]"):
        read_csl_mem(find_csl_mem(tmp_path, "loss"), Loader.same_index)


@pytest.mark.parametrize("index", [[0, 0, 1], [1, 2, 3], [0.0, 1.0]])
def test_what_is_no_permutation_is_refused(index, tmp_path):
    write_csl_mem(tmp_path / "i.pt", index)
    with pytest.raises(DataError, match="no data index"):
        read_data_index(tmp_path / "i.pt")


def test_second_split_parts(tmp_path):
    for part in (0, 1):
        write_csl_mem(tmp_path / f"ssft_pred_resnet18_part_{part}_noisy_idx_3_noise_0.10.npy", SCORES + part)
    first, second = read_second_split(tmp_path, 3, 0.1)
    np.testing.assert_array_equal(first, SCORES)
    np.testing.assert_array_equal(second, SCORES + 1)
    with pytest.raises(DataError, match="has 0 files"):
        read_second_split(tmp_path, 4, 0.1)
    write_csl_mem(tmp_path / "ssft_pred_resnet18_part_1_noisy_idx_3_noise_0.10.npy", SCORES[:1])
    with pytest.raises(DataError, match=r"\[2 epochs, N\] is needed"):
        read_second_split(tmp_path, 3, 0.1)


def test_tfds_ids_are_mapped(tmp_path):
    (tmp_path / "map.csv").write_text(",torch_id\n" + "".join(f"{i},{t}\n" for i, t in enumerate(INDEX)))
    found = from_tfds(SCORES, tmp_path / "map.csv")
    for tfds, torch_id in enumerate(INDEX):
        np.testing.assert_array_equal(found[:, torch_id], SCORES[:, tfds])
    (tmp_path / "map.csv").write_text("torch_id\n0\n0\n1\n2\n")
    with pytest.raises(DataError, match="must have each torch_id from 0 to 3 once"):
        from_tfds(SCORES, tmp_path / "map.csv")
