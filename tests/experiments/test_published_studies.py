"""The studies of published experiments: each program in miniature, its statistics by hand, and what it has written."""

import json

import numpy as np
import pytest

from experiments.continual_imagenet import run as continual_imagenet
from experiments.direction import mean_and_error, rise
from experiments.incremental_cifar import run as incremental_cifar
from experiments.permuted_mnist import run as permuted_mnist
from experiments.slowly_changing_regression import run as slowly_changing_regression
from experiments.task_shift_study import run as task_shift_study
from plastiscope.run.log import read_rows


def results_of(program, tmp_path, *words):
    """What a program writes of runs in tmp_path/runs; the arms are one backprop and one other."""
    program.main([*words, "--runs", str(tmp_path / "runs"), "--out", str(tmp_path), "--seeds", "2"])
    (figure,) = tmp_path.glob("*.png")
    assert figure.stat().st_size > 10_000
    return json.loads((tmp_path / "results.json").read_text())


def logged(folder, kind, key):
    return [row[key] for row in read_rows(folder / "metrics.jsonl") if row["kind"] == kind]


def test_means_and_tests_of_a_direction():
    """Differences 1, 2, 3: t = 2 sqrt(3) with two degrees of freedom, sf(t) = 1/2 - t / (2 sqrt(2 + t^2))."""
    before, after = np.array([5.0, 1.0, 2.0]), np.array([6.0, 3.0, 5.0])
    found = rise(before, after)
    assert found["n"] == found["larger"] == 3
    assert found["difference"] == pytest.approx({"mean": 2.0, "error": 1 / np.sqrt(3)})
    assert found["wilcoxon"] == pytest.approx({"p": 1 / 8, "p_fall": 1.0})
    t = 2 * np.sqrt(3)
    p = 0.5 - t / (2 * np.sqrt(2 + t**2))
    assert found["paired_t"] == pytest.approx({"p": p, "p_fall": 1 - p})
    assert rise(after, before)["paired_t"]["p_fall"] == pytest.approx(p)
    assert rise(after, after)["wilcoxon"] == rise(after, after)["paired_t"] == {"p": 1.0, "p_fall": 1.0}


def test_slowly_changing_regression(tmp_path):
    """A bin of half a task: the mean of both is the loss of the task, as logged."""
    found = results_of(
        slowly_changing_regression, tmp_path, "--tasks", "1", "--bin-size", "5000",
        "--arms", "relu 0.01", "continual backprop 0.0001",
    )  # fmt: skip
    assert list(found) == ["relu 0.01", "continual backprop 0.0001"]
    for arm, row in found.items():
        folders = [tmp_path / "runs" / arm.replace(" ", "_") / f"seed_000{seed}" for seed in range(2)]
        losses = [logged(folder, "epoch", "epoch_loss")[0] for folder in folders]
        assert np.mean(row["mean_by_bin"]) == pytest.approx(np.mean(losses), abs=1e-4)  # four digits are written
        assert row["last"]["mean"] == pytest.approx(row["mean_by_bin"][1], abs=1e-4)
        assert (row["bins"], row["rise"]["n"]) == (2, 2)
    assert found["relu 0.01"]["published"] == [0.62, 1.25]


def test_permuted_mnist(real_data, tmp_path):
    found = results_of(
        permuted_mnist, tmp_path, "--data", str(real_data), "--tasks", "2", "--examples", "500",
        "--arms", "backprop 0.01", "continual backprop 0.01",
    )  # fmt: skip
    for arm, row in found.items():
        folders = [tmp_path / "runs" / arm.replace(" ", "_") / f"seed_000{seed}" for seed in range(2)]
        hits = 100 * np.array([logged(folder, "epoch", "epoch_accuracy") for folder in folders])
        assert row["mean_by_task"] == pytest.approx(hits.mean(0).tolist(), abs=1e-3)
        assert row["first"] == pytest.approx(mean_and_error(hits[:, 0])) and row["tasks"] == 2
        assert row["late_against_early"]["difference"] == pytest.approx(mean_and_error(hits[:, 1] - hits[:, 0]))
        assert row["tasks_of_an_end"] == 1  # a sixth of them, one at least
    changes = [found[arm]["late_against_early"]["difference"]["mean"] for arm in found]
    against = found["continual backprop 0.01"]["change_against_backprop"]["difference"]["mean"]
    assert against == pytest.approx(changes[1] - changes[0])


def test_continual_imagenet(real_data, tmp_path):
    """Early and late are the first and the last of two tasks."""
    found = results_of(
        continual_imagenet, tmp_path, "--data", str(real_data / "imagenet32-mini"), "--train-rows", "60",
        "--tasks", "2", "--epochs", "2", "--arms", "backprop", "continual backprop",
    )  # fmt: skip
    for arm, row in found.items():
        folders = [tmp_path / "runs" / arm.replace(" ", "_") / f"seed_{seed}" for seed in range(2)]
        right = 100 * np.array([logged(folder, "task_end", "task_test_accuracy") for folder in folders])
        assert right.shape == (2, 2) and row["mean_by_task"] == right.mean(0).round(2).tolist()
        assert row["early"] == pytest.approx(mean_and_error(right[:, 0]))
        assert row["late"] == pytest.approx(mean_and_error(right[:, 1]))
    assert "late_against_backprop" in found["continual backprop"]


