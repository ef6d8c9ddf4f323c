"""Published results read and written: names, shapes, types, and the same numbers there and back."""

import shutil

import numpy as np
import pytest

from collect.small_runs import analysis, ends, epochs, learner, write_bins, write_run
from plastiscope.collect.export_tree import export
from plastiscope.collect.published_tree import checkpoint_means, find_trees, read_tree
from plastiscope.collect.table import collect, report
from plastiscope.error import DataError, RunError

TASKS, EPOCHS = 4, 3
ORDER = [7, 1, 3, 2, 0, 4, 6, 5]
SHIFT = "plastiscope.task_shift_mode.class_incremental.ClassIncremental"
NEXT, NOW = "representation/next", "representation/current"
PER_EPOCH = ("test_loss", "test_accuracy", "validation_loss", "validation_accuracy")
CLOCK = ("epoch_runtime", "test_evaluation_runtime", "validation_evaluation_runtime")


def write_own(folder, seed, name="backprop", state="done"):
    """A run of ours with all that the published results have, numbers that tell every place apart."""
    rng = np.random.default_rng([seed, len(name)])
    rows = epochs(EPOCHS, **{key: rng.random(TASKS * EPOCHS).tolist() for key in PER_EPOCH})
    timings = epochs(EPOCHS, **{key: rng.random(TASKS * EPOCHS).tolist() for key in CLOCK})
    per_task = {
        "representation/weights/total/weight_mag_all": rng.random(TASKS).tolist(),
        **{f"{subset}/total/dormant_rate": rng.random(TASKS).tolist() for subset in (NEXT, NOW)},
        **{f"{subset}/{layer}/{rank}": rng.integers(1, 512, TASKS).tolist()
           for subset in (NEXT, NOW) for layer in ("conv", "pool", "layer_mean")
           for rank in ("effective_rank", "srank_99_l1")},
    }  # fmt: skip
    for key in [key for key in per_task if key.startswith(NEXT)]:
        per_task[key][-1] = None  # nothing comes after the last task
    write_run(
        folder, rows + ends(EPOCHS, per_task), state, timings, seed=seed, epochs=EPOCHS, num_tasks=TASKS, batch_size=2,
        learner=learner(name), task_shift_mode=(SHIFT, {"class_order": ORDER, "classes_per_task": 2}),
        online=analysis("online", bin_size=50),
    )  # fmt: skip
    for task in range(TASKS):
        n = EPOCHS * (task + 1)
        write_bins(folder, task, 50 * (np.arange(n) + 1), loss=rng.random(n), accuracy=rng.random(n))
    place = folder / f"task_{TASKS - 1:04d}_mlp" / "continual"
    place.mkdir()
    np.save(place / "accuracy_per_class_in_order.npy", rng.random(8))
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    for name, seeds in (("backprop", (0, 4)), ("continual_backprop", (4, 11))):
        for seed in seeds:
            write_own(folder / name / f"seed_{seed:04d}", seed, name)
    return folder


@pytest.fixture(scope="module")
def tree(own, tmp_path_factory):
    target = tmp_path_factory.mktemp("results")
    made = export(collect([own]).runs, target)
    assert made.left_out == {} and made.notes == []
    return target


def test_names_shapes_and_types_are_the_published_ones(tree):
    assert {path.name for path in tree.iterdir()} == {"base_deep_learning_system", "continual_backpropagation"}
    arm = tree / "continual_backpropagation"
    assert np.load(arm / "experiment_indices.npy").tolist() == [4, 11]
    expected = {
        **{f"{key}_per_epoch": (TASKS * EPOCHS, "float32") for key in PER_EPOCH},
        **dict.fromkeys(CLOCK, (TASKS * EPOCHS, "float32")),
        **{f"train_{key}_per_checkpoint": (EPOCHS * (1 + 2 + 3 + 4), "float32") for key in ("loss", "accuracy")},
        **{f"{of}_{what}_analysis": (TASKS, "float32")
           for of in ("next_task", "previous_tasks") for what in ("dormant_units", "effective_rank", "stable_rank")},
        "weight_magnitude_analysis": (TASKS, "float32"),
        "accuracy_per_class_in_order": (8, "float32"),
        "class_order": (8, "int64"),
    }  # fmt: skip
    found = {path.parent.name: np.load(path, allow_pickle=False) for path in arm.glob("*/index-11.npy")}
    assert {metric: (len(a), str(a.dtype)) for metric, a in found.items()} == expected
    assert found["class_order"].tolist() == ORDER
    assert (arm / "config_index-4.yaml").exists()


