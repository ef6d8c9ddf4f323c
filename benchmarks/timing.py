"""What every benchmark shares: turns, quartiles, fresh processes, and one line about the machine."""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import torch


def seconds(call: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    began = clock()
    call()
    return clock() - began


def in_turns(
    sides: Sequence[Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Seconds of each side in each round; the sides take turns, and who comes first changes with every round.

    The clock of the process, `time.process_time`, leaves out what others on the machine take.
    """
    times: list[list[float]] = [[] for _ in sides]
    for i in range(-warm_up, rounds):
        for j in sorted(range(len(sides)), reverse=bool(i % 2)):
            taken = seconds(sides[j], clock)
            if i >= 0:
                times[j].append(taken)
    return times


@contextmanager
def clocked(owner: type, method: str) -> Iterator[list[float]]:
    """Seconds of each call of a method, while inside."""
    original, times = getattr(owner, method), []

    def timed(*arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        try:
            return original(*arguments, **named)
        finally:
            times.append(time.perf_counter() - began)

    setattr(owner, method, timed)
    try:
        yield times
    finally:
        setattr(owner, method, original)


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Median [lower quartile, upper quartile]."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Ratio of each pair, so that what slows both sides of a pair falls out."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)]


def fresh_process(module: str, *arguments: str) -> dict[str, float]:
    """What `python -m benchmarks.<module> <arguments>` prints as JSON in a process of its own, with one thread."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found: dict[str, float] = json.loads(subprocess.check_output(command, env=environment, text=True).splitlines()[-1])
    return found


def machine() -> str:
    """Machine, date and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    model = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.processor())
    return (
        f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, load {os.getloadavg()[0]:.1f}; "
        f"{date.today()}; Python {platform.python_version()}, torch {torch.__version__}"
    )
