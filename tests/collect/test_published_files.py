"""Pickles of the published studies: what becomes of them, their settings, and what is refused."""

import pickle

import numpy as np
import pytest
import torch

from collect.small_runs import write_results
from plastiscope.collect import published_files
from plastiscope.collect.export_tree import export
from plastiscope.collect.published_figures import FIGURES, figure_of, published_curves
from plastiscope.collect.published_files import find_files, first_key
from plastiscope.collect.reference_marks import marks_of
from plastiscope.collect.table import collect, report
from plastiscope.error import DataError, RunError

BIN = 60_000
LEARNING = {"agent": "bp", "opt": "sgd", "num_runs": 2, "to_log": True}


def frame(run, kind):
    rows = run.rows.to_pandas()
    return rows[rows["kind"] == kind].reset_index(drop=True)


@pytest.fixture
def imagenet(tmp_path):
    """Two step sizes, two runs each; the last task of each has not begun."""
    rng = np.random.default_rng(0)
    cfg = {**LEARNING, "num_tasks": 5, "num_classes": 2, "num_showings": 3, "step_size": [0.01, 0.001], "momentum": 0.9}
    stored = {}
    for setting in (0, 1):
        for run in (0, 1):
            content = {name: torch.rand(5, 3, generator=torch.Generator().manual_seed(9 * setting + run))
                       for name in ("train_accuracies", "test_accuracies")}  # fmt: skip
            more = ("weight_magnitudes", "dormant_proportions", "effective_ranks", "stable_ranks", "curvatures")
            content |= {name: torch.from_numpy(rng.random((5, 3), np.float32)) for name in more}
            for values in content.values():
                values[-1] = 0
            write_results(tmp_path, "data/bp", setting, run, content, cfg, protocol=2 + run)
            stored[setting, run] = {name: values.numpy() for name, values in content.items()}
    return tmp_path / "data", stored


def test_continual_imagenet_row_by_row(imagenet):
    folder, stored = imagenet
    found = collect([folder])
    assert [(run.state, run.seed, run.settings["learner.lr"]) for run in found.runs] == [
        ("published", 0, 0.01), ("published", 1, 0.01), ("published", 0, 0.001), ("published", 1, 0.001),
    ]  # fmt: skip
    for run, arrays in zip(found.runs, stored.values(), strict=True):
        rows = frame(run, "epoch")
        assert rows["task_idx"].tolist() == np.repeat(range(4), 3).tolist()
        assert rows["epoch"].tolist() == [0, 1, 2] * 4 and rows["global_epoch"].tolist() == [*range(12)]
        for name, ours in published_files.EPOCH_NUMBERS.items():
            assert rows[ours].tolist() == arrays[name][:4].ravel().tolist(), name
        assert rows["published/curvature"].tolist() == arrays["curvatures"][:4].ravel().tolist()
        assert run.settings["learner"] == "backprop" and run.settings["net"] == "convnet"
        assert run.settings["epochs"] == 3
    assert any("4 of 5 tasks are done" in line for line in report(found))


def test_binned_accuracy_of_published_results(imagenet):
    folder, stored = imagenet
    runs = collect([folder]).runs
    curves, _ = published_curves(runs, figure_of("binned_accuracy", 2))
    assert [curve.group.label for curve in curves] == ["learner.lr=0.001", "learner.lr=0.01"]
    for curve, setting in zip(curves, (1, 0), strict=True):
        last = np.stack([stored[setting, run]["test_accuracies"][:4, -1] for run in (0, 1)])
        assert curve.x.tolist() == [2, 4]
        assert curve.values == pytest.approx(100 * last.reshape(2, 2, 2).mean(2))
    marks, notes = marks_of(curves, FIGURES["binned_accuracy"].values)
    assert marks == [] and all("(epochs=3, published 250)" in note for note in notes) and len(notes) == 2


