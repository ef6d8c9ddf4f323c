"""A look whose samples lie on two real processes says what one process says that has all of them."""

import multiprocessing
import os
import socket
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from landscape.look_cases import looked, normed, settings_of
from plastiscope.error import ConfigError
from plastiscope.landscape.look import Landscape, Numbers, SavedPoint, opened
from plastiscope.landscape.settings import (
    ConnectivitySettings,
    Engine,
    EvaluationSettings,
    LandscapeSettings,
    SpectrumSettings,
    with_value,
)
from plastiscope.landscape.slices import COPIES, are_sharded, own_rows
from plastiscope.measure.landscape import memory
from plastiscope.measure.landscape.memory import budget
from plastiscope.run.processes import Processes, join_processes, leave_processes
from plastiscope.run.storage import read_json

SETTINGS = settings_of(
    {"include_hessian": True, "include_random": True, "include_trajectory": True, "num_random": 2},
    enable_spectrum=True,
    enable_sam=True,
    enable_mode_connectivity=True,
    mode_connectivity=ConnectivitySettings(curve_points=3, opt_steps=3),
    shard_data="true",
)
TRAINED_CURVE = ("mode_bezier", "plane_three_point")
STOPS_AT = 300
"""Call of the loss, among some hundreds, at which a look is interrupted."""


def smooth(folder: Path, **options) -> Landscape:
    """A look with everything on at a network without normalisations."""
    torch.manual_seed(3)
    net, other = (nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double() for _ in range(2))
    start = SavedPoint("before", lambda: other.state_dict())
    data = normed(folder)
    return replace(data, net=net, start=start, path=[start], settings=SETTINGS, weight_decay=0.1, **options)


def with_norms(folder: Path) -> Landscape:
    found = normed(folder, settings=SETTINGS)
    assert found.start is not None
    return replace(found, path=[found.start])


class Stopped(Exception):
    pass


class Stops:
    """The loss of each sample; at one of its calls it stops."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, outputs, targets):
        self.left -= 1
        if self.left == 0:
            raise Stopped
        return F.cross_entropy(outputs, targets, reduction="none")


def one_of_two(folder: Path, rank: int, there: dict[str, str]) -> None:
    """What one process does, in a fork of this one."""
    warnings.simplefilter("error")
    os.environ.update(there, RANK=str(rank))
    processes = join_processes()
    found = [
        looked(smooth(folder / "smooth", processes=processes)),
        looked(replace(with_norms(folder / "norms"), processes=processes)),
    ]
    cut = replace(SETTINGS, evaluation_data=EvaluationSettings(num_samples=31), enable_mode_connectivity=False)
    found.append(looked(replace(smooth(folder / "cut"), settings=cut, processes=processes, ids=torch.arange(45))))
    torch.save(found, folder / f"numbers_{rank}.pt")
    room = budget(torch.device("cpu"), sharing=2)
    size = {"fits": room // COPIES // 10, "does not": room * 10}
    asked = {
        name: are_sharded(LandscapeSettings(), processes, nn.Linear(1, 1), 9, n, torch.device("cpu"))
        for name, n in size.items()
    }
    torch.save({**asked, "least": processes.least(3.0 - rank), "here": processes.here}, folder / f"facts_{rank}.pt")
    leave_processes()


def one_that_stops(folder: Path, rank: int, there: dict[str, str]) -> None:
    """The same look as `one_of_two`'s first, interrupted once."""
    os.environ.update(there, RANK=str(rank))
    processes = join_processes()
    at = int(os.environ["STOPS_AT"])
    try:
        looked(smooth(folder, processes=processes, loss=Stops(at)))
    except Stopped:
        os._exit(3)
    leave_processes()


