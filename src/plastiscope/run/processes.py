"""Several processes that share out work: who we are, the parts of a piece of work, and their one merge.

The unit of sharing is a part, fixed by the work alone: whatever the number of processes, a part is computed by one
call with the same arguments, so the merged result has the same bytes. Process r of w takes the parts r, r + w, ...
Nothing is padded, no value is sent between processes but through files: each finished part is written whole, so what
a killed process had done stays, and the next start computes only what is missing. In training the first process tells
the others which weights to look at.
"""

import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import TYPE_CHECKING, Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from plastiscope.error import RunError
from plastiscope.run.roster import Roster, news
from plastiscope.run.storage import write_by

if TYPE_CHECKING:
    from torch import Tensor
    from torch import device as Device

Part = dict[str, npt.NDArray]
"""Arrays by name."""

TO_MEET = timedelta(minutes=10)
"""How long a process waits for the others to start."""
TO_WAIT = timedelta(days=14)
"""How long it waits for others that live and train; those that die are noticed at once, by their closed socket."""
T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; alone by default.

    Attributes:
        rank, world: which process of how many.
        is_ahead: it computes all parts of a piece of work by itself, waits for nobody and leaves the parts where they
            are: for those who will want them later.
        works_apart: what is shared out are whole pieces, each computed ahead by one process, which then has all data.
        here: processes on this machine, which share its memory; with this one.
        on_gpu: those of them that see the same GPUs.
        roster: who is there, once they have a folder in common.
    """

    rank: int = 0
    world: int = 1
    is_ahead: bool = False
    works_apart: bool = False
    here: int = 1
    on_gpu: int = 1
    roster: Roster | None = None

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0 and not self.is_ahead

    def barrier(self) -> None:
        """Wait until every process is here.

        Raises:
            RunError: one of them has stopped.
        """
        if self.world == 1 or self.is_ahead:
            return
        import torch.distributed

        with self._told_of_the_others():
            torch.distributed.barrier()

    def sum(self, tensor: "Tensor") -> "Tensor":
        """The sum of a tensor over all processes, the same bits on each; all of them call this.

        Raises:
            RunError: one of them has stopped.
        """
        if self.world == 1 or self.is_ahead:
            return tensor
        import torch.distributed

        found = tensor.detach().cpu().clone()
        with self._told_of_the_others():
            torch.distributed.all_reduce(found)
        return found.to(tensor.device)

    def least(self, value: float) -> float:
        """The smallest of the processes' values; all of them call this.

        Raises:
            RunError: one of them has stopped.
        """
        if self.world == 1 or self.is_ahead:
            return value
        import torch

        found = torch.tensor([value], dtype=torch.float64)
        with self._told_of_the_others():
            torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MIN)
        return found.item()

    def tell(self, message: Any) -> None:
        """Send the others what they wait for in `hear`; the first process does.

        Raises:
            RunError: one of them has stopped.
        """
        self._broadcast([message])

    def hear(self) -> Any:
        """What the first process tells; the others wait for it here.

        Raises:
            RunError: one of them has stopped.
        """
        return self._broadcast([None])

    def agreed(self, value: T) -> T:
        """The first process's value, in all of them; alone, one's own."""
        return value if self.world == 1 else self._broadcast([value])

    def release(self) -> None:
        """Tell the others that there is no more to do."""
        if self.world > 1:
            self.tell(None)

    @property
    def missing(self) -> str:
        """The processes that have gone, in words."""
        return self.roster.missing if self.roster else ""

    def watched(self) -> AbstractContextManager[None]:
        """Inside, this process gets SIGUSR2 when one of the others has gone."""
        return self.roster.watched(signal.SIGUSR2) if self.roster else nullcontext()

    def lost(self) -> RunError:
        """What to raise when one of the others has gone."""
        return RunError(news(self.rank, self.world, self.roster.ask() if self.roster else ""))

    def _broadcast(self, box: list[Any]) -> Any:
        import torch.distributed

        with self._told_of_the_others():
            torch.distributed.broadcast_object_list(box)
        return box[0]

    def sharing(self, device: "Device") -> int:
        """How many processes share the memory of a device with each other; 1 = this one has it to itself."""
        return self.on_gpu if device.type == "cuda" else self.here

    @contextmanager
    def _told_of_the_others(self) -> Iterator[None]:
        """Around what waits for other processes."""
        try:
            yield
        except RuntimeError:
            raise self.lost() from None


def join_processes(environment: Mapping[str, str] = os.environ) -> Processes:
    """The processes that torchrun or srun started, connected by gloo; alone without them.

    Raises:
        RunError: they do not find each other.
    """
    found = _place(environment)
    if found is None:
        return Processes()
    rank, world, address, port = found
    import torch.distributed

    if not torch.distributed.is_initialized():
        try:
            url = f"tcp://{address}:{port}"
            store, _, _ = next(torch.distributed.rendezvous(url, rank, world, timeout=TO_MEET))
            torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=TO_WAIT)
        except (RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise RunError(
                f"process {rank} of {world} does not find the others at {address}:{port} ({reason}); "
                "were all of them started, and is the port free?"
            ) from None
    here, on_gpu = _neighbours(world)
    return Processes(rank, world, here=here, on_gpu=on_gpu)


def _neighbours(world: int) -> tuple[int, int]:
    """Processes on this machine, and those of them that see the same GPUs."""
    import torch.distributed

    own = gethostname(), os.environ.get("CUDA_VISIBLE_DEVICES", "")
    places: list[tuple[str, str]] = [("", "")] * world
    torch.distributed.all_gather_object(places, own)
    return sum(host == own[0] for host, _ in places), places.count(own)


def is_first_process(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is the one of its processes that speaks, whether they have joined yet or not."""
    found = _place(environment)
    return found is None or found[0] == 0


