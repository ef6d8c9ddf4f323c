"""Sweeps on a real SLURM of one node: preempted, killed, lost with their node, and in the end as if nothing was."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cluster import Cluster

from plans import make_plan
from plastiscope.experiment import run
from plastiscope.run.status import read_status

pytestmark = pytest.mark.slurm

SMALL = (
    *("num_tasks=3", "epochs=2", "threads=1", "selection=last", "analysis=[]"),
    *("use_wandb=false", "figures=false", "device=cpu"),
)
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

    def runs(self) -> dict[int, Path]:
        """Run folders by seed."""
        folders = {path.parent for path in self.folder.rglob("run.json")}
        seeds = {folder: folder / "config.yaml" for folder in folders}
        return {int(text.read_text().split("\nseed: ")[1].split("\n")[0]): folder for folder, text in seeds.items()}


@contextmanager
def submit(cluster: Cluster, folder: Path, *overrides: str) -> Iterator[Submitted]:
    """Submit a sweep by way of a site file; who submits is ended at the end."""
    site = folder / "site" / "launcher" / "here.yaml"
    site.parent.mkdir(parents=True, exist_ok=True)
    site.write_text(SITE)
    program = str(Path(sys.executable).with_name("plastiscope"))
    command = [program, "-m", "--config-dir", "site", "launcher=here", *SMALL, *overrides]
    with open(folder / "said.txt", "w") as said:
        process = subprocess.Popen(command, cwd=folder, env=cluster.environment, stdout=said, stderr=said)
    try:
        yield Submitted(folder, process)
    finally:
        process.kill()
        process.wait()


def results(folder: Path) -> dict[str, bytes]:
    """What must be equal in equal runs: the numbers, and all weights that were kept."""
    paths = [folder / "metrics.jsonl", *sorted((folder / "snapshots").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


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
    gates = ("+gate._target_=gate.Gate", "+gate.hits=6")
    with submit(cluster, tmp_path_factory.mktemp("hit"), "seed=0,1,2,3", *gates) as sweep:
        preempted = killed = 0
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


def test_ten_preemptions_ten_kills_and_a_lost_node_change_nothing(hit, tmp_path):
    sweep, (code, said), counts = hit
    assert code == 0, said
    assert counts == (10, 10)
    assert sorted(sweep.runs()) == list(SEEDS)
    for seed, folder in sweep.runs().items():
        assert read_status(folder)["state"] == "done"
        run(make_plan(*SMALL, f"seed={seed}"), tmp_path / str(seed))
        ours, theirs = results(folder), results(tmp_path / str(seed))
        assert ours.keys() == theirs.keys()
        assert [name for name in ours if ours[name] != theirs[name]] == []
