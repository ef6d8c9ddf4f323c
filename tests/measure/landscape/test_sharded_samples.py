"""Samples on two real processes give what one process gives."""

import multiprocessing
import os
import socket
import sys
import warnings
from pathlib import Path

import pytest
import torch
from landscape_cases import DOUBLE, fixture_f, frozen_loss
from torch import Tensor

from plastiscope.error import RunError
from plastiscope.measure.landscape.eigenpairs import extreme_eigenpairs
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.operator import Backend, GaussNewtonOperator, HessianOperator
from plastiscope.measure.landscape.plane import robust_loss
from plastiscope.measure.landscape.shards import Shards
from plastiscope.measure.landscape.timing import time_candidates, time_forward
from plastiscope.run.processes import Processes, join_processes, leave_processes

SHARES = slice(0, 33), slice(33, 64)


def looks_at(frozen: FrozenLoss) -> dict[str, Tensor]:
    vectors = torch.stack([frozen.space.normals(0, "test", k).double() for k in range(3)])
    point = frozen.measure()
    return {
        "value": frozen.value(),
        "gradient": frozen.gradient(),
        "point": torch.tensor([point.loss, point.standard_error, point.accuracy], dtype=DOUBLE),
        **{b.value: HessianOperator(frozen, b).products(vectors) for b in (Backend.retained, Backend.vmap_jvp)},
        "gauss-newton": GaussNewtonOperator(frozen).products(vectors),
        "eigenvalues": extreme_eigenpairs(HessianOperator(frozen), 3, 2, seed=0).values,
        "robust": robust_loss(frozen, 0.05),
    }


def fixture(**options) -> FrozenLoss:
    return fixture_f(weight_decay=0.1, micro_batch=20, **options)


def one_of_two(folder: Path, rank: int, there: dict[str, str]) -> None:
    """What one process does, in a fork of this one."""
    warnings.simplefilter("error")
    os.environ.update(there, RANK=str(rank))
    processes, calls = join_processes(), 0

    def total(tensor: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return processes.sum(tensor)

    whole = fixture()
    share = SHARES[rank]
    own = frozen_loss(
        whole.net, whole.inputs[share], whole.targets[share], 3, weight_decay=0.1, micro_batch=20
    ).sharded(total)
    found = looks_at(own)
    calls = 0
    operator = HessianOperator(own, Backend.retained)
    operator.products(torch.ones(4, 115, dtype=DOUBLE))
    found["calls of a product"] = torch.tensor(calls)
    calls = 0
    own.gradient()
    found["calls of a gradient"] = torch.tensor(calls)
    if rank:  # what one process alone may do: it waits for no other
        time_candidates(own, 2, [Backend.rebuilt], [16])
        time_forward(own, [16])
    try:
        operator(torch.ones(115, dtype=DOUBLE) * (1 + rank))
    except RunError as error:
        (folder / f"error_{rank}").write_text(str(error))
    torch.save(found, folder / f"found_{rank}.pt")
    leave_processes()
    sys.exit(0)


def test_unequal_shares_of_two_processes_are_the_whole(tmp_path: Path) -> None:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    there = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    forks = multiprocessing.get_context("fork")
    running = [forks.Process(target=one_of_two, args=(tmp_path, rank, there)) for rank in (0, 1)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    assert [process.exitcode for process in running] == [0, 0]
    first, second = (torch.load(tmp_path / f"found_{rank}.pt") for rank in (0, 1))
    for name, expected in looks_at(fixture()).items():
        assert first[name].equal(second[name]), f"{name} is not the same bits on both"
        assert (first[name] - expected).norm() <= 1e-12 * max(1, expected.norm()), name
    assert first["calls of a product"] == first["calls of a gradient"] == 1
    for rank in (0, 1):
        assert "have come apart" in (tmp_path / f"error_{rank}").read_text()


def test_one_process_is_the_same_code() -> None:
    alone = looks_at(fixture())
    for name, value in looks_at(fixture().sharded(Processes().sum)).items():
        assert value.equal(alone[name]), name
    assert fixture().sharded(lambda t: 3 * t).total_samples == 3 * 64
    assert fixture().sharded(lambda t: 3 * t).alone().total_samples == 64


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_marks_of_many_processes_are_counted_exactly(dtype: torch.dtype) -> None:
    vectors, sums = torch.randn(2, 3, 50, dtype=dtype)
    many = Shards(1, lambda tensor: 256 * tensor)
    assert many.total_at(vectors, sums).equal(256 * sums)
    with pytest.raises(RunError, match="come apart"):
        Shards(1, lambda tensor: 256 * tensor - torch.eye(len(tensor), dtype=dtype)[-2]).total_at(vectors, sums)
