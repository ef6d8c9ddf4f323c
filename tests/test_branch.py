"""Branches: runs that begin with weights which another run has saved."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forks import killed_at
from plans import make_plan
from plastiscope.analyze import analyze
from plastiscope.error import ConfigError, PlastiscopeError, RunError
from plastiscope.experiment import forecast, resume, run
from plastiscope.run.snapshots import Snapshots
from plastiscope.run.status import read_status
from plastiscope.run.storage import read_json
from run.interruption import Interruption

SMALL = (
    *("num_tasks=4", "epochs=2", "threads=1", "task_shift_mode=permuted_input", "data.samples_per_class=20"),
    *("data.test_samples_per_class=5", "net.widths=[16]", "learner.momentum=0"),
)
LOOK = ("analysis=[representation]", "representation.samples=40")
CBP = (
    "learner=continual_backprop",
    "learner.momentum=0",
    "learner.maturity_threshold=2",
    "learner.replacement_rate=0.1",
)
CLOCKS = {"run.json", "status.json", "timings.jsonl", "summary.json", ".lock"}
"""Files that differ between equal runs, beside checkpoints."""


def rows(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a run or a group that must be equal in equal ones."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in CLOCKS and path.parent.name != "checkpoint"
    }


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A finished run of four tasks."""
    folder = tmp_path_factory.mktemp("runs") / "parent"
    run(make_plan(*SMALL, *LOOK), folder)
    return folder


def test_a_branch_with_the_same_learner_is_the_run_itself(parent, tmp_path):
    run(make_plan(*SMALL, *LOOK, f"init_from={parent}", "init_from_task=1"), tmp_path / "branch")
    assert rows(tmp_path / "branch") == [row for row in rows(parent) if row["task_idx"] >= 2]
    ours, theirs = Snapshots(tmp_path / "branch" / "snapshots"), Snapshots(parent / "snapshots")
    assert ours.epochs() == [0, 4, 6, 8]
    assert all(ours.path(e).read_bytes() == theirs.path(e).read_bytes() for e in ours.epochs())


def test_run_json_and_the_hash_say_where_it_branched_off(parent, tmp_path):
    run(make_plan(*SMALL, *CBP, "analysis=[]", f"init_from={parent}", "init_from_task=2"), tmp_path / "branch")
    about = read_json(tmp_path / "branch" / "run.json")
    said = about["branch_of"]
    assert said["folder"] == str(parent.resolve())
    assert (tmp_path / "branch" / said["relative"]).resolve() == parent.resolve()
    assert (said["task"], said["epochs_completed"], said["first_task"]) == (2, 6, 3)
    assert said["config_hash"] == read_json(parent / "run.json")["config_hash"]
    assert [row["task_idx"] for row in rows(tmp_path / "branch")] == [3, 3, 3]
    with pytest.raises(RunError, match="other settings: init_from_task"):
        run(make_plan(*SMALL, *CBP, "analysis=[]", f"init_from={parent}", "init_from_task=1"), tmp_path / "branch")


def test_a_branch_that_is_interrupted_needs_the_other_run_no_more(parent, tmp_path):
    origin = shutil.copytree(parent, tmp_path / "origin")
    overrides = (*SMALL, *LOOK, *CBP, "init_from_task=1", f"init_from={origin}")
    run(make_plan(*overrides), tmp_path / "whole")
    plan = make_plan(*overrides)
    stopped = replace(plan, analyses=[*plan.analyses, Interruption(task=2)])
    stopped.analyses[-1].name = "interruption"
    with pytest.raises(SystemExit):
        run(stopped, tmp_path / "stopped")
    shutil.rmtree(origin)
    run(stopped, tmp_path / "stopped")
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")
    for epochs in (0, 4, 6, 8):
        name = f"snapshots/epoch_{epochs:06d}.pt"
        assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    resume(tmp_path / "whole", ["num_tasks=5"])
    assert rows(tmp_path / "whole")[-1]["task_idx"] == 4