def test_of_many_epochs_the_last_of_each_task_is_kept(imagenet, monkeypatch):
    folder, stored = imagenet
    monkeypatch.setattr(published_files, "MOST_ROWS", 11)
    found = collect([folder])
    rows = frame(found.runs[3], "epoch")
    assert rows["test_accuracy"].tolist() == stored[1, 1]["test_accuracies"][:4, -1].tolist()
    assert rows["epoch"].tolist() == [2] * 4 and rows["global_epoch"].tolist() == [2, 5, 8, 11]
    assert any("of 12 epochs the last one of each task is kept" in line for line in report(found))


def mnist(tasks, begun, examples=BIN):
    """Accuracies, sums of weights and ranks of a run with two hidden layers that has not come to its end."""
    steps = tasks * examples
    rng = np.random.default_rng(1)
    hits = (rng.random(steps) < 0.9).astype(np.float32)
    hits[begun * examples :] = 0
    rows = steps // BIN
    ranks = np.arange(1.0, rows * 2 + 1, dtype=np.float32).reshape(rows, 2)
    content = {"accuracies": hits, "weight_mag_sum": rng.random((steps, 3), np.float32)}
    names = ("ranks", "effective_ranks", "approximate_ranks", "abs_approximate_ranks", "dead_neurons")
    return content | {name: 1000 * i + ranks for i, name in enumerate(names)}


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    root, content = tmp_path_factory.mktemp("mnist"), mnist(4, 3)
    cfg = {**LEARNING, "agent": "cbp", "step_size": 0.003, "replacement_rate": [1e-4, 1e-6], "num_features": 100}
    tensors = {name: torch.from_numpy(values) for name, values in content.items()}
    write_results(root, "data/cbp", 1, 7, tensors, {**cfg, "num_hidden_layers": 2, "mt": 100})
    return root / "data", content


def test_online_mnist_becomes_bins_and_tasks(online):
    folder, content = online
    (run,) = collect([folder]).runs
    hits = content["accuracies"].astype(np.float64)
    curves, _ = published_curves([run], FIGURES["online_accuracy"])
    assert curves[0].x.tolist() == [BIN, 2 * BIN, 3 * BIN]  # nothing of the task that has not begun
    assert curves[0].values[0] == pytest.approx([100 * hits[i * BIN : (i + 1) * BIN].mean() for i in range(3)])
    ends = frame(run, "task_end")
    assert ends["online/train/total/accuracy"].tolist() == pytest.approx((curves[0].values[0] / 100).tolist())
    sums = content["weight_mag_sum"]
    assert ends["published/weight_mag_sum/layer_3"].tolist() == [float(sums[(i + 1) * BIN - 1, 2]) for i in range(3)]
    assert run.settings["net.widths"] == "[100, 100]" and run.settings["learner"] == "continual_backprop"
    assert (run.settings["learner.replacement_rate"], run.seed) == (1e-6, 7)


def test_ranks_stand_before_their_task(online):
    """Row r is of the weights with which task r begins: the initialisation's, then at the end of task r - 1."""
    folder, content = online
    (run,) = collect([folder]).runs
    (begin,), ends = frame(run, "run_begin").to_dict("records"), frame(run, "task_end")
    assert (begin["task_idx"], begin["global_epoch"]) == (-1, -1)
    for theirs, ours in published_files.RANKS.items():
        for layer in (0, 1):
            column = content[theirs][:3, layer].tolist()
            name = ours.format(layer + 1)
            assert [begin[name], *ends[name][:2]] == column and np.isnan(ends[name][2])


def test_faster_changes_overwrite_each_other(tmp_path):
    """30,000 examples a task: tasks 0 and 1 write the ranks into row 0, so only task 1's are there."""
    cfg = {**LEARNING, "step_size": 0.003, "num_features": 10, "num_hidden_layers": 2, "change_after": [30_000, 10]}
    write_results(tmp_path, "data/rate", 0, 0, mnist(4, 4, 30_000), cfg)
    (run,) = collect([tmp_path]).runs
    ends, name = frame(run, "task_end"), "representation/next/linear_1/effective_rank"
    assert len(ends) == 4 and run.settings["task_shift_mode.examples_per_task"] == 30_000
    assert run.bins["presentations"].tolist() == [60_000, 120_000]
    assert np.isnan(frame(run, "run_begin")[name][0])
    assert np.array_equal(ends[name], [1001.0, np.nan, 1003.0, np.nan], equal_nan=True)


