"""Commands that share out their work: dormancy under torchrun and srun, the tree of losses and its CSL."""

import json
import multiprocessing
import os
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from published_results import (
    CLASSES,
    EPOCHS,
    FLOAT32,
    FOLDER,
    MEAN,
    ORDER,
    PER_CLASS,
    STD,
    call,
    expected_incremental,
    images_of,
    random_net,
    read_images,
)

from plastiscope.error import DataError
from plastiscope.formats.csl_files import read_csl, read_csl_table
from plastiscope.formats.flat_files import read_dormancy
from plastiscope.formats.sample_trees import Tree, read_epoch
from plastiscope.run.processes import leave_processes


def expected_dormancy(images, epoch):
    """Share of all raw outputs of convolutions and linear layers whose largest value is <= 1e-6, image by image."""
    net, (raw, _) = random_net(epoch), read_images(images)
    shares = []
    for image in raw:
        silent = []

        def look(module, inputs, output, silent=silent):
            silent.extend((output[0].flatten(1).max(1)[0] if output.ndim == 4 else output[0]).le(1e-6).tolist())

        hooks = [
            m.register_forward_hook(look) for m in net.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)
        ]
        with torch.no_grad():
            net(((image - MEAN) / STD)[None])
        for hook in hooks:
            hook.remove()
        shares.append(np.mean(silent))
    return np.array(shares)


def dormancy_options(images, results, out):
    options = ["--data_path", images, "--model_dir", results / "model_parameters", "--save_base_dir", out]
    order = results / "class_order" / "index-0.npy"
    options += ["--class_order_file", order, "--batch_size", 2, "--start_epoch", 200, "--end_epoch", 600]
    return [str(option) for option in options]


@pytest.fixture(scope="module")
def dormancy(images, results, tmp_path_factory):
    out = tmp_path_factory.mktemp("dormancy")
    call("multi_gpu_dormant_analysis", *dormancy_options(images, results, out))
    return out


def test_dormancy_is_the_published_share_of_silent_raw_outputs(dormancy, images):
    for scores in read_dormancy(dormancy):
        seen = ORDER[: 5 if scores.epoch == 200 else 10]
        assert scores.ids.tolist() == images_of(images, seen)
        assert set(scores.labels.tolist()) == set(seen)
        expected = expected_dormancy(images, scores.epoch)[scores.ids]
        np.testing.assert_allclose(scores.values["dormant_prop"], expected, rtol=1e-6)
        assert 0 < expected.min() < expected.max() < 1
        tree = read_epoch(dormancy, Tree.dormancy, scores.epoch)
        assert tree.values["dormant_prop"].tobytes() == scores.values["dormant_prop"].tobytes()
        assert tree.metadata["dormant_props_stats"]["max"] == pytest.approx(expected.max())
    assert [scores.epoch for scores in read_dormancy(dormancy)] == [200, 201, 600]


def as_rank_of_three(rank, port, options):
    """What srun would start; forked, so that nothing is imported again."""
    slurm = {"SLURM_PROCID": rank, "SLURM_STEP_NUM_TASKS": 3, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in slurm.items()})
    call("multi_gpu_dormant_analysis", *options)
    leave_processes()


def test_dormancy_has_the_same_bytes_under_torchrun_and_srun(dormancy, images, results, tmp_path):
    script = FOLDER / "multi_gpu_dormant_analysis.py"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)]
    two = subprocess.run(
        [*torchrun, *dormancy_options(images, results, tmp_path / "2")], capture_output=True, text=True
    )
    assert two.returncode == 0, two.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    three = [
        fork.Process(target=as_rank_of_three, args=(rank, port, dormancy_options(images, results, tmp_path / "3")))
        for rank in range(3)
    ]
    for process in three:
        process.start()
    for process in three:
        process.join()
    assert [process.exitcode for process in three] == [0, 0, 0]
    names = sorted(path.name for path in dormancy.iterdir() if path.name.endswith(".npy"))
    assert len(names) == 9
    for world in ("2", "3"):
        found = {path.name: path.read_bytes() for path in (tmp_path / world).glob("*.npy")}
        assert found == {name: (dormancy / name).read_bytes() for name in names}
        assert not list((tmp_path / world).glob(".parts*"))