KILLED = {
    "next": (*SMALL, "init_from_task=1", "num_tasks=3"),
    "first": (*SMALL, "init_from_start=first", "num_tasks=1", "epochs=1"),
    "next, a group": (*SMALL, "init_from_task=1", "num_tasks=3", "replicas=2"),
}


@pytest.mark.parametrize("kind", KILLED)
def test_a_branch_killed_before_its_first_checkpoint_loses_no_weights(request, tmp_path, kind):
    """Killed as it saves its first weights, one after the other; once it has begun, the other run may be gone."""
    several = "replicas=2" in KILLED[kind]
    origin = shutil.copytree(request.getfixturevalue("group" if several else "parent"), tmp_path / "origin")
    plan = make_plan(*KILLED[kind], *CBP, "analysis=[tracking]", f"init_from={origin}")
    run(plan, tmp_path / "whole")
    folder = tmp_path / "killed"
    own = Path("seed_0001" if several else "", "snapshots")
    *begun, end = [folder / own / f".{path.name}" for path in sorted((tmp_path / "whole" / own).iterdir())]
    for path in begun:
        assert killed_at(2, path, lambda: run(plan, folder))
    assert killed_at(1, end, lambda: run(plan, folder))
    shutil.rmtree(origin)
    assert killed_at(2, folder / "checkpoint" / ".a.json", lambda: run(plan, folder))
    run(plan, folder)
    assert contents(folder) == contents(tmp_path / "whole")
    assert list(folder.rglob("*.tmp")) == []


def test_a_branch_killed_as_it_began_takes_the_other_runs_weights_only_if_they_are_the_same(parent, tmp_path):
    origin = shutil.copytree(parent, tmp_path / "origin")
    plan = make_plan(*KILLED["next"], "analysis=[]", f"init_from={origin}")
    assert killed_at(1, tmp_path / "branch" / "snapshots" / ".epoch_000004.pt", lambda: run(plan, tmp_path / "branch"))
    theirs = Snapshots(origin / "snapshots")
    shutil.copy(theirs.path(6), theirs.path(4))
    with pytest.raises(RunError, match=r"origin/snapshots/epoch_000004.pt does not hold the weights that this run beg"):
        run(plan, tmp_path / "branch")
    shutil.copy(Snapshots(parent / "snapshots").path(4), theirs.path(4))
    run(plan, tmp_path / "branch")
    assert read_status(tmp_path / "branch")["state"] == "done"


def test_the_newest_task_end_and_other_tasks_from_the_first_one_on(parent, tmp_path):
    other = ("task_shift_mode=class_incremental", "seed=3", "num_tasks=2", "epochs=1", f"init_from={parent}")
    run(make_plan(*SMALL, *LOOK, *other, "init_from_start=first"), tmp_path / "branch")
    assert read_json(tmp_path / "branch" / "run.json")["branch_of"]["task"] == 3
    begun, last = (Snapshots(folder / "snapshots") for folder in (tmp_path / "branch", parent))
    assert begun.epochs() == [0, 1, 2]
    assert all(torch.equal(tensor, last.load(8)[name]) for name, tensor in begun.load(0).items())
    ends = [row for row in rows(tmp_path / "branch") if row["kind"] == "task_end"]
    assert [row["task_idx"] for row in ends] == [0, 1]
    assert ends[0]["representation/weights/total/dist_task"] == ends[0]["representation/weights/total/dist_init"]


