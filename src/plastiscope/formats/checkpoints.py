"""Folders of saved weights, of this project and of others, as snapshots: epochs completed -> state dict.

    run                snapshots/epoch_000012.pt                                        this project
    incremental_cifar  model_parameters/index-{i}_epoch-{E}.pt                          Dohare et al. 2024
                       checkpoint_index-{i}_epoch-{E}.pt, checkpoint_original_index-... where none of the above is there
    ordered_cifar      model_parameters/checkpoint_{order}_task-{T}_epoch-{E}.pt        memorization-ordered training
    noisy_cifar        cifar100_resnet18_noisy_idx_{r}_epoch_{E}_noise_{z}.ckpt         noisy-label training

E counts the epochs completed, 0 is the initialisation; in noisy_cifar it counts from zero, so `epoch_0` is after one.
Numbers in names are read as numbers: noise 0.1, 0.10 and 1e-1 are one.
"""

import pickle
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.error import RunError

State = dict[str, Tensor]


class Layout(Enum):
    """How the files of a folder are named."""

    auto = "auto"
    """Whichever the names fit."""
    run = "run"
    incremental_cifar = "incremental_cifar"
    ordered_cifar = "ordered_cifar"
    noisy_cifar = "noisy_cifar"


_NUMBER = r"[0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?"
_STANDARD = re.compile(r"index-(?P<index>\d+)_epoch-(?P<epoch>\d+)\.pt")
_FALLBACKS = tuple(
    re.compile(prefix + r"index-(?P<index>\d+)_epoch-(?P<epoch>\d+)\.pt")
    for prefix in ("checkpoint_", "checkpoint_original_")
)
_NAMES: dict[Layout, tuple[re.Pattern[str], ...]] = {
    Layout.run: (re.compile(r"epoch_(?P<epoch>\d{6,})\.pt"),),
    Layout.incremental_cifar: (_STANDARD, *_FALLBACKS),
    Layout.ordered_cifar: (re.compile(r"checkpoint_(?P<order>\w+)_task-(?P<task>\d+)_epoch-(?P<epoch>\d+)\.pt"),),
    Layout.noisy_cifar: (
        re.compile(rf"cifar100_resnet18_noisy_idx_(?P<run>\d+)_epoch_(?P<epoch>\d+)_noise_(?P<noise>{_NUMBER})\.ckpt"),
    ),
}
_INSIDE = {Layout.run: "snapshots", Layout.incremental_cifar: "model_parameters"}
"""Subfolder that may be left out of the path."""
_WRAPPERS = ("state_dict", "net", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")


@dataclass(frozen=True)
class Wanted:
    """Which of the checkpoints of a folder are meant, where it holds those of several trainings; None = the only one.

    Attributes:
        index: of the published incremental and ordered experiments; None = not asked.
        run, noise: of noisy-label trainings.
        order: of memorization-ordered trainings, such as "low_to_high".
    """

    index: int | None = 0
    run: int | None = None
    noise: float | None = None
    order: str | None = None


@dataclass(frozen=True)
class _File:
    path: Path
    epochs: int
    task: int | None
    about: dict[str, Any]


class CheckpointFolder:
    """Saved weights of one training; `epochs`, `path` and `load` are those of `Snapshots`.

    Attributes:
        folder: where the files lie.
        layout: how they are named.
    """

    def __init__(self, folder: Path, layout: Layout, files: Mapping[int, Sequence[_File]]) -> None:
        """See `find_checkpoints`."""
        self.folder, self.layout, self._files = folder, layout, files
        self._head, self._class_order = "", [0]

    def presented(self, head: str, class_order: Sequence[int]) -> "CheckpointFolder":
        """The same checkpoints, output j standing for the j-th class presented wherever outputs stand for classes.

        Args:
            head: path of the module that gives the outputs.
            class_order: classes in the order of presentation, all or the first ones.
        """
        other = CheckpointFolder(self.folder, self.layout, self._files)
        if self.outputs_are_classes:
            other._head, other._class_order = head, list(class_order)
        return other

    @property
    def class_order_files(self) -> list[Path]:
        """Where published results keep the order of the classes, beside their checkpoints."""
        indices = {file.about["index"] for files in self._files.values() for file in files if "index" in file.about}
        return [self.folder.parent / "class_order" / f"index-{index}.npy" for index in sorted(indices)]

    @property
    def outputs_are_classes(self) -> bool:
        """Whether output c of these networks stands for class c of the data, not for the c-th class presented.

        The published incremental programs read the columns `all_classes[:n]` of the outputs.
        """
        return self.layout in (Layout.incremental_cifar, Layout.ordered_cifar)

    @property
    def about(self) -> dict[str, Any]:
        """What all file names say alike, of `index`, `run`, `noise` and `order`: of which training the weights are."""
        said = [file.about for files in self._files.values() for file in files]
        return {key: value for key, value in said[0].items() if all(other.get(key) == value for other in said)}

    def epochs(self) -> list[int]:
        """All checkpoints there are, ascending, by epochs completed (0 = initialisation)."""
        return sorted(self._files)

    def tasks(self, epochs_completed: int) -> list[int]:
        """Tasks that file names give to these weights, ascending; empty where names say no task."""
        return [file.task for file in self._files.get(epochs_completed, ()) if file.task is not None]

    def path(self, epochs_completed: int) -> Path:
        """File of the weights after so many epochs; of the earliest task, if several files have the epoch.

        Raises:
            RunError: there is none; says which there are.
        """
        if epochs_completed not in self._files:
            there = ", ".join(map(str, self.epochs())) or "none"
            raise RunError(
                f"there is no checkpoint after {epochs_completed} epochs in {self.folder}; there are: {there}"
            )
        return self._files[epochs_completed][0].path

    def load(self, epochs_completed: int) -> State:
        """State dict on the CPU, unwrapped, without `module.` and `_orig_mod.`.

        Raises:
            RunError: there is none, it holds code, or it is no state dict.
        """
        state = read_state(self.path(epochs_completed))
        return by_presentation(state, self._head, self._class_order) if self._head else state


def find_checkpoints(folder: Path, layout: Layout = Layout.auto, wanted: Wanted | None = None) -> CheckpointFolder:
    """The checkpoints in `folder`, or in its model_parameters/ or snapshots/.

    Args:
        folder: of the files, of published results, or of a run.
        layout: how they are named; auto = whichever fits.
        wanted: which training, where the folder holds several.

    Raises:
        RunError: there are none, or those of several layouts or trainings, or two files of one epoch.
    """
    inside = [folder / name for name in dict.fromkeys(_INSIDE.values()) if (folder / name).is_dir()]
    for place in (folder, *inside):
        names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
        fitting = [kind for kind in _NAMES if layout in (Layout.auto, kind) and _matches(kind, names)]
        if len(fitting) > 1:
            kinds = ", ".join(kind.value for kind in fitting)
            raise RunError(f"{place} holds checkpoints of several layouts ({kinds}); choose one by its name")
        if fitting:
            return CheckpointFolder(place, fitting[0], _choose(place, fitting[0], names, wanted or Wanted()))
    what = "that this program knows" if layout is Layout.auto else f"of the layout {layout.value}"
    known = "index-0_epoch-200.pt, checkpoint_low_to_high_task-0_epoch-200.pt, epoch_000200.pt or "
    raise RunError(
        f"{folder} holds no checkpoints {what}; files are named like {known}"
        "cifar100_resnet18_noisy_idx_1_epoch_199_noise_0.1.ckpt"
    )


def read_state(path: Path) -> State:
    """The state dict of a file, on the CPU: unwrapped from a dict that holds it, prefixes of wrappers taken off.

    Raises:
        RunError: the file holds code or other objects (nothing is executed), is damaged, or has no state dict.
    """
    try:
        with warnings.catch_warnings(category=UserWarning, action="ignore"):  # of pickle protocols torch does not write
            content = torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"names {named.group(1)}" if named else "holds more than tensors and plain containers, or is damaged"
        raise RunError(f"{path} is refused: it {what}; save its state_dict() alone, nothing of it was run") from None
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise RunError(f"{path} cannot be read as a checkpoint ({_first_clause(error)})") from None
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    if not isinstance(content, Mapping) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise RunError(f"{path} holds no state dict, neither bare nor under {', '.join(_WRAPPERS)}")
    return _without_prefixes(content)


def fit(net: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load a state dict into the network.

    Args:
        net: of the same architecture.
        state: of the checkpoint.
        source: where it comes from, for the error.

    Raises:
        RunError: it is of another architecture; names the first key that differs, and the net to choose, if known.
    """
    difference = first_difference(net.state_dict(), state)
    if difference:
        other, own = family(state), family(net.state_dict())
        choose = f"; these are the names of net={other}" if other and other != own else ""
        raise RunError(f"{source} is of another network than the config: {difference}{choose}")
    net.load_state_dict(state)


def first_difference(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    """What differs first, in the order of the network's keys; "" when all keys and shapes agree."""
    for key, tensor in own.items():
        if key not in state:
            return f"its first difference is {key}, which is missing"
        if state[key].shape != tensor.shape:
            shapes = f"{tuple(state[key].shape)} where the network has {tuple(tensor.shape)}"
            return f"its first difference is {key} of shape {shapes}"
    unexpected = next((key for key in state if key not in own), None)
    return f"its first difference is {unexpected}, which the network does not have" if unexpected else ""


def family(state: Mapping[str, Tensor]) -> str:
    """The net whose names a state dict has: "resnet18", "resnet18_shortcut", or "" where neither fits."""
    if "layer1.0.conv1.weight" not in state:
        return ""
    if "linear.weight" in state:
        return "resnet18_shortcut"
    return "resnet18" if "fc.weight" in state and "conv1.bias" in state else ""


def by_presentation(state: Mapping[str, Tensor], head: str, class_order: Sequence[int]) -> State:
    """A state dict whose output j stands for the j-th class presented, from one whose output c stands for class c.

    Args:
        state: of the checkpoint.
        head: path of the module that gives the outputs.
        class_order: classes in the order of presentation; those that are not presented come last.
    """
    parts = {key: state[key] for key in (f"{head}.weight", f"{head}.bias") if key in state}
    rows = {key: [*class_order, *sorted(set(range(len(part))) - set(class_order))] for key, part in parts.items()}
    return {**state, **{key: part[rows[key]] for key, part in parts.items()}}


def read_class_order(file: Path) -> list[int]:
    """Classes in the order of presentation.

    Raises:
        RunError: the file is no .npy of distinct whole numbers.
    """
    try:
        order = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read as an order of classes ({str(error).splitlines()[0]})") from None
    order = np.asarray(order).ravel()
    if len(order) == 0 or len(np.unique(order)) != len(order) or not np.array_equal(order, order.astype(np.int64)):
        raise RunError(f"{file} is no order of classes: it must hold distinct whole numbers")
    return order.astype(np.int64).tolist()


def _matches(layout: Layout, names: Sequence[str]) -> bool:
    return any(pattern.fullmatch(name) for pattern in _NAMES[layout] for name in names)


def _choose(folder: Path, layout: Layout, names: Sequence[str], wanted: Wanted) -> dict[int, list[_File]]:
    """The files of the wanted training by epochs completed."""
    found: list[_File] = []
    for pattern in _NAMES[layout]:  # a fallback counts only where the standard names give nothing
        found = found or [_file(folder, layout, match) for match in map(pattern.fullmatch, names) if match]
    for key, read in _ASKED.items():
        found = _only(folder, found, key, read(wanted), layout)
    by_epoch: dict[int, list[_File]] = {}
    for file in sorted(found, key=lambda file: (file.epochs, file.task or 0)):
        same = by_epoch.setdefault(file.epochs, [])
        if any(other.task == file.task for other in same):
            raise RunError(f"{folder} has two files of one epoch: {same[-1].path.name} and {file.path.name}")
        same.append(file)
    return by_epoch


def _file(folder: Path, layout: Layout, match: re.Match[str]) -> _File:
    parts: dict[str, Any] = match.groupdict()
    about = {key: kind(parts[key]) for key, kind in _KINDS.items() if key in parts}
    task = int(parts["task"]) if "task" in parts else None
    epochs = int(parts["epoch"]) + (1 if layout is Layout.noisy_cifar else 0)
    return _File(folder / match.string, epochs, task, about)


_KINDS: dict[str, Callable[[str], Any]] = {"index": int, "run": int, "noise": float, "order": str}
_ASKED: dict[str, Callable[[Wanted], Any]] = {
    "index": lambda wanted: wanted.index,
    "run": lambda wanted: wanted.run,
    "noise": lambda wanted: wanted.noise,
    "order": lambda wanted: wanted.order,
}


def _only(folder: Path, files: list[_File], key: str, wanted: Any, layout: Layout) -> list[_File]:
    """The files whose name says `wanted`; of all, if there is but one value.

    Raises:
        RunError: there is none of it, or there are several to choose from.
    """
    values = sorted({file.about[key] for file in files if key in file.about})
    if not values:
        return files
    there = ", ".join(map(str, values))
    if wanted is None and len(values) > 1:
        raise RunError(f"{folder} holds checkpoints of several trainings; choose one by its {key}: {there}")
    if wanted is not None and wanted not in values:
        raise RunError(f"{folder} has no checkpoints of {key} {wanted} ({layout.value}); there are: {there}")
    return [file for file in files if wanted is None or file.about[key] == wanted]


def _first_clause(error: Exception) -> str:
    """What happened, without torch's advice and its internals."""
    return re.split(r"[.:;,](?:\s|$)|\s\(|\n", str(error).strip(), maxsplit=1)[0] or type(error).__name__


def _without_prefixes(state: Mapping[str, Tensor]) -> State:
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): tensor for key, tensor in state.items()}
    return dict(state)
