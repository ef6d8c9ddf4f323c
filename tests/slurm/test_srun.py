"""Several tasks of one srun step, on a real SLURM of one node: they write what one process writes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import Cluster
from equal_runs import assert_equal

from plans import make_plan
from plastiscope.analyze import analyze
from plastiscope.experiment import run
from plastiscope.run.status import read_status

pytestmark = pytest.mark.slurm

TINY = ("num_tasks=2", "epochs=2", "threads=1", "net.widths=[12,10]", "data.samples_per_class=8", "batch_size=16")
SHARED = (*TINY, "selection=last", "analysis=[representation,csl,curvature]", "csl.batch_size=7")
QUIET = ("use_wandb=false", "device=cpu", "figures=false")


def srun(cluster: Cluster, tasks: int, entry: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A console command as so many tasks of one step."""
    program = [sys.executable, "-c", f"from plastiscope.app import {entry}; {entry}()"]
    command = ["srun", "-n", str(tasks), "--mem=100", *program, *arguments]
    return subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(make_plan(*SHARED), folder)
    return folder


@pytest.mark.parametrize("tasks", [2, 3])
def test_training(cluster, alone, tmp_path, tasks):
    done = srun(cluster, tasks, "main", *SHARED, *QUIET, f"hydra.run.dir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done: ") == 1
    assert_equal(tmp_path / "run", alone)


def test_analysis_of_saved_weights(cluster, alone, tmp_path):
    asked = ["analysis=[csl]", "csl.batch_size=5"]
    analyze(alone, asked, tmp_path / "alone")
    done = srun(cluster, 2, "analyze", str(alone), *asked, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("done: ") == 1
    assert_equal(tmp_path / "out", tmp_path / "alone")
    assert not (tmp_path / "out" / "parts").exists()
    assert "SLURM_CONF" not in os.environ


def test_more_tasks_than_checkpoints(cluster, alone, tmp_path):
    """Who has nothing to do waits for the others."""
    asked = ["analysis=[csl]", "replay.share=checkpoints", "replay.start=2", "replay.end=3"]
    analyze(alone, asked, tmp_path / "alone")
    done = srun(cluster, 3, "analyze", str(alone), *asked, "--out", str(tmp_path / "out"))
    assert (done.returncode, done.stderr) == (0, "")
    assert_equal(tmp_path / "out", tmp_path / "alone")


def test_a_task_that_dies_is_named_and_the_run_goes_on_from_there(cluster, tmp_path):
    """The first process waits at a gate when the second is killed: what wakes it is the news of that."""
    folder = tmp_path / "run"
    settings = (*TINY, "batch_size=4", "analysis=[]", "selection=last")
    overrides = (*settings, *QUIET, "+gate._target_=gate.Gate")
    program = [sys.executable, "-c", "from plastiscope.app import main; main()"]
    command = ["srun", "-n", "2", "--mem=100", *program, *overrides, f"hydra.run.dir={folder}"]
    with subprocess.Popen(
        command, env=cluster.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as step:
        cluster.wait_until((folder / "gate_0").exists)
        _, _, pid = (folder / ".processes" / "rank_1").read_text().rpartition(" ")
        os.kill(int(pid), signal.SIGKILL)
        said, _ = step.communicate(timeout=120)
    assert step.returncode != 0
    assert "plastiscope: process 1 of 2 (" in said
    assert "the run is saved: start the same command again" in said
    assert "Traceback" not in said
    assert read_status(folder)["state"] == "preempted"
    again = srun(cluster, 2, "main", *overrides, f"hydra.run.dir={folder}")
    assert again.returncode == 0, again.stderr
    assert "going on at task 0, epoch 0, batch 3" in again.stdout
    run(make_plan(*settings), tmp_path / "whole")
    metrics = "metrics.jsonl"
    assert (folder / metrics).read_bytes() == (tmp_path / "whole" / metrics).read_bytes()
