"""CSL, curvature and learning time against memorization on CIFAR-100.

    python -m experiments.cifar100_memorization.run

One training run of a ResNet-18; its per-sample scores are joined by id with memorization scores that others computed
from hundreds of networks, and compared. Writes results.json and memorization.png.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from experiments.noisy_labels.run import SCORES, columns
from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.figure.style import BLUE, new_figure, plain_frame, save
from plastiscope.formats.memorization import read_memorization
from plastiscope.measure.comparison import auroc, cosine, pearson, spearman

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
SETTINGS = [
    *("data=cifar100", "data.download=false", "data.validation_share=0.0", "data.augmentation=crop_flip"),
    *("net=resnet18", "net.width=16", "task_shift_mode=none", "num_tasks=1", "batch_size=90", "selection=last"),
    *("learner=backprop", "learner.lr=0.1", "learner.momentum=0.9", "learner.weight_decay=5.0e-4", "learner.decay=0.1"),
    *("analysis=[csl,curvature]", "csl.mode=both", "csl.input_gradient=true", "curvature.directions=4"),
    *("snapshots.every=null", "use_wandb=false", "device=auto", "eval_every=5"),
]
LEFT_OUT = ("first learning time, squared norm", "1 - argmax (wrong on purpose)")
COLUMNS = {name: column for name, column in SCORES.items() if name not in LEFT_OUT}


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Settings of the run, with the schedule of so many epochs."""
    epochs = arguments.epochs
    own = [f"data.folder={arguments.data}", f"epochs={epochs}", f"seed={arguments.seed}"]
    own += [f"learner.milestones=[{epochs * 3 // 5},{epochs * 9 // 10}]", f"curvature.every={max(epochs // 6, 1)}"]
    return [*SETTINGS, *own, *([f"data.ids_file={arguments.ids}"] if arguments.ids else [])]


def compare(found: dict[str, np.ndarray], scores: np.ndarray) -> dict[str, dict[str, float]]:
    """Of each column with memorization where it is known: cosine, Pearson, Spearman, AUROC of memorization >= .5."""
    known = np.isfinite(scores)
    mem, labels = scores[known], found["label"][known]
    compared = {}
    for name, column in COLUMNS.items():
        values = found[column.removeprefix("-")][known].astype(np.float64) * (-1 if column.startswith("-") else 1)
        compared[name] = {
            "cosine": cosine(values, mem).value,
            "pearson": pearson(values, mem).value,
            "spearman": spearman(values, mem).value,
            "spearman_within_class": within_class(values, mem, labels),
            "auroc": auroc(values, mem >= 0.5).value,
            "n": int(known.sum()),
        }
    return compared


def within_class(values: np.ndarray, mem: np.ndarray, labels: np.ndarray) -> float:
    """Mean over classes of the Spearman correlation within each: what is left when classes are not compared."""
    return float(np.mean([spearman(values[labels == c], mem[labels == c]).value for c in np.unique(labels)]))


def draw(found: dict[str, np.ndarray], scores: np.ndarray) -> "Figure":
    """Memorization by decile of each score, with standard errors."""
    known = np.isfinite(scores)
    figure = new_figure(9.0, 3.2)
    panels = (
        ("csl_mean", "CSL (mean loss, nats)"),
        ("lt_frac_norm2", "learning time"),
        ("input_curv_norm_mean", "input curvature"),
    )
    for axes, (column, label) in zip(figure.subplots(1, 3, sharey=True), panels, strict=True):
        order = np.argsort(found[column][known], kind="stable")
        groups = np.array_split(order, 10)
        means = [scores[known][g].mean() for g in groups]
        errors = [scores[known][g].std(ddof=1) / np.sqrt(len(g)) for g in groups]
        axes.errorbar(range(1, 11), means, yerr=errors, fmt="o-", color=BLUE, markersize=4)
        axes.set_xlabel(f"decile of {label}")
        plain_frame(axes)
        if column == "csl_mean":
            axes.set_ylabel("memorization (mean and s.e.)")
    return figure


def main() -> None:
    """Run, report, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder of CIFAR-100 in the official layout, whole or a subset")
    parser.add_argument("--memorization", type=Path, required=True, help="scores in official training order, .npy")
    parser.add_argument("--ids", help="for a subset: .npy of the official position of each row, -1 where unknown")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("outputs/cifar100_memorization"), help="folder of the run")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.json and memorization.png")
    arguments = parser.parse_args()
    folder = arguments.out / f"seed_{arguments.seed}"
    run(compose_plan(*overrides(arguments)), folder)
    found = columns(folder)
    scores = read_memorization(arguments.memorization).join(found["sample_id"]).scores
    compared = compare(found, scores)
    (arguments.results / "results.json").write_text(json.dumps(compared, indent=1) + "\n")
    save(draw(found, scores), arguments.results / "memorization.png")
    for name, numbers in compared.items():
        print(f"{name:30}", "  ".join(f"{key} {value:.3f}" for key, value in numbers.items()))


if __name__ == "__main__":
    main()
