"""Training steps with and without `keep_freed_pages`, each in fresh processes: glibc's default is a matter of luck.

python -m benchmarks.allocator

Where large blocks land differs from process to process, so the figure is a distribution over processes. The arms take
turns. The clock is that of the process (user and system, one thread), so that others on the machine count less.
"""

import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from benchmarks.timing import fresh_process, machine, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp

PROCESSES = 12
CASES = {  # name: (network, shape of an input, outputs, batch, steps)
    "convnet": (ConvNet(), (3, 32, 32), 2, 100, 60),
    "mlp": (Mlp(widths=[2000, 2000, 2000]), (784,), 10, 1, 150),
}


def peak_memory() -> float:
    """Peak resident MB of this process; `ru_maxrss` would start at that of the parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def child(name: str, keep: bool) -> dict[str, float]:
    """Of this process, after warming up: median seconds of a step, page faults a step, and peak MB."""
    torch.set_num_threads(1)
    if keep:
        assert keep_freed_pages()
    config, shape, outputs, batch, steps = CASES[name]
    net = config.make(shape, outputs)
    if getattr(net, "prefers_channels_last", False):
        net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=True)
    inputs, targets = torch.randn(20 * batch, *shape), torch.randint(outputs, (20 * batch,))

    def step() -> None:
        rows = torch.randint(len(inputs), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(net(inputs[rows]), targets[rows]).backward()
        optimizer.step()

    for _ in range(steps // 5):
        step()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    times = []
    for _ in range(steps):
        began = time.process_time()
        step()
        times.append(time.process_time() - began)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
    return {"step": statistics.median(times), "peak": peak_memory(), "faults": faults / steps}


def main() -> None:
    print(f"Freed pages kept or given back: medians of fresh processes [quartiles]\n{machine()}")
    for name, (_, _, _, batch, _) in CASES.items():
        found: dict[str, list[dict[str, float]]] = {"kept": [], "given back": []}
        for _ in range(PROCESSES):
            for arm in found:
                found[arm].append(fresh_process("allocator", name, arm))
        best = statistics.median(process["step"] for process in found["kept"])
        print(f"{name}, batch {batch}, {PROCESSES} processes an arm; each: its time over the median of kept")
        for arm, processes in found.items():
            step, faults, peak = ([process[key] for process in processes] for key in ("step", "faults", "peak"))
            each = " ".join(f"{seconds / best:.2f}" for seconds in sorted(step))
            shown = f"{spread([1e3 * s for s in step], 1)} ms, {spread(faults, 0)} page faults a step"
            print(f"  {arm:10}  {shown}, peak {statistics.median(peak):.0f} MB; each {each}")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(child(sys.argv[1], sys.argv[2] == "kept")))
    else:
        main()
