"""Sweeps as processes: submitit's own signal handling, requeue in place, and jobs that fail beside jobs that do not."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from submitit.core.utils import FailedJobError, UncompletedJobError
from submitit.slurm.slurm import SlurmJob, SlurmJobEnvironment

import plastiscope
from plans import make_plan
from plastiscope.experiment import run
from plastiscope.launch import Submitted, Turns, do_without_accounting, mishap
from plastiscope.run import lock
from plastiscope.run.code import freeze
from plastiscope.run.status import read_status
from plastiscope.run.storage import read_json

SMALL = (
    *("num_tasks=2", "epochs=2", "threads=1", "selection=last", "analysis=[]"),
    *("use_wandb=false", "figures=false", "device=cpu"),
)


def environment(checkout: Path | None = None) -> dict[str, str]:
    """Ours, with the test modules importable by jobs, and the code of `checkout` before that under test."""
    places = [str(place) for place in (checkout, Path(__file__).parent) if place is not None]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([*places, os.environ["PYTHONPATH"]])}


def sweep(folder: Path, *overrides: str, checkout: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `plastiscope -m` in `folder`, in that environment."""
    command = [str(Path(sys.executable).with_name("plastiscope")), "-m", *SMALL, *overrides]
    return subprocess.run(command, cwd=folder, env=environment(checkout), capture_output=True, text=True)


def jobs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("status.json"))


