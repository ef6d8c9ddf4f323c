"""Other people's pickles: only arrays, tensors and plain containers come in, and nothing in the file is executed.

A pickle is a program that may name any importable function. Here every name it uses is looked up in one short table;
any other name is refused, and said. The names of numpy and torch in the table stand for functions of this module that
build the value from plain bytes, so numpy's own reduction functions (object arrays, forged types) are not reached,
and a tensor's storage, whose published reduction calls `torch.load` freely, goes through `weights_only=True`.
"""

import io
import math
import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

from plastiscope.error import DataError

_BROKEN = (
    pickle.UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, ImportError,
    ArithmeticError, MemoryError, RuntimeError,
)  # fmt: skip
"""What reading bytes that are no pickle can raise."""
_PLAIN_DTYPE = re.compile(r"[biufcSU]\d+")


class _Refused(pickle.UnpicklingError):
    """A name that does not stand for data."""


class _Dtype:
    """A numpy dtype of numbers or text, in the making: code and byte order."""

    def __init__(self, code: str, align: object = False, copy: object = False) -> None:
        if not _PLAIN_DTYPE.fullmatch(code):
            raise _Refused(f"a numpy array of dtype {code}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        if any(part is not None for part in state[2:5]):
            raise _Refused("a numpy array of a structured dtype")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


def _array(data: object, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    if isinstance(data, str):  # bytes of Python 2, decoded
        data = data.encode("latin1")
    if not isinstance(data, bytes | bytearray) or len(data) != math.prod(shape) * dtype.dtype.itemsize:
        raise pickle.UnpicklingError("an array whose size is not what its header says")
    return np.frombuffer(bytes(data), dtype.dtype).reshape(shape, order="F" if order == "F" else "C").copy()


class _PendingArray:
    """What numpy's `_reconstruct` makes before its content arrives."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, fortran, data = state
        self.array = _array(data, dtype, shape, "F" if fortran else "C")


def _reconstruct(*_: object) -> _PendingArray:
    return _PendingArray()


def _scalar(dtype: _Dtype, data: object) -> object:
    return _array(data, dtype, (1,), "C")[0]


def _encode(text: str, encoding: str) -> bytes:
    """Bytes in protocol 2 as Python 3 writes them."""
    if encoding not in ("latin1", "latin-1"):
        raise _Refused(f"_codecs.encode to {encoding}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Empty bytes in protocol 2, a call without arguments."""
    return b""


def _storage(data: bytes) -> object:
    return torch.load(io.BytesIO(data), weights_only=True)


_ADMITTED: dict[tuple[str, str], object] = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch.storage", "_load_from_bytes"): _storage,
    **{(module, name): kind for module in ("builtins", "__builtin__") for name, kind in (
        ("set", set), ("frozenset", frozenset), ("complex", complex), ("bytes", _no_bytes))},
    **{(f"numpy.{core}.{module}", name): function for core in ("core", "_core") for module, name, function in (
        ("multiarray", "_reconstruct", _reconstruct),
        ("multiarray", "scalar", _scalar),
        ("numeric", "_frombuffer", _array))},
}  # fmt: skip


class _RestrictedUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in _ADMITTED:
            raise _Refused(f"{module}.{name}")
        return _ADMITTED[module, name]


def _finished(value: object) -> object:
    """The value with its pending arrays put in their places."""
    if isinstance(value, _PendingArray):
        return value.array
    if isinstance(value, dict):
        for key in value:
            value[key] = _finished(value[key])
    elif isinstance(value, list):
        value[:] = map(_finished, value)
    elif isinstance(value, tuple):
        return tuple(map(_finished, value))
    return value


def load_restricted(path: Path | str, encoding: str = "ASCII") -> object:
    """The content of a pickle file that holds nothing but data.

    Args:
        path: the file.
        encoding: of Python 2 strings, as in `pickle.load`; "latin1" for CIFAR.

    Returns:
        Arrays (no object dtype), torch tensors, dict, OrderedDict, list, tuple, set, str, bytes, numbers, None.

    Raises:
        DataError: the file names anything else (the name is said, nothing was executed), or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return _finished(_RestrictedUnpickler(file, encoding=encoding).load())
    except _Refused as refused:
        raise DataError(
            f"{path} is a pickle that holds {refused}, and only arrays, tensors and plain containers are read; "
            "nothing was executed. Get the data from their original source, or store them as .npz."
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    except _BROKEN as error:
        raise DataError(f"{path} is damaged or no pickle of plain data ({error}); get the file again.") from error