def leave_processes() -> None:
    """Close the connections that `join_processes` opened."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _place(environment: Mapping[str, str]) -> tuple[int, int, str, int] | None:
    """Rank, number of processes, address and port of the first one; None for a process on its own.

    Of SLURM only what srun itself sets counts: in a batch script SLURM_NTASKS speaks of processes that srun may start.
    """
    if int(environment.get("WORLD_SIZE", "1")) > 1 and "RANK" in environment:
        address, port = environment.get("MASTER_ADDR", "127.0.0.1"), int(environment.get("MASTER_PORT", "29500"))
        return int(environment["RANK"]), int(environment["WORLD_SIZE"]), address, port
    if int(environment.get("SLURM_STEP_NUM_TASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        one_node = environment.get("SLURM_STEP_NUM_NODES", "1") == "1"
        address = "127.0.0.1" if one_node else first_host(environment.get("SLURM_STEP_NODELIST", ""))
        job, step = (int(environment.get(f"SLURM_{name}", "0")) for name in ("JOB_ID", "STEP_ID"))
        port = int(environment.get("MASTER_PORT", 20_000 + (31 * job + step) % 20_000))
        address = environment.get("MASTER_ADDR", address)
        return int(environment["SLURM_PROCID"]), int(environment["SLURM_STEP_NUM_TASKS"]), address, port
    return None


def first_host(hosts: str) -> str:
    """The first of SLURM's list of hosts, such as "gpu003" of "gpu[003-005,9],login1"."""
    name, numbers = re.match(r"([^,\[]*)(?:\[([0-9]+))?", hosts).groups(default="")  # type: ignore[union-attr]
    return f"{name}{numbers}"


def share_out(
    folder: Path,
    parts: int,
    compute: Callable[[int], Part],
    processes: Processes,
    *,
    keep: bool = False,
    together: bool = False,
) -> list[Part]:
    """Compute the parts 0 .. parts - 1 together.

    Args:
        folder: for finished parts, while some are missing; deleted when every process has read all of them.
        parts: how many; must follow from the work alone, not from the number of processes.
        compute: the arrays of one part.
        processes: who shares the work.
        keep: leave the finished parts where they are, for a work of several pieces that is cleared as a whole.
        together: each part is computed by all processes at once, because each holds only some of the data: `compute`
            gives the same arrays in all of them, and the first one writes.

    Returns:
        All parts in order, in every process.

    Raises:
        RunError: a part cannot be read, or another process has stopped.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part_{i:05d}_of_{parts:05d}.npz" for i in range(parts)]
    for i in _missing_everywhere(paths, processes) if together else _missing_of(paths, processes):
        part = compute(i)
        if processes.is_first or not together:
            write_by(paths[i], lambda file, part=part: np.savez(file, **part))  # type: ignore[misc]
    processes.barrier()
    merged = [_read(path) for path in paths]
    processes.barrier()
    if processes.is_first and not keep:
        shutil.rmtree(folder)
    return merged


def _missing_of(paths: list[Path], processes: Processes) -> Iterator[int]:
    """Parts of this process that are not there when their turn comes."""
    chosen = range(len(paths)) if processes.is_ahead else range(processes.rank, len(paths), processes.world)
    return (i for i in chosen if not paths[i].exists())


def _missing_everywhere(paths: list[Path], processes: Processes) -> list[int]:
    """Parts that are not there as the first process sees it: a shared disk may tell others later."""
    import torch

    seen = [processes.is_first and not path.exists() for path in paths]
    return torch.nonzero(processes.sum(torch.tensor(seen, dtype=torch.int64))).flatten().tolist()


def _read(path: Path) -> Part:
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as part:
            return dict(part)
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise RunError(
            f"{path} cannot be read ({error}); delete it and start again: only this part is redone"
        ) from None