def test_row_i_is_of_the_weights_before_task_i(own, tree):
    rows = collect([own / "backprop" / "seed_0004"]).runs[0].rows.to_pandas()
    task_ends = rows[rows.kind == "task_end"]

    def stored(metric):
        return np.load(tree / "base_deep_learning_system" / metric / "index-4.npy")

    dormant = task_ends[f"{NEXT}/total/dormant_rate"].to_numpy(np.float32)
    assert np.array_equal(stored("next_task_dormant_units_analysis"), [np.nan, *dormant[:3]], equal_nan=True)
    rank = task_ends[f"{NOW}/pool/srank_99_l1"].to_numpy(np.float32)
    assert stored("previous_tasks_stable_rank_analysis").tolist() == [0.0, *rank[:3]]
    magnitude = task_ends["representation/weights/total/weight_mag_all"].to_numpy(np.float32)
    assert stored("weight_magnitude_analysis")[1:].tolist() == magnitude[:3].tolist()


def test_there_and_back(own, tree):
    ours, theirs = (collect([folder]).runs for folder in (own, tree))
    assert [(run.settings["learner"], run.seed) for run in theirs] == [(r.settings["learner"], r.seed) for r in ours]
    for mine, published in zip(ours, theirs, strict=True):
        assert (published.state, published.settings["epochs"]) == ("published", EPOCHS)
        assert published.settings["task_shift_mode.classes_per_task"] == 2
        left, right = mine.rows.to_pandas(), published.rows.to_pandas()
        left, right = left[left.kind == "epoch"], right[right.kind == "epoch"]
        for key in ("global_epoch", "task_idx", "epoch", *PER_EPOCH, *CLOCK):
            assert right[key].to_numpy(np.float32).tolist() == left[key].to_numpy(np.float32).tolist(), key
        for key in ("total/dormant_rate", "pool/srank_99_l1", "pool/effective_rank"):
            before = of_task_ends(mine, f"{NEXT}/{key}")
            after = of_task_ends(published, f"{NEXT}/{key.replace('pool', 'fc_input')}")
            assert before.keys() == after.keys() == {0, 1, 2}
            assert {k: np.float32(value) for k, value in before.items()} == after


def of_task_ends(run, key):
    """Values that were measured, by task."""
    rows = run.rows.to_pandas()
    rows = rows[(rows.kind == "task_end") & rows[key].notna()]
    return dict(zip(rows.task_idx, rows[key], strict=True))


def test_published_results_exported_again_are_the_same_files(tree, tmp_path):
    export(collect([tree]).runs, tmp_path / "again")
    for path in sorted(tree.glob("*/*/index-*.npy")):
        if "checkpoint" not in path.parent.name:
            assert path.read_bytes() == (tmp_path / "again" / path.relative_to(tree)).read_bytes(), path
    assert not list((tmp_path / "again").glob("*/train_*"))


def test_checkpoints_of_an_epoch_are_averaged():
    """Two tasks of two epochs, three checkpoints an epoch of the first task: 3, 3, 6, 6."""
    values = np.arange(18.0)
    assert checkpoint_means(values, 4, 2).tolist() == [1.0, 4.0, 8.5, 14.5]
    assert checkpoint_means(values[:-1], 4, 2) is None


def test_training_bins_come_back_as_means_of_epochs(own, tree):
    (run,) = read_tree(tree / "base_deep_learning_system", keys=["epoch_loss"])[:1]
    losses = [np.load(p)["loss"] for p in sorted((own / "backprop/seed_0000").glob("task_*/online/bins.npz"))]
    expected = [loss.astype(np.float32).reshape(EPOCHS, -1).mean(1) for loss in losses]
    assert run.rows.column("epoch_loss").to_numpy()[: TASKS * EPOCHS] == pytest.approx(np.concatenate(expected))