def test_a_branch_is_looked_at_from_where_it_began(parent, tmp_path):
    run(make_plan(*SMALL, *LOOK, *CBP, f"init_from={parent}", "init_from_task=1"), tmp_path / "branch")
    out = analyze(tmp_path / "branch", ["analysis=[representation]", "representation.samples=40", "figures=false"])
    again = {row["task_idx"]: row for row in rows(out) if row["kind"] == "task_end"}
    assert sorted(again) == [1, 2, 3]
    for row in rows(tmp_path / "branch"):
        if row["kind"] == "task_end":
            key = "representation/current/layer_mean/effective_rank"
            assert again[row["task_idx"]][key] == row[key]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("net.widths=[17]",), "another one than the config's: net.widths differ"),
        (("net.activation=tanh",), "net.activation differ"),
        (("epochs=3",), "were others: epochs differ.*init_from_start=first"),
        (("seed=1", "task_shift_mode.compose=true"), "seed, task_shift_mode.compose differ"),
        (("init_from_task=7",), "no weights of that task's end; there are: 0, 1, 2, 3"),
        ((), "have learnt tasks 0 to 3, .* raise num_tasks"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(parent, tmp_path, changes, message):
    with pytest.raises(PlastiscopeError, match=message):
        run(make_plan(*SMALL, f"init_from={parent}", *changes), tmp_path / "branch")
    assert not (tmp_path / "branch" / "run.json").exists()


def test_weights_of_other_shapes_are_refused_by_their_first_difference(parent, tmp_path):
    wide = ("init_from_start=first", "task_shift_mode=drifting_values")  # one output a class here too
    plan = make_plan(*SMALL, f"init_from={parent}", *wide, "data.resize=4")
    with pytest.raises(RunError, match=r"of another network than the config: its first difference is linear_1.weight"):
        run(plan, tmp_path / "branch")


def test_the_tasks_go_on_only_with_the_other_runs_data(tmp_path):
    """The same settings, and another file behind them; who begins with the first task may take any."""
    few = ("epochs=1", "threads=1", "net.widths=[4]", "analysis=[]", "data=arrays", f"data.file={tmp_path}/data.npz")
    inputs = np.random.default_rng(0).random((100, 4), dtype=np.float32)
    for seed in (0, 1):
        labels = np.random.default_rng(seed).integers(0, 10, 100)
        np.savez(tmp_path / "data.npz", x_train=inputs, y_train=labels, x_test=inputs, y_test=labels)
        if seed == 0:
            run(make_plan(*few, "num_tasks=1"), tmp_path / "parent")
    goes_on = make_plan(*few, "num_tasks=2", f"init_from={tmp_path / 'parent'}")
    for begin in (run, forecast):
        with pytest.raises(RunError, match=r"the data are not those that the run in .*parent began with"):
            begin(goes_on, tmp_path / "branch")
    assert not (tmp_path / "branch" / "run.json").exists()
    anew = make_plan(*few, "num_tasks=1", f"init_from={tmp_path / 'parent'}", "init_from_start=first")
    run(anew, tmp_path / "anew")
    assert read_status(tmp_path / "anew")["state"] == "done"


def test_a_folder_without_weights_is_refused(parent, tmp_path):
    with pytest.raises(RunError, match="there is no such folder"):
        run(make_plan(*SMALL, f"init_from={tmp_path / 'none'}"), tmp_path / "branch")
    with pytest.raises(ConfigError, match="is not a run folder"):
        run(make_plan(*SMALL, f"init_from={tmp_path}"), tmp_path / "branch")
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(parent / "config.yaml", bare)
    with pytest.raises(RunError, match="holds no weights of a task's end"):
        run(make_plan(*SMALL, f"init_from={bare}"), tmp_path / "branch")
    (tmp_path / "group" / "seed_0003").mkdir(parents=True)
    (tmp_path / "group" / "seed_0003" / "config.yaml").touch()
    with pytest.raises(RunError, match=r"\(seed_0003\), none of seed 0; .*seed_0003 init_from_start=first"):
        run(make_plan(*SMALL, f"init_from={tmp_path / 'group'}"), tmp_path / "branch")


@pytest.fixture(scope="module")
def group(tmp_path_factory):
    """Three runs of three tasks that advanced together."""
    folder = tmp_path_factory.mktemp("runs") / "group"
    run(make_plan(*SMALL, *LOOK, "num_tasks=3", "replicas=3"), folder)
    return folder


def names(folder):
    return [path.name for path in sorted(folder.glob("seed_*"))]


def test_a_branch_of_a_group_with_the_same_learner_is_the_group_itself(group, tmp_path):
    """Each of its runs goes on with the one of its seed."""
    run(make_plan(*SMALL, *LOOK, "num_tasks=3", "replicas=3", f"init_from={group}", "init_from_task=0"), tmp_path / "b")
    assert names(tmp_path / "b") == ["seed_0000", "seed_0001", "seed_0002"]
    for name in names(group):
        assert rows(tmp_path / "b" / name) == [row for row in rows(group / name) if row["task_idx"] >= 1]
        ours, theirs = Snapshots(tmp_path / "b" / name / "snapshots"), Snapshots(group / name / "snapshots")
        assert ours.epochs() == [0, 2, 4, 6]
        assert all(ours.path(e).read_bytes() == theirs.path(e).read_bytes() for e in ours.epochs())
        said = read_json(tmp_path / "b" / name / "run.json")["branch_of"]
        assert (said["folder"], said["task"], said["first_task"]) == (str((group / name).resolve()), 0, 1)
    assert "branch_of" not in read_json(tmp_path / "b" / "run.json")


def test_one_run_goes_on_with_the_one_of_its_seed_in_a_group(group, tmp_path):
    alone = (*SMALL, "analysis=[]", "num_tasks=3", "seed=2", "init_from_task=1")
    for name, place in {"of_group": group, "of_run": group / "seed_0002"}.items():
        run(make_plan(*alone, f"init_from={place}"), tmp_path / name)
    assert rows(tmp_path / "of_group") == rows(tmp_path / "of_run")
    assert [row["task_idx"] for row in rows(tmp_path / "of_group")] == [2, 2, 2]


def test_an_interrupted_branch_of_a_group_needs_the_group_no_more(group, tmp_path):
    origin = shutil.copytree(group, tmp_path / "origin")
    overrides = (*SMALL, *CBP, "analysis=[]", "num_tasks=3", "replicas=3", "init_from_task=0", f"init_from={origin}")
    run(make_plan(*overrides), tmp_path / "whole")
    plan = make_plan(*overrides)
    stopped = replace(plan, analyses=[Interruption(task=1)])
    stopped.analyses[0].name = "interruption"
    with pytest.raises(SystemExit):
        run(stopped, tmp_path / "stopped")
    shutil.rmtree(origin)
    run(make_plan(*overrides), tmp_path / "stopped")
    for name in names(tmp_path / "whole"):
        assert rows(tmp_path / "stopped" / name) == rows(tmp_path / "whole" / name)


def test_several_runs_may_begin_with_the_weights_of_one(parent, tmp_path):
    """They are of other seeds, so of other tasks: they begin with their first ones."""
    together = (*SMALL, "analysis=[]", "num_tasks=1", "replicas=2", f"init_from={parent}")
    with pytest.raises(RunError, match=r"were others: seed differ.*init_from_start=first"):
        run(make_plan(*together, "num_tasks=5"), tmp_path / "refused")
    run(make_plan(*together, "init_from_start=first"), tmp_path / "branch")
    last = Snapshots(parent / "snapshots").load(8)
    ends = []
    for name in names(tmp_path / "branch"):
        own = Snapshots(tmp_path / "branch" / name / "snapshots")
        assert all(torch.equal(tensor, last[key]) for key, tensor in own.load(0).items())
        ends.append(own.load(2)["linear_1.weight"])
    assert not torch.equal(*ends)


def test_runs_of_a_group_that_have_learnt_different_tasks(group, tmp_path):
    origin = shutil.copytree(group, tmp_path / "origin")
    (origin / "seed_0001" / "snapshots" / "epoch_000006.pt").unlink()
    overrides = (*SMALL, "analysis=[]", "num_tasks=4", "replicas=3", f"init_from={origin}")
    with pytest.raises(ConfigError, match=r"the last ones are 1, 2\); .*init_from_task=1"):
        run(make_plan(*overrides), tmp_path / "branch")
    assert not (tmp_path / "branch").exists()


def test_settings_that_contradict_each_other():
    with pytest.raises(ConfigError, match="name its folder by init_from="):
        make_plan("init_from_task=1")
    with pytest.raises(ConfigError, match="init_from_task=-1"):
        make_plan("init_from=somewhere", "init_from_task=-1")
