"""A run that was stopped and went on equals one that was never stopped, bit for bit."""

import random
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forks import killed_at
from plans import make_plan
from plastiscope.analyze import analyze
from plastiscope.build import Plan, read_config
from plastiscope.error import RunError
from plastiscope.experiment import resume, run
from plastiscope.learner.learner import Learner
from plastiscope.run.status import read_status

NOT_EQUAL = {"run.json", "status.json", "timings.jsonl", "summary.json", ".lock", "a.json", "b.json", "a.pt", "b.pt"}
SMALL = (
    *("num_tasks=3", "epochs=3", "threads=1", "learner.lr=0.01", "net.dropout=0.2", "selection=last"),
    "analysis=[representation,continual]",
)


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run folder that must be equal in equal runs."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in NOT_EQUAL
    }


def assert_equal_runs(one: Path, other: Path) -> None:
    first, second = contents(one), contents(other)
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    run(make_plan(*SMALL), folder)
    return folder


def stop_after(monkeypatch: pytest.MonkeyPatch, steps: int, signum: int) -> None:
    """Send ourselves a signal after so many steps of the learner."""
    taken = 0
    step = Learner.step

    def counted(self, batch):
        nonlocal taken
        taken += 1
        if taken == steps:
            signal.raise_signal(signum)
        return step(self, batch)

    monkeypatch.setattr(Learner, "step", counted)


