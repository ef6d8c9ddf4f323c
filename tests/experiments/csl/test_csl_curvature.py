"""Curvature commands, in the published and in their own scale."""

import numpy as np
import pytest
import torch
from published_results import CLASSES, MEAN, ORDER, STD, call, images_of, random_net, read_images

from plastiscope.error import DataError, RunError
from plastiscope.formats.flat_files import read_curvature
from plastiscope.formats.sample_trees import Tree, read_epoch
from plastiscope.measure.input_curvature import Probe, input_curvature
from plastiscope.measure.loss import Loss


def expected_curvature(images, epoch, classes):
    """Norm and mean eigenvalue as the measure gives them for each image alone, over the outputs of `classes`."""
    net, (raw, labels), rows = random_net(epoch), read_images(images), []
    net.fc.weight.data, net.fc.bias.data = net.fc.weight.data[classes], net.fc.bias.data[classes]
    for i in images_of(images, classes):
        x, y = ((raw[i] - MEAN) / STD)[None], torch.tensor([classes.index(int(labels[i]))])
        probe = Probe(seed=0, directions=10, step=1e-3)
        found = input_curvature(net, Loss.cross_entropy, x, y, torch.tensor([i]), len(classes), probe)
        rows.append((found.norm.item(), found.rayleigh_mean.item()))
    return np.array(rows).T


def curve(images, results, out, *more):
    model = results / "model_parameters" / "index-0_epoch-201.pt"
    call("per_image_curve", "--data_path", images, "--model_path", model, "--save_dir", out, *more)
    return read_curvature(out)


def test_curvature_of_images_in_the_published_and_in_its_own_scale(images, results, tmp_path):
    classes = ORDER[:3]
    chosen = ["--allowed_classes", ",".join(map(str, classes))]
    own = curve(images, results, tmp_path / "own", *chosen, "--scaling", "per_sample", "--strict")
    norm, rayleigh = expected_curvature(images, 201, classes)
    assert own.ids.tolist() == images_of(images, classes)
    np.testing.assert_allclose(own.values["curvature"], norm, rtol=2e-2)  # float32 differences of gradients at h = 1e-3
    np.testing.assert_allclose(own.values["directional_eig"], rayleigh, rtol=2e-2, atol=2e-2 * np.abs(rayleigh).max())
    with pytest.raises(DataError, match="--scaling per_sample gives"):
        curve(images, results, tmp_path / "published", *chosen, "--strict")
    with pytest.warns(UserWarning, match="divided by the size of the batch and not by h"):
        published = curve(images, results, tmp_path / "published", *chosen)
    np.testing.assert_allclose(published.values["curvature"], own.values["curvature"] * 1e-3 / 6, rtol=1e-6)
    eig = own.values["directional_eig"] * 1e-6 * 3072 / 6
    np.testing.assert_allclose(published.values["directional_eig"], eig, rtol=1e-6)
    names = {path.name for path in (tmp_path / "own").iterdir()}
    assert {"curvature_results_cifar100_201.csv", "curvature_summary_cifar100.json"} <= names
    with pytest.raises(RunError, match="is of another run"):
        curve(images, results, tmp_path / "own", "--scaling", "per_sample", "--allowed_classes", "3")


@pytest.mark.parametrize("text", ["", "1,1", "1,a", "-1"])
def test_classes_that_cannot_be_are_refused(text, images, results, tmp_path):
    with pytest.raises(DataError, match="give distinct classes"):
        curve(images, results, tmp_path, "--scaling", "per_sample", f"--allowed_classes={text}")


def test_curvature_tree(images, results, tmp_path):
    options = ["--data_path", images, "--model_dir", results / "model_parameters", "--save_base_dir", tmp_path]
    options += ["--scaling", "per_sample", "--strict"]
    with pytest.raises(DataError, match=r"has no epoch 400 \(18 of the 21"):
        call("multi_gpu_curvature_analysis", *options)
    call("multi_gpu_curvature_analysis", *options, "--epochs", "600, 200")
    few, more = (read_epoch(tmp_path, Tree.curvature, epoch) for epoch in (200, 600))
    assert few.ids.tolist() == images_of(images, ORDER[:5]) and more.ids.tolist() == images_of(images, CLASSES)
    norm, _ = expected_curvature(images, 200, ORDER[:5])
    np.testing.assert_allclose(few.values["curvature"], norm, rtol=2e-2)
    assert few.metadata["num_gpus"] == 1 and few.metadata["allowed_classes"] == sorted(ORDER[:5])
    with pytest.raises(DataError, match="--epochs 1;2"):
        call("multi_gpu_curvature_analysis", *options, "--epochs", "1;2")