def test_bins_are_of_whole_tasks_where_these_are_longer(tmp_path):
    hits = (np.random.default_rng(3).random(180_000) < 0.9).astype(np.float32)
    write_results(tmp_path, "data/slow", 0, 0, {"accuracies": hits}, {"agent": "bp", "change_after": 90_000})
    (run,) = collect([tmp_path]).runs
    assert run.bins["presentations"].tolist() == [90_000, 180_000]
    assert run.bins["accuracy"] == pytest.approx([hits[:90_000].mean(dtype=float), hits[90_000:].mean(dtype=float)])


@pytest.fixture
def regression(tmp_path):
    rng = np.random.default_rng(2)
    content = {
        "errs": rng.random(45_000, np.float32), "weight_mag": rng.random((45_000, 2), np.float32),
        "grad_mag": rng.random((45_000, 2), np.float32), "activation": rng.random(45_000, np.float32),
    }  # fmt: skip
    cfg = {
        **LEARNING,
        "step_size": [0.01, 0.003],
        "num_features": 5,
        "hidden_activation": "swish",
        "flip_after": 10_000,
    }
    write_results(tmp_path, "data/sgd/bp/swish", 1, 4, content, cfg)
    return tmp_path, content


def test_published_values_find_published_results(regression):
    """What a pickle does not say of its run is as published."""
    folder, _ = regression
    write_results(folder, "data/relu", 0, 0, {"errs": np.ones(20_000, np.float32)}, RELU)
    curves, _ = published_curves(collect([folder]).runs, FIGURES["binned_error"])
    assert [curve.group.label for curve in curves] == ["net.activation=relu", "net.activation=silu"]
    marks, notes = marks_of(curves, FIGURES["binned_error"].values, "online")
    assert [(mark.x, mark.y, mark.of) for mark in marks] == [(None, 0.88, None), (20_000, 0.71, 0)]
    assert len(notes) == 1 and "net.activation=silu, published relu" in notes[0]


RELU = {**LEARNING, "step_size": 0.003, "num_features": 5, "hidden_activation": "relu"}


def test_regression_becomes_bins_of_20000_and_tasks_of_10000(regression):
    folder, content = regression
    (run,) = collect([folder]).runs
    (curve,), _ = published_curves([run], FIGURES["binned_error"])
    errors = content["errs"].astype(np.float64)
    assert curve.x.tolist() == [20_000, 40_000]
    assert curve.values[0] == pytest.approx([errors[:20_000].mean(), errors[20_000:40_000].mean()])
    ends, parts = frame(run, "task_end"), [slice(10_000 * k, 10_000 * (k + 1)) for k in range(4)]
    assert ends["online/train/total/loss"].tolist() == pytest.approx([errors[part].mean() for part in parts])
    last = [float(content["weight_mag"][part][-1, 1]) for part in parts]
    assert ends["published/weight_mag/layer_2"].tolist() == last
    means = [content["grad_mag"][part, 0].mean(dtype=np.float64) for part in parts]
    assert ends["published/grad_mag/layer_1"].tolist() == pytest.approx(means)
    assert ends["published/activation"].tolist() == pytest.approx(
        [content["activation"][part].mean(dtype=np.float64) for part in parts]
    )
    wanted = {"net.activation": "silu", "net.widths": "[5]", "learner.lr": 0.003, "task_shift_mode.flip": "all"}
    assert wanted.items() <= run.settings.items()
    assert [curve.group.label for curve in published_curves([run], FIGURES["binned_error"])[0]] == [""]


