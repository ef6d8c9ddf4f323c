"""Files are told by what they hold; what names anything but data is refused by name, and nothing is executed."""

import os
import pickle
import warnings

import numpy as np
import pytest
import torch

from plastiscope.error import DataError
from plastiscope.formats.content import Kind, check_ids, kind_of, read_array, read_content, read_vector

VALUES = np.arange(6, dtype=np.float32) / 4


class Code:
    """A pickle that would make a file named after where it is run."""

    def __reduce__(self):
        return os.mkdir, ("made_by_a_pickle",)


def as_npy(path):
    with open(path, "wb") as file:
        np.save(file, VALUES)


def as_npz(path):
    with open(path, "wb") as file:
        np.savez_compressed(file, data=VALUES, other=VALUES + 1)


def as_npz_of_one(path):
    with open(path, "wb") as file:
        np.savez(file, anything=VALUES)


def as_torch(path):
    torch.save(torch.from_numpy(VALUES), path)


def as_legacy_torch(path):
    torch.save({"data": torch.from_numpy(VALUES)}, path, _use_new_zipfile_serialization=False)


def as_pickle(path):
    path.write_bytes(pickle.dumps({"data": VALUES, "names": ["a"]}))


def as_pickled_list(path):
    path.write_bytes(pickle.dumps(VALUES.tolist()))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".pt", ".pkl", ""])
@pytest.mark.parametrize(
    "write", [as_npy, as_npz, as_npz_of_one, as_torch, as_legacy_torch, as_pickle, as_pickled_list]
)
def test_arrays_are_read_whatever_the_suffix(write, suffix, tmp_path):
    path = tmp_path / f"scores{suffix}"
    write(path)
    np.testing.assert_array_equal(read_array(path), VALUES)


def test_kinds(tmp_path):
    for write, kind in ((as_npy, Kind.npy), (as_npz, Kind.npz), (as_torch, Kind.torch), (as_pickle, Kind.other)):
        write(tmp_path / "file")
        assert kind_of(tmp_path / "file") is kind


def test_a_pickled_dict_of_arrays_and_tensors_is_read(tmp_path):
    path = tmp_path / "file.pkl"
    path.write_bytes(pickle.dumps({"a": VALUES, "b": [torch.ones(2), None], 3: "text"}))
    found = read_content(path)
    assert found["b"][0].tolist() == [1, 1] and found[3] == "text" and found["a"].tolist() == VALUES.tolist()


@pytest.mark.parametrize("as_file", ["pickle", "torch", "legacy_torch", "object array", "object in npz"])
def test_code_is_refused_and_not_run(as_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "scores.npy"
    objects = np.array([Code()], dtype=object)
    if as_file == "pickle":
        path.write_bytes(pickle.dumps({"data": Code()}))
    elif as_file == "object array":
        np.save(path, objects)
    elif as_file == "object in npz":
        with open(path, "wb") as file:
            np.savez(file, data=objects)
    else:
        torch.save({"data": Code()}, path, _use_new_zipfile_serialization=as_file == "torch")
    names = {"object array": "dtype object", "object in npz": "dtype object"}.get(as_file, r"mkdir")
    with pytest.raises(DataError, match=names) as told, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch remarks on the pickle's protocol
        read_content(path)
    assert str(path) in str(told.value)
    assert not (tmp_path / "made_by_a_pickle").exists()


@pytest.mark.parametrize("write", [as_npy, as_npz, as_torch, as_legacy_torch, as_pickle])
def test_files_cut_short_are_refused_by_name(write, tmp_path):
    path = tmp_path / "scores.npy"
    write(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match=r"scores\.npy"):
        read_content(path)
    path.write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(DataError, match=r"scores\.npy"):
        read_content(path)
    with pytest.raises(DataError, match="There is no file"):
        read_content(tmp_path / "none.npy")


@pytest.mark.parametrize(
    "content, problem",
    [
        ({"a": VALUES, "b": VALUES}, "holds a, b, and no array `data`"),
        ("text", "holds a str"),
        (["a", "b"], "holds a list"),
    ],
)
def test_what_is_no_array_is_said(content, problem, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match=problem):
        read_array(path)


def test_vectors(tmp_path):
    path = tmp_path / "v.npy"
    np.save(path, VALUES[:, None])
    assert read_vector(path, 6).shape == (6,)
    with pytest.raises(DataError, match="has 6 values, and there are 5 samples"):
        read_vector(path, 5)
    np.save(path, VALUES.reshape(2, 3))
    with pytest.raises(DataError, match=r"has shape \[2, 3\]"):
        read_vector(path)
    np.save(path, np.array(["a"]))
    with pytest.raises(DataError, match="numbers are needed"):
        read_vector(path)


def test_ids_are_whole_and_unique(tmp_path):
    assert check_ids(np.array([1234.0, 2.0]), tmp_path).tolist() == [1234, 2]
    for ids, problem in (([1.5, 2], "no integers"), ([np.nan, 1], "no integers"), ([3, 3, 1], "sample id 3 2 times")):
        with pytest.raises(DataError, match=problem):
            check_ids(np.array(ids), tmp_path / "ids.npy")
