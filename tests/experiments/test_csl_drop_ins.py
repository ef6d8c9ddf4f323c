"""The commands of experiments/csl: published names, options, defaults and files, on small files."""

import importlib
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plastiscope.data.restricted_pickle import load_restricted
from plastiscope.error import DataError, RunError
from plastiscope.formats.csl_files import read_csl
from plastiscope.formats.loss_files import write_losses
from plastiscope.measure.dynamics import csl_sum
from plastiscope.measure.learning_time import lt_frac, mean_threshold
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.resnet18_shortcut import ResNet18Shortcut

FOLDER = Path(__file__).parents[2] / "experiments" / "csl"
LOSSES = np.random.default_rng(0).exponential(size=(5, 12)).astype(np.float32)
LOSSES[3:, 4] = 0
GRADIENTS = np.random.default_rng(1).exponential(size=(5, 12)).astype(np.float32)
SCHEMES = {"A": {}, "B": {"run_idx": 1, "noise_level": 0.01}}


CLASSES = [3, 7, 11, 19, 23, 31, 42, 57, 66, 71]
"""Of the real images: the first five are in training from the start, the others after 200 epochs."""
ORDER = CLASSES + [c for c in range(100) if c not in CLASSES]
PER_CLASS = 2
MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)))


@pytest.fixture(scope="module")
def images(real_data, tmp_path_factory):
    """A folder in the layout of CIFAR-100 with two training images of each of ten classes, mixed."""
    source, folder = real_data / "cifar-100-python-mini", tmp_path_factory.mktemp("images")
    entry = load_restricted(source / "train", encoding="latin1")
    labels = np.array(entry["fine_labels"])
    rows = np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in CLASSES])
    rows = np.random.default_rng(0).permutation(rows)
    for name in ("train", "test"):
        content = {"data": entry["data"][rows], "fine_labels": labels[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes((source / "meta").read_bytes())
    return folder


def read_images(folder):
    """Raw images [n, 3, 32, 32] in [0, 1] and labels [n]."""
    entry = load_restricted(folder / "train", encoding="latin1")
    return torch.from_numpy(entry["data"].reshape(-1, 3, 32, 32)) / 255, torch.tensor(entry["fine_labels"])


def random_net(seed, kind=ResNet18, width=2):
    torch.manual_seed(seed)
    net = kind(width=width).make((3, 32, 32), 100)
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    return net.eval()


EPOCHS = [0, 200, 201, 600]
FLOAT32 = {"rtol": 1e-4, "atol": 5e-6}
"""Outputs of 10 to 50 are rounded by some 1e-6 in float32, so are their losses."""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of incremental CIFAR: four snapshots of narrow networks, and a class order."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "model_parameters").mkdir()
    (folder / "class_order").mkdir()
    np.save(folder / "class_order" / "index-0.npy", np.array(ORDER))
    for epoch in EPOCHS:
        torch.save(random_net(epoch).state_dict(), folder / "model_parameters" / f"index-0_epoch-{epoch}.pt")
    return folder


def expected_incremental(images, epoch):
    """Loss and input-gradient norm of each image, one at a time in float64; NaN for classes not in training."""
    net = random_net(epoch).double()
    raw, labels = read_images(images)
    seen = ORDER[: 5 if epoch <= 200 else 10 if epoch <= 400 else 15]
    rows = []
    for image, label in zip(raw, labels.tolist(), strict=True):
        if label not in seen:
            rows.append((np.nan, np.nan))
            continue
        x = ((image - MEAN) / STD).double()[None].requires_grad_()
        loss = F.cross_entropy(net(x)[:, seen], torch.tensor([seen.index(label)]))
        (gradient,) = torch.autograd.grad(loss, x)
        rows.append((loss.item(), gradient.norm().item()))
    return np.array(rows).T


@pytest.fixture(autouse=True, scope="module")
def commands_can_be_imported():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


def call(command, *arguments):
    importlib.import_module(command).main([str(argument) for argument in arguments])


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


@pytest.fixture(scope="module")
def scored(images, results, tmp_path_factory):
    out = tmp_path_factory.mktemp("scored")
    options = ["--results_dir", results, "--data_path", images, "--output_dir", out, "--batch_size", 7]
    call("score_incremental_cifar_loss", *options)
    return out


@pytest.mark.parametrize("epoch", EPOCHS)
def test_incremental_losses_are_those_of_the_classes_in_training(scored, images, epoch):
    loss, gradient = expected_incremental(images, epoch)
    np.testing.assert_allclose(np.load(scored / f"loss_cifar100_epoch_{epoch}.npy"), loss, **FLOAT32)
    np.testing.assert_allclose(np.load(scored / f"loss_grad_cifar100_epoch_{epoch}.npy"), gradient, **FLOAT32)
    assert np.isfinite(loss).sum() == PER_CLASS * (5 if epoch <= 200 else 10)


def test_incremental_scoring_says_what_it_did(scored, results):
    facts = json.loads((scored / "scoring_cifar100.json").read_text())
    assert facts["contains_l2"] is False and facts["grad_kind"] == "input" and facts["logit_scope"] == "active"
    assert facts["experiment_index"] == 0 and facts["class_order"] == ORDER
    assert sorted(map(int, facts["scored"])) == EPOCHS
    assert np.load(scored / "split_cifar100.npy").tolist() == [1] * 20  # fewer than 50 of each class: all validate


def test_scoring_again_leaves_what_is_done(scored, images, results, capsys):
    times = {path.name: path.stat().st_mtime_ns for path in scored.glob("loss_*")}
    options = ["--results_dir", results, "--data_path", images, "--output_dir", scored]
    call("score_incremental_cifar_loss", *options)
    assert {path.name: path.stat().st_mtime_ns for path in scored.glob("loss_*")} == times
    assert capsys.readouterr().out.count("was there") == len(EPOCHS)
    with pytest.raises(RunError, match="of another run \\(grad_kind input, now None\\)"):
        call("score_incremental_cifar_loss", *options, "--compute_grad", "False")


def test_scoring_without_gradients_between_epochs(images, results, tmp_path):
    options = ["--results_dir", results, "--data_path", images, "--output_dir", tmp_path / "out"]
    call("score_incremental_cifar_loss", *options, "--compute_grad", "false", "--start_epoch", 1, "--end_epoch", 200)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["loss_cifar100_epoch_200.npy", "scoring_cifar100.json", "split_cifar100.npy"]
    loss, _ = expected_incremental(images, 200)
    np.testing.assert_allclose(np.load(tmp_path / "out" / names[0]), loss, **FLOAT32)


def test_pipeline_from_snapshots_uses_those_found(images, results, tmp_path):
    options = ["--source", "model_parameters", "--results_dir", results, "--data_path", images, "--end_epoch", 600]
    options += ["--per_sample_out_dir", tmp_path / "losses", "--output_dir", tmp_path / "csl"]
    call("csl_pipeline", *options)
    csl, lt, facts = read_csl(tmp_path / "csl", "cifar100", 1, 0.01)
    losses, gradients = (
        np.stack([np.load(tmp_path / "losses" / f"{kind}_cifar100_epoch_{e}.npy") for e in EPOCHS])
        for kind in ("loss", "loss_grad")
    )
    np.testing.assert_allclose(csl, np.nanmean(losses.astype(np.float64), 0), rtol=1e-6)
    np.testing.assert_array_equal(lt, lt_frac(gradients).astype(np.float32))
    assert facts["kept_epochs"] == EPOCHS and facts["source"] == "model_parameters"
    assert facts["csl_definition"] == "csl_active_mean" and facts["contains_l2"] is False
    assert facts["grad_kind"] == "input" and facts["experiment_index"] == 0 and facts["logit_scope"] == "active"
    with pytest.raises(DataError, match="has no epoch 400"):
        call("csl_pipeline", *options, "--epoch_step", 200)
    call("csl_pipeline", *options, "--source", "per_samples", "--input_dir", tmp_path / "losses", "--end_epoch", 201,
         "--epoch_step", 201, "--output_dir", tmp_path / "again", "--strict")  # fmt: skip
    np.testing.assert_allclose(read_csl(tmp_path / "again", "cifar100", 1, 0.01)[0], np.nanmean(losses[[0, 2]], 0))


def test_pipeline_from_snapshots_says_what_it_needs(results, images):
    with pytest.raises(DataError, match="needs --results_dir"):
        call("csl_pipeline", "--source", "model_parameters")
    options = ["--source", "model_parameters", "--results_dir", results, "--data_path", images]
    with pytest.raises(RunError, match="no checkpoints of index 3"):
        call("csl_pipeline", *options, "--experiment_index", 3)


def test_results_without_a_class_order_are_refused(results, images, tmp_path):
    (tmp_path / "model_parameters").symlink_to(results / "model_parameters")
    with pytest.raises(DataError, match=r"There is no class order \S+index-0\.npy"):
        call("score_incremental_cifar_loss", "--results_dir", tmp_path, "--data_path", images)


NOISY_MEAN_STD = tuple(torch.tensor(v)[:, None, None] for v in ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)))


