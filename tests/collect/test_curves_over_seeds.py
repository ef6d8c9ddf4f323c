"""Which runs are seeds of one kind, and their values side by side; made of small run folders."""

import numpy as np
import pytest

from collect.small_runs import analysis, ends, epochs, learner, write_run
from plastiscope.collect.command import short_labels
from plastiscope.collect.curves import arms, chosen, curves, distinct, grouped, points, telling
from plastiscope.collect.settings import MISSING, difference, is_same, read_settings
from plastiscope.collect.table import collect
from plastiscope.error import ConfigError, DataError
from plastiscope.figure.curves import Curve
from plastiscope.measure.over_seeds import over_seeds


@pytest.fixture
def study(tmp_path):
    """Two learners, two step sizes, seeds 0, 3 and 17 of each; seed 17 has one epoch less."""
    for name, lr in (("backprop", 0.01), ("backprop", 0.1), ("l2", 0.01)):
        for seed in (0, 3, 17):
            rows = epochs(2, test_accuracy=[seed + lr, seed + 2 * lr, seed + 3 * lr][: 2 if seed == 17 else 3])
            rows += ends(2, {"csl/train/total/loss": [seed + 10.0]})
            decay = {"weight_decay": 0.1 if name == "l2" else 0.0}
            write_run(
                tmp_path / f"{name}_{lr}" / f"seed_{seed:04d}", rows, seed=seed, learner=learner(name, lr=lr, **decay)
            )
    return collect([tmp_path]).runs


def test_groups_are_those_that_differ_in_more_than_the_seed(study):
    groups = grouped(study, None)
    labels = ["learner=backprop, learner.lr=0.01", "learner=backprop, learner.lr=0.1", "learner=l2, learner.lr=0.01"]
    assert [group.label for group in groups] == labels
    assert all(list(group.runs) == [0, 3, 17] for group in groups)


def test_a_curve_over_seeds_that_are_not_contiguous_and_not_equally_long(study):
    first, second, _ = curves(study, "test_accuracy")
    assert first.x.tolist() == [1, 2, 3]
    expected = [[0.01, 0.02, 0.03], [3.01, 3.02, 3.03], [17.01, 17.02, np.nan]]
    assert first.values == pytest.approx(np.array(expected), nan_ok=True)
    band = second.band()
    assert band.n.tolist() == [3, 3, 2]
    assert band.mean == pytest.approx([20 / 3 + 0.1, 20 / 3 + 0.2, 1.5 + 0.3])


def test_the_axis_follows_the_rows_unless_it_is_given(study):
    (of_tasks, *_) = curves(study, "csl/train/total/loss")
    assert of_tasks.x.tolist() == [0] and of_tasks.values[:, 0].tolist() == [10, 13, 27]
    (by_task, *_) = curves(study, "test_accuracy", "task_idx")
    assert by_task.x.tolist() == [0, 1] and by_task.values[0] == pytest.approx([0.015, 0.03])


def test_each_seed_is_smoothed(study):
    (curve, *_) = curves(study, "test_accuracy", smooth=3)
    assert curve.values[0] == pytest.approx([0.01, 0.02, 0.03])
    assert np.isnan(curve.values[2, 2])


def test_runs_that_differ_are_not_averaged(study):
    with pytest.raises(ConfigError) as refused:
        curves(study, "test_accuracy", by=["learner"])
    assert "runs of learner=backprop differ in learner.lr (0.01, 0.1)" in str(refused.value)
    assert "group=learner,learner.lr" in str(refused.value)
    assert len(curves(study, "test_accuracy", by=["learner", "learner.lr"])) == 3


def test_settings_choose_runs(study):
    assert len(chosen(study, {"learner.lr": "1e-2", "learner": "l2"})) == 3
    with pytest.raises(ConfigError, match=r"learner.lr=3: no run has this value; there are: 0.01, 0.1"):
        chosen(study, {"learner.lr": "3"})
    with pytest.raises(ConfigError, match="no run has such a setting"):
        chosen(study, {"learner.rate": "3"})
    with pytest.raises(ConfigError, match=r"group=learner.rate: no run has such a setting"):
        grouped(study, ["learner.rate"])


