"""An epoch with per-sample losses from the training steps (csl.mode=online) against the same epoch without.

python -m benchmarks.csl_online

One run as the command line starts it; every second epoch the analysis is taken out of the loop, so both kinds of
epochs train the same network in turns in one process. An epoch with is compared with the mean of its two neighbours
without, so that a drift of the machine falls out.

    whole epoch      steps, evaluation, row of the log and status, and with csl: margins, three rows of the store, means
    steps            the steps alone: what listening to each of them costs
    of the steps     what csl adds to the whole epoch, as a share of the steps alone: an epoch without any evaluation
    event            the analysis' own clock: milliseconds of its work at the epoch's end, all its calls together
    task end         seconds of the means, the table and the files at the end of the task, once a task
"""

import contextlib
import io
import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from benchmarks.plans import make_plan, random_images
from benchmarks.timing import clocked, machine, seconds, spread
from plastiscope import experiment
from plastiscope.analysis.csl import Csl
from plastiscope.task_shift_mode.task import Task
from plastiscope.trainer import Trainer

WARM_UP = 4
"""Epochs; even, so that the first one counted is without."""


@dataclass(frozen=True)
class Case:
    """A network and its data: `images` random ones in ten classes, or the digits when there are none."""

    name: str
    wanted: float
    pairs: int
    overrides: list[str]
    images: int = 0


CASES = [
    Case("digits mlp, batch 64", 1.10, 400, ["data=digits", "net=mlp", "batch_size=64"]),
    Case("resnet18 width 16, batch 90", 1.03, 40, ["net=resnet18", "net.width=16", "batch_size=90"], 270),
]


def measure(case: Case) -> dict[str, list[float]]:
    """Seconds of each epoch, `steps` and `end` of it, in turns without and with; of an `event`, of the `task_end`.

    Before the event the trainer asks for the state, which is when the margins are made: the longest of these calls.
    """
    train_epoch, end_epoch = Trainer._train_epoch, Trainer._end_epoch
    times: dict[str, list[float]] = {"steps": [], "end": []}

    def timed_steps(trainer: Trainer, tasks: list[Task]) -> None:
        trainer.runs[0].callbacks = analyses if trainer.position.epoch % 2 else []
        times["steps"].append(seconds(lambda: train_epoch(trainer, tasks)))

    def timed_end(trainer: Trainer, tasks: list[Task]) -> None:
        times["end"].append(seconds(lambda: end_epoch(trainer, tasks)))
        trainer.runs[0].callbacks = analyses

    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(io.StringIO()):
        folder = Path(name)
        data = random_images(folder, case.images, 10) if case.images else []
        length = ["selection=last", "num_tasks=1", f"epochs={2 * case.pairs + WARM_UP + 1}"]
        csl = ["analysis=[csl]", "csl.mode=online", "csl.every=2"]
        plan = make_plan(*case.overrides, *data, *length, *csl)
        analyses = plan.analyses
        Trainer._train_epoch, Trainer._end_epoch = timed_steps, timed_end
        try:
            with (
                clocked(Csl, "on_task_end") as task_end,
                clocked(Csl, "on_epoch_end") as event,
                clocked(Csl, "state_dict") as state,
            ):
                experiment.run(plan, folder / "run")
        finally:
            Trainer._train_epoch, Trainer._end_epoch = train_epoch, end_epoch
    at_end = [statistics.median(event[WARM_UP:]) + statistics.median(sorted(state)[-len(event) :])]
    return {**{key: some[WARM_UP:] for key, some in times.items()}, "task_end": task_end, "event": at_end}


def against_neighbours(times: list[float]) -> list[float]:
    """Ratio of each epoch with to the mean of the epochs without before and after it."""
    return [2 * times[i] / (times[i - 1] + times[i + 1]) for i in range(1, len(times) - 1, 2)]


def main() -> None:
    print(f"csl.mode=online, one thread; an epoch with against its neighbours without: median [quartiles]\n{machine()}")
    titles = f"{'whole epoch':22}{'steps':22}{'of the steps':>12}{'event ms':>10}{'epoch ms':>10}{'task end s':>12}"
    print(f"{'':30}{'pairs':>5}{'wanted':>8}  {titles}")
    for case in CASES:
        t = measure(case)
        whole = [a + b for a, b in zip(t["steps"], t["end"], strict=True)]
        added = [whole[i] - (whole[i - 1] + whole[i + 1]) / 2 for i in range(1, len(whole) - 1, 2)]
        share = statistics.median(added) / statistics.median(t["steps"][::2])
        columns = "".join(f"{spread(against_neighbours(some)):22}" for some in (whole, t["steps"]))
        columns += f"{share:12.1%}{1e3 * t['event'][0]:10.2f}{1e3 * statistics.median(whole[::2]):10.1f}"
        print(f"{case.name:30}{case.pairs:5}{case.wanted:8.2f}  {columns}{t['task_end'][0]:12.2f}")


if __name__ == "__main__":
    main()