def test_dormancy_interrupted_goes_on_with_what_is_done(dormancy, images, results, tmp_path, capsys):
    options = dormancy_options(images, results, tmp_path)
    call("multi_gpu_dormant_analysis", *options[:-1], 200)
    before = (tmp_path / "dormant_props_epoch_200.npy").stat().st_mtime_ns
    call("multi_gpu_dormant_analysis", *options)
    assert (tmp_path / "dormant_props_epoch_200.npy").stat().st_mtime_ns == before
    assert "epoch 200: was there" in capsys.readouterr().out
    for path in dormancy.glob("*.npy"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_dormancy_options_that_do_nothing_are_told(images, results, tmp_path):
    options = [*dormancy_options(images, results, tmp_path), "--dormant_unit_threshold", 0.5]
    with pytest.raises(DataError, match="is not used by the published definition"):
        call("multi_gpu_dormant_analysis", *options, "--strict")
    with pytest.warns(UserWarning, match="is not used by the published definition"):
        call("multi_gpu_dormant_analysis", *options)


def test_dormancy_on_a_grid(images, results, tmp_path):
    options = [*dormancy_options(images, results, tmp_path), "--step", 200]
    with pytest.raises(DataError, match="has no epoch 400"):
        call("multi_gpu_dormant_analysis", *options, "--strict")
    with pytest.warns(UserWarning, match="epoch 400 is the first missing one"):
        call("multi_gpu_dormant_analysis", *options)
    assert [scores.epoch for scores in read_dormancy(tmp_path)] == [200, 600]


def test_loss_tree_and_its_csl(images, results, tmp_path):
    tree, order = tmp_path / "tree", results / "class_order" / "index-0.npy"
    options = ["--data_path", images, "--class_order_file", order]
    call("multi_gpu_loss_generation", *options, "--model_dir", results / "model_parameters", "--output_dir", tree,
         "--compute_grad", "--batch_size", 7)  # fmt: skip
    rows = []
    for epoch in EPOCHS[1:]:  # the published start is 1
        loss, gradient = expected_incremental(images, epoch)
        found = read_epoch(tree, Tree.loss, epoch)
        np.testing.assert_allclose(found.values["loss"], loss[found.ids], **FLOAT32)
        np.testing.assert_allclose(found.values["loss_grad"], gradient[found.ids], **FLOAT32)
        assert found.ids.tolist() == np.flatnonzero(np.isfinite(loss)).tolist()
        rows.append(loss)
    assert json.loads((tree / "metadata_complete_pipeline.json").read_text())["epochs"] == EPOCHS[1:]
    call("multi_gpu_csl_analysis", "--input_dir", tree, "--output_dir", tmp_path / "csl", *options, "--strict")
    csl, lt, facts = read_csl(tmp_path / "csl", "cifar100", 1, 0.0)
    np.testing.assert_allclose(csl, np.nanmean(rows, 0), **FLOAT32)
    assert np.isfinite(lt).all() and facts["csl_definition"] == "csl_active_mean" and facts["logit_scope"] == "active"
    _, labels = read_images(images)
    table = read_csl_table(tmp_path / "csl")
    assert table["class_label"].tolist() == labels.tolist() and table["csl"].astype(np.float32).tolist() == csl.tolist()
    np.save(tmp_path / "other.npy", np.array(ORDER[::-1]))
    other = ["--input_dir", tree, "--output_dir", tmp_path / "csl", "--class_order_file", tmp_path / "other.npy"]
    with pytest.raises(DataError, match="classes that are not in training yet"):
        call("multi_gpu_csl_analysis", *other, "--strict")


def test_a_class_order_is_asked_for_where_it_matters(images, results, tmp_path):
    shutil.copytree(results / "model_parameters", tmp_path / "model_parameters")
    options = ["--data_path", images, "--model_dir", tmp_path / "model_parameters", "--output_dir", tmp_path / "tree"]
    options += ["--start_epoch", 200, "--end_epoch", 200]
    with pytest.raises(DataError, match="there is no class order"):
        call("multi_gpu_loss_generation", *options, "--strict")
    with pytest.warns(UserWarning, match="all classes count as in training"):
        call("multi_gpu_loss_generation", *options)
    assert len(read_epoch(tmp_path / "tree", Tree.loss, 200).ids) == len(CLASSES) * PER_CLASS
