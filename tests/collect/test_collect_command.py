"""`plastiscope-collect` and `plastiscope-plot` as commands: what they write, print and refuse."""

import sys

import numpy as np
import pandas as pd
import pytest

from collect.small_runs import epochs, learner, write_bins, write_run
from plastiscope import app


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Call one of the console entries in a folder with four runs; gives (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    for name, lr in (("backprop", 0.1), ("l2", 0.2)):
        for seed in (0, 5):
            rows = epochs(2, test_accuracy=[0.5, 0.6, 0.7 + 0.1 * seed, 0.2])
            write_run(tmp_path / "runs" / f"{name}_{seed}", rows, seed=seed, learner=learner(name, lr=lr))

    def call(entry: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"plastiscope-{entry}", *arguments])
        try:
            getattr(app, entry)()
            code = 0
        except SystemExit as stop:
            code = int(stop.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_collect_writes_beside_the_runs(command, tmp_path):
    code, out, err = command("collect", "runs", "--csv")
    assert (code, err) == (0, "")
    assert out.splitlines()[:2] == ["4 runs: 4 done", "runs differ in learner: backprop, l2"]
    assert {path.name for path in (tmp_path / "runs/tables").iterdir()} == {
        "numbers.parquet", "numbers.csv", "numbers.json", "runs.csv",
    }  # fmt: skip
    assert len(pd.read_csv("runs/tables/numbers.csv")) == 16
    assert command("collect", "runs")[1].startswith("4 runs: 4 done")  # what was written is no run


def test_several_folders_have_their_table_in_common(command, tmp_path):
    code, _, _ = command("collect", "runs/l2_0", "runs/l2_5")
    assert code == 0 and (tmp_path / "runs" / "tables" / "numbers.parquet").exists()
    code, _, _ = command("collect", "runs/l2_0", "--out", "mine", "--keys", "test_*")
    assert code == 0 and len(pd.read_parquet("mine/numbers.parquet")) == 4


def test_a_plot_and_its_numbers(command):
    code, out, err = command("plot", "runs", "y=test_accuracy", "x=task_idx", "group=learner")
    assert (code, err) == (0, "")
    assert out.splitlines() == [f"wrote runs/figures/test_accuracy_over_task_idx.{kind}" for kind in ("png", "csv")]
    table = pd.read_csv("runs/figures/test_accuracy_over_task_idx.csv")
    assert table["group"].tolist() == ["learner=backprop"] * 2 + ["learner=l2"] * 2
    assert table["n"].tolist() == [2] * 4 and table["x"].tolist() == [0, 1] * 2
    assert table["mean"].tolist() == pytest.approx([0.55, 0.575] * 2)
    assert table["standard_error"].tolist() == pytest.approx([0.0, 0.125] * 2)
    assert table["low"][1] == pytest.approx(0.45) and table["high"][1] == pytest.approx(0.7)


def test_settings_choose_runs_and_a_folder_may_have_an_equals_sign(command, tmp_path):
    (tmp_path / "runs").rename(tmp_path / "seed=all")
    code, out, _ = command("plot", "seed=all", "y=test_accuracy", "learner=l2", "out=here", "smooth=3", "interval=none")
    assert code == 0 and "wrote here/test_accuracy_over_epochs_completed.png" in out
    assert len(pd.read_csv("here/test_accuracy_over_epochs_completed.csv")) == 4


def test_all_published_figures_that_there_are_numbers_for(command, tmp_path):
    code, _, _ = command("plot", "runs", "figure=all")
    assert code == 0
    assert {path.stem for path in (tmp_path / "runs/figures").iterdir()} == {
        "best_test_accuracy", "test_accuracy_per_epoch",
    }  # fmt: skip


def test_a_folder_that_is_given_twice_counts_once(command, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    for folders in (("runs", str(tmp_path / "runs")), (str(tmp_path / "runs"), "runs/l2_0", "link")):
        code, out, _ = command("collect", *folders, "--out", "tables")
        assert code == 0 and out.startswith("4 runs: 4 done")
    assert command("plot", "runs", str(tmp_path / "runs"), "y=test_accuracy", "out=here")[0] == 0


def test_an_arm_keeps_its_colour_in_all_pictures(command, tmp_path, monkeypatch):
    """The first arm has no numbers of one figure; the second is drawn in its own colour there too."""
    shown = {}
    monkeypatch.setattr("plastiscope.collect.command.seed_curves", lambda curves, labels, marks: shown.update(
        {(labels.y, curve.label): curve.style for curve in curves}))  # fmt: skip
    monkeypatch.setattr("plastiscope.collect.command.save", lambda picture, path: path)
    for seed in (0, 5):
        write_bins(tmp_path / "runs" / f"l2_{seed}", 0, [10], loss=[0.7], accuracy=[0.5])
    (tmp_path / "runs/figures").mkdir()
    assert command("plot", "runs", "figure=all", "out=runs/figures")[0] == 0
    assert {style for (_, label), style in shown.items() if "l2" in label or not label} == {1}
    assert len({y for y, _ in shown}) == 3


def test_a_plot_takes_the_epochs_of_tasks_of_published_results(command, tmp_path):
    """And says what stands for them where they are not given."""
    for index in (0, 1):
        path = tmp_path / "tree/arm/test_accuracy_per_epoch" / f"index-{index}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, np.repeat([0.25, 0.75], 200).astype(np.float32))
    asked = ("plot", "tree", "y=test_accuracy", "x=task_idx")
    code, out, _ = command(*asked)
    assert code == 0 and out.startswith("tree/arm: taken for tasks of 200 epochs, as published; else give ")
    assert "(plastiscope-plot: epochs_per_task=N)" in out.splitlines()[0]
    code, out, _ = command(*asked, "epochs_per_task=100")
    assert code == 0 and "taken for" not in out
    table = pd.read_csv("tree/figures/test_accuracy_over_task_idx.csv")
    assert table["x"].tolist() == [0, 1, 2, 3] and table["mean"].tolist() == [0.25, 0.25, 0.75, 0.75]


def test_what_cannot_be_read_is_said_and_the_others_are_drawn(command, tmp_path):
    (tmp_path / "runs/l2_0/metrics.jsonl").write_text("{\n")
    code, out, _ = command("collect", "runs")
    assert code == 0 and "4 runs: 3 done, 1 failed" in out and "failed: runs/l2_0 (" in out
    code, out, _ = command("plot", "runs", "y=test_accuracy", "learner=l2")
    assert code == 0 and out.startswith("failed: runs/l2_0 (runs/l2_0/metrics.jsonl is damaged")
    assert pd.read_csv("runs/figures/test_accuracy_over_epochs_completed.csv")["n"].tolist() == [1] * 4
    code, _, err = command("collect", "runs/l2_0")
    assert code == 2 and "metrics.jsonl is damaged" in err and "Traceback" not in err


def test_of_very_many_notes_a_plot_prints_some(command, tmp_path):
    for index in range(12):
        path = tmp_path / f"tree/arm_{index}/test_accuracy_per_epoch/index-0.npy"
        path.parent.mkdir(parents=True)
        np.save(path, np.zeros(200, np.float32))
    code, out, _ = command("plot", "tree", "y=test_accuracy", "learner=arm_3")
    assert code == 0 and [line.split(":")[0] for line in out.splitlines()[:1]] == ["tree/arm_3"]
    _, out, _ = command("plot", "tree", "y=test_accuracy", "x=task_idx", "group=data")
    assert "and 4 more such lines, see plastiscope-collect" in out.splitlines()


def test_equal_runs_give_equal_pictures(command, tmp_path):
    for out in ("one", "two"):
        assert command("plot", "runs", "y=test_accuracy", f"out={out}")[0] == 0
    one, two = (tmp_path / out / "test_accuracy_over_epochs_completed.png" for out in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_the_difference_of_two_configs(command):
    code, out, _ = command("collect", "--diff", "runs/l2_0", "runs/backprop_5")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0 and rows[0] == ["setting", "runs/l2_0", "runs/backprop_5"]
    assert rows[1:] == [["seed", "0", "5"], ["learner", "l2", "backprop"], ["learner.lr", "0.2", "0.1"]]
    assert (
        command("collect", "--diff", "runs/l2_0", "runs/l2_0")[1] == "runs/l2_0 and runs/l2_0 have the same settings\n"
    )


def test_export(command):
    code, out, _ = command("collect", "runs", "--export", "results")
    assert code == 0 and "wrote results/base_deep_learning_system" in out
    assert "class_order: not measured by 4 runs, left out" in out
    found = np.load("results/base_deep_learning_system/test_accuracy_per_epoch/index-5.npy")
    assert found.tolist() == pytest.approx([0.5, 0.6, 1.2, 0.2])


MISTAKES = [
    (("collect", "."), None),
    (("collect", "nowhere"), "nowhere is not a folder"),
    (("collect", "--diff", "runs", "runs/l2_0"), "runs is not a run folder: it has no config.yaml"),
    (("plot", "runs"), "say what to draw: plastiscope-plot FOLDER ... y=test_accuracy"),
    (("plot", "--help"), "say what to draw"),
    (("plot", "runs", "y=test_accuracy", "figure=stable_rank"), "say what to draw"),
    (("plot", "runs", "y=test_acuracy"), "did you mean test_accuracy?"),
    (("plot", "runs", "figure=stable"), "there is no such figure"),
    (("plot", "runs", "figure=stable_rank"), "no run has what this figure needs"),
    (("plot", "runs", "y=test_accuracy", "smooth=0"), "smooth=0: must be a whole number, 1 or more"),
    (("plot", "runs", "y=test_accuracy", "interval=std"), "interval=std: must be one of bootstrap, stderr, none"),
    (("plot", "runs", "y=test_accuracy", "log_y=yes"), "log_y=yes: must be one of true, false"),
    (("plot", "runs", "figure=all", "reference=mine"), "reference=mine: must be one of published, all, none"),
    (("plot", "runs", "y=test_accuracy", "group="), "the runs differ in learner (backprop, l2)"),
    (("plot", "runs", "y=test_accuracy", "learner.lr=7"), "no run has this value; there are: 0.1, 0.2"),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=[" ".join(a) for a, _ in MISTAKES])
def test_mistakes(command, arguments, words):
    code, _, err = command(*arguments)
    assert code == (2 if words else 0)
    assert (words or "") in err and "Traceback" not in err