def test_incremental_cifar(real_data, tmp_path):
    """A fresh network is what the first task begins with, so nothing differs there."""
    found = results_of(
        incremental_cifar, tmp_path, "--data", str(real_data / "cifar-100-python-mini"), "--tasks", "1", "--epochs",
        "1", "--arms", "base", "retrained",
    )  # fmt: skip
    assert found["base"]["first"] == found["retrained"]["first"] == found["base"]["last"]
    assert found["base"]["against_retrained_by_task"] == [0.0]
    folders = [tmp_path / "runs" / "base" / f"seed_{seed}" for seed in range(2)]
    right = 100 * np.array([logged(folder, "task_end", "task_test_accuracy")[0] for folder in folders])
    assert found["base"]["first"] == pytest.approx(mean_and_error(right))


def test_task_shift_study(real_data, tmp_path):
    """Squared errors as they are, shares of units in percent; early and late are the first and the second task."""
    found = results_of(
        task_shift_study, tmp_path, "--data", str(real_data), "--tasks", "2", "--epochs", "1",
        "--arms", "drifting values, backprop", "drifting values, continual backprop",
    )  # fmt: skip
    units = "representation/current/linear_2"
    for arm, row in found.items():
        folders = [tmp_path / "runs" / arm.replace(", ", "_").replace(" ", "_") / f"seed_{seed}" for seed in range(2)]
        errors, dormant, rank = (
            np.array([logged(folder, "task_end", key) for folder in folders])
            for key in ("task_test_loss", f"{units}/dormant_redo", f"{units}/effective_rank")
        )
        for end, task in (("early", 0), ("late", 1)):
            assert row[end] == pytest.approx(mean_and_error(errors[:, task]))
            assert row["dormant"][task] == pytest.approx(mean_and_error(100 * dormant[:, task]))
            assert row["rank"][task] == pytest.approx(mean_and_error(rank[:, task]))
        assert row["late_against_early"]["difference"] == pytest.approx(mean_and_error(errors[:, 1] - errors[:, 0]))


def test_task_shift_study_against_backprop():
    """Ten tasks, so a fifth is two; of each measure the difference over the last two, less backprop's."""
    ones = np.ones((2, 10))
    backprop = {name: ones * size for name, size in (("performance", 90), ("dormant", 20), ("rank", 5))}
    rises = {name: values + np.outer([1, 2], np.arange(10)) for name, values in backprop.items()}
    found = task_shift_study.measure({"deformation, backprop": backprop, "deformation, rank-restoring": rises})
    against = found["deformation, rank-restoring"]["late_against_backprop"]
    assert {name: against[name]["difference"]["mean"] for name in backprop} == dict.fromkeys(backprop, 1.5 * 8.5)
    assert found["deformation, rank-restoring"]["late_against_early"]["difference"]["mean"] == 1.5 * 8
    assert found["deformation, rank-restoring"]["tasks_of_a_bin"] == 2
    assert "late_against_backprop" not in found["deformation, backprop"]


def test_the_arms_of_the_task_shift_study_are_its_experiments():
    assert [task_shift_study.experiment_of(*arm) for arm in task_shift_study.ARMS.values()] == [
        "experiment=task_shift_study",
        "experiment=task_shift_study/continual_backprop",
        "experiment=task_shift_study/rank_restoring_cbp",
        "experiment=task_shift_study/drifting_values",
        "experiment=task_shift_study/drifting_values_continual_backprop",
        "experiment=task_shift_study/drifting_values_rank_restoring_cbp",
    ]


def test_quarters_of_continual_imagenet():
    """Two seeds of eight pairs: quarters are two pairs long, first and last are early and late."""
    values = np.outer([1, 2], np.arange(8.0))
    row = continual_imagenet.measure({"backprop": values})["backprop"]
    assert [entry["mean"] for entry in row["by_quarter"]] == [0.75, 3.75, 6.75, 9.75]
    assert (row["early"], row["late"]) == (row["by_quarter"][0], row["by_quarter"][-1])
    assert row["late_against_early"]["difference"]["mean"] == 9.0
    assert continual_imagenet.quarters(values[:, :5]).tolist() == [[0.5, 2, 3, 4], [1, 4, 6, 8]]


