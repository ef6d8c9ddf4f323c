"""Files by what they hold, not by how they are called: npy, npz, torch files and pickles of plain data.

Published per-sample files carry any suffix: npz archives under `.npy` and `.pt`, torch files under `.npy`. Nothing that
a file names is executed: object arrays are refused, torch files are read by `weights_only`, pickles by the restricted
unpickler.
"""

import pickle
import re
import zipfile
import zlib
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.data.restricted_pickle import load_restricted
from plastiscope.error import DataError
from plastiscope.run.storage import write_by

_LEGACY_TORCH = 0x1950A86A20F9469CFC6C
"""What a torch file from before the zip format begins with, as a pickled number."""
_DAMAGED = (
    ValueError,
    EOFError,
    OSError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    RuntimeError,
    MemoryError,
    TypeError,
)


class Kind(Enum):
    """What a file is, by its first bytes and, for archives, by what is in them."""

    npy = "a NumPy array"
    npz = "an archive of NumPy arrays"
    torch = "a torch file"
    other = "anything else, such as a pickle"


def kind_of(path: Path) -> Kind:
    """What `path` is: PK begins an archive (npz or torch), 93 NUMPY an array, anything else may be a pickle.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            start = file.read(6)
        if start == b"\x93NUMPY":
            return Kind.npy
        if not start.startswith(b"PK"):
            return Kind.other
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except FileNotFoundError:
        raise DataError(f"There is no file {path}.") from None
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read ({error}); get the file again.") from None
    return Kind.torch if any(name.endswith("/data.pkl") for name in names) else Kind.npz


def read_content(path: Path) -> Any:
    """What the file holds: an array (npy), arrays by name (npz), or tensors and plain containers (torch, pickle).

    Raises:
        DataError: missing, damaged, an array of Python objects, or a file that names anything but data.
    """
    kind = kind_of(path)
    if kind is Kind.torch:
        return _torch_file(path)
    if kind is Kind.other:
        found = load_restricted(path)
        return _torch_file(path) if isinstance(found, int) and found == _LEGACY_TORCH else found
    try:
        opened = np.load(path, allow_pickle=False)
        if isinstance(opened, np.ndarray):
            return opened
        with opened:
            return {name: opened[name] for name in opened.files}
    except _DAMAGED as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{path} holds Python objects (dtype object), which are not read because reading them could execute "
                "code; store plain arrays."
            ) from None
        raise DataError(f"{path} is damaged ({error}); get the file again.") from None


def _torch_file(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        raise DataError(
            f"{path} is a torch file that holds {name[1] if name else 'more than data'}, and only tensors and plain "
            "containers are read; nothing was executed. Store the tensors alone."
        ) from None
    except _DAMAGED as error:
        raise DataError(f"{path} is a damaged torch file ({error}); get it again.") from None


def read_array(path: Path, key: str = "data") -> npt.NDArray[Any]:
    """The one array of a file, whatever its suffix.

    Args:
        path: a npy, an npz, a torch file or a pickle with one array or tensor.
        key: name of the array where there are several.

    Raises:
        DataError: as `read_content`, or the file holds no such array.
    """
    found = read_content(path)
    if isinstance(found, dict):
        if key not in found and len(found) != 1:
            raise DataError(f"{path} holds {', '.join(map(str, found)) or 'nothing'}, and no array `{key}`.")
        found = found[key] if key in found else next(iter(found.values()))
    if isinstance(found, torch.Tensor):
        found = found.detach().numpy()
    if isinstance(found, list) and all(isinstance(value, int | float) for value in found):
        found = np.array(found)
    if not isinstance(found, np.ndarray):
        raise DataError(f"{path} holds a {type(found).__name__}, and an array is needed.")
    return found


def read_vector(path: Path, length: int | None = None, key: str = "data") -> npt.NDArray[Any]:
    """A one-dimensional array of numbers; a single column or row counts as one.

    Args:
        path: as `read_array`.
        length: how long it must be.
        key: as `read_array`.

    Raises:
        DataError: as `read_array`, or another shape, length, or no numbers.
    """
    array = read_array(path, key)
    if array.dtype.kind not in "fiub":
        raise DataError(f"{path} holds {array.dtype}, and numbers are needed.")
    if array.ndim == 2 and 1 in array.shape:
        array = array.reshape(-1)
    if array.ndim != 1:
        raise DataError(f"{path} has shape {list(array.shape)}, and one number a sample is needed.")
    if length is not None and len(array) != length:
        raise DataError(f"{path} has {len(array)} values, and there are {length} samples.")
    return array


def write_array(path: Path, array: npt.ArrayLike) -> None:
    """Write an array as npy, atomically, whatever the suffix of `path`."""
    write_by(path, lambda file: np.save(file, np.asarray(array), allow_pickle=False))


def check_ids(ids: npt.NDArray[Any], path: Path) -> npt.NDArray[np.int64]:
    """Sample ids int64 [n]; numbers such as 1234.0 are taken as 1234.

    Raises:
        DataError: an id that is no integer, or twice the same (as a padded distributed sampler leaves them).
    """
    whole = ids.astype(np.int64) if ids.dtype.kind in "iuf" and np.isfinite(ids).all() else None
    if whole is None or not (whole == ids).all():
        raise DataError(f"{path} holds sample ids that are no integers.")
    unique, counts = np.unique(whole, return_counts=True)
    if len(unique) < len(whole):
        raise DataError(
            f"{path} holds sample id {unique[counts.argmax()]} {counts.max()} times; a padded distributed sampler does "
            "that: keep one row of each sample."
        )
    return whole


def whole_number(text: str) -> int | None:
    """An integer as file names have it, such as 7, 0007 or 7.0; None if it is none."""
    number = decimal_number(text)
    return int(number) if number is not None and number == int(number) else None


def decimal_number(text: str) -> float | None:
    """A finite number as file names have it: 0.1, 0.10 and 1e-1 are the same; None if it is none."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if np.isfinite(number) else None
