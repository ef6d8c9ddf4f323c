"""The published arrays of a run of ours, row by row, against brute force on its snapshots."""

import numpy as np
import pytest

from plans import make_plan
from plastiscope import load_run
from plastiscope.collect.export_tree import export
from plastiscope.collect.published_figures import next_task_dormant, stable_rank
from plastiscope.collect.table import collect
from plastiscope.experiment import run

TASKS, THETA = 3, 0.3
SMALL = (
    "data.samples_per_class=12", f"num_tasks={TASKS}", "epochs=2", "threads=1", "net.widths=[12,8]", "selection=last",
    "analysis=[representation,continual]", "representation.samples=1000", f"representation.theta={THETA}",
)  # fmt: skip
METRICS = ("dormant_units", "effective_rank", "stable_rank")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The run, and the folder of its arm."""
    folder = tmp_path_factory.mktemp("exported")
    run(make_plan(*SMALL), folder / "runs" / "one")
    (arm,) = export(collect([folder / "runs"]).runs, folder / "results").folders
    return load_run(folder / "runs" / "one"), arm


def stored(arm, metric):
    return np.load(arm / metric / "index-0.npy", allow_pickle=False)


def features(weights, samples):
    """Of the two hidden layers, by hand, on all samples."""
    (batch,) = samples.batches(10_000)
    x = batch.inputs.flatten(1).double().numpy()
    for layer in ("linear_1", "linear_2"):
        x = np.maximum(x @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"], 0)
        yield x


def expected(weights, samples):
    """Dormant share of all units, effective rank, and the number of singular values that hold 99 % of their sum."""
    layers = list(features(weights, samples))
    off = np.concatenate([(layer != 0).mean(0) < THETA for layer in layers])
    shares = np.linalg.svd(layers[-1], compute_uv=False)
    shares = shares / shares.sum()
    entropy = -sum(p * np.log(p) for p in shares if p > 0)
    return off.mean(), np.exp(entropy), (np.cumsum(shares) < 0.99).sum() + 1


def test_every_array_is_that_of_the_weights_before_each_task(exported):
    loaded, arm = exported
    kept = [loaded.snapshots.load(2 * k) for k in range(TASKS)]
    weights = [{name: value.double().numpy() for name, value in state.items()} for state in kept]
    tasks = [loaded.shift.task(k) for k in range(TASKS)]
    assert [len(task.train) // len(tasks[0].train) for task in tasks] == [1, 2, 3]  # classes stay
    following = np.array([expected(weights[k], tasks[k].new_train) for k in range(TASKS)])
    previous = np.array([[0.0] * 3, *(expected(weights[k], tasks[k - 1].train) for k in range(1, TASKS))])
    for kind, rows in (("next_task", following), ("previous_tasks", previous)):
        for metric, column in zip(METRICS, rows.T, strict=True):
            values = stored(arm, f"{kind}_{metric}_analysis")
            assert (values.shape, values.dtype) == ((TASKS,), np.float32)
            assert values == pytest.approx(column, rel=1e-5)
    magnitude = [np.abs(np.concatenate([part.ravel() for part in w.values()])).mean() for w in weights]
    assert stored(arm, "weight_magnitude_analysis") == pytest.approx(magnitude, rel=1e-6)
    assert following[:, 0].max() > 0 and len({*following[:, 0]}) > 1  # the share of dormant units moves


def test_figures_begin_with_the_first_task(exported):
    _, arm = exported
    ours, published = collect([arm.parents[1] / "runs", arm.parent]).runs
    for one in (ours, published):
        x, dormant = next_task_dormant(one)
        assert x.tolist() == [1, 2, 3]
        assert dormant == pytest.approx(100 * stored(arm, "next_task_dormant_units_analysis"), rel=1e-6)
    x, rank = stable_rank(ours)
    assert x.tolist() == [1, 2, 3]
    assert rank == pytest.approx(100 * stored(arm, "next_task_stable_rank_analysis") / 8, rel=1e-6)


def test_before_the_first_task_there_are_no_previous_ones(exported):
    """The published 0 of row 0 is written, and read as nothing."""
    _, arm = exported
    (published,) = collect([arm]).runs
    rows = published.rows.to_pandas()
    begin = rows[rows["kind"] == "run_begin"].iloc[0]
    assert (begin["task_idx"], begin["global_epoch"]) == (-1, -1)
    assert stored(arm, "previous_tasks_stable_rank_analysis")[0] == 0
    assert np.isnan(begin["representation/current/fc_input/srank_99_l1"])
    assert begin["representation/next/total/dormant_rate"] == stored(arm, "next_task_dormant_units_analysis")[0]
