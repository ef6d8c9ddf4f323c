"""A program for tests: writes a store and is killed at every place it opens, renames or writes a file, each in turn.

python sample_store_kills.py <folder> writes <folder>/whole without a stop, and <folder>/00001, 00002, ..., each killed
at that event, every third one killed again after it was started anew, and then finished. It prints how many there
were, and fails when a store that was killed shows a row that is not whole, or misses one that a checkpoint vouches for.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plastiscope.run.matrix_file import MatrixFile
from plastiscope.run.sample_store import SampleLabels, SampleStore

EPOCHS, TASKS = 3, 2
SAMPLES = ([7, 3, -2], [3, 8, 9, 4])


def labels(task: int) -> SampleLabels:
    ids = np.array(SAMPLES[task])
    classes, n = np.abs(ids) % 3, len(ids)
    return SampleLabels(
        ids=ids,
        labels=classes,
        labels_trained=classes,
        split=np.zeros(n, np.uint8),
        entry_task=np.full(n, task, np.int16),
    )


def row(metric: str, epoch: int, task: int) -> np.ndarray:
    """What is measured; a pure function."""
    return (len(metric) * epoch + np.array(SAMPLES[task]) / 8).astype(np.float32)


def write(folder: Path) -> None:
    """Go on from the checkpoint to the end; a checkpoint after all epochs but every third."""
    folder.mkdir(exist_ok=True)
    mark = folder / "checkpoint"
    first = int(mark.read_text()) if mark.exists() else 0
    store = SampleStore(folder / "samples")
    store.cut_back(first if mark.exists() else -1)
    for epoch in range(first + 1, TASKS * EPOCHS + 1):
        task = (epoch - 1) // EPOCHS
        axis = range(task * EPOCHS + 1, (task + 1) * EPOCHS + 1)
        block = store.open(task, labels(task), axis)
        block.write("loss", epoch, row("loss", epoch, task))
        if epoch % 2 == 0:
            block.write("margin", epoch, row("margin", epoch, task), [e for e in axis if e % 2 == 0])
        if epoch % 3 != 0:
            store.sync()
            temporary = folder / "checkpoint.tmp"
            temporary.write_text(str(epoch))
            os.replace(temporary, mark)
    store.close()


def check(folder: Path) -> None:
    """What is marked is whole, and all that the checkpoint covers is marked."""
    mark, store = folder / "checkpoint", SampleStore(folder / "samples")
    covered = int(mark.read_text()) if mark.exists() else 0
    found = set()
    for task in store.tasks():
        block = SampleStore(folder / "samples").block(task)
        for metric in block.metrics():
            for epoch, values in block.rows(metric).items():
                assert np.array_equal(values, row(metric, epoch, task)), (folder, metric, epoch)
                found.add((metric, epoch))
    wanted = {("loss", e) for e in range(1, covered + 1)} | {("margin", e) for e in range(2, covered + 1, 2)}
    assert wanted <= found, (folder, wanted - found)


def killed_at(event: int, folder: Path) -> bool:
    """Write in a process of its own that is killed at its n-th event; False if it ended before."""
    child = os.fork()
    if child == 0:
        left = event

        def count(name: str, arguments: tuple) -> None:
            nonlocal left
            if name == "matrix" or (name in {"open", "os.rename", "os.mkdir"} and str(folder) in str(arguments[0])):
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        def counted(method: Callable) -> Callable:
            def call(*arguments: object) -> None:
                method(*arguments)
                count("matrix", ())

            return call

        MatrixFile.write, MatrixFile.flush = counted(MatrixFile.write), counted(MatrixFile.flush)
        sys.addaudithook(count)
        write(folder)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def main() -> None:
    folder = Path(sys.argv[1])
    os.fsync = lambda descriptor: None  # what was handed to the system survives the end of a process
    write(folder / "whole")
    event = 1
    while killed_at(event, folder / f"{event:05d}"):
        check(folder / f"{event:05d}")
        if event % 3 == 0:
            killed_at(7 * event % 29 + 1, folder / f"{event:05d}")
            check(folder / f"{event:05d}")
        write(folder / f"{event:05d}")
        event += 1
    print(event - 1)


if __name__ == "__main__":
    main()
