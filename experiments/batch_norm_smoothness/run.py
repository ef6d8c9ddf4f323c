"""Does batch normalisation make the loss smoother along its gradient, before, during and after training?

    python -m experiments.batch_norm_smoothness.run        # 18 runs, about 3 minutes on one core

A convolutional and a deep linear network with and without batch normalisation, through three deformations of MNIST. In
between, every epoch: effective beta, gradient predictiveness and the range of the loss within a step. Writes
results.json and smoothness.png. A run that is done is not run again.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.figure.style import BLUE, GREY, ORANGE, epoch_axis, new_figure, plain_frame, save
from plastiscope.run.log import read_rows
from plastiscope.run.status import State, read_status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
TASKS, EPOCHS = 3, 5
PROTOCOL = [
    *("data=mnist", "data.samples_per_class=200", "data.test_samples_per_class=100", "data.validation_share=0.0"),
    *("task_shift_mode=continuous_input_deformation", f"num_tasks={TASKS}", f"epochs={EPOCHS}", "batch_size=64"),
    *("learner=backprop", "learner.lr=0.02", "learner.momentum=0.9", "selection=last", "eval_every=100"),
    *("analysis=[smoothness]", "smoothness.when=pre", "smoothness.epochs=1", "smoothness.enable_jacobian_rank=false"),
    *("smoothness.num_samples=256", "smoothness.batch_size=64", "use_wandb=false", "device=cpu", "threads=1"),
    "figures=false",
]
"""The frozen samples are looked at in batches of the training's size."""
NETS = {
    "convolutional": ("net=convnet", "net.channels=[8,16,32]", "net.widths=[64]"),
    "deep linear": ("net=deep_linear", "net.widths=[64,64,64,64,64,64]", "net.bias=true"),
}
NORMALISED = {"convolutional": "net.norm=batch", "deep linear": "net.batch_norm=true"}
ARMS = {
    "without": None,
    "with, statistics of the batch": "smoothness.batch_norm=batch",
    "with, running statistics": "smoothness.batch_norm=stored",
}
"""What the smoothness is measured with; the two networks with batch normalisation are the same one."""
COLOURS = {"without": ORANGE, "with, statistics of the batch": BLUE, "with, running statistics": GREY}
QUANTITIES = {
    "effective_beta": "effective beta",
    "grad_predictiveness": "change of the gradient, step .01",
    "relative_change": "the same, relative to the gradient",
    "loss_range": "range of the loss in that step",
}
"""What is compared, over the epochs; relative_change is grad_predictiveness / gradient_norm."""


def done(folder: Path, *overrides: str) -> Path:
    """The folder of a run with these overrides; a run that is done is not run again."""
    if read_status(folder).get("state") != State.done.value:
        run(compose_plan(*PROTOCOL, *overrides), folder)
    return folder


def curves(folder: Path) -> tuple[Array, dict[str, Array]]:
    """Epochs completed [1 + e] and each quantity at them: before any training, then after each epoch."""
    rows = read_rows(folder / "metrics.jsonl")
    looks = [(0.0, _of(rows, "task_end")[0], "pre_training")]
    looks += [(row["global_epoch"] + 1.0, row, "epoch") for row in _of(rows, "epoch")]
    values = {
        name: np.array([row[f"smoothness/{phase}/total/{name}"] for _, row, phase in looks])
        for name in (*QUANTITIES, "gradient_norm")
        if name != "relative_change"
    }
    values["relative_change"] = values["grad_predictiveness"] / values.pop("gradient_norm")
    return np.array([epoch for epoch, _, _ in looks]), values


def _of(rows: list[dict], kind: str) -> list[dict]:
    return [row for row in rows if row["kind"] == kind]