@pytest.fixture(scope="module")
def noisy(tmp_path_factory):
    """Checkpoints of two narrow networks of the other family, wrapped as a parallel one saves them."""
    folder = tmp_path_factory.mktemp("noisy")
    for epoch in (0, 10):
        state = random_net(epoch, ResNet18Shortcut).state_dict()
        torch.save({f"module.{k}": v for k, v in state.items()}, folder / NOISY_NAME.format(epoch))
    return folder


NOISY_NAME = "cifar100_resnet18_noisy_idx_1_epoch_{}_noise_0.10.ckpt"


def score_noisy(noisy, images, out, *more):
    options = ["--checkpoint_dir", noisy, "--data_dir", images, "--output_dir", out, "--noise_level", "1e-1"]
    with pytest.warns(UserWarning, match="clean labels of the data files are scored"):
        call("score_cifar100_loss", *options, "--batch_size", 7, *more)
    return {
        kind: np.load(out / f"{kind}_cifar100_run1_epoch_10_noise_0.1.npy", allow_pickle=False)
        for kind in ("loss", "loss_grad")
    }


def expected_noisy(images, epoch, kind, weight_decay):
    """Each image alone in float64: loss + wd sum(theta^2), and its gradient with respect to image or parameters."""
    mean, std = NOISY_MEAN_STD
    net = random_net(epoch, ResNet18Shortcut).double()
    rows = []
    for image, label in zip(*read_images(images), strict=True):
        x = ((image - mean) / std).double()[None].requires_grad_()
        penalty = sum(p.square().sum() for p in net.parameters())
        loss = F.cross_entropy(net(x), label[None]) + weight_decay * penalty
        gradients = torch.autograd.grad(loss, [x] if kind == "input" else list(net.parameters()))
        rows.append((loss.item(), torch.cat([g.flatten() for g in gradients]).norm().item()))
    return np.array(rows).T


