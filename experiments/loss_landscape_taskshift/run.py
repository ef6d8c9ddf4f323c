"""What happens to the loss landscape as a task begins and ends, under two shifts of MNIST?

    python -m experiments.loss_landscape_taskshift.run        # 2 runs, about 5 minutes on one core

Deformed inputs with classes, and classes whose real values drift. The published protocol is the config
`experiment=loss_landscape_taskshift`; here is its small form: fewer images, a narrower network, six tasks of ten
epochs, small batches. Writes results.json and landscape.png. A run that is done is not run again.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.figure.style import BLUE, ORANGE, depth_colours, new_figure, plain_frame, save
from plastiscope.measure.rank_dynamics import weight_sv_gini
from plastiscope.run.log import read_rows
from plastiscope.run.snapshots import Snapshots
from plastiscope.run.status import State, read_status

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]

HERE = Path(__file__).parent
MODES = ("continuous_input_deformation", "drifting_values")
SMALL = [
    *("data.samples_per_class=200", "data.test_samples_per_class=100", "num_tasks=6", "epochs=10", "batch_size=64"),
    *("net.channels=[8,16,32]", "net.widths=[64]", "learner.weight_decay=1.0e-3", "eval_every=10"),
    *("representation.samples=500", "lla.every=1", "lla.profile=smoke", "lla.evaluation_data.num_samples=256"),
    *("lla.planes.include_random=false", "lla.planes.include_trajectory=false", "lla.planes.grid_resolution=9"),
    *("lla.spectrum.top_k=5", "lla.spectrum.hutchinson_probes=32", "lla.spectrum.esd.num_probes=4"),
    *("lla.spectrum.esd.lanczos_steps=30", "lla.spectrum.backend=retained", "threads=1", "device=cpu"),
]
"""What the published protocol is cut down to; weight decay .01 for so few steps would hold the weights near zero."""
LANDSCAPE = {
    "plane_hessian_center_loss": "loss",
    "hessian_top_eig_1": "largest eigenvalue",
    "hessian_trace_estimate": "trace",
    "hesd_re": "|smallest / largest eigenvalue|",
    "sam_center_gap": "rise of the loss at distance .05",
}
"""Measured before and after each task."""
MAGNITUDE = "representation/weights/total/weight_mag_all"
AT_ENDS = {
    "representation/current/layer_mean/effective_rank": "effective rank, mean of layers",
    "representation/current/total/rank_drop_gini": "Gini of rank drops over layers",
    MAGNITUDE: "mean |w|, after",
}
"""Measured after each task."""
PER_LAYER = "effective_rank"
PHASES = {"pre_training": "before the task", "post_training": "after it"}


def overrides_of(mode: str) -> list[str]:
    """The published protocol with one of its shifts, and the project its numbers go to."""
    project = f"wandb.project=loss_landscape_taskshift_{mode}"
    return ["experiment=loss_landscape_taskshift", f"task_shift_mode={mode}", project]


def done(folder: Path, *overrides: str) -> Path:
    """The folder of a run with these overrides; a run that is done is not run again."""
    if read_status(folder).get("state") != State.done.value:
        run(compose_plan(*overrides), folder)
    return folder


def task_ends(folder: Path) -> Rows:
    """The rows of the tasks' ends, which hold the numbers from before them too."""
    return [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "task_end"]


def weight_ginis(folder: Path, epochs: list[int]) -> dict[str, list[float]]:
    """Gini coefficient of the singular values of each weight matrix (filters flattened) after so many epochs."""
    snapshots = Snapshots(folder / "snapshots")
    found: dict[str, list[float]] = {}
    for epoch in epochs:
        for name, weight in snapshots.load(epoch).items():
            if weight.ndim >= 2:
                values = torch.linalg.svdvals(weight.flatten(1).double())
                found.setdefault(f"weight_sv_gini/{name}", []).append(weight_sv_gini(values))
    return found


def numbers_of(folder: Path) -> dict[str, list[float]]:
    """Every number of the study, task by task; NaN where it was not measured."""
    rows = task_ends(folder)
    keys = [f"{phase}/{name}" for phase in PHASES for name in (*LANDSCAPE, "hessian_trace_stderr", "param_norm")]
    keys += [*AT_ENDS, "task_test_accuracy", "task_test_loss"]
    keys += [key for key in rows[0] if key.startswith("representation/current/") and key.endswith(f"/{PER_LAYER}")]
    numbers = {key: _column(rows, key) for key in dict.fromkeys(keys)}
    return numbers | weight_ginis(folder, [row["global_epoch"] + 1 for row in rows])