def measure(runs: Path, seeds: int, *overrides: str) -> tuple[Array, dict[str, dict[str, dict[str, Array]]], dict]:
    """All runs: the epochs, and [seeds, epochs] by network, arm and quantity; final accuracies by network and arm."""
    found: dict[str, dict[str, dict[str, Array]]] = {}
    accuracy: dict[str, dict[str, float]] = {}
    epochs = np.empty(0)
    for net, of_net in NETS.items():
        found[net], accuracy[net] = {}, {}
        for arm, policy in ARMS.items():
            folders = [
                done(
                    runs / f"{net}_{arm}_{seed}".replace(" ", "_").replace(",", ""),
                    *of_net,
                    *([] if policy is None else [NORMALISED[net], policy]),
                    f"seed={seed}",
                    *overrides,
                )
                for seed in range(seeds)
            ]
            by_seed = [curves(folder) for folder in folders]
            epochs = by_seed[0][0]
            found[net][arm] = {name: np.stack([values[name] for _, values in by_seed]) for name in QUANTITIES}
            ends = [_of(read_rows(folder / "metrics.jsonl"), "task_end") for folder in folders]
            accuracy[net][arm] = float(np.mean([row["task_test_accuracy"] for rows in ends for row in rows]))
    return epochs, found, accuracy


def summary(found: dict[str, dict[str, dict[str, Array]]]) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """By network, arm and quantity: geometric means over seeds before training, during it, and at the tasks' ends.

    `factor` is the standard error over seeds of the mean logarithm during training, as a factor.
    """
    return {
        net: {
            arm: {
                name: {
                    "before": _level(values[:, :1]),
                    "during": _level(values[:, 1:]),
                    "task_ends": _level(values[:, (values.shape[1] - 1) // TASKS :: (values.shape[1] - 1) // TASKS]),
                    "factor": _spread(values),
                }
                for name, values in quantities.items()
            }
            for arm, quantities in arms.items()
        }
        for net, arms in found.items()
    }


def _level(values: Array) -> float:
    return float(np.exp(np.log(values).mean()))


def _spread(values: Array) -> float:
    """Standard error over seeds of the mean logarithm during training, as a factor."""
    logs = np.log(values[:, 1:]).mean(1)
    return float(np.exp(logs.std(ddof=1) / len(logs) ** 0.5)) if len(logs) > 1 else float("nan")


def draw(epochs: Array, found: dict[str, dict[str, dict[str, Array]]]) -> "Figure":
    """A row for each network, a panel for each quantity; geometric mean over seeds and their range."""
    figure = new_figure(13.0, 6.0)
    panels = figure.subplots(len(found), len(QUANTITIES))
    per_task = (len(epochs) - 1) // TASKS
    boundaries = [per_task * k for k in range(1, TASKS)]
    for row, (net, arms) in zip(panels, found.items(), strict=True):
        for axes, (name, label) in zip(row, QUANTITIES.items(), strict=True):
            for arm, quantities in arms.items():
                _draw_curve(axes, epochs, quantities[name], arm)
            epoch_axis(axes, boundaries)
            axes.set(yscale="log", xlabel="epochs completed")
            axes.set_title(f"{net}: {label}", fontsize=9)
            plain_frame(axes)
    for axes in panels[:-1].flat:
        axes.set_xlabel("")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    title = "batch normalisation (mean of the seeds' logarithms, range of the seeds; dotted: a new task begins)"
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, title=title)
    return figure


def _draw_curve(axes: "Axes", epochs: Array, values: Array, arm: str) -> None:
    axes.plot(epochs, np.exp(np.log(values).mean(0)), color=COLOURS[arm], linewidth=1.4, label=arm)
    axes.fill_between(epochs, values.min(0), values.max(0), color=COLOURS[arm], alpha=0.15, linewidth=0)


def main() -> None:
    """Run what is missing, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of MNIST; downloaded into it if it is not there")
    parser.add_argument("--runs", type=Path, default=Path("outputs/batch_norm_smoothness"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and smoothness.png go")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    arguments = parser.parse_args()
    epochs, found, accuracy = measure(arguments.runs, arguments.seeds, f"data.folder={arguments.data}")
    levels = summary(found)
    content = {"seeds": arguments.seeds, "levels": levels, "mean_test_accuracy_at_task_ends": accuracy}
    (arguments.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    save(draw(epochs, found), arguments.out / "smoothness.png")
    for net, arms in levels.items():
        for name in QUANTITIES:
            texts = [
                f"{arm}: {q[name]['before']:.3g} -> {q[name]['during']:.3g} x/ {q[name]['factor']:.2f}, "
                f"ends {q[name]['task_ends']:.3g}"
                for arm, q in arms.items()
            ]
            print(f"{net:14} {name:20} {'   '.join(texts)}")
        print(f"{net:14} test accuracy        {accuracy[net]}")


if __name__ == "__main__":
    main()
