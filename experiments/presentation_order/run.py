"""Does a fixed order of presentation, by difficulty, harm plasticity?

    python -m experiments.presentation_order.run

Digits, in two sequences of tasks: permuted pixels (15 tasks, at two step sizes), and two new classes a task (five,
cumulative). Random order, six fixed ones, two weightings of the losses and their controls; five seeds, and each run
twice: one network through all tasks, and a network initialised anew at each task. What only the former loses is a loss
of plasticity; what both lose is a worse way to train. Writes results.json and accuracy.png.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.figure.style import BLUE, GREY, ORANGE, new_figure, plain_frame, save
from plastiscope.load import load_run
from plastiscope.measure.comparison import spearman
from plastiscope.run.log import read_rows
from plastiscope.run.status import State, read_status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
PROTOCOL = [
    *("data=digits", "data.validation_share=0.0", "net=mlp", "net.widths=[64,64]", "batch_size=32", "selection=last"),
    *("learner=backprop", "learner.momentum=0.9", "eval_every=100"),
    *("use_wandb=false", "figures=false", "device=cpu", "threads=1"),
]
SHIFTS = {
    "permuted pixels": (0.05, ["task_shift_mode=permuted_input", "num_tasks=15", "epochs=3"]),
    "new classes": (0.05, ["task_shift_mode=class_incremental", "num_tasks=5", "epochs=5"]),
    "permuted pixels, smaller steps": (0.02, ["task_shift_mode=permuted_input", "num_tasks=15", "epochs=3"]),
}
"""Step size and overrides of each sequence of tasks."""
NETWORKS = {"continual": "learner.reset=nothing", "fresh": "learner.reset=network"}
ARMS = {
    "random": [],
    "fixed, random": ["data.order=low_to_high"],
    "low to high": ["data.order=low_to_high"],
    "high to low": ["data.order=high_to_low"],
    "alternating": ["data.order=alternating_hardest_easiest"],
    "middle out": ["data.order=middle_out"],
    "middle out (published)": ["data.order=middle_out_published"],
    "random, weight 3 if score >= .25": ["data.loss_weighting.by=threshold"],
    "random, weight 1 + score": ["data.loss_weighting.by=score"],
    "random, step size x 2.5": [],
    "random, step size x 1.5": [],
}
"""Overrides of each way to present the samples; "fixed, random" orders them by random numbers instead of scores."""
STEP_SIZES = {"random, step size x 2.5": 2.5, "random, step size x 1.5": 1.5}
"""Controls: factors that are the mean weights of the two weighted arms."""
COLOURS = {
    "random": BLUE,
    "fixed, random": ORANGE,
    "low to high": "#D55E00",
    "random, weight 3 if score >= .25": "#009E73",
    "random, step size x 2.5": "#000000",
}
"""Of the arms that the figure tells apart (Okabe and Ito)."""
SCORING_SEEDS = (100, 101, 102)


class Difference(NamedTuple):
    """A difference of accuracies: mean over seeds and its standard error, in points."""

    mean: float
    error: float


def done(folder: Path, *overrides: str) -> Path:
    """The folder of a run with these overrides; a run that is done is not run again."""
    if read_status(folder).get("state") != State.done.value:
        run(compose_plan(*PROTOCOL, *overrides), folder)
    return folder


def write_scores(runs: Path) -> tuple[Path, dict[str, float]]:
    """Ranks, 0 to 1, of the CSL of the digits without a shift, in random order: mean over 20 epochs and three seeds."""
    means = []
    for seed in SCORING_SEEDS:
        shift = (
            "task_shift_mode=none",
            "num_tasks=1",
            "learner.lr=0.05",
            "epochs=20",
            "analysis=[csl]",
            f"seed={seed}",
        )
        losses = load_run(done(runs / "scores" / str(seed), *shift)).samples("loss")
        means.append(losses.values.astype(np.float64).mean(0))
        ids = losses.ids
    csl = np.mean(means, 0)
    scores = csl.argsort().argsort() / (len(csl) - 1)
    path = runs / "scores.json"
    path.write_text(json.dumps(dict(zip(map(str, ids.tolist()), scores.tolist(), strict=True))))
    agreement = float(np.mean([spearman(means[i], means[j]).value for i, j in ((0, 1), (0, 2), (1, 2))]))
    return path, {"spearman_between_seeds": agreement, "median_csl": float(np.median(csl))}


def scores_of(arm: str, seed: int, runs: Path, scores: Path) -> Path | None:
    """The file that an arm orders or weighs by."""
    if not ARMS[arm]:
        return None
    if arm != "fixed, random":
        return scores
    path = runs / f"random_{seed}.npy"
    np.save(path, np.random.default_rng(seed).random(len(json.loads(scores.read_text()))))
    return path


def accuracies(runs: Path, seeds: int, scores: Path) -> dict[str, Array]:
    """Test accuracy at each task's end by shift: [arms, networks, seeds, tasks]."""
    found = {}
    for shift in SHIFTS:
        values = [
            [[_task_ends(runs, shift, arm, network, seed, scores) for seed in range(seeds)] for network in NETWORKS]
            for arm in ARMS
        ]
        found[shift] = np.array(values)
    return found


