"""Training under torchrun: one process trains, all share the analyses; the files are those of one process."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from plans import make_plan
from plastiscope.error import ConfigError, PlastiscopeError
from plastiscope.event import Callback, Context
from plastiscope.experiment import run
from plastiscope.run import roster
from plastiscope.run.status import read_status
from run.interruption import Interruption

TINY = ("num_tasks=2", "epochs=2", "threads=1", "net.widths=[12,10]", "data.samples_per_class=8", "batch_size=16")
SHARED = (
    *TINY,
    *("analysis=[representation,csl,curvature,dormant,lla]", "csl.mode=both", "samples.population=run"),
    *("lla.profile=smoke", "lla.when=both", "lla.enable_sam=true", "lla.spectrum.backend=retained", "csl.batch_size=7"),
)
CLOCKED = ("timings.jsonl", "run.json", "status.json", "wandb", "checkpoint", ".lock", "summary.json")


def as_torchrun_would(world: int, work: Callable[[int], None]) -> list[int | None]:
    """Exit codes of `work(rank)` in so many processes with torchrun's environment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    forks = multiprocessing.get_context("fork")

    def one(rank: int) -> None:
        there = {"WORLD_SIZE": world, "RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({key: str(value) for key, value in there.items()})
        try:
            work(rank)
        except PlastiscopeError as error:
            print(error, flush=True)
            sys.exit(2)

    running = [forks.Process(target=one, args=(rank,)) for rank in range(world)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    return [process.exitcode for process in running]


def files_of(folder: Path) -> dict[str, bytes]:
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path for path in paths}
    return {name: path.read_bytes() for name, path in named.items() if not any(part in name for part in CLOCKED)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(make_plan(*SHARED), folder)
    return folder


@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_files_of_one(alone, tmp_path, world):
    """Each is started with a folder of its own, as the time in its name is; the first one's counts."""
    assert as_torchrun_would(world, lambda rank: run(make_plan(*SHARED), tmp_path / f"run_{rank}")) == [0] * world
    ours, theirs = files_of(alone), files_of(tmp_path / "run_0")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []
    assert not (tmp_path / "run_1").exists()
    assert not (tmp_path / "run_0" / ".processes").exists()


def test_a_branch_is_the_same_for_two_processes(alone, tmp_path):
    """Its analyses look at weights, and at distances from those of the other run's beginning, that others hold."""
    branch = (*SHARED, f"init_from={alone}", "init_from_task=0")
    run(make_plan(*branch), tmp_path / "one")
    assert as_torchrun_would(2, lambda rank: run(make_plan(*branch), tmp_path / f"run_{rank}")) == [0, 0]
    ours, theirs = files_of(tmp_path / "one"), files_of(tmp_path / "run_0")
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if ours[name] != theirs[name]] == []


def test_a_signal_saves_the_run_and_one_process_goes_on(alone, tmp_path):
    def interrupted(rank: int) -> None:
        plan = make_plan(*SHARED)
        if rank == 0:
            plan.analyses.append(Interruption(task=1, batch=1))
        run(plan, tmp_path / "run")

    codes = as_torchrun_would(2, interrupted)
    assert codes[0] == 128 + signal.SIGUSR2
    assert codes[1] != 0
    assert read_status(tmp_path / "run")["state"] == "preempted"
    (tmp_path / "run" / "interrupted").unlink()
    run(make_plan(*SHARED), tmp_path / "run")
    ours, theirs = files_of(alone), files_of(tmp_path / "run")
    assert [name for name in ours if ours[name] != theirs.get(name)] == []


@dataclass(kw_only=True)
class Slow(Callback):
    """Each step waits a little, as in a long training."""

    name: str = "slow"

    def on_batch_end(self, context: Context) -> None:
        time.sleep(0.02)


def die_in_the_third_epoch(folder: Path) -> None:
    while not (folder / "metrics.jsonl").exists() or len((folder / "metrics.jsonl").read_text().splitlines()) < 2:
        time.sleep(0.05)
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_while_the_first_trains_is_named_and_the_run_saved(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(roster, "EVERY_S", 0.2)

    def dying(rank: int) -> None:
        plan = make_plan(*TINY, "analysis=[]", "num_tasks=1", "epochs=1000")
        if rank == 1:
            threading.Thread(target=die_in_the_third_epoch, args=(tmp_path / "run",), daemon=True).start()
        else:
            plan.analyses.append(Slow())
        signal.signal(signal.SIGUSR2, lambda *_: (tmp_path / "requeued").touch())  # as a launcher has it
        run(plan, tmp_path / "run")

    codes = as_torchrun_would(3, dying)
    assert not (tmp_path / "requeued").exists()
    assert codes[1] == -signal.SIGKILL
    assert codes[0] == codes[2] == 2
    said = capfd.readouterr().out
    assert "process 1 of 3 (" in said
    assert "the run is saved" in said
    status = read_status(tmp_path / "run")
    assert status["state"] == "preempted"
    assert "process 1 of 3" in status["error"]
    assert list((tmp_path / "run" / "checkpoint").glob("*.pt"))


def test_replicas_take_one_process(tmp_path):
    def together(rank: int) -> None:
        with pytest.raises(ConfigError, match="take one process"):
            run(make_plan(*TINY, "analysis=[]", "replicas=2"), tmp_path / "run")

    assert as_torchrun_would(2, together) == [0, 0]
