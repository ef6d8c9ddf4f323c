"""Continual ImageNet in small: pairs of 24 classes, few epochs; what comes out for four learners.

    python -m experiments.continual_imagenet.run --data FOLDER

The published network and learners on the classes at hand, four rounds of twelve pairs, drawn anew when all classes have
come. Few epochs do not start from the published initialisation (with heads set to zero), so weights are Kaiming's and
batches are smaller. Writes results.json and accuracy.png.
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
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
PROTOCOL = [
    *("net.init=kaiming_uniform", "batch_size=30", "eval_every=100", "analysis=[]", "use_wandb=false"),
    *("figures=false", "device=cpu", "threads=1"),
]
"""What all arms share beyond the published experiment."""
ARMS = {
    "backprop": ["experiment=continual_imagenet"],
    "l2": ["experiment=continual_imagenet/l2"],
    "shrink and perturb": ["experiment=continual_imagenet/shrink_and_perturb"],
    "continual backprop": ["experiment=continual_imagenet/continual_backprop", "learner.init=network"],
}
"""The published arms; units are replaced by weights drawn as the network's were."""
COLOURS = dict(zip(ARMS, ("#D55E00", "#009E73", "#CC79A7", "#0072B2"), strict=True))
"""Of the palette of Okabe and Ito."""


def accuracies(arm: str, given: argparse.Namespace) -> Array:
    """Test accuracy at each task's end in percent, [seeds, tasks]; a run that is done is not run again."""
    rows = []
    for seed in range(given.seeds):
        folder = given.runs / arm.replace(" ", "_") / f"seed_{seed}"
        if read_status(folder).get("state") != State.done.value:
            size = (f"num_tasks={given.tasks}", f"epochs={given.epochs}", f"seed={seed}")
            data = (f"data.folder={given.data}", f"data.train_rows={given.train_rows}")
            run(compose_plan(*PROTOCOL, *ARMS[arm], *size, *data), folder)
        logged = read_rows(folder / "metrics.jsonl")
        rows.append([row["task_test_accuracy"] for row in logged if row["kind"] == "task_end"])
    return 100 * np.array(rows)


def quarters(values: Array) -> Array:
    """Means over quarters of the tasks, of fewer than four tasks each alone; [seeds, quarters].

    Where four do not divide the tasks the earlier quarters are longer by one.
    """
    parts = np.array_split(values, min(4, values.shape[1]), axis=1)
    return np.stack([part.mean(1) for part in parts], axis=1)


def measure(found: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """Mean over the first and the last quarter of the tasks of each arm, and tests over seeds.

    With 24 classes and 48 pairs a quarter is a round, in which each class comes once: pairs differ, classes do not.
    """
    results: dict[str, dict[str, Any]] = {}
    ends = {}
    for arm, values in found.items():
        by_quarter = quarters(values)
        early, late = ends[arm] = by_quarter[:, 0], by_quarter[:, -1]
        results[arm] = {
            "seeds": len(values),
            "tasks": values.shape[1],
            "early": mean_and_error(early),
            "late": mean_and_error(late),
            "late_against_early": rise(early, late),
            "by_quarter": [mean_and_error(means) for means in by_quarter.T],
            "mean_by_task": values.mean(0).round(2).tolist(),
        }
    for arm in results:
        if arm != "backprop" and "backprop" in results:
            results[arm]["late_against_backprop"] = rise(ends["backprop"][1], ends[arm][1])
    return results


def draw(found: dict[str, Array]) -> "Figure":
    """Test accuracy by task, mean over seeds; and by quarters of the tasks, with bootstrap intervals over seeds."""
    figure = new_figure(10.0, 4.0)
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    for k, (arm, values) in enumerate(found.items()):
        tasks = np.arange(1, values.shape[1] + 1)
        left.plot(tasks, values.mean(0), color=COLOURS[arm], linewidth=1.2, label=f"{arm} ({len(values)} seeds)")
        means = quarters(values)
        curve, places = over_seeds(means), np.arange(1, means.shape[1] + 1) + 0.06 * (k - 1.5)  # beside each other
        ranges = np.stack([curve.mean - curve.low, curve.high - curve.mean])
        right.errorbar(places, curve.mean, ranges, fmt="o-", ms=3, capsize=2, color=COLOURS[arm], linewidth=1.2)
    left.set(xlabel="task (a pair of classes)", ylabel="test accuracy at its end (%)")
    right.set(xlabel="quarter of the tasks", ylabel="mean test accuracy (%)", xticks=range(1, means.shape[1] + 1))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    for axes in (left, right):
        plain_frame(axes)
    return figure


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, measure what is done, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder that holds classes/0.npy, 1.npy, ...")
    parser.add_argument("--train-rows", type=int, default=450, help="images of a class to train on; 100 are the test")
    parser.add_argument("--runs", type=Path, default=Path("outputs/continual_imagenet"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and accuracy.png go")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0; two or more")
    parser.add_argument("--tasks", type=int, default=48)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="only these")
    given = parser.parse_args(words)
    found = {arm: accuracies(arm, given) for arm in given.arms}
    results = measure(found)
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    save(draw(found), given.out / "accuracy.png")
    print(f"{'arm':20} {'first quarter':>13} {'last quarter':>13}   of the tasks, % (s.e.)")
    for arm, row in results.items():
        print(
            f"{arm:20} " + " ".join(f"{row[end]['mean']:6.2f} ({row[end]['error']:.2f})" for end in ("early", "late"))
        )


if __name__ == "__main__":
    main()
