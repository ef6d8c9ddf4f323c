"""Memory: what is free, what a graph keeps, and what a look does with less of it."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

SHARE = 0.5
"""Of the free memory, what kept graphs, or the basis of a Lanczos process, may take."""
_NO_ROOM = ("DefaultCPUAllocator", "out of memory")
"""In the text of what torch raises: on a CPU it is a plain RuntimeError."""


@dataclass(eq=False)
class Adaptation:
    """What was changed for lack of memory; one for all copies of a frozen loss.

    Attributes:
        largest: samples in a micro-batch at most; None while none has failed.
        notes: what was changed, in words.
    """

    largest: int | None = None
    notes: list[str] = field(default_factory=list)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is what torch raises where memory ends."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _NO_ROOM)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device: free, or held by torch's allocator and unused.

    On a CPU what the machine has available, or what is left of this control group's limit if that is less.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return min(_of_machine(), _of_group())


def budget(device: torch.device, memory: int | None = None, sharing: int = 1) -> int:
    """Bytes that may be taken: `memory`, or by default a share of what is free.

    Args:
        device: whose memory.
        memory: what is allowed; None = a share.
        sharing: processes that take from the same memory at the same time, each an equal part.
    """
    return int(SHARE * free_memory(device) / sharing) if memory is None else memory


def gigabytes(size: float) -> str:
    """Such as "4.5 GB"."""
    return f"{size / 1e9:.3g} GB"


def graph_bytes(make: Callable[[], Sequence[Tensor]], apart: Iterable[Tensor]) -> int:
    """Bytes that the tensors which `make` returns keep, with their graph.

    On a GPU it is what the allocator gave. On a CPU it is their own storages and those that were saved for backward
    passes, each once; without `apart`, which is there anyway: parameters, buffers, inputs.
    """
    apart = list(apart)
    if apart[0].is_cuda:
        before = torch.cuda.memory_allocated(apart[0].device)
        kept = make()
        taken = torch.cuda.memory_allocated(apart[0].device) - before
        del kept
        return taken
    sizes: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        kept = make()
    for tensor in kept:
        note(tensor)
    for tensor in apart:
        sizes.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(sizes.values())


def _of_machine() -> int:
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _of_group(root: Path = Path("/sys/fs/cgroup")) -> int:
    """What is left of the limit of the control group (version 2, then 1); very much without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            return max(int((root / limit).read_text()) - int((root / used).read_text()), 0)
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return 2**62
