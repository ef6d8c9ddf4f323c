"""Several processes that share out work: who we are, the parts of a piece of work, and their one merge.

The unit of sharing is a part, fixed by the work alone: whatever the number of processes, a part is computed by one
call with the same arguments, so the merged result has the same bytes. Process r of w takes the parts r, r + w, ...
Nothing is padded, nothing is sent between processes but through files: each finished part is written whole, so what
a killed process had done stays, and the next start computes only what is missing.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt

from plastiscope.error import RunError
from plastiscope.run.storage import write_by

Part = dict[str, npt.NDArray]
"""Arrays by name."""


@dataclass(frozen=True)
class Processes:
    """This process among those that work together; alone by default."""

    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes what only one may write."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world > 1:
            import torch.distributed

            torch.distributed.barrier()


def join_processes(environment: Mapping[str, str] = os.environ) -> Processes:
    """The processes that torchrun or srun started, connected by gloo; alone without them.

    Raises:
        RunError: they do not find each other.
    """
    rank = environment.get("RANK", environment.get("SLURM_PROCID", "0"))
    world = int(environment.get("WORLD_SIZE", environment.get("SLURM_NTASKS", "1")))
    if world == 1:
        return Processes()
    import torch.distributed

    if not torch.distributed.is_initialized():
        address = environment.get("MASTER_ADDR", environment.get("SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))
        port = environment.get("MASTER_PORT", str(20_000 + int(environment.get("SLURM_JOB_ID", "0")) % 20_000))
        try:
            torch.distributed.init_process_group(
                "gloo",
                init_method=f"tcp://{address}:{port}",
                rank=int(rank),
                world_size=world,
                timeout=timedelta(hours=12),
            )
        except (RuntimeError, ValueError) as error:
            raise RunError(
                f"process {rank} of {world} does not find the others at {address}:{port} ({error})"
            ) from None
    return Processes(int(rank), world)


def share_out(folder: Path, parts: int, compute: Callable[[int], Part], processes: Processes) -> list[Part]:
    """Compute the parts 0 .. parts - 1 together.

    Args:
        folder: for finished parts, while some are missing; deleted when every process has read all of them.
        parts: how many; must follow from the work alone, not from the number of processes.
        compute: the arrays of one part.
        processes: who shares the work.

    Returns:
        All parts in order, in every process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"part_{i:05d}_of_{parts:05d}.npz" for i in range(parts)]
    for i in range(processes.rank, parts, processes.world):
        if not paths[i].exists():
            part = compute(i)
            write_by(paths[i], lambda file, part=part: np.savez(file, **part))  # type: ignore[misc]
    processes.barrier()
    merged = [_read(path) for path in paths]
    processes.barrier()
    if processes.is_first:
        shutil.rmtree(folder)
    return merged


def _read(path: Path) -> Part:
    try:
        with np.load(path, allow_pickle=False) as part:
            return dict(part)
    except (OSError, ValueError) as error:
        raise RunError(
            f"{path} cannot be read ({error}); delete it and start again: only this part is redone"
        ) from None
