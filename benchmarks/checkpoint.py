"""What checkpoints and snapshots take of a run: resnet18 width 16 on 1,000 images, everything else as by default.

python -m benchmarks.checkpoint

Tasks of the default run have 12 epochs and end with a checkpoint and a snapshot; the tasks here are shorter, so the
share is larger than in such a run. Copying the best weights for `selection=val_best` counts too.
"""

import contextlib
import io
import tempfile
from pathlib import Path

from benchmarks.plans import make_plan, random_images
from benchmarks.timing import clocked, machine
from plastiscope import experiment
from plastiscope.run.journal import Journal
from plastiscope.selection import BestWeights
from plastiscope.trainer import Trainer

TASKS, EPOCHS = 4, 5
SAVING = [(Trainer, "_checkpoint"), (Journal, "snapshot"), (Journal, "snapshot_within_task"), (BestWeights, "offer")]


def measure() -> tuple[float, dict[str, list[float]]]:
    """Seconds of the run, and of each call of what saves."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        images = random_images(folder, 1000, 10)
        size = [f"num_tasks={TASKS}", f"epochs={EPOCHS}", "batch_size=90", "net=resnet18", "net.width=16"]
        plan = make_plan(*images, *size, "data.validation_share=0.1")
        total = stack.enter_context(clocked(Trainer, "run"))
        times = {name: stack.enter_context(clocked(owner, name)) for owner, name in SAVING}
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        experiment.run(plan, folder / "run")
    return total[0], times


def main() -> None:
    total, times = measure()
    print(f"Checkpoints and snapshots, {TASKS} tasks of {EPOCHS} epochs in {total:.1f} s, one thread\n{machine()}")
    for name, calls in times.items():
        print(f"{name.strip('_'):24}{len(calls):4} calls {1e3 * sum(calls) / len(calls):8.2f} ms each")
    share = sum(map(sum, times.values())) / total
    print(f"share of the run        {100 * share:.2f} %   (wanted: 2 % or less)")


if __name__ == "__main__":
    main()
