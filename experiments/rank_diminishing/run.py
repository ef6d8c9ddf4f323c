"""Does the rank of a network's Jacobian fall with depth, and what does training do to it?

    python -m experiments.rank_diminishing.run        # 12 runs, about 3 minutes on one core

Four networks on MNIST: for single images, the rank of the Jacobian of each layer by the 16 x 16 pixels in the middle,
at initialisation and after training. Writes results.json and ranks.png. A run that is done is not run again.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.figure.style import BLUE, GREY, ORANGE, new_figure, plain_frame, save
from plastiscope.measure.rank import effective_rank, numerical_rank
from plastiscope.run.log import read_rows
from plastiscope.run.status import State, read_status

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]

HERE = Path(__file__).parent
PROTOCOL = [
    *("data=mnist", "data.samples_per_class=200", "data.test_samples_per_class=100", "data.validation_share=0.0"),
    *("task_shift_mode=none", "num_tasks=1", "epochs=10", "batch_size=64", "selection=last", "eval_every=10"),
    *("learner=backprop", "learner.momentum=0.9", "analysis=[smoothness]", "smoothness.when=both"),
    *("smoothness.enable_beta=false", "smoothness.enable_predictiveness=false", "smoothness.enable_loss_range=false"),
    *("smoothness.jacobian_samples=10", "smoothness.precision=float32"),
    *("use_wandb=false", "device=cpu", "threads=1", "figures=false"),
]
WIDTHS = "net.widths=[256,192,128,128,128,128,128,128]"
NETS = {
    "mlp": ("net=mlp", WIDTHS, "net.init=kaiming_uniform", "learner.lr=0.02"),
    "deep linear": ("net=deep_linear", WIDTHS, "learner.lr=0.02"),
    "convolutional": ("net=convnet", "net.channels=[16,32,64]", "net.widths=[128,128]", "learner.lr=0.02"),
    "ResNet-18, width 8": ("net=resnet18", "net.width=8", "learner.lr=0.02"),
}
PHASES = {"pre_training": "at initialisation", "post_training": "after training"}
EPS = (0.01, 1e-4)
"""Thresholds of the numerical rank: that of the publication (0.0096 for its 768 pixels), and a stricter one."""


def done(folder: Path, *overrides: str) -> Path:
    """The folder of a run with these overrides; a run that is done is not run again."""
    if read_status(folder).get("state") != State.done.value:
        run(compose_plan(*PROTOCOL, *overrides), folder)
    return folder


def ranks(folder: Path, phase: str) -> dict[str, dict[str, Array]]:
    """By measure, of each layer in order from the input: its value for each sample [n]."""
    (path,) = folder.glob(f"task_0000_*/smoothness/{phase}.npz")
    prefix = "jacobian/singular_values/"
    found: dict[str, dict[str, Array]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for name in (name for name in stored.files if name.startswith(prefix)):
            spectra = torch.from_numpy(stored[name])
            layer = name.removeprefix(prefix)
            for eps in EPS:
                values = np.array([numerical_rank(spectrum, eps) for spectrum in spectra])
                found.setdefault(f"rank, eps {eps:g}", {})[layer] = values
            found.setdefault("effective rank", {})[layer] = np.array([effective_rank(s) for s in spectra])
    return found


def measure(runs: Path, seeds: int, *overrides: str) -> tuple[dict, dict[str, float]]:
    """Values [seeds, layers, samples] by network, phase and measure, with the layers' names; and test accuracies."""
    found: dict[str, dict] = {}
    accuracy = {}
    for net, of_net in NETS.items():
        name = net.replace(" ", "_").replace(",", "")
        folders = [done(runs / f"{name}_{seed}", *of_net, f"seed={seed}", *overrides) for seed in range(seeds)]
        ends = [read_rows(folder / "metrics.jsonl")[-1] for folder in folders]
        accuracy[net] = float(np.mean([row["task_test_accuracy"] for row in ends]))
        found[net] = {}
        for phase in PHASES:
            by_seed = [ranks(folder, phase) for folder in folders]
            found[net]["layers"] = list(by_seed[0]["effective rank"])
            found[net][phase] = {
                kind: np.stack([np.stack(list(one[kind].values())) for one in by_seed]) for kind in by_seed[0]
            }
    return found, accuracy


