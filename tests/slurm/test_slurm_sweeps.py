"""Sweeps on a real SLURM of one node: preempted, killed, lost with their node, and in the end as if nothing was."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster
from equal_runs import assert_equal, contents

from plans import make_plan
from plastiscope.experiment import run
from plastiscope.run.status import read_status

pytestmark = pytest.mark.slurm

SMALL = (
    *("net.widths=[12,10]", "data.samples_per_class=8", "batch_size=16", "threads=1"),
    *("task_shift_mode=permuted_input", "num_tasks=7", "epochs=1"),
    *("selection=last", "analysis=[csl,representation]", "csl.mode=both", "csl.batch_size=7"),
    *("use_wandb=false", "figures=false", "device=cpu"),
)
GATE = "+gate._target_=gate.Gate"
SEEDS = (0, 1, 2, 3)
SITE = """# @package _global_
defaults:
  - slurm
  - _self_

hydra:
  launcher:
    partition: main
    cpus_per_task: 1
    mem_gb: 1
"""
CAREFUL = "defaults:\n  - backprop\n  - _self_\nlr: 0.02\n"


@dataclass
class Submitted:
    """`plastiscope -m launcher=here`, waiting for its jobs.

    Attributes:
        folder: where it was called.
        process: itself.
    """

    folder: Path
    process: subprocess.Popen

    def end(self) -> tuple[int, str]:
        """Exit code, and what it said."""
        code = self.process.wait(120)
        return code, (self.folder / "said.txt").read_text()

    def job(self) -> str:
        """SLURM's name of the job of a sweep of one."""
        (pickled,) = self.folder.rglob("*_submitted.pkl")
        return pickled.name.removesuffix("_submitted.pkl")

    def runs(self) -> dict[int, Path]:
        """Run folders by seed."""
        folders = {path.parent for path in self.folder.rglob("run.json")}
        seeds = {folder: folder / "config.yaml" for folder in folders}
        return {int(text.read_text().split("\nseed: ")[1].split("\n")[0]): folder for folder, text in seeds.items()}


@contextmanager
def submit(cluster: Cluster, folder: Path, *overrides: str) -> Iterator[Submitted]:
    """Submit a sweep by way of a site file; who submits is ended at the end."""
    for name, text in {"launcher/here": SITE, "learner/careful": CAREFUL}.items():
        path = folder / "site" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    program = str(Path(sys.executable).with_name("plastiscope"))
    command = [program, "--config-dir", "site", "launcher=here", "learner=careful", *SMALL, *overrides]
    with open(folder / "said.txt", "w") as said:
        process = subprocess.Popen(command, cwd=folder, env=cluster.environment, stdout=said, stderr=said)
    try:
        yield Submitted(folder, process)
    finally:
        process.kill()
        process.wait()


def assert_as_if_nothing_was(folder: Path, scratch: Path, seed: int) -> None:
    run(make_plan(*SMALL, "learner.lr=0.02", f"seed={seed}"), scratch / str(seed))
    kinds = {name.partition("/")[0] for name in contents(folder)}
    assert kinds >= {"metrics.jsonl", "snapshots", "samples", "task_0006_mlp"}
    assert_equal(folder, scratch / str(seed))


def wait_for_gates(cluster: Cluster, sweep: Submitted, epoch: int) -> set[str]:
    """The names of the jobs, when all of them wait at that epoch's gate."""
    cluster.wait_until(lambda: len(list(sweep.folder.rglob(f"gate_{epoch}"))) == len(SEEDS))
    return set(cluster.states())


def kill_those_that_run(sweep: Submitted) -> int:
    running = [status for folder in sweep.runs().values() if (status := read_status(folder))["state"] == "running"]
    for status in running:
        os.kill(status["process"], signal.SIGKILL)
    return len(running)