@pytest.mark.parametrize(("steps", "signum"), [(2, signal.SIGTERM), (17, signal.SIGUSR2), (40, signal.SIGINT)])
def test_signal_in_the_middle_of_an_epoch(uninterrupted, tmp_path, monkeypatch, steps, signum):
    with monkeypatch.context() as patch:
        stop_after(patch, steps, signum)
        with pytest.raises(SystemExit) as stopped:
            run(make_plan(*SMALL), tmp_path / "run")
    assert stopped.value.code == 128 + signum
    assert read_status(tmp_path / "run")["state"] == "preempted"
    run(make_plan(*SMALL), tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "done"
    assert_equal_runs(uninterrupted, tmp_path / "run")


def test_signal_during_evaluation(uninterrupted, tmp_path, monkeypatch):
    from plastiscope.task_shift_mode import task

    calls, score = 0, task.score

    def counted(*arguments):
        nonlocal calls
        calls += 1
        if calls == 4:
            signal.raise_signal(signal.SIGTERM)
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(task, "score", counted)
        with pytest.raises(SystemExit):
            run(make_plan(*SMALL), tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "preempted"
    run(make_plan(*SMALL), tmp_path / "run")
    assert_equal_runs(uninterrupted, tmp_path / "run")


def test_signal_that_its_former_handler_ignores_changes_nothing(uninterrupted, tmp_path, monkeypatch):
    """A launcher that bypasses SIGTERM: the run saves itself, asks it, and goes on."""
    ignored = []
    before = signal.signal(signal.SIGTERM, lambda *_: ignored.append(1))
    try:
        with monkeypatch.context() as patch:
            stop_after(patch, 20, signal.SIGTERM)
            run(make_plan(*SMALL), tmp_path / "run")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ignored == [1]
    assert_equal_runs(uninterrupted, tmp_path / "run")


def test_more_tasks_extend_a_finished_run(uninterrupted, tmp_path):
    run(make_plan(*SMALL, "num_tasks=1", "analysis=[]"), tmp_path / "run")
    run(make_plan(*SMALL, "num_tasks=3", "analysis=[]"), tmp_path / "run")
    run(make_plan(*SMALL, "num_tasks=3", "analysis=[]"), tmp_path / "whole")
    assert contents(tmp_path / "run")["metrics.jsonl"] == contents(tmp_path / "whole")["metrics.jsonl"]
    last = "snapshots/epoch_000009.pt"
    assert contents(tmp_path / "run")[last] == contents(tmp_path / "whole")[last] == contents(uninterrupted)[last]


def test_finished_run_is_left_alone(uninterrupted, capsys):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    run(make_plan(*SMALL), uninterrupted)
    assert "done already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_threads_are_restored_and_said(tmp_path, capsys):
    few = ("num_tasks=1", "epochs=1", "analysis=[]")
    run(make_plan(*few, "threads=1"), tmp_path / "run")
    run(make_plan(*few, "num_tasks=2", "threads=2"), tmp_path / "run")
    assert "threads=1, as the run began" in capsys.readouterr().out


def test_sigkill_at_random_points(uninterrupted, tmp_path):
    """Nine kills at random points of the process; what is there in the end equals the run that was never killed."""
    folder, generator = tmp_path / "run", random.Random(0)
    plan = make_plan(*SMALL, "checkpoint_every_s=0")
    for _ in range(9):
        assert killed_at(generator.randint(1, 60), folder, lambda: run(plan, folder))
    assert read_status(folder)["state"] == "lost"
    run(plan, folder)
    run_files, whole = contents(folder), contents(uninterrupted)
    run_files.pop("config.yaml"), whole.pop("config.yaml")
    assert [name for name in whole if run_files[name] != whole[name]] == []


def test_killed_between_the_two_files_of_the_first_checkpoint(uninterrupted, tmp_path):
    """Nothing vouches for it yet, and there is none before it: the run begins again."""
    folder = tmp_path / "run"
    assert killed_at(2, folder / "checkpoint" / ".a.json", lambda: run(make_plan(*SMALL), folder))
    run(make_plan(*SMALL), folder)
    assert_equal_runs(uninterrupted, folder)
    assert sorted(path.name for path in (folder / "checkpoint").iterdir()) == ["a.json", "a.pt", "b.json", "b.pt"]


def test_truncated_checkpoint_falls_back(uninterrupted, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_after(patch, 60, signal.SIGTERM)
        with pytest.raises(SystemExit):
            run(make_plan(*SMALL, "checkpoint_every_s=0"), folder)
    newest = max((folder / "checkpoint").glob("*.pt"), key=lambda path: path.stat().st_mtime_ns)
    newest.write_bytes(newest.read_bytes()[:1000])
    run(make_plan(*SMALL, "checkpoint_every_s=0"), folder)
    assert f"{newest.name} is damaged; going on from the previous checkpoint" in capsys.readouterr().err
    assert contents(folder)["metrics.jsonl"] == contents(uninterrupted)["metrics.jsonl"]
    weights = [torch.load(f / "snapshots/epoch_000009.pt", weights_only=True) for f in (folder, uninterrupted)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


def test_checkpoint_of_another_run_is_refused(tmp_path):
    few = ("num_tasks=1", "epochs=1", "analysis=[]", "threads=1")
    for name, lr in (("one", "0.1"), ("two", "0.2")):
        run(make_plan(*few, f"learner.lr={lr}"), tmp_path / name)
    shutil.rmtree(tmp_path / "one" / "checkpoint")
    shutil.copytree(tmp_path / "two" / "checkpoint", tmp_path / "one" / "checkpoint")
    before = (tmp_path / "one" / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="was written under other settings"):
        run(make_plan(*few, "learner.lr=0.1", "num_tasks=2"), tmp_path / "one")
    assert (tmp_path / "one" / "metrics.jsonl").read_bytes() == before


def older(plan: Plan) -> Plan:
    """The plan as a version had it that knew neither figures, nor replays, nor orders, nor the net's normalisation."""
    config = {key: value for key, value in plan.config.items() if key not in ("figures", "replay")}
    for block, key in (("data", "order"), ("net", "norm"), ("wandb", "tags"), ("continual", "threshold")):
        config[block] = {name: value for name, value in config[block].items() if name != key}
    return replace(plan, config=config)


def test_a_run_from_before_there_were_some_settings_goes_on(tmp_path):
    """They stand at their default, in its checkpoint's hash too; another value of them is refused."""
    few = ("epochs=1", "analysis=[continual]", "threads=1", "selection=last", "data.samples_per_class=12")
    run(older(make_plan(*few, "num_tasks=1")), tmp_path / "run")
    begun = read_config(tmp_path / "run")
    assert "replay" not in begun and "order" not in begun["data"]
    for change, key in (("net.norm=batch", "net.norm"), (f"replay.folder={tmp_path / 'run'}", "replay")):
        with pytest.raises(RunError, match=f"belongs to a run with other settings: {key}\\. "):
            run(make_plan(*few, "num_tasks=2", change), tmp_path / "run")
    for num_tasks in (2, 3):
        run(make_plan(*few, f"num_tasks={num_tasks}", "figures=true"), tmp_path / "run")
    resume(tmp_path / "run", ["num_tasks=4"])
    run(make_plan(*few, "num_tasks=4"), tmp_path / "whole")
    assert contents(tmp_path / "run")["metrics.jsonl"] == contents(tmp_path / "whole")["metrics.jsonl"]
    assert read_config(tmp_path / "run").keys() == begun.keys()
    assert (tmp_path / "run" / "figures" / "accuracy_per_task.png").exists()
    analyze(tmp_path / "run", ["analysis=[continual]", "figures=false"], tmp_path / "again")
    assert read_status(tmp_path / "again")["state"] == "done"


def test_other_data_under_the_same_name_are_refused(tmp_path):
    generator = np.random.default_rng(0)
    few = ("num_tasks=1", "epochs=1", "analysis=[]", "data=arrays", f"data.file={tmp_path / 'data.npz'}")
    for seed in (0, 1):
        labels = np.random.default_rng(seed).integers(0, 10, 100)
        inputs = generator.random((100, 4), dtype=np.float32)
        np.savez(tmp_path / "data.npz", x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
        if seed == 0:
            run(make_plan(*few, "data.normalisation=auto"), tmp_path / "run")
    with pytest.raises(RunError, match="the data are not those that the run in"):
        run(make_plan(*few, "data.normalisation=auto", "num_tasks=2"), tmp_path / "run")
