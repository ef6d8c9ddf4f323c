"""The published names of CSL and learning time: what is in the files, and whose files are left alone."""

import json

import numpy as np
import pytest

from plastiscope.error import DataError, RunError
from plastiscope.formats.csl_files import read_csl, write_csl

CSL, LT = np.array([4.0, 12.0]), np.array([0.6, 0.2])


def test_names_types_and_keys_are_the_published_ones(tmp_path):
    facts = {
        "kept_epochs": [0, 1, 2],
        "tau": 1.83,
        "input_dir": "losses",
        "source": "per_samples",
        "grad_kind": "input",
    }
    write_csl(tmp_path / "out", "cifar100", 1, 1e-2, CSL, LT, facts, full_paths=True)
    stem = "cifar100_run1_noise_0.01"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"csl_{stem}.npy",
        f"lt_{stem}.npy",
        f"metrics_{stem}.json",
    ]
    for name, values in (("csl", CSL), ("lt", LT)):
        array = np.load(tmp_path / "out" / f"{name}_{stem}.npy", allow_pickle=False)
        assert array.dtype == np.float32 and array.tolist() == values.astype(np.float32).tolist()
    assert json.loads((tmp_path / "out" / f"metrics_{stem}.json").read_text()) == {
        "dataset": "cifar100",
        "run_idx": 1,
        "noise_level": 0.01,
        "kept_epochs": [0, 1, 2],
        "num_epochs": 3,
        "losses_shape": [3, 2],
        "loss_grads_shape": [3, 2],
        "csl_path": str(tmp_path / "out" / f"csl_{stem}.npy"),
        "lt_path": str(tmp_path / "out" / f"lt_{stem}.npy"),
        "tau": 1.83,
        "input_dir": "losses",
        "source": "per_samples",
        "filled_epochs": None,
        "grad_kind": "input",
        "contains_l2": None,
        "mode": None,
        "logit_scope": None,
        "split": None,
        "csl_definition": None,
        "lt_definition": None,
    }


def test_paths_of_a_run_folder_are_names(tmp_path):
    write_csl(tmp_path, "digits", 3, 1e-5, CSL, LT, {"kept_epochs": [0]})
    facts = json.loads((tmp_path / "metrics_digits_run3_noise_1e-05.json").read_text())
    assert facts["csl_path"] == "csl_digits_run3_noise_1e-05.npy"


def test_without_gradients_there_is_no_learning_time(tmp_path):
    write_csl(tmp_path, "digits", 0, 0.0, CSL, LT, {"kept_epochs": [0]})
    write_csl(tmp_path, "digits", 0, 0.0, CSL, None, {"kept_epochs": [0]})
    assert not (tmp_path / "lt_digits_run0_noise_0.0.npy").exists()
    csl, lt, facts = read_csl(tmp_path, "digits", 0, 0)
    assert csl.tolist() == CSL.tolist() and lt is None
    assert facts["lt_path"] is None and facts["loss_grads_shape"] is None


def test_the_noise_level_is_read_as_a_number(tmp_path):
    for name in ("csl", "lt"):
        np.save(tmp_path / f"{name}_cifar100_run1_noise_0.10.npy", CSL)
    (tmp_path / "metrics_cifar100_run1_noise_0.10.json").write_text('{"lt_path": "somewhere/else.npy"}')
    csl, lt, _ = read_csl(tmp_path, "cifar100", 1, 1e-1)
    assert csl.tolist() == lt.tolist() == CSL.tolist()
    with pytest.raises(DataError, match=r"no metrics file of cifar100, run 1, noise 0\.2"):
        read_csl(tmp_path, "cifar100", 1, 0.2)
    (tmp_path / "metrics_cifar100_run1_noise_0.1.json").write_text("{}")
    with pytest.raises(DataError, match="more than one metrics file"):
        read_csl(tmp_path, "cifar100", 1, 0.1)


def test_files_of_another_run_are_not_overwritten(tmp_path):
    facts = {"kept_epochs": [0], "input_dir": "a", "source": "per_samples"}
    write_csl(tmp_path, "digits", 0, 0.0, CSL, LT, facts)
    write_csl(tmp_path, "digits", 0, 0.0, CSL + 1, LT, facts | {"kept_epochs": [0, 1]})
    with pytest.raises(RunError, match=r"csl_digits_run0_noise_0\.0\.npy is of another run \(input_dir a, now b\)"):
        write_csl(tmp_path, "digits", 0, 0.0, CSL, LT, facts | {"input_dir": "b"})
    assert read_csl(tmp_path, "digits", 0, 0)[0].tolist() == (CSL + 1).tolist()
    (tmp_path / "metrics_digits_run0_noise_0.0.json").unlink()
    with pytest.raises(RunError, match="says of which run"):
        write_csl(tmp_path, "digits", 0, 0.0, CSL, LT, facts)


def test_csl_and_learning_time_of_different_samples_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"shapes \[\[2\], \[3\]\]"):
        write_csl(tmp_path, "digits", 0, 0.0, CSL, np.zeros(3), {"kept_epochs": [0]})
