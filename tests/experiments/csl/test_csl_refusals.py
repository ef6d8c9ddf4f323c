"""Arrays of CSL-Mem in compute_csl and csl_pipeline, and mistakes that are told in a sentence."""

import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
import torch
from published_results import FOLDER, call

from plastiscope.error import DataError, RunError
from plastiscope.formats.csl_mem import write_csl_mem
from plastiscope.formats.loss_files import write_losses
from plastiscope.formats.sample_trees import EpochScores, Tree, epoch_folder, write_epoch
from plastiscope.formats.scoring_facts import claim, facts_path
from plastiscope.measure.dynamics import csl_sum
from plastiscope.measure.learning_time import lt_frac

LOSSES = np.random.default_rng(0).exponential(size=(3, 8)).astype(np.float32)
GRADIENTS = np.random.default_rng(1).exponential(size=(3, 8)).astype(np.float32)
INDEX = np.random.default_rng(2).permutation(8)
STEM = "cifar100_run1_noise_0.01"


def write_arrays(folder):
    """Row index[k] has the score of sample k, as the program leaves it of a loader in file order."""
    folder.mkdir()
    for kind, values in (("loss", LOSSES), ("loss_grad", GRADIENTS)):
        for e, row in enumerate(values):
            scores = np.empty_like(row)
            scores[INDEX] = row
            write_csl_mem(folder / f"{kind}_resnet18_wd1_{e}.npy", scores)
    torch.save(torch.from_numpy(INDEX), folder / "data_index_cifar100.pt")
    return folder


def found(out):
    facts = json.loads((out / f"metrics_{STEM}.json").read_text())
    return np.load(out / f"csl_{STEM}.npy"), np.load(out / f"lt_{STEM}.npy"), facts


def test_the_documented_command_puts_arrays_of_csl_mem_in_order(tmp_path):
    write_arrays(tmp_path / "L")
    text = (FOLDER / "README.md").read_text()
    (line,) = (line for line in text.splitlines() if "--index L/" in line)
    words = shlex.split(line.replace("experiments/csl", str(FOLDER)))
    told = subprocess.run([sys.executable, *words[1:], "--strict"], cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    csl, lt, facts = found(tmp_path / "C")
    np.testing.assert_array_equal(csl, csl_sum(LOSSES).astype(np.float32))
    np.testing.assert_array_equal(lt, lt_frac(GRADIENTS).astype(np.float32))
    assert facts["id_kind"] == "data_index" and facts["index"] == "L/data_index_cifar100.pt"


def test_rows_of_csl_mem_are_ids_with_a_warning_and_refused_when_strict(tmp_path):
    options = ["--input_dir", write_arrays(tmp_path / "in"), "--output_dir", tmp_path / "out", "--end_epoch", 2]
    with pytest.raises(DataError, match=r"--index data_index_cifar100.pt puts them in order"):
        call("csl_pipeline", *options, "--strict")
    with pytest.warns(UserWarning, match="rows are taken as sample ids"):
        call("csl_pipeline", *options)
    np.testing.assert_array_equal(found(tmp_path / "out")[0][INDEX], csl_sum(LOSSES).astype(np.float32))
    call("csl_pipeline", *options, "--strict", "--index", "none")
    np.testing.assert_array_equal(found(tmp_path / "out")[0][INDEX], csl_sum(LOSSES).astype(np.float32))


def test_an_index_that_does_not_fit_is_refused(tmp_path):
    folder = write_arrays(tmp_path / "in")
    index = folder / "data_index_cifar100.pt"
    torch.save(torch.arange(9), index)
    options = ["--input_dir", folder, "--output_dir", tmp_path / "out", "--end_epoch", 2, "--index", index]
    with pytest.raises(DataError, match=r"The data index has 9 samples, and .* has 8"):
        call("compute_csl", *options)
    write_losses(folder, "cifar100", 0, LOSSES[0], None)
    with pytest.raises(DataError, match="leave the data index out"):
        call("compute_csl", *options)


@pytest.mark.parametrize("command", ["score_incremental_cifar_loss", "csl_pipeline", "score_cifar100_loss"])
@pytest.mark.parametrize("size", ["0", "-3", "x"])
def test_a_batch_of_no_images_is_refused(command, size):
    with pytest.raises(DataError, match=f"--batch_size {size}: give a whole number of 1 or more"):
        call(command, "--results_dir", "r", "--data_path", "d", "--batch_size", size)


def test_a_batch_of_no_images_is_one_sentence_and_exit_code_2():
    words = ["--results_dir", "r", "--data_path", "d", "--batch_size", "0"]
    command = [sys.executable, str(FOLDER / "score_incremental_cifar_loss.py"), *words]
    told = subprocess.run(command, capture_output=True, text=True)
    assert (told.returncode, told.stderr) == (2, "--batch_size 0: give a whole number of 1 or more.\n")


@pytest.mark.parametrize("name", ["cuda:63", "meta", "nonsense"])
def test_a_device_that_is_not_there_is_refused(name):
    from checkpoint_scoring import choose_device

    from plastiscope.run.processes import Processes

    with pytest.raises(DataError, match=f"--device {name} cannot be used"):
        choose_device(name, Processes())
    assert choose_device("cpu", Processes()) == torch.device("cpu")


def test_strict_refuses_losses_without_gradients_unless_they_were_left_out_on_purpose(tmp_path):
    options = ["--input_dir", tmp_path, "--output_dir", tmp_path / "out", "--end_epoch", 2, "--strict"]
    for e in range(3):
        write_losses(tmp_path, "cifar100", e, LOSSES[e], None)
    with pytest.raises(DataError, match="so there is no learning time"):
        call("compute_csl", *options)
    facts_path(tmp_path, "cifar100").write_text('{"grad_kind": null}')
    call("compute_csl", *options)


def test_strict_refuses_nan_unless_it_means_not_in_training(tmp_path):
    options = ["--input_dir", tmp_path, "--output_dir", tmp_path / "out", "--end_epoch", 2]
    for e in range(3):
        losses = LOSSES[e].copy()
        losses[5] = np.nan if e == 1 else losses[5]
        write_losses(tmp_path, "cifar100", e, losses, GRADIENTS[e])
    with pytest.raises(DataError, match=r"loss_cifar100_epoch_1.npy \(epoch 1\) has NaN in 1 rows, first in row 5"):
        call("compute_csl", *options, "--strict")
    with pytest.warns(UserWarning, match="1 of 8 samples have no CSL"):
        call("compute_csl", *options)
    facts_path(tmp_path, "cifar100").write_text('{"logit_scope": "active", "grad_kind": "input"}')
    call("compute_csl", *options, "--strict")


def test_a_damaged_file_is_told_with_its_epoch(tmp_path):
    for e in range(3):
        write_losses(tmp_path, "cifar100", e, LOSSES[e], GRADIENTS[e])
    path = tmp_path / "loss_cifar100_epoch_2.npy"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"Epoch 2: \S+loss_cifar100_epoch_2.npy is damaged"):
        call("compute_csl", "--input_dir", tmp_path, "--output_dir", tmp_path / "out", "--end_epoch", 2)