def test_requeued_job_equals_one_that_was_never_stopped(tmp_path):
    """It has config and code that it was submitted with, whatever has become of the files."""
    checkout = freeze(tmp_path / "checkout")
    trainer = checkout / "plastiscope" / "trainer.py"
    file = tmp_path / "mine" / "learner" / "careful.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("defaults:\n  - backprop\n  - _self_\nlr: 0.02\n")
    interruption = ("+interruption._target_=interruption.Interruption", f"+interruption.empties=[{file},{trainer}]")
    search = f"hydra.searchpath=[file://{tmp_path}/mine]"
    done = sweep(tmp_path, search, "launcher=local", "learner=careful", *interruption, checkout=checkout)
    assert done.returncode == 0, done.stderr
    (job,) = jobs(tmp_path)
    logs = "".join(path.read_text() for path in tmp_path.rglob("*_log.out"))
    assert (job / "interrupted").exists()
    assert file.read_text() == trainer.read_text() == ""
    starts = read_json(job / "run.json")["starts"]
    assert [Path(start["code"]["folder"]).parents[1].name for start in starts] == ["code", "code"]
    assert starts[0]["code"] == starts[1]["code"]
    assert "going on at task 1, epoch 1, batch 3" in logs
    assert read_status(job)["state"] == "done"
    run(make_plan(*SMALL, "learner.lr=0.02"), tmp_path / "whole")
    assert (job / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("checkout", [None, "other"])
def test_jobs_run_the_code_under_test(tmp_path, checkout):
    """Not one that is installed; or the code of the checkout that is asked for."""
    asked = None if checkout is None else freeze(tmp_path / checkout)
    where = [sys.executable, "-c", "import plastiscope; print(plastiscope.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment(asked), capture_output=True, text=True, check=True)
    wanted = Path(plastiscope.__file__) if asked is None else asked / "plastiscope" / "__init__.py"
    assert found.stdout == f"{wanted}\n"


def test_only_so_many_jobs_work_at_once(tmp_path):
    """A job that waits takes the place of one that has ended, which is what the system does to its lock."""
    places = [tmp_path / ".submitit" / "turns" / name for name in ("0", "1")]
    others, turns = [lock.take(place) for place in places], Turns(2)
    assert not any(turns.take(place) for place in places)
    others[1].close()
    turns.on_job_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert lock.is_held(places[1])
    others[0].close()
    assert not lock.is_held(places[0])


def test_one_turn_for_all_processes_of_a_job(tmp_path, monkeypatch):
    """Else the jobs might wait for each other."""
    monkeypatch.setenv("SUBMITIT_LOCAL_GLOBALID", "1")
    Turns(1).on_job_start(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert list(tmp_path.iterdir()) == []


def test_site_file_of_the_documentation_inherits(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "cluster.md").read_text()
    (text,) = re.findall(r"^`my_configs/launcher/my_cluster.yaml`:\n\n```yaml\n(.*?)^```", page, re.S | re.M)
    (tmp_path / "launcher").mkdir()
    (tmp_path / "launcher" / "my_cluster.yaml").write_text(text)
    overrides = [f"hydra.searchpath=[file://{tmp_path}]", "launcher=my_cluster"]
    with initialize_config_module("plastiscope.configs", version_base="1.3"):
        launcher = compose("config", overrides, return_hydra_config=True).hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.partition, launcher.timeout_min, launcher.max_num_timeout) == ("gpu", 720, 20)
    assert launcher.additional_parameters == {"requeue": True, "mail-type": "FAIL"}


def test_the_end_of_the_grace_time_does_not_end_the_requeue(tmp_path, monkeypatch):
    """Every process of the job then gets SIGTERM, while submitit's call of scontrol is under way."""
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\nkill -TERM $$ $PPID\nkill -USR2 $$\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setattr(SlurmJobEnvironment, "_requeue", SlurmJobEnvironment._requeue)  # as it is, when this is over
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(1))
    try:
        launcher = {"_target_": "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"}
        Submitted().on_job_start(OmegaConf.create({"hydra": {"launcher": launcher}}))
        SlurmJobEnvironment()._requeue(3)
        assert (tmp_path / "asked").read_text() == "requeue 17\n"
        signal.raise_signal(signal.SIGTERM)
        assert heard == [1]  # the handler is there again, and has not been disturbed either
    finally:
        signal.signal(signal.SIGTERM, before)


MISHAPS = [
    (RuntimeError('Could not detect "srun", are you indeed on a slurm cluster?'), "there is no SLURM here"),
    (
        FailedJobError("sbatch: error: invalid partition specified: nope\nsbatch: error: Batch job"),
        "specified: nope; B",
    ),
    (
        UncompletedJobError("Job 7_2 (task: 0) with path x\nhas not produced any output (state: FAILED)"),
        "job 7_2 has e",
    ),
    (UncompletedJobError("Job not requeued because: timed-out too many times."), "hydra.launcher.max_num_timeout"),
]


@pytest.mark.parametrize(("error", "told"), MISHAPS, ids=[told for _, told in MISHAPS])
def test_mishaps_are_told_in_one_line(error, told):
    assert told in mishap(error)
    assert "\n" not in mishap(error)


def test_errors_of_another_kind_stay_as_they_are():
    assert mishap(RuntimeError("broken")) == ""


def test_slurm_that_is_not_there(tmp_path):
    program = str(Path(sys.executable).with_name("plastiscope"))
    there = {**os.environ, "PATH": str(tmp_path)}
    asked = subprocess.run([program, "launcher=slurm", *SMALL], cwd=tmp_path, env=there, capture_output=True, text=True)
    assert asked.returncode == 2
    assert asked.stderr == (
        "plastiscope: launcher=slurm: there is no SLURM here; submit from a machine of the cluster, or take "
        "launcher=local\n"
    )
    assert list(tmp_path.rglob("run.json")) == []


SACCT = {"kept": "exit 0", "none": 'echo "Slurm accounting storage is disabled" >&2; exit 1'}
SBATCH = 'echo "sbatch: error: invalid partition specified: nope" >&2; exit 1'


@pytest.mark.parametrize("accounts", SACCT)
def test_sweep_that_slurm_does_not_take_leaves_nothing_but_the_code(tmp_path, accounts):
    """Files of another launch stay. Without accounts that is said, once."""
    for name, script in {"srun": "", "sacct": SACCT[accounts], "sbatch": SBATCH}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    submitit = tmp_path / "outputs" / "digits" / ".submitit"
    names = ("1a2b.pkl", ".submission_file_3c4d.sh", "configs/2026-01-01_00-00-00_9/e.pkl")
    others = {submitit / name for name in names if accounts == "kept"}
    for path in others:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("of another launch")
    program = str(Path(sys.executable).with_name("plastiscope"))
    there = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    command = [program, "launcher=slurm", "seed=0,1", "hydra.launcher.partition=nope", *SMALL]
    asked = subprocess.run(command, cwd=tmp_path, env=there, capture_output=True, text=True)
    assert asked.returncode == 2
    assert "SLURM did not take the sweep (invalid partition specified: nope" in asked.stderr
    assert asked.stderr.count("keeps no accounts") == (accounts == "none")
    assert "Traceback" not in asked.stderr
    code = submitit / "code"
    assert {path for path in submitit.rglob("*") if path.is_file() and code not in path.parents} == others
    assert {path.name for path in submitit.iterdir() if path.is_dir()} == {"code", *(["configs"] if others else [])}
    assert [path.parent.name for path in submitit.glob("configs/*/*")] == ["2026-01-01_00-00-00_9"] * bool(others)


def test_without_accounts_nothing_is_asked_and_the_result_is_waited_for(tmp_path, monkeypatch, capsys):
    (tmp_path / "sacct").write_text(f"#!/bin/sh\ntouch {tmp_path}/asked; {SACCT['none']}\n")
    (tmp_path / "sacct").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(SlurmJob, "watcher", SlurmJob.watcher)
    do_without_accounting()
    job = SlurmJob(tmp_path, "7")
    assert not job.done(force_check=True)
    (tmp_path / "7_0_result.pkl").touch()
    assert job.done()
    assert not (tmp_path / "asked").exists()
    assert "keeps no accounts" in capsys.readouterr().err


def test_failing_job_leaves_its_traceback_and_the_others_alone(tmp_path):
    failed = sweep(tmp_path, "learner.lr=-1,0.1", "num_tasks=1", "epochs=1")
    assert failed.returncode == 2
    assert "learner.lr=-1.0: must be 0 or more" in failed.stderr
    assert "Traceback" not in failed.stderr
    states = {read_status(job)["state"]: job for job in jobs(tmp_path)}
    assert states.keys() == {"failed", "done"}
    assert "ConfigError" in (states["failed"] / "traceback.txt").read_text()
    metrics = states["done"] / "metrics.jsonl"
    before = metrics.stat().st_mtime_ns
    again = sweep(tmp_path, "learner.lr=-1,0.1", "num_tasks=1", "epochs=1")
    assert "done already" in again.stdout
    assert metrics.stat().st_mtime_ns == before
