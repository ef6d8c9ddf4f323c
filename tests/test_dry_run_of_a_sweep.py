"""dry_run=true of a sweep: told job by job and in all, nothing submitted, nothing written."""

import re
import sys

import pytest

from plans import make_plan
from plastiscope import app, rehearsal, trial
from plastiscope.experiment import run

SMALL = ["num_tasks=2", "epochs=1", "threads=1", "use_wandb=false", "figures=false", "device=cpu", "analysis=[]"]


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """`plastiscope -m dry_run=true ...` in an empty folder: exit code and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "STEPS_S", 0.05)

    def call(*overrides: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["plastiscope", "-m", "dry_run=true", *SMALL, *overrides])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code, capsys.readouterr().out

    return call


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("launcher", ["basic", "local"])
def test_each_combination_is_told_and_nothing_is_left(command, tmp_path, monkeypatch, launcher):
    timed = []
    rehearse = rehearsal.rehearse
    monkeypatch.setattr(rehearsal, "rehearse", lambda *given: timed.append(given) or rehearse(*given))
    code, said = command(f"launcher={launcher}", "seed=0,1", "learner.lr=0.1,0.01")
    assert code == 0
    assert list(tmp_path.iterdir()) == []
    lines = said.splitlines()
    assert [line for line in lines if line.startswith("seed=")] == [
        *("seed=0 learner.lr=0.1", "seed=0 learner.lr=0.01", "seed=1 learner.lr=0.1", "seed=1 learner.lr=0.01"),
    ]
    assert len(re.findall(r"^    about .*, 14 steps, .* MB$", said, re.M)) == 4
    assert lines[-2] == "dry run of 4 jobs; nothing is submitted, nothing is kept"
    assert len(timed) == 2  # seeds cost the same


def test_of_runs_that_have_begun_it_says_what_is_left(command, tmp_path):
    plain = [setting for setting in SMALL if setting != "num_tasks=2"]
    done, begun = (tmp_path / "outputs" / "digits" / "mlp" / "sweep" / name for name in ("done", "begun"))
    run(make_plan(*plain, "num_tasks=2"), done)
    run(make_plan(*plain, "num_tasks=1"), begun)
    before = files(tmp_path)
    place = "hydra.sweep.subdir=mlp/sweep/${wandb.group}"
    code, said = command(place, "wandb.group=done,begun,not", "num_tasks=2")
    assert code == 0
    assert "wandb.group=done\n    done already" in said
    assert re.search(r"wandb.group=begun\n    about .* 9 steps, .*; has begun, 14 steps in all", said)
    assert re.search(r"wandb.group=not\n    about .* 14 steps", said)
    assert "dry run of 3 jobs, 1 done;" in said
    assert files(tmp_path) == before


def test_what_would_be_refused_is_said_and_the_others_are_told(command, tmp_path):
    code, said = command("learner.lr=-1,0.1")
    assert code == 2
    assert "learner.lr=-1\n    refused: learner.lr=-1.0: must be 0 or more" in said
    assert "dry run of 2 jobs, 1 refused;" in said
    assert list(tmp_path.iterdir()) == []


def test_a_seed_that_the_sweep_would_refuse_is_refused(command, tmp_path):
    """A branch goes on with the tasks of its seed, so another run has the weights of some seeds alone."""
    few = [*(setting for setting in SMALL if setting != "num_tasks=2"), "data.samples_per_class=20"]
    run(make_plan(*few, "num_tasks=1"), tmp_path / "alone")
    code, said = command(few[-1], f"init_from={tmp_path / 'alone'}", "seed=0,1")
    assert code == 2
    assert re.search(r"^seed=0\n    about ", said, re.M)
    assert re.search(r"^seed=1\n    refused: the tasks of .*alone were others: seed differ", said, re.M)
    run(make_plan(*few, "num_tasks=1", "replicas=2", "seed=3"), tmp_path / "group")
    code, said = command(few[-1], f"init_from={tmp_path / 'group'}", "seed=4,5")
    assert code == 2
    assert re.search(r"^seed=4\n    about ", said, re.M)
    assert re.search(r"^seed=5\n    refused: init_from=.*group holds several runs .* none of seed 5", said, re.M)
    code, said = command(few[-1], f"init_from={tmp_path / 'group'}", "replicas=2", "seed=3,4")
    assert code == 2
    assert re.search(r"^seed=3\n    about ", said, re.M)
    assert re.search(r"^seed=4\n    refused: .* none of seed 5", said, re.M)


def test_a_fault_of_ours_does_not_submit_the_sweep(command, tmp_path, monkeypatch):
    """Hydra only warns of what goes wrong in its callbacks."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(rehearsal, "rehearse", broken)
    assert command("seed=0,1")[0] == 1
    assert list(tmp_path.iterdir()) == []
