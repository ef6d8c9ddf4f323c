"""What a cumulative loss measures when classes come in groups.

    python -m experiments.class_incremental_csl.run

Digits, two new classes a task, cumulative. Summed over all epochs and all outputs, the loss of a sample is mostly a
record of how late its class came; taken over the epochs in which its class is in training it is not. Writes
results.json and entry.png.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastiscope.analysis.aggregation import table
from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.figure.style import BLUE, GREY, new_figure, plain_frame, save
from plastiscope.load import load_run
from plastiscope.measure.comparison import spearman

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
PROTOCOL = [
    *("data=digits", "data.test_samples=0", "data.validation_share=0.0", "net=mlp", "net.widths=[256,256]"),
    *("task_shift_mode=class_incremental", "task_shift_mode.classes_per_task=2", "num_tasks=5", "epochs=12"),
    f"task_shift_mode.class_order={np.random.RandomState(0).permutation(10).tolist()}".replace(" ", ""),
    *("learner=backprop", "learner.lr=0.05", "learner.momentum=0.9", "learner.weight_decay=1.0e-4", "batch_size=64"),
    *("analysis=[csl]", "csl.mode=posthoc", "csl.all_outputs=true", "csl.first_epochs=12", "samples.population=run"),
    *("selection=last", "seed=0", "use_wandb=false", "figures=false", "device=cpu", "threads=1"),
]
COLUMNS = {
    "all epochs, all outputs": "csl_all",
    "sum over active epochs": "csl_active_sum",
    "mean over active epochs": "csl_active_mean",
    "first 12 active epochs": "csl_first_12",
}
PUBLISHED = {"csl_all": (0.945, 0.778), "csl_active_sum": (-0.492, 0.071), "csl_active_mean": (-0.208, 0.006),
             "csl_first_12": (-0.412, 0.024)}  # fmt: skip
"""What an independent script measured: Spearman with the entry task, share of variance between tasks."""


def between_share(values: np.ndarray, groups: np.ndarray) -> float:
    """Share of the variance of `values` that lies between the means of `groups`."""
    total = ((values - values.mean()) ** 2).sum()
    parts = (values[groups == g] for g in np.unique(groups))
    return float(sum(len(p) * (p.mean() - values.mean()) ** 2 for p in parts) / total)


def measure(folder: Path) -> dict[str, dict[str, float]]:
    """Spearman with the entry task and share of variance between tasks, of every variant."""
    found = table(load_run(folder).sample_store, first_epochs=12)
    numbers = {}
    for column in COLUMNS.values():
        values, entry = found[column].astype(np.float64), found["entry_task"]
        numbers[column] = {"spearman": spearman(values, entry).value, "between": between_share(values, entry)}
    return numbers


def check(numbers: dict[str, dict[str, float]]) -> list[str]:
    """The gates of the protocol that do not hold."""
    gates = {
        "csl_all > .8": numbers["csl_all"]["spearman"] > 0.8,
        "|csl_active_mean| < .35": abs(numbers["csl_active_mean"]["spearman"]) < 0.35,
    }
    return [name for name, holds in gates.items() if not holds]


def draw(folder: Path) -> "Figure":
    """Distribution by entry task: over all epochs, and over active ones."""
    found = table(load_run(folder).sample_store, first_epochs=12)
    figure = new_figure(8.0, 3.4)
    for axes, column, label, colour in zip(
        figure.subplots(1, 2),
        ("csl_all", "csl_active_mean"),
        ("sum over all 60 epochs, all outputs (nats)", "mean over active epochs (nats)"),
        (GREY, BLUE),
        strict=True,
    ):
        groups = [found[column][found["entry_task"] == k] for k in range(5)]
        axes.boxplot(groups, positions=range(5), widths=0.6, showfliers=False, medianprops={"color": colour})
        axes.set_xlabel("task with which the class came")
        axes.set_ylabel(label)
        plain_frame(axes)
    return figure


def main() -> None:
    """Run, report, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/class_incremental_csl"), help="folder of the run")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.json and entry.png")
    arguments = parser.parse_args()
    folder = arguments.out / "run"
    run(compose_plan(*PROTOCOL), folder)
    numbers = measure(folder)
    (arguments.results / "results.json").write_text(json.dumps(numbers, indent=1) + "\n")
    save(draw(folder), arguments.results / "entry.png")
    for name, column in COLUMNS.items():
        own, there = numbers[column], PUBLISHED[column]
        print(f"{name:26} {own['spearman']:.3f} ({own['between']:.3f})   there: {there[0]:.3f} ({there[1]:.3f})")
    failed = check(numbers)
    print("all gates hold" if not failed else f"gates that do not hold: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
