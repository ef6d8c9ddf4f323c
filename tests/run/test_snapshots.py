"""The folder of snapshots: what is there stays as it is, and a resume cuts off exactly what is newer."""

import pytest
import torch

from plastiscope.error import RunError
from plastiscope.run.snapshots import Snapshots


def test_a_snapshot_is_never_overwritten(tmp_path):
    snapshots = Snapshots(tmp_path / "snapshots")
    snapshots.save(4, {"weight": torch.ones(2)})
    before = snapshots.path(4).read_bytes()
    snapshots.save(4, {"weight": torch.zeros(2)})
    assert snapshots.path(4).read_bytes() == before
    assert torch.equal(snapshots.load(4)["weight"], torch.ones(2))


@pytest.mark.parametrize(("epochs_completed", "left"), [(-1, []), (0, [0]), (2, [0, 1, 2]), (3, [0, 1, 2]), (9, None)])
def test_only_what_is_newer_is_cut_off(tmp_path, epochs_completed, left):
    snapshots, there = Snapshots(tmp_path / "snapshots"), [0, 1, 2, 4, 5]
    for epochs in there:
        snapshots.save(epochs, {"weight": torch.full((2,), float(epochs))})
    snapshots.cut_back(epochs_completed)
    assert snapshots.epochs() == (there if left is None else left)
    for epochs in snapshots.epochs():
        assert snapshots.load(epochs)["weight"].tolist() == [epochs, epochs]


def test_a_missing_snapshot_names_those_there_are(tmp_path):
    snapshots = Snapshots(tmp_path / "snapshots")
    with pytest.raises(RunError, match=r"no snapshot after 3 epochs .* there are: none"):
        snapshots.load(3)
    snapshots.save(12, {"weight": torch.ones(1)})
    with pytest.raises(RunError, match="there are: 12"):
        snapshots.load(3)
