"""Loss files of published runs: two naming schemes, numbers in names, ragged files, and what is refused."""

import numpy as np
import pytest

from plastiscope.error import DataError, RunError
from plastiscope.formats.loss_files import find_loss_files, loss_name, read_losses, write_losses
from plastiscope.formats.scoring_facts import claim, facts_path

LOSSES = np.array([[1, 2, 0.5], [3, 4, 0], [0, 6, 1]], np.float32)
GRADIENTS = LOSSES[::-1] + 10
SCHEMES = {"A": {}, "B": {"run_idx": 2, "noise_level": 0.1}}


def write_all(folder, scheme="A", gradients=True, epochs=(0, 1, 2)):
    for epoch in epochs:
        values = GRADIENTS[epoch] if gradients else None
        write_losses(folder, "cifar100", epoch, LOSSES[epoch], values, **SCHEMES[scheme])
    return folder


def find(folder, **options):
    return find_loss_files(folder, "cifar100", 2, 0.1, **options)


def rows(series):
    return np.stack([row for _, row in series])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_both_schemes_come_back(scheme, tmp_path):
    series = read_losses(find(write_all(tmp_path, scheme)))
    assert series.epochs == [0, 1, 2] and series.ids.tolist() == [0, 1, 2] and series.has_gradients
    assert rows(series.losses()).tolist() == LOSSES.tolist() and rows(series.losses()).dtype == np.float32
    assert rows(series.gradients()).tolist() == GRADIENTS.tolist()
    assert [epoch for epoch, _ in series.losses()] == [0, 1, 2]


def test_names_are_the_published_ones():
    assert loss_name("loss_grad", "cifar100", 7) == "loss_grad_cifar100_epoch_7.npy"
    assert loss_name("loss", "cifar100", 7, 1, 1e-5) == "loss_cifar100_run1_epoch_7_noise_1e-05.npy"
    assert loss_name("loss", "cifar100", 7, 0, 0) == "loss_cifar100_run0_epoch_7_noise_0.0.npy"


@pytest.mark.parametrize("written", ["0.1", "0.10", "1e-1", ".1"])
def test_numbers_in_names_are_numbers(written, tmp_path):
    np.save(tmp_path / f"loss_cifar100_run02_epoch_003_noise_{written}.npy", LOSSES[0])
    np.save(tmp_path / "loss_cifar100_run2_epoch_4_noise_0.01.npy", LOSSES[0])
    np.save(tmp_path / "loss_cifar100_run1_epoch_5_noise_0.1.npy", LOSSES[0])
    np.save(tmp_path / "loss_cifar100_epoch_last.npy", LOSSES[0])
    np.save(tmp_path / "loss_cifar10_epoch_6.npy", LOSSES[0])
    assert list(find(tmp_path).losses) == [3]


def test_two_spellings_of_one_epoch_are_refused(tmp_path):
    for written in ("0.1", "0.10"):
        np.save(tmp_path / f"loss_cifar100_run2_epoch_3_noise_{written}.npy", LOSSES[0])
    with pytest.raises(DataError, match="both stand for epoch 3"):
        find(tmp_path, strict=False)


def test_epochs_come_in_numeric_order_and_within_bounds(tmp_path):
    for epoch in (10, 9, 200, 1000):
        write_losses(tmp_path, "cifar100", epoch, LOSSES[0], None)
    assert list(find(tmp_path).losses) == [9, 10, 200, 1000]
    assert list(find(tmp_path, start=10, end=200).losses) == [10, 200]


def test_mixed_schemes_are_refused_or_the_first_is_taken(tmp_path):
    write_all(tmp_path, "A", epochs=[1])
    for epoch in range(3):
        write_losses(tmp_path, "cifar100", epoch, LOSSES[epoch] + 100, None, **SCHEMES["B"])
    with pytest.raises(DataError, match=r"epoch_1\.npy \(epoch 1\) and loss_\S*run2_epoch_1\S* are of two naming"):
        find(tmp_path)
    with pytest.warns(UserWarning, match="without run and noise level is taken") as told:
        files = find(tmp_path, strict=False)
    assert len(told) == 1
    with pytest.warns(UserWarning, match="no gradient norms of epoch 0, 2"):
        series = read_losses(files, fill=True)
    np.testing.assert_array_equal(rows(series.losses()), [LOSSES[0] + 100, LOSSES[1], LOSSES[2] + 100])


def test_losses_and_gradients_of_different_schemes_are_refused(tmp_path):
    write_losses(tmp_path, "cifar100", 0, LOSSES[0], None)
    np.save(tmp_path / loss_name("loss_grad", "cifar100", 0, 2, 0.1), GRADIENTS[0])
    with pytest.raises(DataError, match="two naming schemes"):
        find(tmp_path)
    with pytest.warns(UserWarning, match="two naming schemes"):
        series = read_losses(find(tmp_path, strict=False))
    assert rows(series.gradients()).tolist() == GRADIENTS[:1].tolist()