def tables(study):
    """Rows of the README's tables as lists of cells, by their first cell."""
    lines = (study.HERE / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return {row[0]: row[1:] for row in rows}


def shown(number, digits):
    return f"{number['mean']:.{digits}f} ({number['error']:.{digits}f})"


@pytest.mark.parametrize(
    ("study", "ends", "digits"),
    [
        (slowly_changing_regression, ("first", "last"), 3),
        (permuted_mnist, ("early", "late"), 2),
        (continual_imagenet, ("early", "late"), 1),
        (incremental_cifar, ("first", "last"), 1),
        (task_shift_study, ("early", "late"), 2),
    ],
)
def test_the_tables_are_those_of_the_results(study, ends, digits):
    """Each arm has a row in the README: after what is published, the numbers of results.json rounded once."""
    found = json.loads((study.HERE / "results.json").read_text())
    rows = tables(study)
    assert list(found) == list(study.ARMS)
    for arm, row in found.items():
        assert rows[arm][1:3] == [shown(row[end], digits) for end in ends]


def test_slowly_changing_regression_came_out_as_published():
    """First and last bins within 15 %; backprop rises where the published error does, continual backprop nowhere."""
    found = json.loads((slowly_changing_regression.HERE / "results.json").read_text())
    for arm, row in found.items():
        assert row["seeds"] >= 30 and row["bins"] == 50
        if row["published"]:
            assert [row["first"]["mean"], row["last"]["mean"]] == pytest.approx(row["published"], rel=0.15)
        rises = row["rise"]["wilcoxon"]["p"] < 0.01
        assert rises == (arm in ("relu 0.01", "relu 0.003", "tanh 0.01", "tanh 0.003"))
        assert tables(slowly_changing_regression)[arm][3] == f"{row['rise']['wilcoxon']['p']:.0e}"


def test_permuted_mnist_came_out_as_published():
    """One test for all arms: backprop falls by points, continual backprop by less than a tenth of that."""
    found = json.loads((permuted_mnist.HERE / "results.json").read_text())
    for step in ("0.003", "0.01"):
        backprop, continual = found[f"backprop {step}"], found[f"continual backprop {step}"]
        assert backprop["seeds"] >= 5 and backprop["tasks"] >= 30
        assert backprop["late_against_early"]["paired_t"]["p_fall"] < 0.001
        assert backprop["late_against_early"]["larger"] == 0
        falls = [row["late_against_early"]["difference"]["mean"] for row in (backprop, continual)]
        assert falls[0] < -2 and falls[0] / 10 < falls[1] <= 0
        assert continual["change_against_backprop"]["paired_t"]["p"] < 0.001
    for arm, row in found.items():
        cells = tables(permuted_mnist)[arm]
        assert cells[3] == f"{shown(row['best'], 2)}, task {row['best']['task']}"
        falls = [row[test]["paired_t"]["p_fall"] for test in ("late_against_early", "last_against_best")]
        assert cells[4:6] == [f"{p:.0e}" for p in falls]


def test_incremental_cifar_against_retrained():
    """The column of differences is that of the results, and continual backprop is another run than the base."""
    found = json.loads((incremental_cifar.HERE / "results.json").read_text())
    assert found["base"]["last"] != found["continual backprop"]["last"]
    for arm in ("base", "continual backprop", "head reset"):
        tested = found[arm]["last_against_retrained"]
        number, p = tested["difference"], tested["paired_t"]["p"]
        assert tables(incremental_cifar)[arm][3:5] == [f"+{number['mean']:.1f} ({number['error']:.1f})", f"{p:.0e}"]


def test_the_task_shift_study_as_its_readme_tells_it():
    """No arm gets worse, replacement leaves fewer dormant units; differences, dormant units and ranks of the table."""
    found = json.loads((task_shift_study.HERE / "results.json").read_text())
    for arm, row in found.items():
        shift, learner = task_shift_study.ARMS[arm]
        better, worse = ("p", "p_fall") if shift == "deformation" else ("p_fall", "p")
        assert row["late_against_early"]["paired_t"][better] < 0.01 < row["late_against_early"]["paired_t"][worse]
        cells = tables(task_shift_study)[arm]
        assert cells[4:6] == [shown(row["dormant"][1], 1), shown(row["rank"][1], 1)]
        if learner != "backprop":
            tested = row["late_against_backprop"]
            change, both = tested["performance"]["difference"], min(tested["performance"]["paired_t"].values())
            assert cells[3] == f"{change['mean']:+.2f} ({change['error']:.2f}), p {2 * both:.2f}".replace(" 0.", " .")
            assert tested["dormant"]["larger"] == 0


def test_continual_imagenet_as_its_readme_tells_it():
    """No arm's last round differs from its first; the second round and the test against backprop are as told."""
    found = json.loads((continual_imagenet.HERE / "results.json").read_text())
    for arm, row in found.items():
        cells = tables(continual_imagenet)[arm]
        assert row["tasks"] == 48 and row["seeds"] == 3 and len(row["by_quarter"]) == 4
        assert min(row["late_against_early"]["paired_t"].values()) > 0.3
        assert cells[3] == shown(row["by_quarter"][1], 1)
        if arm != "backprop":
            p = 2 * min(row["late_against_backprop"]["paired_t"].values())
            assert cells[4] == f"{p:.2f}".removeprefix("0")
