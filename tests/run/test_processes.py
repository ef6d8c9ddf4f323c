"""Work shared out between processes: the same bytes whoever does it, nothing twice, nothing waits for the dead."""

import multiprocessing
import os
import signal
import socket
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plastiscope.error import RunError
from plastiscope.run.processes import (
    Part,
    Processes,
    _missing_everywhere,
    first_host,
    is_first_process,
    join_processes,
    leave_processes,
    share_out,
)

IDS = np.random.default_rng(0).permutation(101).astype(np.int64)
PARTS = np.array_split(np.arange(101), 13)


def compute(i: int) -> Part:
    """Something whose last bits depend on the part."""
    values = np.sin(IDS[PARTS[i]].astype(np.float32))
    return {"ids": IDS[PARTS[i]], "values": values / np.float32(values.sum())}


class Counted:
    """`compute` that remembers which parts it was asked for, and may die at one of them."""

    def __init__(self, dies_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.dies_at = dies_at

    def __call__(self, i: int) -> Part:
        self.asked.append(i)
        if i == self.dies_at:
            raise KeyboardInterrupt
        return compute(i)


class TakingTurns(Processes):
    """A process among several that run one after the other: nobody waits, the caller sees to the order."""

    def barrier(self) -> None:
        raise StopIteration


def in_turns(folder: Path, world: int, counted: Callable[[int], Part] = compute) -> list[Part]:
    """Every rank fills its share, then the parts are read."""
    for rank in range(world):
        with pytest.raises(StopIteration):
            share_out(folder, len(PARTS), counted, TakingTurns(rank, world))
    return share_out(folder, len(PARTS), lambda i: pytest.fail(f"part {i} is missing"), Processes())


def as_bytes(parts: list[Part]) -> list[bytes]:
    return [np.concatenate([part[name] for part in parts]).tobytes() for name in ("ids", "values")]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_bytes_are_those_of_one_process(tmp_path, world):
    counted = Counted()
    merged = in_turns(tmp_path / "parts", world, counted)
    assert as_bytes(merged) == as_bytes([compute(i) for i in range(len(PARTS))])
    assert sorted(counted.asked) == list(range(len(PARTS)))
    assert not (tmp_path / "parts").exists()


@pytest.mark.parametrize("world", [1, 2, 5])
def test_what_a_dead_process_had_done_is_not_done_again(tmp_path, world):
    dying, second = Counted(dies_at=7), Counted()
    with pytest.raises(KeyboardInterrupt):
        share_out(tmp_path / "parts", len(PARTS), dying, TakingTurns(1, 3))  # parts 1, 4 and, not, 7
    in_turns(tmp_path / "parts", world, second)
    assert sorted(second.asked) == [i for i in range(len(PARTS)) if i not in (1, 4)]


def test_one_that_goes_ahead_leaves_its_parts(tmp_path):
    """It computes all parts itself, waits for nobody, and is not the one that writes."""
    ahead, later = Counted(), Counted()
    processes = Processes(2, 3, is_ahead=True)
    found = share_out(tmp_path / "parts", len(PARTS), ahead, processes)
    assert not processes.is_first and not Processes(0, 3, is_ahead=True).is_first
    assert ahead.asked == list(range(len(PARTS)))
    assert as_bytes(share_out(tmp_path / "parts", len(PARTS), later, Processes())) == as_bytes(found)
    assert later.asked == []


def test_a_part_that_cannot_be_read_is_named(tmp_path):
    in_the_way = tmp_path / "part_00003_of_00013.npz"
    in_the_way.write_bytes(b"PK not an archive")
    with pytest.raises(RunError, match=r"part_00003_of_00013.npz cannot be read .*delete it and start again"):
        share_out(tmp_path, len(PARTS), compute, Processes())


def test_who_we_are():
    assert join_processes({}) == Processes(0, 1)
    assert join_processes({"WORLD_SIZE": "1", "RANK": "0"}) == Processes(0, 1)
    batch_script = {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"}
    assert join_processes(batch_script) == Processes(0, 1)
    step = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7", "SLURM_STEP_NUM_NODES": "1"}
    assert [is_first_process({**step, "SLURM_PROCID": rank}) for rank in ("0", "1")] == [True, False]
    assert is_first_process({})
    assert not is_first_process({"WORLD_SIZE": "3", "RANK": "2"})


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("gpu003", "gpu003"), ("gpu[003-005,9],login1", "gpu003"), ("a1,b[2-3]", "a1"), ("n[07,9]", "n07"), ("", "")],
)
def test_first_host_of_a_list(hosts, first):
    assert first_host(hosts) == first


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def one_of_them(folder: Path, rank: int, there: dict[str, str], dies_at: int | None) -> None:
    """What one process does, in a fork of this one."""
    warnings.simplefilter("error")
    os.environ.update(there, RANK=str(rank))
    processes = join_processes()

    def noted(i: int) -> Part:
        with open(folder / f"asked_{rank}", "a") as file:
            file.write(f"{i} ")
        if i == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return compute(i)

    try:
        found = share_out(folder / "parts", 7, noted, processes)
    except RunError as error:
        (folder / f"error_{rank}").write_text(str(error))
        sys.exit(2)
    (folder / f"out_{rank}").write_bytes(b"".join(as_bytes(found)))
    leave_processes()


def together(folder: Path, world: int, dies: tuple[int, int] | None = None) -> list[int | None]:
    """Exit codes of processes as torchrun would start them, connected by gloo; `dies` = (rank, part)."""
    there = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    forks = multiprocessing.get_context("fork")
    ends = [dies[1] if dies is not None and dies[0] == rank else None for rank in range(world)]
    running = [forks.Process(target=one_of_them, args=(folder, rank, there, end)) for rank, end in enumerate(ends)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    return [process.exitcode for process in running]


def test_a_killed_process_does_not_keep_the_others_waiting_and_another_number_of_them_goes_on(tmp_path):
    """Rank 1 of 2 is killed at part 3; rank 0 hears of it at once; one process alone does what is left."""
    assert together(tmp_path, 2, dies=(1, 3)) == [2, -9]
    assert (tmp_path / "error_0").read_text() == (
        "process 0 of 2: another process has stopped, and its own message says why (none if it was killed). "
        "What is finished is kept: start the same command again"
    )
    left = sorted(path.name[:10] for path in (tmp_path / "parts").glob("part_*"))
    assert left == [f"part_{i:05d}" for i in (0, 1, 2, 4, 6)]
    for path in tmp_path.glob("asked_*"):
        path.unlink()
    assert together(tmp_path, 3) == [0, 0, 0]
    asked = sorted(int(i) for path in tmp_path.glob("asked_*") for i in path.read_text().split())
    assert asked == [3, 5]
    expected = b"".join(as_bytes([compute(i) for i in range(7)]))
    assert [(tmp_path / f"out_{rank}").read_bytes() for rank in range(3)] == [expected] * 3


def test_a_port_in_use_is_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        with pytest.raises(RunError, match=r"process 0 of 2 does not find the others at 127.0.0.1:.*is the port free"):
            join_processes({**environment, "MASTER_PORT": str(taken.getsockname()[1])})


def test_only_the_first_process_says_which_parts_are_missing_of_those_computed_together(tmp_path):
    paths = [tmp_path / f"{i}" for i in range(3)]
    paths[1].touch()
    assert _missing_everywhere(paths, Processes()) == [0, 2]
    assert _missing_everywhere(paths, Alone(1, 2)) == []


class Alone(Processes):
    """A process that hears of no other."""

    def sum(self, tensor):
        return tensor
