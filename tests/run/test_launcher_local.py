"""Sweeps as processes: submitit's own signal handling, requeue in place, and jobs that fail beside jobs that do not."""

import os
import subprocess
import sys
from pathlib import Path

from plans import make_plan
from plastiscope.experiment import run
from plastiscope.run.status import read_status

SMALL = (
    *("num_tasks=2", "epochs=2", "threads=1", "selection=last", "analysis=[]"),
    *("use_wandb=false", "figures=false", "device=cpu"),
)


def sweep(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run `plastiscope -m` in `folder`, with the test modules importable by its jobs."""
    command = [str(Path(sys.executable).with_name("plastiscope")), "-m", *SMALL, *overrides]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def jobs(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.rglob("status.json"))


def test_requeued_job_equals_one_that_was_never_stopped(tmp_path):
    interruption = "+interruption._target_=interruption.Interruption"
    done = sweep(tmp_path, "launcher=local", interruption)
    assert done.returncode == 0, done.stderr
    (job,) = jobs(tmp_path)
    logs = "".join(path.read_text() for path in tmp_path.rglob("*_log.out"))
    assert (job / "interrupted").exists()
    assert "going on at task 1, epoch 1, batch 3" in logs
    assert read_status(job)["state"] == "done"
    run(make_plan(*SMALL), tmp_path / "whole")
    assert (job / "metrics.jsonl").read_bytes() == (tmp_path / "whole" / "metrics.jsonl").read_bytes()


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
