"""The task-shift study in small: MNIST whose images move or whose values drift, under three learners.

    python -m experiments.task_shift_study.run --data FOLDER

Every layer has a quarter of the study's units; there are fewer images, tasks and epochs. The shifts and the learners
are those of the study. Measured at each task's end on test images: accuracy, or the squared error where the classes are
numbers; dormant units and effective rank of the last hidden layer. Writes results.json and tasks.png.
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
from plastiscope.figure.style import new_figure, plain_frame, save
from plastiscope.measure.over_seeds import over_seeds
from plastiscope.run.log import read_rows
from plastiscope.run.status import State, read_status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
PROTOCOL = [
    *("net.channels=[8,16,32]", "net.widths=[32,32]", "batch_size=64", "learner.weight_decay=1.0e-3"),
    *("data.samples_per_class=200", "data.test_samples_per_class=100", "data.download=false", "eval_every=100"),
    *("analysis=[representation]", "representation.samples=500", "representation.cka=false"),
    *("representation.weight_ginis=false", "use_wandb=false", "figures=false", "device=cpu", "threads=1"),
]
"""What all arms share beyond the study; its weight decay, .01, is too much for so few steps."""
LEARNERS = {
    "backprop": ("", "#D55E00"),
    "continual backprop": ("continual_backprop", "#0072B2"),
    "rank-restoring": ("rank_restoring_cbp", "#009E73"),
}
"""Name of each learner's experiment, and its colour (of the palette of Okabe and Ito)."""
SHIFTS = {
    "deformation": ("", "task_test_accuracy", "test accuracy (%)"),
    "drifting values": ("drifting_values", "task_test_loss", "squared error on test images"),
}
"""Name of each shift's experiments, what tells how well a task is learnt, and what that is called."""
LAYER = {"dormant": "dormant_redo", "rank": "effective_rank"}
"""Measures of the last hidden layer."""
TITLES = {"dormant": "dormant units, last hidden layer (%)", "rank": "effective rank, last hidden layer"}
ARMS = {f"{shift}, {learner}": (shift, learner) for shift in SHIFTS for learner in LEARNERS}


def experiment_of(shift: str, learner: str) -> str:
    """The override that names the experiment of an arm."""
    names = [name for name in (SHIFTS[shift][0], LEARNERS[learner][0]) if name]
    return "experiment=" + "/".join(["task_shift_study", *(["_".join(names)] if names else [])])


def numbers_of(arm: str, given: argparse.Namespace) -> dict[str, Array]:
    """What is measured at the end of each task, [seeds, tasks]; a run that is done is not run again."""
    shift, learner = ARMS[arm]
    key = SHIFTS[shift][1]
    keys = {"performance": key} | {name: f"representation/current/linear_2/{of}" for name, of in LAYER.items()}
    found: dict[str, list[list[float]]] = {name: [] for name in keys}
    for seed in range(given.seeds):
        folder = given.runs / arm.replace(", ", "_").replace(" ", "_") / f"seed_{seed}"
        if read_status(folder).get("state") != State.done.value:
            size = (f"num_tasks={given.tasks}", f"epochs={given.epochs}", f"seed={seed}")
            run(compose_plan(*PROTOCOL, experiment_of(shift, learner), *size, f"data.folder={given.data}"), folder)
        ends = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "task_end"]
        for name, of in keys.items():
            found[name].append([row[of] for row in ends])
    percent = {"performance": 100 if key.endswith("accuracy") else 1, "dormant": 100}
    return {name: percent.get(name, 1) * np.array(values) for name, values in found.items()}


def measure(found: dict[str, dict[str, Array]]) -> dict[str, dict[str, Any]]:
    """Means over the first and the last fifth of the tasks of each arm, and tests over seeds."""
    results: dict[str, dict[str, Any]] = {}
    for arm, numbers in found.items():
        fifth = max(1, numbers["performance"].shape[1] // 5)
        ends = {name: _ends(values, fifth) for name, values in numbers.items()}
        early, late = ends.pop("performance")
        results[arm] = {
            "seeds": len(early),
            "tasks": numbers["performance"].shape[1],
            "tasks_of_a_bin": fifth,
            "early": mean_and_error(early),
            "late": mean_and_error(late),
            "late_against_early": rise(early, late),
            **{name: [mean_and_error(values) for values in both] for name, both in ends.items()},
            "mean_by_task": numbers["performance"].mean(0).round(4).tolist(),
        }
        shift, learner = ARMS[arm]
        backprop = found.get(f"{shift}, backprop")
        if learner != "backprop" and backprop is not None:
            results[arm]["late_against_backprop"] = {
                name: rise(_ends(backprop[name], fifth)[1], _ends(values, fifth)[1]) for name, values in numbers.items()
            }
    return results


def _ends(values: Array, count: int) -> tuple[Array, Array]:
    """Mean over the first and over the last tasks, [seeds] each."""
    return values[:, :count].mean(1), values[:, -count:].mean(1)


def draw(found: dict[str, dict[str, Array]]) -> "Figure":
    """A row for each shift: how well a task is learnt, dormant units, rank; bootstrap bands over seeds."""
    shifts = [shift for shift in SHIFTS if any(ARMS[arm][0] == shift for arm in found)]
    figure = new_figure(11.0, 3.2 * len(shifts))
    panels = figure.subplots(len(shifts), 1 + len(LAYER), squeeze=False)
    for shift, row in zip(shifts, panels, strict=True):
        for arm, numbers in found.items():
            if ARMS[arm][0] == shift:
                for axes, values in zip(row, numbers.values(), strict=True):
                    _draw_curve(axes, values, ARMS[arm][1])
        for axes, title in zip(row, (SHIFTS[shift][2], *TITLES.values()), strict=True):
            axes.set(xlabel="task", ylabel=title)
            plain_frame(axes)
        row[0].set_title(shift, loc="left", fontsize=10)
    panels[0, 0].legend(frameon=False, fontsize=8)
    return figure


def _draw_curve(axes: "Axes", values: Array, learner: str) -> None:
    tasks, curve, colour = np.arange(1, values.shape[1] + 1), over_seeds(values), LEARNERS[learner][1]
    axes.plot(tasks, curve.mean, color=colour, linewidth=1.4, label=f"{learner} ({len(values)} seeds)")
    axes.fill_between(tasks, curve.low, curve.high, color=colour, alpha=0.2, linewidth=0)


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, measure what is done, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds MNIST")
    parser.add_argument("--runs", type=Path, default=Path("outputs/task_shift_study"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and tasks.png go")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0; two or more")
    parser.add_argument("--tasks", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="only these")
    given = parser.parse_args(words)
    found = {arm: numbers_of(arm, given) for arm in given.arms}
    results = measure(found)
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    save(draw(found), given.out / "tasks.png")
    print(f"{'arm':36} {'first fifth':>15} {'last fifth':>15}   of the tasks (s.e.)")
    for arm, row in results.items():
        ends = " ".join(f"{row[end]['mean']:7.3f} ({row[end]['error']:.3f})" for end in ("early", "late"))
        print(f"{arm:36} {ends}")


if __name__ == "__main__":
    main()
