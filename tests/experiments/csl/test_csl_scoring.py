"""Commands that score checkpoints in one process, against each image alone in float64."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published_results import (
    EPOCHS,
    FLOAT32,
    ORDER,
    PER_CLASS,
    call,
    expected_incremental,
    random_net,
    read_images,
)

from plastiscope.error import DataError, RunError
from plastiscope.formats.csl_files import read_csl
from plastiscope.measure.learning_time import lt_frac
from plastiscope.net.resnet18_shortcut import ResNet18Shortcut


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


def test_checkpoints_of_other_networks_are_refused_by_name(images, results, tmp_path):
    (tmp_path / "model_parameters").mkdir()
    (tmp_path / "class_order").symlink_to(results / "class_order")
    path = tmp_path / "model_parameters" / "index-0_epoch-0.pt"
    options = ["--results_dir", tmp_path, "--data_path", images, "--output_dir", tmp_path / "out"]
    for state, said in (
        ({"layers.0.weight": torch.zeros(3, 3)}, "no ResNet-18 of a known kind: its first difference is conv1.weight"),
        (
            random_net(0).state_dict() | {"bn1.weight": torch.zeros(3)},
            r"no resnet18: its first difference is bn1\.weight",
        ),
    ):
        torch.save(state, path)
        with pytest.raises(RunError, match=said):
            call("score_incremental_cifar_loss", *options)


def test_a_checkpoint_that_has_changed_is_scored_anew(images, results, tmp_path, capsys):
    own = tmp_path / "results"
    shutil.copytree(results, own)
    options = ["--results_dir", own, "--data_path", images, "--compute_grad", "false", "--end_epoch", 200]
    call("score_incremental_cifar_loss", *options)
    torch.save(random_net(600).state_dict(), own / "model_parameters" / "index-0_epoch-200.pt")
    capsys.readouterr()
    call("score_incremental_cifar_loss", *options)
    told = capsys.readouterr().out
    assert "epoch 0: was there" in told and "epoch 200: scored" in told
    found = np.load(own / "per_sample_losses_inc" / "loss_cifar100_epoch_200.npy")
    before = expected_incremental(images, 200)[0]
    np.testing.assert_array_equal(np.isnan(found), np.isnan(before))
    assert np.nanmin(np.abs(found - before)) > 1e-5
