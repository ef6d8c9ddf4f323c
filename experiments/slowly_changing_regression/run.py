"""Slowly changing regression: does the error of backprop rise, and that of continual backprop not?

    python -m experiments.slowly_changing_regression.run

A million steps of batch size 1 on the published stream (all 15 slow bits drawn anew every 10,000 steps, the published
form of the thresholds), thirty seeds that advance together for each arm. Squared error before each update, in bins of
20,000 steps. Writes results.json and error.png.
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
from plastiscope.figure.style import GREY, new_figure, plain_frame, save
from plastiscope.measure.over_seeds import over_seeds
from plastiscope.run.status import State, read_status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
PROTOCOL = [
    *("learner.autograd=false", "analysis=[online]"),
    *("use_wandb=false", "figures=false", "device=cpu", "threads=1"),
]
"""What all arms share beyond the published experiment."""
BACKPROP = ["experiment=slowly_changing_regression_as_published"]
CONTINUAL = [
    *("experiment=slowly_changing_regression/continual_backprop", "data.threshold_form=as_published"),
    *("task_shift_mode.flip=all", "task_shift_mode.exact_test=false"),
]
"""The stream as published, the learner as meant: a maturity of 100, fractions of a unit carried over, compensation."""
ARMS = {
    **{
        f"{activation} {lr}": [*BACKPROP, f"net.activation={activation}", f"learner.lr={lr}"]
        for activation in ("relu", "tanh")
        for lr in ("0.01", "0.003", "0.001")
    },
    "linear 0.01": ["experiment=slowly_changing_regression_as_published/linear"],
    **{f"continual backprop {rate}": [*CONTINUAL, f"learner.replacement_rate={rate}"] for rate in (1e-4, 1e-3, 1e-2)},
}
"""Overrides of each arm: activation and step size of backprop, replacement rate of continual backprop (ReLU, 0.01)."""
PUBLISHED = {
    "relu 0.01": (0.62, 1.25),
    "relu 0.003": (0.71, 1.08),
    "relu 0.001": (0.84, 0.87),
    "tanh 0.01": (0.43, 0.89),
    "tanh 0.003": (0.60, 0.92),
    "tanh 0.001": (0.80, 0.84),
    "linear 0.01": (0.88, 0.88),
}
"""Mean squared error of the first and the last bin, read off the published figures."""
PANELS = {
    "backprop, ReLU": ["relu 0.01", "relu 0.003", "relu 0.001", "linear 0.01"],
    "backprop, tanh": ["tanh 0.01", "tanh 0.003", "tanh 0.001", "linear 0.01"],
    "continual backprop, ReLU, 0.01": [
        "relu 0.01",
        *(f"continual backprop {rate}" for rate in (1e-4, 1e-3, 1e-2)),
        "linear 0.01",
    ],
}
COLOURS = ["#D55E00", "#0072B2", "#009E73", "#CC79A7"]
"""Of the palette of Okabe and Ito."""


def train(arm: str, runs: Path, seeds: int, tasks: int, bin_size: int) -> Path:
    """The group of runs of an arm; one that is done is not run again."""
    folder = runs / arm.replace(" ", "_")
    if read_status(folder).get("state") != State.done.value:
        size = (f"replicas={seeds}", f"num_tasks={tasks}", f"online.bin_size={bin_size}")
        run(compose_plan(*PROTOCOL, *ARMS[arm], *size), folder)
    return folder


def errors(folder: Path) -> Array:
    """Mean squared error by bin, [seeds, bins]."""
    return np.array([read_bins(seed)["loss"] for seed in sorted(folder.glob("seed_*"))])


def measure(found: dict[str, Array]) -> dict[str, dict[str, Any]]:
    """First, lowest and last bin of each arm, and the tests of the last against both over seeds."""
    results = {}
    for arm, values in found.items():
        lowest = int(values.mean(0).argmin())
        results[arm] = {
            "seeds": len(values),
            "bins": values.shape[1],
            "first": mean_and_error(values[:, 0]),
            "lowest": {"bin": lowest + 1, **mean_and_error(values[:, lowest])},
            "last": mean_and_error(values[:, -1]),
            "rise": rise(values[:, 0], values[:, -1]),
            "rise_from_lowest": rise(values[:, lowest], values[:, -1]),
            "published": PUBLISHED.get(arm),
            "mean_by_bin": values.mean(0).round(4).tolist(),
        }
    return results


def draw(found: dict[str, Array], bin_size: int) -> "Figure":
    """Error by bin, mean over seeds with a bootstrap band, and the published first and last values as marks."""
    shown = {title: [arm for arm in arms if arm in found] for title, arms in PANELS.items()}
    shown = {title: arms for title, arms in shown.items() if arms}
    figure = new_figure(4.0 * len(shown), 4.0)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, (title, arms) in zip(panels, shown.items(), strict=True):
        colours = iter(COLOURS)
        for arm in arms:
            _draw_arm(axes, arm, found[arm], bin_size, GREY if arm.startswith("linear") else next(colours))
        axes.set(xlabel="millions of steps", title=f"{title} ({len(found[arms[0]])} seeds)")
        axes.legend(frameon=False, fontsize=8, loc="lower right", labelspacing=0.25)
        plain_frame(axes)
    panels[0].set_ylabel("squared error before the update, mean of a bin")
    panels[0].scatter([], [], marker="x", s=40, color=GREY, label="published, first and last bin")
    panels[0].legend(frameon=False, fontsize=8, loc="lower right", labelspacing=0.25)
    panels[0].set_ylim(bottom=0)
    return figure


def _draw_arm(axes: "Axes", arm: str, values: Array, bin_size: int, colour: str) -> None:
    steps = bin_size * (np.arange(values.shape[1]) + 0.5) / 1e6
    curve = over_seeds(values)
    axes.plot(steps, curve.mean, color=colour, linewidth=1.3, label=arm)
    axes.fill_between(steps, curve.low, curve.high, color=colour, alpha=0.25, linewidth=0)
    if arm in PUBLISHED and colour != GREY:
        axes.scatter(steps[[0, -1]], PUBLISHED[arm], marker="x", s=40, color=colour, zorder=3, clip_on=False)


def main(words: Sequence[str] | None = None) -> None:
    """Train what is missing, measure what is done, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    name = "outputs/slowly_changing_regression"
    parser.add_argument("--runs", type=Path, default=Path(name), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and error.png go")
    parser.add_argument("--seeds", type=int, default=30, help="how many, from 0; two or more")
    parser.add_argument("--tasks", type=int, default=100, help="of 10,000 steps")
    parser.add_argument("--bin-size", type=int, default=20_000, help="steps of a bin")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=list(ARMS), metavar="ARM", help="only these")
    given = parser.parse_args(words)
    found = {arm: errors(train(arm, given.runs, given.seeds, given.tasks, given.bin_size)) for arm in given.arms}
    results = measure(found)
    (given.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    save(draw(found, given.bin_size), given.out / "error.png")
    print(f"{'arm':28} {'first bin':>14} {'last bin':>14} {'p (rises)':>10}   published")
    for arm, row in results.items():
        ends = " ".join(f"{row[end]['mean']:7.3f} ({row[end]['error']:.3f})" for end in ("first", "last"))
        print(f"{arm:28} {ends} {row['rise']['wilcoxon']['p']:10.2g}   {row['published'] or ''}")


if __name__ == "__main__":
    main()