def _task_ends(runs: Path, shift: str, arm: str, network: str, seed: int, scores: Path) -> list[float]:
    lr, tasks = SHIFTS[shift]
    step = f"learner.lr={lr * STEP_SIZES.get(arm, 1.0):g}"
    file = scores_of(arm, seed, runs, scores)
    given = [] if file is None else [f"data.scores_file={file}"]
    folder = runs / "_".join([shift, arm, network, str(seed)]).replace(" ", "_").replace(",", "")
    done(folder, step, *tasks, *ARMS[arm], *given, NETWORKS[network], f"seed={seed}", "analysis=[]")
    rows = read_rows(folder / "metrics.jsonl")
    return [row["task_test_accuracy"] for row in rows if row["kind"] == "task_end"]


def differences(values: Array) -> dict[str, dict[str, Difference]]:
    """Each arm against random, seed by seed, over the second half of the tasks.

    Args:
        values: [arms, networks (continual, fresh), seeds, tasks].

    Returns:
        By arm: `continual` and `fresh`, accuracy less that of the random order; `plasticity`, the former less the
        latter: what the continual network loses beyond what a fresh one loses too.
    """
    late = 100 * values[..., values.shape[-1] // 2 :].mean(-1)
    against_random = late - late[:1]
    parts = {
        "continual": against_random[:, 0],
        "fresh": against_random[:, 1],
        "plasticity": against_random[:, 0] - against_random[:, 1],
    }
    return {
        arm: {name: _over_seeds(part[i]) for name, part in parts.items()}
        for i, arm in enumerate(ARMS)
        if arm != "random"
    }


def _over_seeds(values: Array) -> Difference:
    return Difference(float(values.mean()), float(values.std(ddof=1) / len(values) ** 0.5))


def draw(found: dict[str, Array]) -> "Figure":
    """Accuracy task by task, and what each arm loses against random order."""
    figure = new_figure(11.5, 3.7 * len(found) + 0.6)
    panels = figure.subplots(len(found), 2, gridspec_kw={"width_ratios": [1, 1.25]})
    for (left, right), (shift, values) in zip(panels, found.items(), strict=True):
        _draw_curves(left, values)
        left.set_title(shift)
        _draw_differences(right, differences(values))
        for axes in (left, right):
            plain_frame(axes)
    for axes, place in zip(panels[0], ("outside lower left", "outside lower right"), strict=True):
        figure.legend(*axes.get_legend_handles_labels(), frameon=False, fontsize=8, loc=place, ncols=2)
    return figure


def _draw_curves(axes: "Axes", values: Array) -> None:
    """One network through all tasks; of random order and the worst fixed one a fresh network too."""
    tasks = np.arange(1, values.shape[-1] + 1)
    for i, arm in enumerate(ARMS):
        colour = COLOURS.get(arm, GREY)
        label = arm if arm in COLOURS else "the other arms" if arm == "high to low" else None
        axes.plot(
            tasks, 100 * values[i, 0].mean(0), color=colour, linewidth=1.3, label=label, zorder=1 + (arm in COLOURS)
        )
        if arm in ("random", "low to high"):
            curve, label = 100 * values[i, 1].mean(0), f"{arm}, fresh network"
            axes.plot(tasks, curve, ":", color=colour, linewidth=1.6, label=label, zorder=2)
    axes.set(xlabel="task", ylabel="test accuracy at its end (%)")
    axes.set_xticks(tasks[::2])


def _draw_differences(axes: "Axes", found: dict[str, dict[str, Difference]]) -> None:
    places = np.arange(len(found))[::-1]
    kinds = {"continual": (BLUE, "o", 0.18), "fresh": (GREY, "s", 0.0), "plasticity": (ORANGE, "D", -0.18)}
    labels = {"continual": "one network", "fresh": "fresh network", "plasticity": "difference of the two"}
    for name, (colour, marker, shift) in kinds.items():
        means, errors = zip(*(parts[name] for parts in found.values()), strict=True)
        style = {"fmt": marker, "color": colour, "markersize": 4, "linewidth": 1, "label": labels[name]}
        axes.errorbar(means, places + shift, xerr=errors, **style)
    axes.axvline(0, color=GREY, linewidth=0.6)
    axes.set_yticks(places, list(found))
    axes.set(xlabel="points of accuracy against random order (mean, s.e.)", title="second half of the tasks")


def main() -> None:
    """Run what is missing, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("outputs/presentation_order"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and accuracy.png go")
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 0; two or more")
    arguments = parser.parse_args()
    scores, about = write_scores(arguments.runs)
    found = accuracies(arguments.runs, arguments.seeds, scores)
    results = {shift: differences(values) for shift, values in found.items()}
    levels = {
        shift: {arm: dict(zip(NETWORKS, 100 * values[i].mean((1, 2)), strict=True)) for i, arm in enumerate(ARMS)}
        for shift, values in found.items()
    }
    content = {
        "scores": about,
        "accuracy": levels,
        "against_random": {
            shift: {arm: {name: part._asdict() for name, part in parts.items()} for arm, parts in arms.items()}
            for shift, arms in results.items()
        },
    }
    (arguments.out / "results.json").write_text(json.dumps(content, indent=2) + "\n")
    save(draw(found), arguments.out / "accuracy.png")
    print("scores:", ", ".join(f"{name} {value:.3f}" for name, value in about.items()))
    for shift, arms in results.items():
        print(f"\n{shift}: points of accuracy against random order, second half of the tasks")
        for arm, parts in arms.items():
            text = "  ".join(f"{name} {part.mean:+6.2f} ({part.error:.2f})" for name, part in parts.items())
            print(f"{arm:34s} {text}")


if __name__ == "__main__":
    main()
