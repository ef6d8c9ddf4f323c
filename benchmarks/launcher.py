"""What a job of `launcher=local` costs beside the task alone: a sweep of short jobs, and the same command without it.

python -m benchmarks.launcher [jobs]

The task alone is what the run's own clock says, from the first entry of its status to the last; the command is the
console command in a process of its own. Seconds of the processor count all processes of a side, whatever else the
machine does meanwhile.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import machine, spread

TASK = (
    *("data=bit_flipping", "task_shift_mode=bit_flipping", "num_tasks=1", "epochs=1", "selection=last"),
    *("analysis=[]", "use_wandb=false", "figures=false", "device=cpu", "threads=1"),
)
COMMANDS = 5
"""The sweep is given in so many parts, and after each of them the command alone."""


def processor_seconds() -> float:
    """Of all processes that we started and that have ended, with theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def clocked(folder: Path, *arguments: str) -> tuple[float, float]:
    """Seconds on the wall and of the processor that `plastiscope <arguments>` takes."""
    command = [str(Path(sys.executable).with_name("plastiscope")), *arguments, *TASK]
    began, used = time.perf_counter(), processor_seconds()
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began, processor_seconds() - used


def seconds_alone(folders: Sequence[Path]) -> list[float]:
    """From the beginning to the end of each run, as its own status says."""
    states = [json.loads((folder / "status.json").read_text()) for folder in folders]
    assert {state["state"] for state in states} == {"done"}
    return [state["updated"] - state["started"] for state in states]


def main(jobs: int = 100) -> None:
    print(f"A job of launcher=local, {jobs} jobs, {len(os.sched_getaffinity(0))} at once\n{machine()}")
    sweep, commands = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts = range(0, jobs, max(1, jobs // COMMANDS))
        for first in parts:
            seeds = ",".join(map(str, range(first, min(jobs, first + parts.step))))
            sweep.append(clocked(folder, "launcher=local", f"seed={seeds}"))
            commands.append(clocked(folder, f"hydra.run.dir={folder}/alone_{first}"))
        runs = [path.parent for path in folder.rglob("sweep/*/status.json")]
        assert len(runs) == jobs
        task = statistics.median(seconds_alone(runs))
    wall, used = (sum(values) / jobs for values in zip(*sweep, strict=True))
    command_wall, command_used = ([values[i] for values in commands] for i in (0, 1))
    print(f"a job of the sweep        wall {wall:.2f}   processor {used:.2f}")
    print(f"the command alone         wall {spread(command_wall, 2)}   processor {spread(command_used, 2)}")
    print(f"the task alone            wall {task:.2f} (median of the jobs, which share the machine)")
    print(f"more than the task        wall {wall - task:.2f}   (wanted: 5 or less)")
    more = used - statistics.median(command_used)
    print(f"more than the command     wall {wall - statistics.median(command_wall):.2f}   processor {more:.2f}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
