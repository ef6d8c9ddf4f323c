"""A finished part of shared work that has been damaged since is named, not read."""

import numpy as np
import pytest

from plastiscope.error import RunError
from plastiscope.run.processes import Processes, share_out


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut short", b"no archive at all"])
def test_a_damaged_part_is_named(tmp_path, content):
    (tmp_path / "part_00001_of_00002.npz").write_bytes(content)
    with pytest.raises(RunError, match=r"part_00001_of_00002.npz cannot be read.*only this part is redone"):
        share_out(tmp_path, 2, lambda i: {"value": np.array([i])}, Processes())
    (tmp_path / "part_00001_of_00002.npz").unlink()
    parts = share_out(tmp_path, 2, lambda i: {"value": np.array([i])}, Processes())
    assert [part["value"].tolist() for part in parts] == [[0], [1]]
