"""Published results read and written: names, shapes, types, and the same numbers there and back."""

import shutil

import numpy as np
import pandas as pd
import pytest

from collect.small_runs import analysis, ends, epochs, learner, write_bins, write_results, write_run
from plastiscope.collect.export_tree import export
from plastiscope.collect.published_figures import best_of_tasks
from plastiscope.collect.published_tree import checkpoint_means, find_trees, read_tree
from plastiscope.collect.table import collect, report, write
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
    configs = sorted(path.relative_to(tree) for path in tree.glob("*/config_index-*.yaml"))
    assert len(configs) == 4
    for name in configs:
        assert (tree / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


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
    words = r"12 epochs are no whole tasks of 200; give --epochs-per-task N \(plastiscope-plot: epochs_per_task=N\)"
    with pytest.raises(DataError, match=words):
        collect([tmp_path])
    rows = collect([tmp_path], epochs_per_task=6).runs[0].rows
    assert rows.column("task_idx").to_pylist() == [0] * 6 + [1] * 6
    for index in (0, 4):
        np.save(tmp_path / "arm" / "test_accuracy_per_epoch" / f"index-{index}.npy", np.zeros(400, np.float32))
    assert any("taken for tasks of 200 epochs, as published" in line for line in report(collect([tmp_path])))


def test_a_tree_says_how_many_epochs_its_tasks_have(tree, tmp_path):
    """Without an analysis, whose rows are tasks, the config of the run does."""
    arm = tree / "base_deep_learning_system"
    shutil.copytree(arm / "test_accuracy_per_epoch", tmp_path / "arm" / "test_accuracy_per_epoch")
    for index in (0, 4):
        shutil.copy(arm / f"config_index-{index}.yaml", tmp_path / "arm")
    for run in collect([tmp_path]).runs:
        assert run.rows.column("task_idx").to_pylist() == np.repeat(range(TASKS), EPOCHS).tolist()
        assert run.settings["epochs"] == EPOCHS and not run.notes


def classes_over(folder):
    """Classes seen after each task of the first index, and what is said of it."""
    run = collect([folder]).runs[0]
    return best_of_tasks(run)[0].tolist(), " ".join(run.notes)


def test_classes_that_a_tree_of_fewer_tasks_has_seen(tree, tmp_path):
    """The order of classes is of all that there are, also where the tasks bring only some of them."""
    arm = tmp_path / "arm"
    shutil.copytree(tree / "base_deep_learning_system", arm)
    np.save(arm / "class_order" / "index-0.npy", np.arange(12))
    config, by_class = arm / "config_index-0.yaml", arm / "accuracy_per_class_in_order" / "index-0.npy"
    assert classes_over(arm) == ([2, 4, 6, 8], "")
    config.write_text(
        config.read_text().replace("  classes_per_task: 2", "  classes_per_task: 2\n  initial_classes: 5")
    )
    assert classes_over(arm) == ([5, 7, 9, 11], "")
    config.unlink()
    assert classes_over(arm) == ([2, 4, 6, 8], "")  # by the classes whose accuracies there are
    by_class.unlink()
    seen, said = classes_over(arm)
    assert seen == [3, 6, 9, 12] and "taken for tasks of 3 classes, so that 4 tasks have all 12" in said
    np.save(arm / "class_order" / "index-0.npy", np.arange(13))
    seen, said = classes_over(arm)
    assert seen == [1, 2, 3, 4] and "13 do not fit 4 tasks" in said
    for has_all in (False, True):  # published arrays of the classes are of all 100
        np.save(arm / "class_order" / "index-0.npy", np.arange(100))
        if has_all:
            np.save(by_class, np.zeros(100, np.float32))
        seen, said = classes_over(arm)
        assert seen == [5, 10, 15, 20] and "taken for tasks of 5 classes, as published, with 4 of 20 tasks" in said


def test_settings_of_a_tree_are_those_of_its_configs(tmp_path):
    """So published values of other data are no marks of it, and arms that only settings tell apart stay so."""
    for lr in (0.1, 0.2):
        write_run(
            tmp_path / "runs" / str(lr), epochs(2, test_loss=[lr, lr]), learner=learner("l2", lr=lr),
            data=("plastiscope.data.digits.Digits", {}),
        )  # fmt: skip
    export(collect([tmp_path / "runs"]).runs, tmp_path / "out")
    runs = collect([tmp_path / "out"]).runs
    assert [(run.settings["learner"], run.settings["learner.lr"]) for run in runs] == [("l2", 0.1), ("l2", 0.2)]
    assert {run.settings["data"] for run in runs} == {"digits"}
    assert [folder.name for folder in export(runs, tmp_path / "again").folders] == [
        "l2_learner.lr=0.1", "l2_learner.lr=0.2",
    ]  # fmt: skip


def failed(found):
    """What is said of runs that failed, by their labels."""
    return {run.label: run.error for run in found.runs if run.state == "failed"}


def test_arrays_of_different_lengths_are_refused(tree, tmp_path):
    shutil.copytree(tree / "base_deep_learning_system", tmp_path / "arm")
    np.save(tmp_path / "arm" / "test_loss_per_epoch" / "index-0.npy", np.zeros(5, np.float32))
    (label,), (error,) = zip(*failed(collect([tmp_path])).items(), strict=True)
    assert label == f"{tmp_path}/arm/index-0" and "arrays of index-0 have different lengths" in error


def test_objects_are_not_unpickled(tree, tmp_path):
    shutil.copytree(tree / "base_deep_learning_system", tmp_path / "arm")
    np.save(tmp_path / "arm" / "test_loss_per_epoch" / "index-0.npy", np.array([{}], object), allow_pickle=True)
    (error,) = failed(collect([tmp_path])).values()
    assert "holds Python objects" in error


def test_what_cannot_be_read_has_failed_and_the_others_are_collected(tree, tmp_path):
    folder = tmp_path / "all"
    for name in ("cut", "indices", "config"):
        shutil.copytree(tree / "base_deep_learning_system", folder / name)
    cut = folder / "cut/test_loss_per_epoch/index-4.npy"
    cut.write_bytes(cut.read_bytes()[:-7])
    (folder / "indices/experiment_indices.npy").write_bytes(b"PK\x03\x04")
    (folder / "config/config_index-0.yaml").write_text("seed: [\n")
    pickled = write_results(folder, "data/bp", 0, 3, {"errs": np.ones(20_000, np.float32)})
    write_results(folder, "data/bp", 0, 4, {"errs": np.ones(20_000, np.float32)})
    pickled.write_bytes(pickled.read_bytes()[:9000])
    log = write_run(folder / "ours", epochs(1, epoch_loss=[1.0])) / "metrics.jsonl"
    log.write_text('{"kind": "epoch",\n')
    found = collect([folder])
    assert failed(found).keys() == {
        f"{folder}/cut/index-4", f"{folder}/indices", f"{folder}/config/index-0", str(pickled), str(log.parent),
    }  # fmt: skip
    read = [run.label for run in found.runs if run.rows is not None]
    assert read == [f"{folder}/config/index-4", f"{folder}/cut/index-0", f"{folder}/data/bp/0/4"]
    lines = [line for line in report(found) if line.startswith("failed: ")]
    assert len(lines) == 5 and sum("index-4.npy is damaged" in line for line in lines) == 1
    write(found, tmp_path / "tables")
    runs = pd.read_csv(tmp_path / "tables/runs.csv").set_index("run")
    assert runs.state[str(pickled)] == "failed" and "is damaged or no pickle" in runs.error[str(pickled)]
    assert runs.seed[str(pickled)] == 3 and "config_index-0.yaml is damaged" in runs.error[f"{folder}/config/index-0"]


def test_where_nothing_can_be_read_the_first_error_is_told(tree, tmp_path):
    shutil.copytree(tree / "base_deep_learning_system", tmp_path / "arm")
    for path in (tmp_path / "arm").glob("*/index-*.npy"):
        path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"index-0.npy is damaged .* \(1 more cannot be read either\)"):
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