def over_seeds(values: Array) -> tuple[Array, Array]:
    """Mean [layers] and its standard error over seeds, of [seeds, layers, samples]; NaN for one seed."""
    means = values.mean(2)
    n = len(means)
    errors = means.std(0, ddof=1) / n**0.5 if n > 1 else np.full(means.shape[1], np.nan)
    return means.mean(0), errors


def rises(values: Array) -> float:
    """Share of (seed, sample, neighbouring layers) in which the rank rises with depth."""
    return float((np.diff(values, axis=1) > 0).mean())


def draw(found: dict) -> "Figure":
    """A panel for each network: rank over depth at both moments, and the effective rank."""
    figure = new_figure(11.0, 7.2)
    styles = {
        ("pre_training", "rank, eps 0.01"): {"color": ORANGE, "linestyle": "-", "marker": "o"},
        ("post_training", "rank, eps 0.01"): {"color": BLUE, "linestyle": "-", "marker": "o"},
        ("pre_training", "effective rank"): {"color": ORANGE, "linestyle": ":", "marker": None},
        ("post_training", "effective rank"): {"color": BLUE, "linestyle": ":", "marker": None},
    }
    for axes, (net, of_net) in zip(figure.subplots(2, 2).flat, found.items(), strict=True):
        layers = of_net["layers"]
        for (phase, kind), style in styles.items():
            means, errors = over_seeds(of_net[phase][kind])
            label = f"{kind}, {PHASES[phase]}"
            axes.errorbar(range(len(layers)), means, yerr=errors, linewidth=1.4, markersize=3, label=label, **style)
        step = 1 if len(layers) <= 10 else 2
        axes.set_xticks(range(0, len(layers), step), layers[::step], rotation=40, ha="right", fontsize=7)
        axes.set_ylim(bottom=0)
        axes.axhline(10, color=GREY, linewidth=0.6, linestyle="--", zorder=0)
        axes.set_title(net, fontsize=10)
        plain_frame(axes)
    for axes in figure.axes[::2]:
        axes.set_ylabel("rank of the Jacobian by 256 pixels")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    title = "mean over 10 images and the seeds, s.e. over seeds; dashed: the 10 outputs"
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, title=title)
    return figure


def main() -> None:
    """Run what is missing, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data", help="folder of MNIST; downloaded into it if it is not there")
    parser.add_argument("--runs", type=Path, default=Path("outputs/rank_diminishing"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=HERE, help="where results.json and ranks.png go")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0")
    arguments = parser.parse_args()
    found, accuracy = measure(arguments.runs, arguments.seeds, f"data.folder={arguments.data}")
    content = {"seeds": arguments.seeds, "test_accuracy": accuracy, "networks": {}}
    for net, of_net in found.items():
        content["networks"][net] = {"layers": of_net["layers"]} | {
            phase: {
                kind: {"mean": over_seeds(values)[0].round(2).tolist(), "share_of_rises": round(rises(values), 4)}
                for kind, values in of_net[phase].items()
            }
            for phase in PHASES
        }
    (arguments.out / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    save(draw(found), arguments.out / "ranks.png")
    for net, of_net in content["networks"].items():
        print(f"{net}: test accuracy {accuracy[net]:.3f}")
        for phase, label in PHASES.items():
            for kind, numbers in of_net[phase].items():
                print(f"  {label:18} {kind:16} {numbers['mean']}  rises {numbers['share_of_rises']:.1%}")


if __name__ == "__main__":
    main()