def ratios(numbers: dict[str, list[float]]) -> dict[str, float]:
    """Median over the tasks but the first (before which nothing was trained) of each quantity: after / before."""
    found = {}
    for name in LANDSCAPE:
        before, after = (np.array(numbers[f"{phase}/{name}"])[1:] for phase in PHASES)
        found[name] = float(np.median(after / before)) if len(before) else float("nan")
    return found


def _column(rows: Rows, key: str) -> list[float]:
    values = [row.get(key) for row in rows]
    return [float("nan") if value is None else float(value) for value in values]


def draw(found: dict[str, dict[str, list[float]]]) -> "Figure":
    """A row for each shift: landscape before and after, then what is measured at the ends."""
    figure = new_figure(17.0, 2.7 * len(found) + 0.7)
    shown = [name for name in LANDSCAPE if name != "hesd_re"]
    panels = figure.subplots(len(found), len(shown) + 3, squeeze=False)
    for row, (mode, numbers) in zip(panels, found.items(), strict=True):
        for axes, name in zip(row, shown, strict=False):
            _draw_phases(axes, numbers, name)
            axes.set_title(LANDSCAPE[name], fontsize=9)
        ranks = {key.split("/")[2]: v for key, v in numbers.items() if key.endswith(f"/{PER_LAYER}")}
        ranks = {layer: ranks.get(layer, []) for layer in (*ranks, "head") if layer != "layer_mean"}
        _draw_layers(row[-3], ranks)
        row[-3].set_title("effective rank by layer, after", fontsize=9)
        ginis = {key.split("/")[1]: v for key, v in numbers.items() if key.startswith("weight_sv_gini/")}
        _draw_layers(row[-2], {name.removesuffix(".weight"): values for name, values in ginis.items()})
        row[-2].set_title("Gini of weights' singular values", fontsize=9)
        sizes = numbers[MAGNITUDE]
        row[-1].plot(range(len(sizes)), sizes, color=BLUE, marker="s", markersize=3, linewidth=1.3)
        row[-1].set_title(AT_ENDS[MAGNITUDE], fontsize=9)
        row[0].set_ylabel(mode.replace("_", " "))
        for axes in row:
            axes.set_xlabel("task")
            plain_frame(axes)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
    handles, labels = panels[0, -2].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower right", ncols=5, frameon=False)
    return figure


def _draw_phases(axes: "Axes", numbers: dict[str, list[float]], name: str) -> None:
    """Both ends of each task."""
    for (phase, label), (colour, marker) in zip(PHASES.items(), ((ORANGE, "o"), (BLUE, "s")), strict=True):
        values = numbers[f"{phase}/{name}"]
        errors = numbers[f"{phase}/hessian_trace_stderr"] if name == "hessian_trace_estimate" else None
        style = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1.3, "label": label}
        axes.errorbar(range(len(values)), values, yerr=errors, **style)
    shown = [value for phase in PHASES for value in numbers[f"{phase}/{name}"]]
    if min(shown) > 0:
        axes.set_yscale("log")
    else:
        axes.set_yscale("symlog", linthresh=10 ** np.floor(np.log10(np.abs(shown).min())))


def _draw_layers(axes: "Axes", by_layer: dict[str, list[float]]) -> None:
    """A curve for each layer, from dark to light with its depth."""
    for (layer, values), colour in zip(by_layer.items(), depth_colours(len(by_layer)), strict=True):
        axes.plot(range(len(values)), values, color=colour, linewidth=1.3, label=layer)
    axes.set_ylim(bottom=0)


def main() -> None:
    """Run what is missing, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of MNIST; downloaded into it if it is not there")
    parser.add_argument(
        "--runs", type=Path, default=Path("outputs/loss_landscape_taskshift"), help="folder of the runs"
    )
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and landscape.png go")
    parser.add_argument("--wandb", action="store_true", help="also send the numbers to loss_landscape_taskshift_<mode>")
    arguments = parser.parse_args()
    rest = [*SMALL, f"data.folder={arguments.data}", f"use_wandb={str(arguments.wandb).lower()}"]
    found = {}
    for mode in MODES:
        found[mode] = numbers_of(done(arguments.runs / mode, *overrides_of(mode), *rest))
    content = {mode: {"after / before": ratios(numbers), "by task": numbers} for mode, numbers in found.items()}
    (arguments.out / "results.json").write_text(json.dumps(content, indent=1).replace("NaN", "null") + "\n")
    save(draw(found), arguments.out / "landscape.png")
    for mode, numbers in found.items():
        print(mode)
        for key, values in numbers.items():
            print(f"  {key:60} {' '.join(f'{value:9.4g}' for value in values)}")
        print("  after / before:", {name: round(value, 3) for name, value in ratios(numbers).items()})


if __name__ == "__main__":
    main()