def test_numbers_that_no_run_has(study):
    with pytest.raises(ConfigError, match="no run has logged test_acuracy; did you mean test_accuracy"):
        curves(study, "test_acuracy")
    with pytest.raises(DataError, match="no run has a value of csl/train/total/loss and epoch in one row"):
        curves(study, "csl/train/total/loss", "epoch")


def test_numbers_that_may_be_meant_are_listed_nearest_first(tmp_path):
    """Then accuracies, losses, and analyses by their first names: none is cut off."""
    layers = [f"representation/current/linear_{i}/dormant_rate" for i in range(30)]
    names = [
        *layers, "epoch_runtime", "epoch_accuracy", "epoch_loss", "test_loss", "task_test_accuracy", "test_accuracy",
        "weight_norm", "representation/current/total/dormant_rate", "continual/test/total/forgetting",
    ]  # fmt: skip
    write_run(tmp_path / "run", epochs(1, **{name: [1.0] for name in names}))
    runs = collect([tmp_path]).runs

    def told(y):
        with pytest.raises(ConfigError) as refused:
            curves(runs, y)
        return str(refused.value)

    assert told("nothing") == (
        "no run has logged nothing; there are: test_accuracy, epoch_accuracy, task_test_accuracy, test_loss, "
        "epoch_loss, weight_norm, epoch_runtime, continual/... (1, such as continual/test/total/forgetting), "
        "representation/... (31, such as representation/current/total/dormant_rate)"
    )
    assert told("accuracy").endswith("did you mean test_accuracy or epoch_accuracy or task_test_accuracy?")
    assert "did you mean representation/current/total/dormant_rate or " in told("dormant_rate")
    assert told("forgeting").endswith("did you mean continual/test/total/forgetting?")
    assert told("representation/curent/total/dormant_rate").split("mean ")[1].startswith(names[-2])


def test_a_seed_that_is_there_twice(tmp_path):
    for name in ("first", "second"):
        write_run(tmp_path / name, epochs(2, loss=[1.0, 2.0]), learner=learner("l2"))
    with pytest.raises(ConfigError, match=r"seed 0 twice, in .*first and .*second, and would count double"):
        curves(collect([tmp_path]).runs, "loss")


def test_a_look_at_a_runs_weights_is_no_second_seed(tmp_path):
    own = write_run(tmp_path / "run", epochs(2, loss=[1.0, 2.0]), learner=learner("l2"))
    about = {"replay_of": {"folder": str(own)}}
    rows = ends(2, {"csl/train/total/loss": [3.0]}) + epochs(2, loss=[7.0])
    write_run(tmp_path / "run_analyses" / "abc", rows, about=about, learner=learner("l2"))
    runs = collect([tmp_path]).runs
    assert curves(runs, "loss")[0].values.tolist() == [[1.0, 2.0]]
    assert curves(runs, "csl/train/total/loss")[0].values.tolist() == [[3.0]]


def test_settings_of_an_analysis_count_for_its_own_numbers(tmp_path):
    for seed, samples in ((0, 100), (1, 200)):
        rows = epochs(2, **{"loss": [1.0], "representation/current/total/dormant_rate": [0.5]})
        write_run(tmp_path / str(seed), rows, seed=seed, representation=analysis("representation", samples=samples))
    runs = collect([tmp_path]).runs
    assert len(curves(runs, "loss", by=[])) == 1
    with pytest.raises(ConfigError, match=r"differ in representation.samples \(100, 200\)"):
        curves(runs, "representation/current/total/dormant_rate", by=[])


