"""Planes, robust surfaces and curves are the same bytes for any number of processes, and after an interruption."""

import multiprocessing
import os
import socket
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch.nn.functional as F

from landscape.look_cases import looked, normed, settings_of
from plastiscope.landscape.look import SavedPoint
from plastiscope.landscape.settings import ConnectivitySettings
from plastiscope.run.processes import join_processes, leave_processes

SETTINGS = settings_of(
    {"include_hessian": True, "include_random": True, "include_trajectory": True, "num_random": 2},
    enable_spectrum=True,
    enable_sam=True,
    enable_mode_connectivity=True,
    mode_connectivity=ConnectivitySettings(curve_points=3, opt_steps=3),
)


def everywhere(folder: Path):
    """A look that has planes of every kind, surfaces and curves."""
    landscape = normed(folder, settings=SETTINGS)
    assert landscape.start is not None
    return replace(landscape, path=[SavedPoint("epoch 0", landscape.start.load)])


def results(folder: Path) -> dict[str, bytes]:
    """Every file but summary.json, which has seconds."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.is_file()}
    found.pop("summary.json")
    return found


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone")
    numbers = looked(everywhere(folder))
    return numbers, results(folder)


def one_of_them(folder: Path, rank: int, there: dict[str, str]) -> None:
    """What one process does, in a fork of this one."""
    warnings.simplefilter("error")
    os.environ.update(there, RANK=str(rank))
    processes = join_processes()
    numbers = looked(replace(everywhere(folder), processes=processes))
    (folder.parent / f"numbers_{rank}").write_text(repr(numbers))
    leave_processes()


@pytest.mark.parametrize("world", [2, 3])
def test_any_number_of_processes(alone, tmp_path, world):
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    there = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    forks, folder = multiprocessing.get_context("fork"), tmp_path / "together"
    running = [forks.Process(target=one_of_them, args=(folder, rank, there)) for rank in range(world)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0] * world
    numbers, expected = alone
    assert [(tmp_path / f"numbers_{rank}").read_text() for rank in range(world)] == [repr(numbers)] * world
    assert results(folder) == expected
    names = {name.rsplit(".", 1)[0] for name in expected}
    planes = ("hessian", "random_0", "random_1", "trajectory")
    assert names >= {f"{part}/{name}" for part in ("planes", "sam") for name in planes} | {"mode/curves"}


class Interrupted(Exception):
    pass


class Counted:
    """The loss of each sample, which counts its calls and stops at one of them."""

    def __init__(self, stops_at: int = 0) -> None:
        self.calls, self.stops_at = 0, stops_at

    def __call__(self, outputs, targets):
        self.calls += 1
        if self.calls == self.stops_at:
            raise Interrupted
        return F.cross_entropy(outputs, targets, reduction="none")


def test_an_interrupted_look_goes_on_where_it_was(tmp_path):
    whole = Counted()
    numbers = looked(replace(everywhere(tmp_path / "whole"), loss=whole))
    expected = results(tmp_path / "whole")
    longest = 40  # calls of the longest part, the training of the bend, and of what every start measures anew
    for share in (0.4, 0.97):
        folder = tmp_path / str(share)
        first, second = Counted(int(share * whole.calls)), Counted()
        with pytest.raises(Interrupted):
            looked(replace(everywhere(folder), loss=first))
        assert list((folder / "parts").rglob("part_*.npz"))
        assert looked(replace(everywhere(folder), loss=second)) == numbers
        assert results(folder) == expected
        assert first.calls + second.calls <= whole.calls + longest < 1.2 * whole.calls
        assert not (folder / "parts").exists()