def test_missing_gradients_are_refused_or_filled_with_one_warning(tmp_path):
    write_all(tmp_path)
    for epoch in (0, 2):
        (tmp_path / f"loss_grad_cifar100_epoch_{epoch}.npy").unlink()
    with pytest.raises(DataError, match="none of epoch 0, 2"):
        read_losses(find(tmp_path))
    with pytest.warns(UserWarning, match="the losses stand in") as told:
        series = read_losses(find(tmp_path), fill=True)
    assert len(told) == 1 and series.filled_epochs == [0, 2]
    np.testing.assert_array_equal(rows(series.gradients()), [LOSSES[0], GRADIENTS[1], LOSSES[2]])


def test_no_gradients_at_all_are_nothing_to_fill(tmp_path):
    series = read_losses(find(write_all(tmp_path, gradients=False)), fill=True)
    assert not series.has_gradients and series.filled_epochs == []


def test_ragged_arrays_need_ids(tmp_path):
    write_all(tmp_path)
    write_losses(tmp_path, "cifar100", 1, LOSSES[1][:2], GRADIENTS[1][:2])
    series = read_losses(find(tmp_path))
    with pytest.raises(DataError, match=r"loss_cifar100_epoch_1\.npy \(epoch 1\) has 2 values, and there are 3"):
        list(series.losses())
    with pytest.raises(DataError, match=r"loss_grad_cifar100_epoch_1\.npy \(epoch 1\)"):
        list(series.gradients())


def test_ragged_arrays_are_joined_by_id(tmp_path):
    for epoch, ids in enumerate(([7, 2], [2, 9, 7], [9])):
        write_losses(tmp_path, "cifar100", epoch, np.array(ids) + epoch / 10, np.array(ids) * 2)
        np.save(tmp_path / f"sample_ids_cifar100_epoch_{epoch}.npy", np.array(ids, np.float64))
    series = read_losses(find(tmp_path))
    nan = np.nan
    assert series.ids.tolist() == [2, 7, 9]
    np.testing.assert_allclose(rows(series.losses()), [[2, 7, nan], [2.1, 7.1, 9.1], [nan, nan, 9.2]], rtol=1e-7)
    np.testing.assert_array_equal(rows(series.gradients()), [[4, 14, nan], [4, 14, 18], [nan, nan, 18]])
    (tmp_path / "sample_ids_cifar100_epoch_1.npy").unlink()
    with pytest.raises(DataError, match=r"epoch_1\.npy \(epoch 1\) has 3 values"):
        list(read_losses(find(tmp_path)).losses())


@pytest.mark.parametrize("ids, problem", [([1, 1], "sample id 1 2 times"), ([0.5, 1], "no integers")])
def test_ids_that_cannot_be_are_refused(ids, problem, tmp_path):
    write_losses(tmp_path, "cifar100", 0, LOSSES[0][:2], None)
    np.save(tmp_path / "sample_ids_cifar100_epoch_0.npy", np.array(ids))
    with pytest.raises(DataError, match=problem):
        read_losses(find(tmp_path))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match="There is no folder"):
        find(tmp_path / "none")
    with pytest.raises(DataError, match=r"no losses of cifar100 from epoch 5 to 9, neither loss_cifar100_epoch_5\.npy"):
        find(write_all(tmp_path), start=5, end=9)
    with pytest.raises(DataError, match="has no losses of epoch 3"):
        read_losses(find(tmp_path), [0, 3])


def test_losses_of_another_run_are_not_overwritten(tmp_path):
    path = facts_path(tmp_path, "cifar100")
    claim(path, {"index": 0}, ("index",), [tmp_path / "a.npy"])
    claim(path, {"index": 1}, ("index",), [tmp_path / "a.npy"])  # nothing was written yet
    (tmp_path / "a.npy").write_bytes(b"")
    claim(path, {"index": 1, "note": 2}, ("index",), [tmp_path / "a.npy"])
    with pytest.raises(RunError, match=r"a\.npy is of another run \(index 1, now 0\)"):
        claim(path, {"index": 0}, ("index",), [tmp_path / "a.npy"])
    with pytest.raises(RunError, match=r"no scoring_b\.json says of which run"):
        claim(facts_path(tmp_path, "b"), {"index": 1}, ("index",), [tmp_path / "a.npy"])


def test_facts_come_with_the_files_of_their_scheme(tmp_path):
    claim(facts_path(tmp_path, "cifar100", 2, 0.1), {"grad_kind": "param"}, (), [])
    assert find(write_all(tmp_path, "B")).facts["grad_kind"] == "param"
