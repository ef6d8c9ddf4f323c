"""Online permuted MNIST with a narrow network: does backprop get worse from task to task, and continual backprop not?

    python -m experiments.permuted_mnist.run --data FOLDER

A new permutation of the pixels for each task, one pass over training images of MNIST at batch size 1, each image scored
before its update; three hidden layers of 100 units. 30 tasks (published: 150 of this width, --tasks 150). Five
seeds that advance together for each arm. Writes results.json and accuracy.png.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from experiments.direction import mean_and_error, rise
from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.figure.online import read_bins
from plastiscope.figure.style import new_figure, plain_frame, save
from plastiscope.measure.over_seeds import over_seeds
from plastiscope.run.status import State, read_status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
PROTOCOL = [
    *("net.widths=[100,100,100]", "data.download=false", "learner.autograd=false", "analysis=[online]"),
    *("use_wandb=false", "figures=false", "device=cpu", "threads=1"),
]
"""What all arms share beyond the published experiment."""
BACKPROP = ["experiment=permuted_mnist"]
CONTINUAL = ["experiment=permuted_mnist/continual_backprop", "learner.replacement_rate=1.0e-5"]
ARMS = {
    "backprop 0.003": [*BACKPROP, "learner.lr=0.003"],
    "continual backprop 0.003": [*CONTINUAL, "learner.lr=0.003"],
    "backprop 0.01": [*BACKPROP, "learner.lr=0.01"],
    "continual backprop 0.01": [*CONTINUAL, "learner.lr=0.01"],
}
"""Overrides of each arm; the number is the step size."""
COLOURS = dict(zip(ARMS, ("#D55E00", "#0072B2", "#E69F00", "#56B4E9"), strict=True))
"""Of the palette of Okabe and Ito."""


def train(arm: str, data: Path, runs: Path, seeds: int, tasks: int, examples: int) -> Path:
    """The group of runs of an arm; one that is done is not run again."""
    folder = runs / arm.replace(" ", "_")
    if read_status(folder).get("state") != State.done.value:
        size = (f"replicas={seeds}", f"num_tasks={tasks}", f"online.bin_size={examples}")
        stream = (f"data.folder={data}", f"task_shift_mode.examples_per_task={examples}")
        run(compose_plan(*PROTOCOL, *ARMS[arm], *stream, *size), folder)
    return folder


def accuracies(folder: Path, tasks: int) -> Array:
    """Online accuracy of the first tasks in percent, [seeds, tasks]; a bin is a task."""
    return 100 * np.array([read_bins(seed)["accuracy"][:tasks] for seed in sorted(folder.glob("seed_*"))])


def measure(found: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """Ends of each arm and how it changes, by the same tests over seeds for all arms.

    From the first to the last sixth of its tasks, from its first and from its best task to its last; and the change
    against that of backprop at the same step size.
    """
    results, changes = {}, {}
    for arm, values in found.items():
        best, few = int(values.mean(0).argmax()), max(values.shape[1] // 6, 1)
        early, late = values[:, :few].mean(1), values[:, -few:].mean(1)
        changes[arm] = late - early
        results[arm] = {
            "seeds": len(values),
            "tasks": values.shape[1],
            "first": mean_and_error(values[:, 0]),
            "best": {"task": best + 1, **mean_and_error(values[:, best])},
            "last": mean_and_error(values[:, -1]),
            "tasks_of_an_end": few,
            "early": mean_and_error(early),
            "late": mean_and_error(late),
            "late_against_early": rise(early, late),
            "last_against_first": rise(values[:, 0], values[:, -1]),
            "last_against_best": rise(values[:, best], values[:, -1]),
            "mean_by_task": values.mean(0).round(3).tolist(),
        }
    for arm, row in results.items():
        of_backprop = arm.removeprefix("continual ")
        if of_backprop != arm and of_backprop in found:
            row["change_against_backprop"] = rise(changes[of_backprop], changes[arm])
    return results


def draw(found: dict[str, Array]) -> "Figure":
    """Online accuracy by task, mean over seeds with a bootstrap band."""
    figure = new_figure(6.4, 4.0)
    axes = figure.subplots()
    for arm, values in found.items():
        tasks = np.arange(1, values.shape[1] + 1)
        curve = over_seeds(values)
        axes.plot(tasks, curve.mean, color=COLOURS[arm], linewidth=1.4, label=f"{arm} ({len(values)} seeds)")
        axes.fill_between(tasks, curve.low, curve.high, color=COLOURS[arm], alpha=0.25, linewidth=0)
    axes.set(xlabel="task", ylabel="online accuracy over a task (%)")
    axes.legend(frameon=False, fontsize=8)
    plain_frame(axes)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, measure what is done, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST")
    parser.add_argument("--runs", type=Path, default=Path("outputs/permuted_mnist"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and accuracy.png go")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0; two or more")
    parser.add_argument("--tasks", type=int, default=30)
    parser.add_argument("--examples", type=int, default=60_000, help="presentations of a task")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="only these")
    given = parser.parse_args(words)
    size = (given.seeds, given.tasks, given.examples)
    found = {arm: accuracies(train(arm, given.data, given.runs, *size), given.tasks) for arm in given.arms}
    results = measure(found)
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    save(draw(found), given.out / "accuracy.png")
    print(f"{'arm':26} {'first tasks':>13} {'best task':>13} {'last tasks':>13}   p of a fall: to late, from best")
    for arm, row in results.items():
        ends = " ".join(f"{row[end]['mean']:6.2f} ({row[end]['error']:.2f})" for end in ("early", "best", "late"))
        falls = " ".join(
            f"{row[test]['paired_t']['p_fall']:7.2g}" for test in ("late_against_early", "last_against_best")
        )
        print(f"{arm:26} {ends}   {falls}")


if __name__ == "__main__":
    main()
