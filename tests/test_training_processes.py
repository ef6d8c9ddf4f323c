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
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from plans import make_plan
from plastiscope.error import ConfigError, PlastiscopeError, RunError
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


def start(world: int, work: Callable[[int], None]) -> list[BaseProcess]:
    """`work(rank)` in so many processes with torchrun's environment."""
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
    return running


def exit_codes(running: list[BaseProcess]) -> list[int | None]:
    """Their exit codes, when all have ended."""
    for process in running:
        process.join(120)
    codes = [process.exitcode for process in running]
    for process in running:
        process.kill()  # one that hangs would outlive the tests
    return codes


def as_torchrun_would(world: int, work: Callable[[int], None]) -> list[int | None]:
    """Exit codes of `work(rank)` in so many processes with torchrun's environment."""
    return exit_codes(start(world, work))


def wait_for(mark: Path) -> None:
    """Until the file is there."""
    until = time.monotonic() + 120
    while not mark.exists():
        assert time.monotonic() < until, f"{mark} does not come"
        time.sleep(0.01)


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
    assert not (tmp_path / "run_0" / "parts").exists()


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
    left = tmp_path / "run" / "parts" / "csl_epoch_000001" / "part_00000_of_00002.npz"  # of a look that was killed
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    run(make_plan(*SHARED), tmp_path / "run")
    ours, theirs = files_of(alone), files_of(tmp_path / "run")
    assert [name for name in ours if ours[name] != theirs.get(name)] == []
    assert not (tmp_path / "run" / "parts").exists()


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


@dataclass(kw_only=True)
class Endless(Callback):
    """What one process computes of an event takes longer than anybody waits; another one then ends, in some way."""

    name: str = "endless"
    shared_events = ("on_epoch_end",)
    rank: int
    other: int
    ends: Callable[[], None]

    def on_epoch_end(self, context: Context) -> None:
        mark = context.run_folder / "computing"
        if context.processes.rank == self.rank:
            mark.touch()
            while True:
                time.sleep(0.01)
        if context.processes.rank == self.other:
            wait_for(mark)
            self.ends()
        context.processes.barrier()


def is_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fails() -> None:
    raise RunError("something that the first alone has found")


@pytest.mark.parametrize("ends", [is_killed, fails])
@pytest.mark.parametrize("what", ["training", "replay", "replay of shared checkpoints"])
def test_a_process_that_computes_its_share_stops_when_the_first_has_gone(
    alone, tmp_path, monkeypatch, capfd, what, ends
):
    monkeypatch.setattr(roster, "EVERY_S", 0.2)
    replay = [] if what == "training" else [f"replay.folder={alone}"]
    share = ["replay.share=checkpoints"] if "shared" in what else []

    def work(rank: int) -> None:
        plan = make_plan(*TINY, "analysis=[]", *replay, *share)
        plan.analyses.append(Endless(rank=1, other=0, ends=ends))
        run(plan, tmp_path / "run")

    assert as_torchrun_would(2, work) == [-signal.SIGKILL if ends is is_killed else 2, 2]
    assert "process 1 of 2: process 0 of 2 (" in capfd.readouterr().out
    assert (tmp_path / "run" / "computing").exists()


def test_the_first_stops_in_its_share_of_checkpoints_when_another_has_gone(alone, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(roster, "EVERY_S", 0.2)

    def work(rank: int) -> None:
        plan = make_plan(*TINY, "analysis=[]", f"replay.folder={alone}", "replay.share=checkpoints")
        plan.analyses.append(Endless(rank=0, other=1, ends=is_killed))
        run(plan, tmp_path / "run")

    assert as_torchrun_would(2, work) == [2, -signal.SIGKILL]
    said = capfd.readouterr().out
    assert "process 1 of 2 (" in said and "the run is saved" in said
    assert read_status(tmp_path / "run")["state"] == "preempted"


@dataclass(kw_only=True)
class Waiting(Callback):
    """The first epoch waits for a file in the run folder."""

    name: str = "waiting"

    def on_batch_end(self, context: Context) -> None:
        (context.run_folder / "waits").touch()
        wait_for(context.run_folder / "go_on")


def test_a_second_start_is_refused_and_the_first_goes_on(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(roster, "PATIENCE_S", 0.2)
    folder = tmp_path / "run"

    def first(rank: int) -> None:
        plan = make_plan(*TINY, "num_tasks=1", "epochs=1", "analysis=[]")
        plan.analyses.append(Waiting())
        run(plan, folder)

    there = start(2, first)
    wait_for(folder / "waits")
    before = files_of(folder)
    for world in (2, 3):
        assert as_torchrun_would(world, lambda rank: run(make_plan(*TINY, "analysis=[]"), folder)) == [2] * world
    said = capfd.readouterr().out
    assert said.count(f"another process is working in {folder}; wait for it, stop it, or choose") == 5
    assert files_of(folder) == before
    assert {name for name in before if name.startswith(".processes")} == {".processes/rank_0", ".processes/rank_1"}
    (folder / "go_on").touch()
    assert exit_codes(there) == [0, 0]
    assert read_status(folder)["state"] == "done"


@dataclass(kw_only=True)
class Remembering(Callback):
    """Has a state that changes in the first process only, and from which each process computes its share."""

    name: str = "remembering"
    shared_events = ("on_epoch_end",)
    seen: int = 0

    def on_batch_end(self, context: Context) -> None:
        self.seen += 1

    def on_epoch_end(self, context: Context) -> None:
        found = context.processes.sum(torch.tensor([self.seen]))
        with open(context.run_folder / f"seen_{context.processes.rank}", "a") as file:
            file.write(f"{self.seen} {found.item()}\n")

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]


def test_all_compute_from_the_state_that_an_analysis_has_in_the_first(tmp_path):
    def work(rank: int) -> None:
        plan = make_plan(*TINY, "analysis=[]")
        plan.analyses.append(Remembering())
        run(plan, tmp_path / "run")

    assert as_torchrun_would(2, work) == [0, 0]
    first, second = ((tmp_path / "run" / f"seen_{rank}").read_text() for rank in (0, 1))
    steps = [int(line.split()[0]) for line in first.splitlines()]
    assert len(steps) == 4 and steps[0] > 0
    assert first == second == "".join(f"{s} {2 * s}\n" for s in steps)


def test_replicas_take_one_process(tmp_path):
    def together(rank: int) -> None:
        with pytest.raises(ConfigError, match="take one process"):
            run(make_plan(*TINY, "analysis=[]", "replicas=2"), tmp_path / "run")

    assert as_torchrun_would(2, together) == [0, 0]
