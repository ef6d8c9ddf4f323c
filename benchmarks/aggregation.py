"""Per-sample values of large runs: memory and seconds to aggregate them, bytes on the disk, and cost of writing a row.

python -m benchmarks.aggregation

One task of 1,281,167 samples and 20 epochs with loss and gradient norm (205 MB); 1,000 tasks of 250 epochs and 1,200
samples with one metric (1.2 GB, the shape of continual ImageNet). Each is measured in a process of its own; memory is
anonymous memory (RssAnon) above what the process has after its imports: pages of the mapped files are not part of it,
for the system takes them back when it needs them.
"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.timing import fresh_process, machine, spread
from plastiscope.analysis.aggregation import csl_and_learning_time, table
from plastiscope.run.sample_store import SampleLabels, SampleStore

SAMPLES, EPOCHS = 1_281_167, 20
TASKS, TASK_EPOCHS, TASK_SAMPLES, ALL_SAMPLES = 1_000, 250, 1_200, 600_000
SMALL_SAMPLES, SMALL_EPOCHS = 1_797, 300
MB = 1e6


def anonymous_bytes() -> int:
    """RssAnon of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Peak:
    """Largest anonymous memory while inside, looked at every two milliseconds, above that at the start."""

    def __enter__(self) -> "Peak":
        self.before, self.bytes, self._is_over = anonymous_bytes(), 0, threading.Event()
        self._watch = threading.Thread(target=self._look)
        self._watch.start()
        return self

    def _look(self) -> None:
        while not self._is_over.wait(0.002):
            self.bytes = max(self.bytes, anonymous_bytes() - self.before)

    def __exit__(self, *error: object) -> None:
        self._is_over.set()
        self._watch.join()
        self.bytes = max(self.bytes, anonymous_bytes() - self.before)


def make_block(store: SampleStore, task: int, ids: np.ndarray, epochs: range, metrics: tuple[str, ...]) -> None:
    n = len(ids)
    about = SampleLabels(
        ids=ids, labels=ids % 1000, labels_trained=ids % 1000,
        split=np.zeros(n, np.uint8), entry_task=np.full(n, task, np.int16),
    )  # fmt: skip
    rng = np.random.default_rng(task)
    block = store.open(task, about, epochs)
    for epoch in epochs:
        for metric in metrics:
            block.write(metric, epoch, rng.random(n, np.float32))
    store.close()


def make_one_task(folder: Path, samples: int, epochs: int) -> SampleStore:
    store = SampleStore(folder)
    make_block(store, 0, np.arange(samples), range(1, epochs + 1), ("loss", "grad_input_l2"))
    return SampleStore(folder)


def make_tasks(folder: Path, tasks: int, epochs: int, samples: int, all_samples: int) -> SampleStore:
    """Each task has some samples of the whole set, as binary tasks of ImageNet do."""
    store, rng = SampleStore(folder), np.random.default_rng(0)
    for k in range(tasks):
        ids = np.sort(rng.choice(all_samples, samples, replace=False)) % 10**9
        make_block(store, k, ids, range(k * epochs + 1, (k + 1) * epochs + 1), ("loss",))
    return SampleStore(folder)


def bytes_on_disk(folder: Path) -> int:
    """Space the files take in whole disk blocks, folders included."""
    return sum(path.stat().st_blocks * 512 for path in [folder, *folder.rglob("*")])


def size_of_files(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measured(call: Callable[[SampleStore], dict[str, np.ndarray]], folder: str) -> dict[str, float]:
    with Peak() as peak:
        began = time.perf_counter()
        columns = call(SampleStore(Path(folder)))
        seconds = time.perf_counter() - began
    result = sum(values.nbytes for values in columns.values())
    return {"seconds": seconds, "peak_mb": peak.bytes / MB, "result_mb": result / MB, "columns": len(columns)}


CALLS: dict[str, Callable[[SampleStore], dict[str, np.ndarray]]] = {"lean": csl_and_learning_time, "table": table}


def write_cost() -> list[float]:
    """Milliseconds of writing one row of a small task, four metrics."""
    times = []
    with tempfile.TemporaryDirectory() as name:
        store, values = SampleStore(Path(name) / "samples"), np.ones(SMALL_SAMPLES, np.float32)
        ids = np.arange(SMALL_SAMPLES)
        about = SampleLabels(ids=ids, labels=ids, labels_trained=ids, split=ids % 1, entry_task=ids % 1)
        for epoch in range(1, SMALL_EPOCHS + 1):
            began = time.perf_counter()
            block = store.open(0, about, range(1, SMALL_EPOCHS + 1))
            for metric in ("loss", "correct", "margin", "grad_input_l2"):
                block.write(metric, epoch, values)
            times.append(1e3 * (time.perf_counter() - began))
        store.close()
    return times[1:]


def report(name: str, folder: Path, wanted: str = "") -> None:
    found = fresh_process("aggregation", name, str(folder))
    print(
        f"{name:8} {found['columns']:.0f} columns, {found['result_mb']:.0f} MB: {found['seconds']:6.1f} s, "
        f"{found['peak_mb']:6.1f} MB above the idle process{wanted}"
    )


def main() -> None:
    print(f"Per-sample stores\n{machine()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "samples"
        make_one_task(folder, SAMPLES, EPOCHS)
        print(f"{SAMPLES:,} samples x {EPOCHS} epochs, loss and gradient norm, {size_of_files(folder) / MB:.0f} MB")
        report("lean", folder, "   (wanted: 150 or less)")
        report("table", folder)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "samples"
        make_tasks(folder, TASKS, TASK_EPOCHS, TASK_SAMPLES, ALL_SAMPLES)
        useful = 4 * TASKS * TASK_EPOCHS * TASK_SAMPLES
        print(
            f"{TASKS:,} tasks x {TASK_EPOCHS} epochs x {TASK_SAMPLES:,} samples, loss, {useful / MB:.0f} MB of values"
        )
        sizes = (size_of_files(folder), bytes_on_disk(folder))
        print("bytes over useful bytes: {:.4f} in files, {:.4f} in disk blocks   (wanted: 1.05 or less)".format(
            *(size / useful for size in sizes)))  # fmt: skip
        report("lean", folder)
        report("table", folder)
    print(f"a row of four metrics, {SMALL_SAMPLES:,} samples: {spread(write_cost())} ms")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measured(CALLS[sys.argv[1]], sys.argv[2])))
    else:
        main()