def write_tree(root):
    for e in range(3):
        values = {"loss": LOSSES[e], "loss_grad": GRADIENTS[e]}
        write_epoch(root, Tree.loss, EpochScores(e, np.arange(8), np.zeros(8, np.int64), values, {}))
    return ["--input_dir", root, "--output_dir", root / "out"]


def test_an_unfinished_folder_of_ours_is_a_missing_epoch(tmp_path):
    options = write_tree(tmp_path)
    (epoch_folder(tmp_path, 1) / "done").unlink()
    call("multi_gpu_csl_analysis", *options, "--strict")  # other people's trees have no mark
    claim(facts_path(tmp_path, "loss"), {"experiment_index": 0}, (), [])
    with pytest.raises(DataError, match=r"epoch_0001 \(epoch 1\) has no mark `done`"):
        call("multi_gpu_csl_analysis", *options, "--strict")
    with pytest.warns(UserWarning, match="epoch 1 has no mark `done` and is left out"):
        call("multi_gpu_csl_analysis", *options)
    csl = np.load(tmp_path / "out" / "csl_cifar100_run1_noise_0.0.npy")
    np.testing.assert_array_equal(csl, LOSSES[[0, 2]].astype(np.float64).mean(0).astype(np.float32))


def test_ids_cut_short_are_told_by_their_own_file(tmp_path):
    options = write_tree(tmp_path)
    path = epoch_folder(tmp_path, 1) / "per_sample_ids.csv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-2]))
    with pytest.raises(DataError, match=r"has 8 values, and \S+epoch_0001/per_sample_ids.csv has 6 sample ids"):
        call("multi_gpu_csl_analysis", *options)


def test_a_class_that_the_network_has_no_output_for(images, results, tmp_path):
    model = results / "model_parameters" / "index-0_epoch-0.pt"
    words = ["--data_path", images, "--model_path", model, "--save_dir", tmp_path, "--scaling", "per_sample"]
    with pytest.raises(RunError, match="has 100 outputs, from 0, and class 300 is asked for"):
        call("per_image_curve", *words, "--allowed_classes", "3,300")