def together(target, folder: Path, stops_at: int = 0) -> list[int | None]:
    """Exit codes of two processes."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    there = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "STOPS_AT": str(stops_at)}
    forks = multiprocessing.get_context("fork")
    running = [forks.Process(target=target, args=(folder, rank, there)) for rank in (0, 1)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    return [process.exitcode for process in running]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    assert together(one_of_two, folder) == [0, 0]
    return folder


def close(numbers: Numbers, expected: Numbers, but: tuple[str, ...] = ()) -> None:
    assert numbers.keys() == expected.keys()
    assert len(numbers) > 40
    for key, value in expected.items():
        if not key.startswith(but or ("none of them",)):
            assert numbers[key] == pytest.approx(value, rel=1e-9, abs=1e-12), key


def test_two_slices_are_the_whole(pair, tmp_path):
    first, second = (torch.load(pair / f"numbers_{rank}.pt") for rank in (0, 1))
    assert first == second
    close(first[0], looked(smooth(tmp_path)))
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.npz"))
    assert len(files) > 12
    for file in files:
        with np.load(pair / "smooth" / file) as one, np.load(tmp_path / file) as other:
            assert one.files == other.files
            for name in one.files:  # of a plane's noise at 1e-16 no digit is the same
                np.testing.assert_allclose(one[name], other[name], rtol=1e-7, atol=1e-10, err_msg=f"{file} {name}")


def test_summary_says_that_there_are_slices_of_one_set(pair, tmp_path):
    alone = with_value(SETTINGS, "shard_data", "auto")
    looked(replace(smooth(tmp_path), settings=alone))
    found, expected = (read_json(folder / "summary.json") for folder in (pair / "smooth", tmp_path))
    assert found["slices"] == {"processes": 2}
    assert "slices" not in expected
    assert found["evaluation_set"] == expected["evaluation_set"]
    assert found["samples"] == expected["samples"] == 45


def test_only_the_trained_curve_of_a_net_with_batch_norms_depends_on_the_slices(pair, tmp_path):
    expected = looked(with_norms(tmp_path))
    first = torch.load(pair / "numbers_0.pt")[1]
    close(first, expected, but=TRAINED_CURVE)
    assert first["mode_bezier_bend_loss"] == pytest.approx(expected["mode_bezier_bend_loss"], rel=0.05)


def test_fewer_samples_of_two_slices_are_those_of_the_whole(pair, tmp_path):
    settings = replace(SETTINGS, evaluation_data=EvaluationSettings(num_samples=31), enable_mode_connectivity=False)
    expected = looked(replace(smooth(tmp_path), settings=settings, ids=torch.arange(45)))
    close(torch.load(pair / "numbers_0.pt")[2], expected)
    for name in ("evaluation_set.json", "evaluation_set.npz"):
        assert (pair / "cut" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_auto_shards_what_does_not_fit_and_all_agree(pair):
    for rank in (0, 1):
        expected = {"fits": False, "does not": True, "least": 2.0, "here": 2}
        assert torch.load(pair / f"facts_{rank}.pt") == expected


def test_an_interrupted_look_of_two_goes_on_to_the_same_bytes(pair, tmp_path):
    codes = together(one_that_stops, tmp_path, STOPS_AT)
    assert 3 in codes and 0 not in codes
    parts = list(tmp_path.rglob("part_*.npz"))
    assert parts
    assert together(one_that_stops, tmp_path) == [0, 0]
    whole = tmp_path / "whole"
    assert together(one_that_stops, whole) == [0, 0]
    files = [path for path in whole.rglob("*.*") if path.is_file() and path.name != "summary.json"]
    assert len(files) > 20
    for path in files:
        assert (tmp_path / path.relative_to(whole)).read_bytes() == path.read_bytes(), path


def test_one_process_has_all_samples_and_says_so(tmp_path, capsys):
    settings = settings_of({"include_random": True}, shard_data="true")
    looked(normed(tmp_path / "asked", settings=settings))
    assert "shard_data=true changes nothing in a run of one process" in capsys.readouterr().out
    warnings_of = read_json(tmp_path / "asked" / "summary.json")["warnings"]
    assert any("shard_data=true changes nothing" in text for text in warnings_of)
    looked(normed(tmp_path / "not", settings=replace(settings, shard_data="false")))
    name = "planes/random_0.npz"
    assert (tmp_path / "asked" / name).read_bytes() == (tmp_path / "not" / name).read_bytes()


def test_room_for_vectors_is_divided_by_the_processes_of_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**30)
    for here, room in ((1, 2**29), (4, 2**27)):
        processes = Processes(here=here)
        with opened(normed(tmp_path / str(here), settings=SETTINGS, processes=processes, tells=False)) as look:
            assert look.room() == room
    gpu = Processes(here=4, on_gpu=2)
    assert [gpu.sharing(torch.device(name)) for name in ("cpu", "cuda")] == [4, 2]


def test_processes_that_work_apart_hold_all_samples(tmp_path):
    apart = Processes(1, 2, is_ahead=True, works_apart=True)
    for processes in (apart, replace(apart, is_ahead=False)):
        settings = LandscapeSettings(shard_data="true")
        assert not are_sharded(settings, processes, nn.Linear(1, 1), 9, 2**60, torch.device("cpu"))
    settings = settings_of({"include_random": True}, shard_data="true")
    with opened(normed(tmp_path, settings=settings, processes=apart, tells=False)) as look:
        assert look.frozen.shards is None
        assert "replay.share=checkpoints" in look.facts["warnings"][0]


@pytest.mark.parametrize(
    ("settings", "net", "samples", "said"),
    [
        (LandscapeSettings(spectrum=SpectrumSettings(engine=Engine.pyhessian)), nn.Linear(1, 1), 9, "PyHessian needs"),
        (LandscapeSettings(spectrum=SpectrumSettings(cross_check=True)), nn.Linear(1, 1), 9, "PyHessian needs"),
        (LandscapeSettings(), nn.BatchNorm1d(3, track_running_stats=False), 9, "without running statistics"),
        (LandscapeSettings(), nn.Linear(1, 1), 1, "1 samples are fewer than the 2 processes"),
    ],
)
def test_what_cannot_be_parted_is_refused_or_left_whole(settings, net, samples, said):
    cpu, pair = torch.device("cpu"), Processes(0, 2)
    with pytest.raises(ConfigError, match=said):
        are_sharded(replace(settings, shard_data="true"), pair, net, samples, 2**60, cpu)
    assert not are_sharded(settings, pair, net, samples, 2**60, cpu)
    assert not are_sharded(replace(settings, shard_data="false"), pair, net, samples, 2**60, cpu)


@pytest.mark.parametrize(("given", "meant"), [(True, "true"), ("on", "true"), ("Off", "false"), (False, "false")])
def test_yaml_says_yes_and_no_in_many_ways(given, meant):
    assert LandscapeSettings(shard_data=given).shard_data == meant
    with pytest.raises(ConfigError, match="shard_data=maybe: must be one of auto, true, false"):
        LandscapeSettings(shard_data="maybe")


@pytest.mark.parametrize(("samples", "world"), [(45, 2), (7, 3), (3, 3), (64, 5)])
def test_slices_are_equal_blocks_in_order(samples, world):
    slices = [own_rows(samples, Processes(rank, world)) for rank in range(world)]
    assert [place for rows in slices for place in range(samples)[rows]] == list(range(samples))
    sizes = [rows.stop - rows.start for rows in slices]
    assert max(sizes) - min(sizes) <= 1
