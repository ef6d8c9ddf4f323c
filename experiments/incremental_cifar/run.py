"""Incremental CIFAR-100 in small: a narrow residual network, 15 classes, few epochs; what comes out for four learners.

    python -m experiments.incremental_cifar.run --data FOLDER

Five new classes a task and all old ones kept, the published augmentation, selection and learners. The stem has 16
channels, batches and step size are a third of the published, the step size falls at the same shares of a task. Writes
results.json and accuracy.png.
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
from plastiscope.figure.style import GREY, new_figure, plain_frame, save
from plastiscope.measure.over_seeds import over_seeds
from plastiscope.run.log import read_rows
from plastiscope.run.status import State, read_status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
PROTOCOL = [
    *("data.download=false", "net.width=16", "batch_size=30", "learner.lr=0.03", "analysis=[]"),
    *("use_wandb=false", "figures=false", "device=cpu", "threads=1"),
]
"""What all arms share beyond the published experiment."""
MILESTONES = (0.3, 0.6, 0.8)
"""Shares of a task's epochs at which the step size falls, as published (60, 120, 160 of 200)."""
SOONER = ["learner.maturity_threshold=100", "learner.replacement_rate=1.0e-4"]
"""So that some units are replaced in a few hundred steps; at the published maturity of 1,000 steps none would be."""
ARMS = {
    "base": ["experiment=incremental_cifar"],
    "continual backprop": ["experiment=incremental_cifar/continual_backprop", *SOONER],
    "head reset": ["experiment=incremental_cifar/head_reset"],
    "retrained": ["experiment=incremental_cifar/retrained"],
}
COLOURS = dict(zip(ARMS, ("#D55E00", "#0072B2", "#009E73", GREY), strict=True))
"""Of the palette of Okabe and Ito; grey for what the others are compared with."""


def accuracies(arm: str, given: argparse.Namespace) -> Array:
    """Test accuracy of each task's selected weights in percent, [seeds, tasks]; a run that is done is not run again."""
    rows = []
    for seed in range(given.seeds):
        folder = given.runs / arm.replace(" ", "_") / f"seed_{seed}"
        if read_status(folder).get("state") != State.done.value:
            falls = sorted({max(1, round(share * given.epochs)) for share in MILESTONES})
            size = (f"num_tasks={given.tasks}", f"epochs={given.epochs}", f"seed={seed}")
            schedule = f"learner.milestones=[{','.join(map(str, falls))}]"
            run(compose_plan(*PROTOCOL, *ARMS[arm], *size, schedule, f"data.folder={given.data}"), folder)
        logged = read_rows(folder / "metrics.jsonl")
        rows.append([row["task_test_accuracy"] for row in logged if row["kind"] == "task_end"])
    return 100 * np.array(rows)


def measure(found: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """Accuracy after the first and the last task, and the difference from the retrained network seed by seed."""
    results: dict[str, dict[str, Any]] = {}
    for arm, values in found.items():
        results[arm] = {
            "seeds": len(values),
            "tasks": values.shape[1],
            "first": mean_and_error(values[:, 0]),
            "last": mean_and_error(values[:, -1]),
            "mean_by_task": values.mean(0).round(2).tolist(),
        }
        if arm != "retrained" and "retrained" in found:
            results[arm]["last_against_retrained"] = rise(found["retrained"][:, -1], values[:, -1])
            differences = (values - found["retrained"]).mean(0)
            results[arm]["against_retrained_by_task"] = differences.round(2).tolist()
    return results


def draw(found: dict[str, Array], classes: int) -> "Figure":
    """Test accuracy by number of classes, and the difference from the retrained network; bootstrap bands over seeds."""
    figure = new_figure(9.6, 3.8)
    left, right = figure.subplots(1, 2)
    for arm, values in found.items():
        _draw_curve(left, values, classes, arm)
        if "retrained" in found and arm != "retrained":
            _draw_curve(right, values - found["retrained"], classes, arm)
    right.axhline(0, color=COLOURS["retrained"], linewidth=0.8)
    left.set(xlabel="classes", ylabel="test accuracy (%)")
    right.set(xlabel="classes", ylabel="less the retrained network (points)")
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        plain_frame(axes)
    return figure


def _draw_curve(axes: "Axes", values: Array, classes: int, arm: str) -> None:
    places, curve = classes * np.arange(1, values.shape[1] + 1), over_seeds(values)
    axes.plot(places, curve.mean, "o-", ms=3, color=COLOURS[arm], linewidth=1.4, label=f"{arm} ({len(values)} seeds)")
    axes.fill_between(places, curve.low, curve.high, color=COLOURS[arm], alpha=0.2, linewidth=0)
    axes.set_xticks(places)


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, measure what is done, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-100's files train, test, meta")
    parser.add_argument("--runs", type=Path, default=Path("outputs/incremental_cifar"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and accuracy.png go")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0; two or more")
    parser.add_argument("--tasks", type=int, default=3, help="of 5 new classes")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="only these")
    given = parser.parse_args(words)
    found = {arm: accuracies(arm, given) for arm in given.arms}
    results = measure(found)
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    save(draw(found, classes=5), given.out / "accuracy.png")
    print(f"{'arm':20} {'first task':>13} {'last task':>13}   % (s.e.)")
    for arm, row in results.items():
        print(
            f"{arm:20} " + " ".join(f"{row[end]['mean']:6.2f} ({row[end]['error']:.2f})" for end in ("first", "last"))
        )


if __name__ == "__main__":
    main()
