"""The one place that imports torchvision.

torchvision's wheel is a CUDA build: beside a CPU torch its native library does not load and `import torchvision` stops
with "operator torchvision::nms does not exist", because it registers shapes for two operators that only the library
declares. Declaring those two schemas first cures it: data sets, transforms and models are plain Python.
"""

import functools
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType

import torch

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_declared: list[torch.library.Library] = []  # a Library takes its schemas back when it is collected


def _native_library_loads() -> bool:
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("torchvision is not installed", name="torchvision")
    for library in Path(spec.origin).parent.glob("_C.*"):
        try:
            torch.ops.load_library(str(library))
        except OSError:
            continue
        return True
    return False


@functools.cache
def vision() -> ModuleType:
    """The torchvision package, with `datasets`, `transforms` and `models`; loaded at the first call."""
    if not _native_library_loads():
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(name + _NMS)
        _declared.append(library)
    with warnings.catch_warnings():
        # the image codecs do not load either; images are read through PIL
        warnings.filterwarnings("ignore", message="Failed to load image Python extension")
        import torchvision
    return torchvision