@pytest.fixture(scope="module")
def hit(cluster, tmp_path_factory):
    """A sweep of four jobs, in which each was hit six times; with what it said, and how often what was done."""
    with submit(cluster, tmp_path_factory.mktemp("hit"), "seed=0,1,2,3", GATE, "+gate.hits=6") as sweep:
        preempted = killed = 0
        wait_for_gates(cluster, sweep, 0)
        (sweep.folder / "site" / "learner" / "careful.yaml").write_text("")  # what is submitted is not touched by that
        for epoch in range(5):
            jobs = wait_for_gates(cluster, sweep, epoch)
            cluster.preempt(2)
            preempted += 2
            killed += kill_those_that_run(sweep)
            cluster.begin_again(jobs)
        jobs = wait_for_gates(cluster, sweep, 5)
        cluster.lose_node()
        cluster.begin_again(jobs)
        yield sweep, sweep.end(), (preempted, killed)


@pytest.fixture(scope="module")
def others(cluster, tmp_path_factory):
    """Sweeps that want nothing of each other, at the same time; their exit codes and what they said, by name.

    SLURM looks at time limits every 30 s and may signal 30 s early: 35 to 65 s after the start here, when the run waits
    at its gate. With the same limit the next start could be signalled before it can hear.
    """
    asked = {
        "limited": ("seed=4", GATE, "hydra.launcher.timeout_min=3", "hydra.launcher.signal_delay_s=115"),
        "two_tasks": ("seed=5", GATE, "hydra.launcher.tasks_per_node=2"),
        "failing": ("learner.lr=1e30,0.02", "num_tasks=1", "learner.momentum=0"),
        "nowhere": ("hydra.launcher.partition=nope",),
    }
    with ExitStack() as all_of_them:
        sweeps = {}
        for name, overrides in asked.items():
            sweeps[name] = all_of_them.enter_context(submit(cluster, tmp_path_factory.mktemp(name), *overrides))
        limited, two_tasks = (sweeps[name] for name in ("limited", "two_tasks"))
        cluster.wait_until(lambda: any(two_tasks.folder.rglob("gate_0")))
        cluster.said("scancel", "--signal=USR2", two_tasks.job())
        cluster.begin_again({two_tasks.job()})
        cluster.wait_until(lambda: cluster.states().get(limited.job()) == "PENDING")
        cluster.said("scontrol", "update", f"JobId={limited.job()}", "TimeLimit=10")
        cluster.begin_again({limited.job()})
        yield {name: (sweep, *sweep.end()) for name, sweep in sweeps.items()}


@pytest.mark.parametrize(("name", "seed", "why"), [("limited", 4, "timed-out"), ("two_tasks", 5, "preempted")])
def test_time_limit_and_two_tasks(others, tmp_path, name, seed, why):
    """A job that runs into its time limit, and one of two tasks that is told to go: both save themselves, and go on."""
    sweep, code, said = others[name]
    assert code == 0, said
    (folder,) = sweep.runs().values()
    assert read_status(folder)["state"] == "done"
    logs = "".join(path.read_text() for path in sweep.folder.rglob("*_log.out"))
    assert f"this job is {why}" in logs
    assert "going on at task 0, epoch 0, batch 3" in logs
    assert_as_if_nothing_was(folder, tmp_path, seed)


def test_failing_job_leaves_its_traceback_in_its_folder(others):
    sweep, code, said = others["failing"]
    assert code == 2
    assert "became NaN or infinite" in said
    assert "Traceback" not in said
    folders = {path.parent for path in sweep.folder.rglob("status.json")}
    states = {read_status(folder)["state"]: folder for folder in folders}
    assert states.keys() == {"failed", "done"}
    assert "RunError" in (states["failed"] / "traceback.txt").read_text()


def test_partition_that_is_not_there(others):
    sweep, code, said = others["nowhere"]
    assert code == 2
    assert "plastiscope: SLURM did not take the sweep (invalid partition specified: nope" in said
    assert "Traceback" not in said
    assert sweep.runs() == {}


def test_ten_preemptions_ten_kills_and_a_lost_node_change_nothing(hit, tmp_path):
    sweep, (code, said), counts = hit
    assert code == 0, said
    assert counts == (10, 10)
    assert sorted(sweep.runs()) == list(SEEDS)
    for seed, folder in sweep.runs().items():
        assert read_status(folder)["state"] == "done"
        assert_as_if_nothing_was(folder, tmp_path, seed)