@pytest.mark.parametrize(
    "more, kind, weight_decay",
    [
        ([], "input", 0.0),
        (["--grad-kind", "param"], "param", 0.0),
        (["--legacy", "--grad-kind", "param"], "param", 1e-4),
        (["--weight_decay", "0.5", "--grad-kind", "param"], "param", 0.5),
        (["--weight_decay", "0.5"], "input", 0.5),
    ],
)
def test_noisy_label_checkpoints_are_scored(more, kind, weight_decay, noisy, images, tmp_path):
    found = score_noisy(noisy, images, tmp_path, *more)
    loss, gradient = expected_noisy(images, 10, kind, weight_decay)
    np.testing.assert_allclose(found["loss"], loss, **FLOAT32)
    np.testing.assert_allclose(found["loss_grad"], gradient, **FLOAT32)
    facts = json.loads((tmp_path / "scoring_cifar100_run1_noise_0.1.json").read_text())
    assert facts["contains_l2"] is (weight_decay > 0) and facts["grad_kind"] == kind
    csl = ["--input_dir", tmp_path, "--output_dir", tmp_path / "csl", "--noise_level", 0.1, "--epoch_step", 10]
    call("compute_csl", *csl, "--end_epoch", 10)
    _, _, facts = read_csl(tmp_path / "csl", "cifar100", 1, 0.1)
    assert facts["contains_l2"] is (weight_decay > 0) and facts["grad_kind"] == kind and facts["kept_epochs"] == [0, 10]
    with pytest.raises(DataError, match=f"says that its gradients are of kind {kind}"):
        call("compute_csl", *csl, "--end_epoch", 10, "--grad-kind", "unknown")


def test_noisy_label_checkpoints_with_the_labels_of_the_training(noisy, images, tmp_path):
    _, labels = read_images(images)
    np.save(tmp_path / "labels.npy", (labels.numpy() + 1) % 100)
    options = ["--checkpoint_dir", noisy, "--data_dir", images, "--output_dir", tmp_path, "--noise_level", 0.1]
    call("score_cifar100_loss", *options, "--labels", tmp_path / "labels.npy", "--strict", "--epoch_step", 10,
         "--end_epoch", 10)  # fmt: skip
    found = np.load(tmp_path / "loss_cifar100_run1_epoch_10_noise_0.1.npy")
    clean, _ = expected_noisy(images, 10, "input", 0.0)
    assert np.abs(found - clean).min() > 1e-3
    with pytest.raises(DataError, match="give the labels of the training by --labels"):
        call("score_cifar100_loss", *options, "--strict", "--epoch_step", 10, "--end_epoch", 10)
    with pytest.raises(DataError, match="has no epoch 5"):
        call("score_cifar100_loss", *options, "--strict", "--epoch_step", 5, "--end_epoch", 10)