def test_rows_at_the_same_place_are_averaged_and_gaps_left_out(tmp_path):
    write_run(tmp_path / "run", epochs(2, loss=[1.0, 3.0, None, 5.0]))
    (run,) = collect([tmp_path]).runs
    x, y = points(run, "loss", "task_idx")
    assert x.tolist() == [0, 1] and y.tolist() == [2.0, 5.0]


def test_telling_settings_are_as_few_as_do(study):
    assert telling(study, ["learner.lr", "learner.weight_decay", "learner"]) == ["learner", "learner.lr"]


def test_labels_of_pictures_are_short_where_they_can_be():
    band = over_seeds(np.ones((1, 1)))
    drawn = [Curve(label, np.ones(1), band) for label in ("learner=l2, learner.lr=0.1", "learner=l2, net.widths=[5]")]
    assert short_labels(drawn) == ["learner=l2, lr=0.1", "learner=l2, widths=[5]"]
    drawn.append(Curve("probe.lr=1", np.ones(1), band))
    assert short_labels(drawn)[0] == "learner=l2, learner.lr=0.1" and short_labels(drawn)[2] == "probe.lr=1"


def test_a_setting_that_a_group_does_not_have_is_not_in_its_label(tmp_path):
    for name, more in (("l2", {}), ("redo", {"tau": 0.1}), ("redo", {"tau": 0.2})):
        place = tmp_path / "_".join([name, *map(str, more.values())])
        write_run(place, epochs(2, loss=[1.0]), learner=learner(name, **more))
    labels = [group.label for group in grouped(collect([tmp_path]).runs, None)]
    assert labels == ["learner=l2", "learner=redo, learner.tau=0.1", "learner=redo, learner.tau=0.2"]


def test_the_difference_of_two_runs(tmp_path):
    one = write_run(tmp_path / "a", [], learner=learner("l2", lr=0.1), csl=analysis("csl", mode="online"), num_tasks=5)
    two = write_run(tmp_path / "b", [], learner=learner("redo", lr=0.1, tau=0.5), num_tasks=5)
    found = difference(read_settings(one), read_settings(two))
    assert found == {"learner": ("l2", "redo"), "csl": ("csl", MISSING), "learner.tau": (MISSING, 0.5)}


@pytest.mark.parametrize(
    ("value", "text", "expected"),
    [
        (0.003, "3e-3", True), (1, "1.0", True), (True, "true", True), (True, "1", False), (None, "null", True),
        ("[5]", "[5]", True), ("[5, 6]", "[5,6]", True), (0.1, "relu", False), ("relu", "relu", True),
    ],
)  # fmt: skip
def test_values_as_command_lines_have_them(value, text, expected):
    assert is_same(value, text) is expected


def test_arms_are_the_same_whatever_a_figure_shows(study):
    number = arms(study, None)
    assert [number[run.label] for run in study] == [0] * 3 + [1] * 3 + [2] * 3
    assert {number[run.label] for run in study if run.settings["learner"] == "l2"} == {2}
    assert set(arms(study, ["learner"]).values()) == {0, 1} and set(arms(study, []).values()) == {0}


def test_curves_of_one_arm_differ_in_a_picture():
    assert distinct([3, 1], 28) == [3, 1]
    assert distinct([0, 0, 1, 0], 5) == [0, 2, 1, 3]
    assert distinct([1, 29], 28) == [1, 0]


def test_accuracies_of_every_epoch_and_of_some_are_not_averaged(tmp_path):
    """The best of a task's epochs, and the weights that are selected, depend on how many were looked at."""
    for seed, every in ((0, 1), (1, 50)):
        write_run(tmp_path / str(seed), epochs(2, test_accuracy=[0.5, 0.6]), seed=seed, eval_every=every)
    runs = collect([tmp_path]).runs
    assert [group.label for group in grouped(runs, None)] == ["eval_every=1", "eval_every=50"]
    with pytest.raises(ConfigError, match=r"differ in eval_every \(1, 50\)"):
        grouped(runs, [])
