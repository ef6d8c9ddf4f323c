"""Which per-sample score finds mislabelled digits.

    python -m experiments.noisy_labels.run

Trains a small network on all 1,797 digits, some of them with a wrong label, once for each seed and rate, and asks of
each score how well it ranks the mislabelled samples above the others (AUROC). Writes results.json and auroc.png.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from plastiscope.analysis.aggregation import table
from plastiscope.build import compose_plan
from plastiscope.experiment import run
from plastiscope.figure.style import BLUE, GREY, ORANGE, new_figure, plain_frame, save
from plastiscope.load import load_run
from plastiscope.measure.comparison import auroc

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
SEEDS = range(5)
RATES = (0.1, 0.02)
EPOCHS = 30
PROTOCOL = [
    *("data=digits", "data.test_samples=0", "data.validation_share=0.0", "net=mlp", "net.widths=[256,256]"),
    *("task_shift_mode=none", "num_tasks=1", f"epochs={EPOCHS}", "batch_size=64", "selection=last"),
    *("learner=backprop", "learner.lr=0.05", "learner.momentum=0.9", "learner.weight_decay=1.0e-4"),
    *("analysis=[csl,curvature]", "csl.mode=both", "csl.input_gradient=true"),
    *("curvature.every=2", "curvature.directions=4", "curvature.h=1.0e-3"),
    *("use_wandb=false", "figures=false", "device=cpu", "threads=1"),
]
"""Everything but the seed and the share of wrong labels."""
SCORES = {
    "CSL, after each epoch": "csl_sum",
    "CSL, online": "online_csl_sum",
    "cumulative 0/1 loss": "cum_error",
    "-AUM": "-aum",
    "learning time, squared norm": "lt_frac_norm2",
    "learning time, norm": "lt_frac",
    "first learned": "first_learn",
    "cumulative squared gradient": "csg",
    "first learning time, squared norm": "lt_first",
    "curvature, mean over epochs": "input_curv_norm_mean",
    "curvature, last epoch": "input_curv_norm_final",
    "loss, last epoch": "loss_final",
    "forgetting events": "forgetting_events",
    "1 - argmax (wrong on purpose)": "-first_learn_argmax",
}
"""Column of each score, with a minus where a low value is suspicious."""
PUBLISHED = {
    0.1: (0.998, 0.999, 0.997, 0.992, 0.987, 0.963, 0.987, 0.983, 0.967, 0.950, 0.883, 0.907, 0.868, 0.017),
    0.02: (1.0, 1.0, 0.999, 0.999, 0.975, 0.949, 0.993, 0.998, 0.972, 0.993, 0.980, 0.984, 0.846, 0.010),
}
"""What an independent script measured under the same protocol, means over five seeds."""


def train(seed: int, rate: float, out: Path) -> Path:
    """The run of one seed; one that is done already is taken as it is."""
    folder = out / f"rate_{rate}_seed_{seed}"
    run(compose_plan(*PROTOCOL, f"seed={seed}", f"data.label_noise={rate}"), folder)
    return folder


def columns(folder: Path) -> dict[str, np.ndarray]:
    """Scores of every sample by column, in the order of the ids; and `noisy`, whether its label was changed."""
    loaded = load_run(folder)
    found = table(loaded.sample_store)
    found |= {f"online_{name}": values for name, values in table(loaded.sample_store, online=True).items()}
    curvature = loaded.samples("input_curv_norm").values.astype(np.float64)
    found |= {"input_curv_norm_mean": curvature.mean(0), "input_curv_norm_final": curvature[-1]}
    is_learnt = loaded.samples("correct").values > 0
    # What a published script did: argmax of a series of False is 0, so that the never learned look the fastest.
    found["first_learn_argmax"] = is_learnt.argmax(0)
    found["noisy"] = found["label"] != found["label_trained"]
    found["accuracy"] = is_learnt[-1].mean()
    return found


def aurocs(found: dict[str, np.ndarray]) -> dict[str, float]:
    """AUROC of every score, the mislabelled samples as positives; the never learned count as learned last."""
    numbers = {}
    for name, column in SCORES.items():
        values = found[column.removeprefix("-")].astype(np.float64)
        if column == "lt_first":
            values = np.where(np.isnan(values), EPOCHS + 1, values)
        numbers[name] = auroc(-values if column.startswith("-") else values, found["noisy"]).value
    return numbers


def check(results: dict[str, dict[str, list[float]]]) -> list[str]:
    """The gates of the protocol that do not hold, at a rate of 10 %."""
    at = {name: np.array(values) for name, values in results["0.1"].items()}
    csl, online, curvature = at["CSL, after each epoch"], at["CSL, online"], at["curvature, mean over epochs"]
    gates = {
        "CSL >= .985 in every seed": csl.min() >= 0.985,
        "CSL >= .99 in the mean": csl.mean() >= 0.99,
        "online within .01 of post-hoc": np.abs(online - csl).max() <= 0.01,
        "-AUM >= .97": at["-AUM"].mean() >= 0.97,
        "learning time, squared norm >= .96": at["learning time, squared norm"].mean() >= 0.96,
        "curvature >= .90": curvature.mean() >= 0.90,
        "curvature above its last epoch": curvature.mean() > at["curvature, last epoch"].mean(),
        "forgetting in .75 to .95": 0.75 <= at["forgetting events"].mean() <= 0.95,
        "CSL > curvature > forgetting": csl.mean() > curvature.mean() > at["forgetting events"].mean(),
        "the wrong score below .1": at["1 - argmax (wrong on purpose)"].mean() < 0.1,
    }
    return [name for name, holds in gates.items() if not holds]


def draw(results: dict[str, dict[str, list[float]]]) -> "Figure":
    """AUROC by score: mean and range over seeds, with the published means as marks."""
    figure = new_figure(7.5, 5.0)
    axes = figure.subplots()
    rows = np.arange(len(SCORES))
    for rate, colour, shift in ((0.1, BLUE, -0.15), (0.02, ORANGE, 0.15)):
        values = np.array([results[str(rate)][name] for name in SCORES])
        low, mean, high = values.min(1), values.mean(1), values.max(1)
        axes.errorbar(mean, rows + shift, xerr=[mean - low, high - mean], fmt="o", color=colour, markersize=4,
                      label=f"{rate:.0%} wrong labels: mean and range of {values.shape[1]} seeds")  # fmt: skip
        axes.scatter(PUBLISHED[rate], rows + shift, marker="|", s=120, color=GREY, zorder=3,
                     label="independent script" if rate == 0.1 else None)  # fmt: skip
    axes.set_yticks(rows, list(SCORES))
    axes.invert_yaxis()
    axes.set_xlabel("AUROC of finding the wrong labels")
    axes.set_xlim(-0.02, 1.02)
    axes.legend(loc="center left", frameon=False)
    plain_frame(axes)
    return figure


def main() -> None:
    """Run, report, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/noisy_labels"), help="folder of the runs")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.json and auroc.png")
    parser.add_argument("--seeds", type=int, default=len(SEEDS))
    arguments = parser.parse_args()
    results: dict[str, dict[str, list[float]]] = {}
    for rate in RATES:
        of_seeds = [aurocs(columns(train(seed, rate, arguments.out))) for seed in range(arguments.seeds)]
        results[str(rate)] = {name: [numbers[name] for numbers in of_seeds] for name in SCORES}
    (arguments.results / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    save(draw(results), arguments.results / "auroc.png")
    for i, name in enumerate(SCORES):
        shown = (f"{np.mean(results[str(r)][name]):.3f} ({np.min(results[str(r)][name]):.3f})" for r in RATES)
        print(f"{name:36} {'   '.join(shown)}   there: {PUBLISHED[0.1][i]:.3f}, {PUBLISHED[0.02][i]:.3f}")
    failed = check(results)
    print("all gates hold" if not failed else f"gates that do not hold: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