@pytest.mark.parametrize(
    ("cfg", "wanted"),
    [
        ({"agent": "bp", "weight_decay": 1e-4}, {"learner": "l2", "learner.weight_decay": 1e-4}),
        (
            {"agent": "bp", "weight_decay": 1e-4, "perturb_scale": 1e-5},
            {"learner": "shrink_and_perturb", "learner.noise_std": 1e-5, "learner.weight_decay": 1e-4},
        ),
        ({"agent": "linear"}, {"learner": "backprop", "net.widths": "[]"}),
        ({"agent": "bp", "opt": "adam"}, {"learner": "backprop", "learner.optimizer": "adam"}),
        ({"agent": "bp", "flip_one": True}, {"task_shift_mode.flip": "one"}),
    ],
)
def test_parameters_by_our_names(tmp_path, cfg, wanted):
    write_results(tmp_path, "data/x", 0, 0, {"errs": np.ones(10_000, np.float32)}, {"step_size": 0.1, **cfg})
    (run,) = collect([tmp_path]).runs
    assert wanted.items() <= run.settings.items()


def test_without_parameters_names_of_folders_stand_for_them(tmp_path):
    for arm, setting in (("bp", 0), ("bp", 1), ("cbp", 0)):
        write_results(tmp_path, f"data/{arm}", setting, 0, {"errs": np.ones(20_000, np.float32)})
    found = collect([tmp_path])
    assert [run.settings["learner"] for run in found.runs] == ["backprop", "backprop", "continual_backprop"]
    curves, _ = published_curves(found.runs, FIGURES["binned_error"])
    assert [curve.group.label.split("/", 1)[1] for curve in curves] == ["bp/0", "bp/1", "cbp/0"]
    assert any("no cfg/*.json says with which settings" in line for line in report(found))


def test_the_first_bytes_tell_results_from_other_files(tmp_path):
    names = {"0": {"errs": np.ones(3)}, "1": (np.ones(3), {"errs": 1}), "2": {"other": 1}, "3": [1]}
    for name, content in names.items():
        (tmp_path / name).write_bytes(pickle.dumps(content))
    (tmp_path / "4").write_text("errs")
    (tmp_path / "notes").write_bytes(pickle.dumps(names["0"]))
    ours = tmp_path / "run"
    ours.mkdir()
    (ours / "run.json").write_text("{}")
    (ours / "5").write_bytes(pickle.dumps(names["0"]))
    assert find_files(tmp_path) == [tmp_path / "0"]
    assert first_key(tmp_path / "gone") is None


class Foreign:
    """Not of plain data."""


def test_what_is_wrong_with_a_file_is_said(tmp_path):
    def refused(content, words):
        path = write_results(tmp_path, "data/bp", 0, 0, content)
        with pytest.raises(DataError, match=words) as caught:
            collect([tmp_path])
        assert str(path) in str(caught.value)

    refused({"errs": np.ones(3), "net": Foreign()}, r"holds \S*test_published_files.Foreign, and only arrays")
    refused({"errs": np.ones((3, 2))}, r"errs is \[3, 2\], and numbers in 1 dimensions are needed")
    refused({"errs": "many"}, "errs is str")
    refused({"train_accuracies": torch.ones(2, 3)}, "has no test_accuracies")
    refused({"errs": np.ones(9), "weight_mag": np.ones((8, 2))}, "weight_mag has 8 rows where 9 are needed")
    path = write_results(tmp_path, "data/bp", 0, 0, {"errs": np.ones(1000)})
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(DataError, match="is damaged or no pickle"):
        collect([tmp_path])


def test_a_run_shorter_than_a_bin_says_so(tmp_path):
    write_results(tmp_path, "data/bp", 0, 0, {"accuracies": torch.ones(100)})
    found = collect([tmp_path])
    assert any("0 presentations of whole tasks are less than a bin, 60000" in line for line in report(found))


def test_results_of_other_studies_are_no_incremental_cifar(imagenet, tmp_path):
    with pytest.raises(RunError, match="no run is finished"):
        export(collect([imagenet[0]]).runs, tmp_path / "out")