def test_what_an_unfinished_tree_lacks_is_said(tree, tmp_path):
    shutil.copytree(tree / "base_deep_learning_system", tmp_path / "mine")
    for path in tmp_path.glob("mine/*/index-4.npy"):
        path.unlink()
    found = collect([tmp_path])
    assert [(run.seed, run.state) for run in found.runs] == [(0, "published"), (4, "missing")]
    assert any("experiment_indices.npy names it" in line for line in report(found))


def test_epochs_of_a_task_where_the_tree_does_not_say(tree, tmp_path):
    source = tree / "base_deep_learning_system" / "test_accuracy_per_epoch"
    shutil.copytree(source, tmp_path / "arm" / "test_accuracy_per_epoch")
    with pytest.raises(DataError, match="12 epochs are no whole tasks of 200; give --epochs-per-task"):
        collect([tmp_path])
    rows = collect([tmp_path], epochs_per_task=6).runs[0].rows
    assert rows.column("task_idx").to_pylist() == [0] * 6 + [1] * 6
    for index in (0, 4):
        np.save(tmp_path / "arm" / "test_accuracy_per_epoch" / f"index-{index}.npy", np.zeros(400, np.float32))
    assert any("taken for tasks of 200 epochs, as published" in line for line in report(collect([tmp_path])))


def test_arrays_of_different_lengths_are_refused(tree, tmp_path):
    shutil.copytree(tree / "base_deep_learning_system", tmp_path / "arm")
    np.save(tmp_path / "arm" / "test_loss_per_epoch" / "index-0.npy", np.zeros(5, np.float32))
    with pytest.raises(DataError, match="arrays of index-0 have different lengths"):
        collect([tmp_path])


def test_objects_are_not_unpickled(tree, tmp_path):
    shutil.copytree(tree / "base_deep_learning_system", tmp_path / "arm")
    np.save(tmp_path / "arm" / "test_loss_per_epoch" / "index-0.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        collect([tmp_path])


def test_only_finished_runs_are_exported_and_nothing_is_overwritten(own, tmp_path):
    write_own(tmp_path / "runs" / "a", 0)
    write_own(tmp_path / "runs" / "b", 1, state="preempted")
    made = export(collect([tmp_path / "runs"]).runs, tmp_path / "out")
    assert made.notes == [f"not finished, left out: {tmp_path / 'runs' / 'b'}"]
    assert np.load(made.folders[0] / "experiment_indices.npy").tolist() == [0]
    with pytest.raises(RunError, match="is there already"):
        export(collect([tmp_path / "runs"]).runs, tmp_path / "out")
    with pytest.raises(RunError, match="no run is finished"):
        export(collect([tmp_path / "runs" / "b"]).runs, tmp_path / "other")


def test_arms_that_only_settings_tell_apart(tmp_path):
    for lr in (0.1, 0.2):
        write_run(tmp_path / "runs" / str(lr), epochs(2, test_loss=[lr, lr]), learner=learner("l2", lr=lr))
    made = export(collect([tmp_path / "runs"]).runs, tmp_path / "out")
    assert [folder.name for folder in made.folders] == ["l2_learner.lr=0.1", "l2_learner.lr=0.2"]
    assert made.left_out["class_order"] == 2 and "test_loss_per_epoch" not in made.left_out


def test_what_a_later_look_has_found_goes_with_the_run(tmp_path):
    run = write_run(tmp_path / "run", epochs(2, test_loss=[1.0] * 6), num_tasks=3)
    rows = ends(2, {f"{NEXT}/total/dormant_rate": [0.25, 0.5, None]})
    rows.append({"kind": "epoch", "global_epoch": -1, "task_idx": 0, f"{NEXT}/total/dormant_rate": 0.125})
    write_run(tmp_path / "run_analyses" / "abc", rows, about={"replay_of": {"folder": str(run)}})
    made = export(collect([tmp_path]).runs, tmp_path / "out")
    found = np.load(made.folders[0] / "next_task_dormant_units_analysis" / "index-0.npy")
    assert found.tolist() == [0.125, 0.25, 0.5]


def test_trees_are_found_up_to_two_levels_below(tree):
    arms = [tree / "base_deep_learning_system", tree / "continual_backpropagation"]
    assert find_trees(tree) == arms and find_trees(arms[0]) == arms[:1]
    assert {*arms} <= {*find_trees(tree.parent)}
