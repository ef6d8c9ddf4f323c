"""compute_csl under its published name: the measures of the package, and what is lenient, told and refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
from published_results import FOLDER, call

from plastiscope.error import DataError, RunError
from plastiscope.formats.loss_files import write_losses
from plastiscope.measure.dynamics import csl_sum
from plastiscope.measure.learning_time import lt_frac, mean_threshold

LOSSES = np.random.default_rng(0).exponential(size=(5, 12)).astype(np.float32)

GRADIENTS = np.random.default_rng(1).exponential(size=(5, 12)).astype(np.float32)

SCHEMES = {"A": {}, "B": {"run_idx": 1, "noise_level": 0.01}}


def write_all(folder, scheme="A", gradients=range(5), epochs=range(5)):
    for e in epochs:
        write_losses(folder, "cifar100", e, LOSSES[e], GRADIENTS[e] if e in gradients else None, **SCHEMES[scheme])
    return folder


def outputs(folder, stem="cifar100_run1_noise_0.01"):
    lt = folder / f"lt_{stem}.npy"
    csl = np.load(folder / f"csl_{stem}.npy", allow_pickle=False)
    facts = json.loads((folder / f"metrics_{stem}.json").read_text())
    return csl, np.load(lt, allow_pickle=False) if lt.exists() else None, facts


def compute_csl(folder, out, *more):
    call("compute_csl", "--input_dir", folder, "--output_dir", out, "--end_epoch", 4, *more)
    return outputs(out)


def test_compute_csl_equals_the_measures(tmp_path):
    csl, lt, facts = compute_csl(write_all(tmp_path / "in"), tmp_path / "out")
    assert csl.dtype == lt.dtype == np.float32
    np.testing.assert_array_equal(csl, csl_sum(LOSSES).astype(np.float32))
    np.testing.assert_array_equal(lt, lt_frac(GRADIENTS).astype(np.float32))
    assert facts["tau"] == pytest.approx(mean_threshold(GRADIENTS), rel=1e-12)
    assert facts["kept_epochs"] == [0, 1, 2, 3, 4] and facts["num_epochs"] == 5 and facts["filled_epochs"] == []
    assert facts["losses_shape"] == facts["loss_grads_shape"] == [5, 12]
    assert facts["csl_path"] == str(tmp_path / "out" / "csl_cifar100_run1_noise_0.01.npy")
    assert facts["csl_definition"] == "csl_sum" and facts["lt_definition"] == "lt_frac, norm"
    assert facts["grad_kind"] == "unknown" and facts["mode"] == "posthoc" and facts["contains_l2"] is None


def test_both_schemes_give_the_same_bytes(tmp_path):
    for scheme in SCHEMES:
        compute_csl(write_all(tmp_path / scheme / "in", scheme), tmp_path / scheme / "out")
    found = {scheme: outputs(tmp_path / scheme / "out")[2] for scheme in SCHEMES}
    for facts in found.values():
        for key in ("csl_path", "lt_path", "input_dir"):
            facts.pop(key)
    assert found["A"] == found["B"]
    for name in ("csl_cifar100_run1_noise_0.01.npy", "lt_cifar100_run1_noise_0.01.npy"):
        assert (tmp_path / "A" / "out" / name).read_bytes() == (tmp_path / "B" / "out" / name).read_bytes()


def test_both_schemes_together_are_refused_when_strict(tmp_path):
    write_all(write_all(tmp_path / "in", "A"), "B")
    with pytest.raises(DataError, match=r"epoch 0\) and \S+ are of two naming schemes"):
        compute_csl(tmp_path / "in", tmp_path / "out", "--strict")
    with pytest.warns(UserWarning, match="two naming schemes"):
        csl, _, _ = compute_csl(tmp_path / "in", tmp_path / "out")
    np.testing.assert_array_equal(csl, csl_sum(LOSSES).astype(np.float32))


def test_missing_gradients_are_filled_by_losses_with_one_warning(tmp_path):
    write_all(tmp_path / "in", gradients=[0, 2, 4])
    with pytest.raises(DataError, match="none of epoch 1, 3"):
        compute_csl(tmp_path / "in", tmp_path / "out", "--strict")
    with pytest.warns(UserWarning, match="losses stand in") as told:
        _, lt, facts = compute_csl(tmp_path / "in", tmp_path / "out")
    assert len(told) == 1 and facts["filled_epochs"] == [1, 3]
    filled = GRADIENTS.copy()
    filled[[1, 3]] = LOSSES[[1, 3]]
    np.testing.assert_array_equal(lt, lt_frac(filled).astype(np.float32))


def test_without_gradients_there_is_no_learning_time_and_it_is_said(tmp_path, capsys):
    csl, lt, facts = compute_csl(write_all(tmp_path / "in", gradients=[]), tmp_path / "out")
    assert lt is None and facts["lt_path"] is None and facts["tau"] is None and facts["grad_kind"] is None
    np.testing.assert_array_equal(csl, csl_sum(LOSSES).astype(np.float32))
    assert "no learning time" in capsys.readouterr().out


def test_missing_epochs_are_left_out_with_a_warning(tmp_path):
    write_all(tmp_path / "in", epochs=[0, 2, 4])
    with pytest.raises(DataError, match=r"no epoch 1 \(2 of the 5 epochs"):
        compute_csl(tmp_path / "in", tmp_path / "out", "--strict")
    with pytest.warns(UserWarning, match="epoch 1 is the first missing one"):
        csl, _, facts = compute_csl(tmp_path / "in", tmp_path / "out")
    assert facts["kept_epochs"] == [0, 2, 4]
    np.testing.assert_array_equal(csl, csl_sum(LOSSES[::2]).astype(np.float32))
    _, _, facts = compute_csl(tmp_path / "in", tmp_path / "out", "--epoch_step", 2, "--strict")
    assert facts["kept_epochs"] == [0, 2, 4]


def test_the_default_end_of_a_run_by_200_leaves_one_epoch_and_it_is_told(tmp_path):
    for e in (0, 200, 400):
        write_losses(tmp_path / "in", "cifar100", e, LOSSES[0], None)
    out = tmp_path / "out"
    with pytest.warns(UserWarning, match=r"only epoch 0 of \S+ remains"):
        call("compute_csl", "--input_dir", tmp_path / "in", "--output_dir", out, "--epoch_step", 200)
    assert outputs(out)[2]["kept_epochs"] == [0]
    with pytest.raises(DataError, match="ask for more epochs"):
        call("compute_csl", "--input_dir", tmp_path / "in", "--output_dir", out, "--epoch_step", 200, "--strict")


def test_ragged_files_are_joined_by_id_and_averaged_over_active_epochs(tmp_path):
    for e, ids in enumerate(([7, 2], [2, 5, 7])):
        write_losses(tmp_path / "in", "cifar100", e, np.array(ids) + e, None)
        np.save(tmp_path / "in" / f"sample_ids_cifar100_epoch_{e}.npy", np.array(ids))
    with pytest.warns(UserWarning, match="5 of 8 samples have no CSL"):
        call("compute_csl", "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out", "--end_epoch", 1)
    csl, _, facts = outputs(tmp_path / "out")
    nan = np.nan
    np.testing.assert_array_equal(csl, np.array([nan, nan, 2.5, nan, nan, 6, nan, 7.5], np.float32))
    assert facts["csl_definition"] == "csl_active_mean"


def test_outputs_of_another_run_are_not_overwritten(tmp_path):
    compute_csl(write_all(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(RunError, match="is of another run"):
        compute_csl(write_all(tmp_path / "other"), tmp_path / "out")


def test_grad_kind_can_be_said(tmp_path):
    assert compute_csl(write_all(tmp_path / "in"), tmp_path / "out", "--grad-kind", "param")[2]["grad_kind"] == "param"


def test_a_mistake_is_told_in_one_sentence_with_exit_code_2(tmp_path):
    command = [sys.executable, str(FOLDER / "compute_csl.py"), "--input_dir", str(tmp_path / "none")]
    found = subprocess.run(command, capture_output=True, text=True)
    assert found.returncode == 2 and found.stderr == f"There is no folder {tmp_path / 'none'} of per-sample losses.\n"
