"""Pickles: data come in, anything else is named and not executed."""

import collections
import functools
import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from plastiscope.data.restricted_pickle import load_restricted
from plastiscope.error import DataError


def written(folder, value, protocol=2):
    path = folder / "file.p"
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def same(a, b):
    if isinstance(a, np.ndarray):
        assert isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert type(a) is type(b) and list(a) == list(b)
        for key in a:
            same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            same(x, y)
    else:
        assert type(a) is type(b) and a == b


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_tensors_and_containers_come_back(tmp_path, protocol):
    value = {
        "bytes": np.arange(6, dtype=np.uint8).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.arange(3, dtype=">i4"),
        "text": np.array(["a", "bc"]),
        "bool": np.array([True, False]),
        "empty": np.zeros((0, 4), np.float32),
        "no axis": np.array(2.5),
        "scalar": np.float32(1.5),
        "tensors": collections.OrderedDict(w=torch.arange(6.0).view(2, 3), n=torch.tensor(3)),
        "plain": [1, 2.5, None, "x", b"\x00\xff", b"", (1, [np.arange(2)]), {1, 2}, frozenset({3}), 1j, 10**30],
    }
    same(load_restricted(written(tmp_path, value, protocol)), value)


def test_arrays_are_own_and_writable(tmp_path):
    array = load_restricted(written(tmp_path, np.arange(4)))
    array[0] = 7
    assert array.tolist() == [7, 1, 2, 3]


class Executes:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "named"),
    [(os.system, "(posix|nt).system"), (eval, "builtins.eval|__builtin__.eval"), (shutil.rmtree, "shutil.rmtree"),
     (functools.partial, "functools.partial"), (np.load, "numpy.*load"), (torch.load, "torch.serialization.load")],
)  # fmt: skip
def test_code_is_named_and_not_executed(tmp_path, protocol, function, named):
    marker = tmp_path / "executed"
    path = written(tmp_path, {"data": [1, Executes(function, f"touch {marker}")]}, protocol)
    with pytest.raises(DataError, match=rf"file\.p is a pickle that holds ({named}).*nothing was executed"):
        load_restricted(path)
    assert not marker.exists()


def test_a_tensor_whose_storage_hides_code_is_not_executed(tmp_path):
    marker = tmp_path / "executed"
    hidden = tmp_path / "hidden.pt"
    torch.save(Executes(os.system, f"touch {marker}"), hidden)
    storage = Executes(torch.storage._load_from_bytes, hidden.read_bytes())
    with pytest.raises(DataError):
        load_restricted(written(tmp_path, storage))
    assert not marker.exists()


@pytest.mark.parametrize("array", [np.array([1, "x"], dtype=object), np.zeros(2, dtype=[("a", "f4"), ("b", "O")])])
def test_arrays_of_objects_are_refused(tmp_path, array):
    with pytest.raises(DataError, match=r"a numpy array of dtype [OV]\d+.*nothing was executed"):
        load_restricted(written(tmp_path, array))


def test_an_array_that_is_shorter_than_its_header_says_is_damaged(tmp_path):
    path = written(tmp_path, np.arange(1000, dtype=np.uint8))
    path.write_bytes(path.read_bytes().replace(b"M\xe8\x03", b"M\xe9\x03"))
    with pytest.raises(DataError, match="is damaged"):
        load_restricted(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02", b"\x80\x02K\x01K\x02R.", bytes(range(256))])
def test_bytes_that_are_no_pickle_are_damaged(tmp_path, content):
    path = tmp_path / "file.p"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"file\.p is damaged or no pickle"):
        load_restricted(path)


def test_a_pickle_cut_off_anywhere_is_damaged(tmp_path):
    whole = pickle.dumps({"data": np.arange(20), "labels": [1, 2, 3]}, 2)
    path = tmp_path / "file.p"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError):
            load_restricted(path)


def test_a_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"none\.p cannot be read: No such file"):
        load_restricted(tmp_path / "none.p")
