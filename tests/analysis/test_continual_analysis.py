"""The accuracy matrix against brute force on whole small runs, and what follows from it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_context import MLP, TINY, make_context, move_to

from plans import make_plan
from plastiscope.analysis.continual import Continual
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.load import LoadedRun, load_run
from plastiscope.measure.continual import accuracy_by_class
from plastiscope.run.log import read_rows

NAN = float("nan")
ONLY = (*TINY, *MLP, "analysis=[continual]", "data.test_samples_per_class=8")


def trained(folder: Path, *overrides: str) -> LoadedRun:
    run(make_plan(*ONLY, *overrides), folder)
    return load_run(folder)


def artifact(folder: Path, name: str) -> np.ndarray:
    return np.load(sorted(folder.glob(f"task_*/continual/{name}.npy"))[-1])


def accuracy(net: torch.nn.Module, samples, active: int) -> float:
    """One sample at a time, by hand."""
    with torch.no_grad():
        batches = [samples.gather(torch.tensor([i])) for i in range(len(samples))]
        right = [net(b.inputs)[0, :active].argmax().item() == b.targets.item() for b in batches]
    return sum(right) / len(right)


def by_hand(loaded: LoadedRun, cells: list[tuple[int, int]]) -> np.ndarray:
    matrix = np.full((3, 3), NAN)
    for i, j in cells:
        active = loaded.task(i).active_outputs
        matrix[i, j] = accuracy(loaded.net(task=i), loaded.task(j).new_test, active)
    return matrix


LOWER = [(i, j) for i in range(3) for j in range(i + 1)]
NEXT = [(0, 1), (1, 2)]
DIAGONAL = [(i, i) for i in range(3)]
CASES = {
    "classes that come": ("task_shift_mode=class_incremental", LOWER, [0]),
    "permuted inputs": ("task_shift_mode=permuted_input", LOWER + NEXT, [0, 1, 2]),
    "a new head each task": ("task_shift_mode=binary_pairs", DIAGONAL, []),
    "pairs on one head": ("task_shift_mode=binary_pairs task_shift_mode.new_heads=false", LOWER + NEXT, [0, 1, 2]),
    "a head that the learner resets": ("task_shift_mode=permuted_input learner.reset=head", DIAGONAL, [0]),
    "every second task": ("task_shift_mode=permuted_input continual.every=2", [(1, 0), (1, 1), (1, 2)], [0, 1, 2]),
    "two of three columns": (
        "task_shift_mode=permuted_input continual.max_tasks=2",
        [*DIAGONAL, (1, 2), (1, 0), (2, 0)],
        [0, 2],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_matrix_equals_brute_force(case, tmp_path):
    overrides, cells, before = CASES[case]
    loaded = trained(tmp_path / "run", *overrides.split(), "learner.momentum=0")
    expected = by_hand(loaded, cells)
    assert np.array_equal(artifact(tmp_path / "run", "accuracy_matrix"), expected, equal_nan=True)
    start = loaded.net(epochs_completed=0)
    active = loaded.task(0).active_outputs
    b = [accuracy(start, loaded.task(j).new_test, active) if j in before else NAN for j in range(3)]
    assert np.array_equal(artifact(tmp_path / "run", "accuracy_before_training"), b, equal_nan=True)
    for i in range(3):
        row = np.load(tmp_path / "run" / f"task_{i:04d}_mlp" / "continual" / "accuracy_row.npy")
        assert np.array_equal(row, expected[i], equal_nan=True)


def test_logged_metrics_follow_from_the_matrix(tmp_path):
    """By the definitions, on the stored matrix of permuted inputs, at the end of each task."""
    trained(tmp_path / "run", "task_shift_mode=permuted_input")
    a, b = artifact(tmp_path / "run", "accuracy_matrix"), artifact(tmp_path / "run", "accuracy_before_training")
    ends = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "task_end"]
    for i, row in enumerate(ends):
        average = [a[t, : t + 1].mean() for t in range(i + 1)]
        expected = {
            "current_accuracy": a[i, i],
            "average_accuracy": average[i],
            "average_incremental_accuracy": np.mean(average),
            "learning_accuracy": np.mean([a[t, t] for t in range(i + 1)]),
            "forgetting": np.mean([np.nanmax(a[:i, j]) - a[i, j] for j in range(i)]) if i else NAN,
            "backward_transfer": np.mean([a[i, j] - a[j, j] for j in range(i)]) if i else NAN,
            "forward_transfer": np.mean([a[j - 1, j] - b[j] for j in range(1, i + 1)]) if i else NAN,
        }
        logged = {key.split("/")[-1]: value for key, value in row.items() if key.startswith("continual/test/total/")}
        for name, value in expected.items():
            assert logged[name] == pytest.approx(value, nan_ok=True), name
        assert row["task_test_accuracy"] == logged["current_accuracy"]
    summary = json.loads((tmp_path / "run" / "task_0002_mlp" / "continual" / "summary.json").read_text())
    assert {name: entry["cells"] for name, entry in summary["metrics"].items()} == {
        "current_accuracy": 1,
        "average_accuracy": 3,
        "forgetting": 2,
        "backward_transfer": 2,
        "forward_transfer": 2,
        "learning_accuracy": 3,
        "average_incremental_accuracy": 3,
    }


def test_the_published_example(tmp_path):
    """A = (.9, .2, .1; .7, .8, .3; .6, .85, .95), b = .1, scripted scores."""
    a = [[0.9, 0.2, 0.1], [0.7, 0.8, 0.3], [0.6, 0.85, 0.95]]
    context = make_context(tmp_path, "task_shift_mode=permuted_input")
    analysis = Continual()

    def scripted(context, net, task, active_outputs):
        return 0.1 if net is not context.net else [*a[context.task_idx], NAN][task.index]

    analysis._score = scripted
    for i in range(3):
        move_to(context, i)
        analysis.on_task_begin(context)
        numbers = analysis.on_task_end(context)
    expected = {
        "average_accuracy": 0.8,
        "forgetting": 0.125,
        "backward_transfer": -0.125,
        "forward_transfer": 0.15,
        "learning_accuracy": 2.65 / 3,
        "average_incremental_accuracy": 2.45 / 3,
    }
    assert {name: numbers[f"continual/test/total/{name}"] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize(
    ("curve", "threshold", "auc", "epochs"),
    [
        ([0.2, 0.6, 0.8], 0.5, 0.55, 2.0),
        ([0.2, 0.6, 0.8], 0.9, 0.55, NAN),
        ([NAN, 0.2, NAN, 0.6, 0.9], 0.6, (0.3 + 0.5 + 0.75) / 3, 4.0),  # 0.2, (0.4), 0.6, 0.9
        ([0.5], 0.5, 0.5, 1.0),
    ],
)
def test_learning_curve(tmp_path, curve, threshold, auc, epochs):
    """Epochs without evaluation lie on the line between their neighbours, but reach no threshold."""
    context = make_context(tmp_path, "task_shift_mode=permuted_input")
    analysis = Continual(threshold=threshold)
    analysis.on_task_begin(context)
    for value in curve:
        context.epoch_row = {} if math.isnan(value) else {"test_accuracy": value, "test_loss": 9.0}
        analysis.on_epoch_end(context)
    numbers = analysis.on_task_end(context)
    assert numbers["continual/test/total/learning_curve_auc"] == pytest.approx(auc)
    assert numbers["continual/test/total/epochs_to_threshold"] == pytest.approx(epochs, nan_ok=True)
    assert numbers["continual/test/total/threshold_reached"] == float(not math.isnan(epochs))
    stored = np.load(context.folder("continual") / "learning_curve.npy")
    assert np.array_equal(stored, curve, equal_nan=True)


def test_regression_goes_by_minus_the_loss(tmp_path):
    """No accuracy there: the same metrics of -loss, under names that say so."""
    loaded = trained(tmp_path / "run", "task_shift_mode=drifting_values", "learner.lr=0.001")
    matrix = artifact(tmp_path / "run", "negative_loss_matrix")
    with torch.no_grad():
        samples, net = loaded.task(0).new_test, loaded.net(task=2)
        batch = samples.gather(torch.arange(len(samples)))
        error = (net(batch.inputs)[:, 0] - batch.targets).double().square().mean().item()
    assert matrix[2, 0] == pytest.approx(-error, rel=1e-5)
    row = read_rows(tmp_path / "run" / "metrics.jsonl")[-1]
    names = {key.split("/")[-1] for key in row if key.startswith("continual/")}
    assert names == {
        "current_negative_loss",
        "average_negative_loss",
        "average_incremental_negative_loss",
        "learning_negative_loss",
        "forgetting_loss",
        "backward_transfer_loss",
        "forward_transfer_loss",
        "learning_curve_auc_loss",
        "epochs_to_threshold_loss",
        "threshold_reached",
    }
    assert row["continual/test/total/average_negative_loss"] == pytest.approx(matrix[2].mean())
    assert row["continual/test/total/current_negative_loss"] == pytest.approx(-row["task_test_loss"])


def test_a_finished_run_that_gets_more_tasks_equals_one_that_had_them(tmp_path):
    """Rows, transfers and the accuracy before training do not depend on how many tasks were planned at first."""
    for name, counts in (("run", (2, 4)), ("whole", (4,))):
        for count in counts:
            trained(tmp_path / name, "task_shift_mode=permuted_input", f"num_tasks={count}")
    for what in ("accuracy_matrix", "accuracy_before_training"):
        found = artifact(tmp_path / "run", what)
        assert np.array_equal(found, artifact(tmp_path / "whole", what), equal_nan=True)
    assert np.isfinite(found).all()
    logs = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("run", "whole")]
    assert [line for line in logs[0] if "continual" in line] == [line for line in logs[1] if "continual" in line]


@pytest.mark.parametrize(("setting", "value"), [("every", 0), ("max_tasks", 0)])
def test_settings_out_of_range(setting, value):
    with pytest.raises(ConfigError, match=f"{setting}={value}"):
        Continual(**{setting: value})


def test_accuracy_of_each_class_in_the_order_of_presentation(tmp_path):
    loaded = trained(tmp_path / "run", "num_tasks=3", "epochs=4")
    found = artifact(tmp_path / "run", "accuracy_per_class_in_order")
    assert found.dtype == np.float32 and found.shape == (6,)
    net, task = loaded.net(task=2), loaded.task(2)
    test, data = task.test, loaded.data.test
    class_of = dict(zip(data.ids.tolist(), data.targets.tolist(), strict=True))
    for j, original in enumerate(task.classes):
        rows = (test.targets == j).nonzero()[:, 0]
        assert len(rows) == 8 and {class_of[i] for i in test.ids[rows].tolist()} == {original}
        assert found[j] == np.float32(accuracy(net, test.select(rows), task.active_outputs))
    assert len(set(found)) > 1


def test_a_class_without_test_samples_and_regression_have_none(tmp_path):
    shares = accuracy_by_class(torch.tensor([True, False, True, True]), torch.tensor([0, 0, 2, 0]), 4)
    assert shares.tolist()[::2] == [2 / 3, 1] and shares.isnan().tolist() == [False, True, False, True]
    trained(tmp_path / "values", "num_tasks=1", "epochs=1", "task_shift_mode=drifting_values")
    assert not list((tmp_path / "values").rglob("accuracy_per_class_in_order.npy"))
