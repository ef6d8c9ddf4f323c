"""Does a score of one training run tell which samples the network memorises.

    python -m experiments.memorization.run

Memorization by its definition (Feldman & Zhang 2020): train many networks on random subsets and compare, for each
sample, how often networks trained with it and without it get it right. Then each score of a single run on all samples,
that of experiments/noisy_labels with seed 0, is compared with it. Writes results.json and memorization.png.
"""

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from experiments.noisy_labels.run import EPOCHS, PROTOCOL, SCORES, columns
from experiments.noisy_labels.run import train as train_scored
from plastiscope.build import Plan, compose_plan
from plastiscope.figure.style import BLUE, ORANGE, new_figure, plain_frame, save
from plastiscope.make import load_tasks, make_learner
from plastiscope.measure.comparison import auroc, cosine, pearson, spearman
from plastiscope.measure.memorization import draw_subset, memorization, subset_random
from plastiscope.task_shift_mode.task import evaluate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).parent
MODELS = 150
NOISE = "data.label_noise=0.1"


def train_on_subset(plan: Plan, r: int) -> tuple[np.ndarray, np.ndarray]:
    """Model r: which samples it was trained on, and which of all it gets right at the end; both bool [n]."""
    torch.set_num_threads(1)
    of_model = dataclasses.replace(plan, settings=dataclasses.replace(plan.settings, seed=9000 + r))
    data, shift = load_tasks(plan, torch.device("cpu"))  # the labels' noise is that of the plan's seed
    learner = make_learner(of_model, shift, data, torch.device("cpu"))
    task = shift.task(0)
    learner.take_up(task)
    learner.begin_task(task)
    n, random = len(task.train), subset_random(r)
    chosen = draw_subset(random, n)
    subset = task.train.select(torch.from_numpy(chosen))
    for _ in range(EPOCHS):
        for batch in subset.batches(plan.settings.batch_size, torch.from_numpy(random.permutation(len(chosen)))):
            learner.step(batch)
    right = evaluate(learner.net, task, task.train, 0).correct
    assert right is not None
    is_in = np.zeros(n, np.bool_)
    is_in[chosen] = True
    return is_in, right.numpy()


def compare(found: dict[str, np.ndarray], mem: np.ndarray) -> dict[str, dict[str, float]]:
    """Cosine, Pearson and Spearman of every score with memorization, and of CSL in a random order."""
    scores = {}
    for name, column in SCORES.items():
        values = found[column.removeprefix("-")].astype(np.float64)
        if column == "lt_first":  # the never learned count as learned last
            values = np.where(np.isnan(values), EPOCHS + 1, values)
        scores[name] = -values if column.startswith("-") else values
    scores["CSL, shuffled"] = np.random.RandomState(0).permutation(scores["CSL, after each epoch"])
    is_clean = ~found["noisy"]
    return {
        name: {
            "cosine": cosine(values, mem).value,
            "pearson": pearson(values, mem).value,
            "spearman": spearman(values, mem).value,
            "pearson_clean": pearson(values[is_clean], mem[is_clean]).value,
        }
        for name, values in scores.items()
    }


def check(compared: dict[str, dict[str, float]]) -> list[str]:
    """The gates of the protocol that do not hold."""
    of = {name: numbers["pearson"] for name, numbers in compared.items()}
    csl = "CSL, after each epoch"
    gates = {
        "Pearson(CSL) >= .75": of[csl] >= 0.75,
        "Spearman(CSL) >= .70": compared[csl]["spearman"] >= 0.70,
        "CSL > curvature > its last epoch": of[csl] > of["curvature, mean over epochs"] > of["curvature, last epoch"],
        "|Pearson(shuffled)| < .08": abs(of["CSL, shuffled"]) < 0.08,
    }
    return [name for name, holds in gates.items() if not holds]


def draw(found: dict[str, np.ndarray], mem: np.ndarray) -> "Figure":
    """Memorization against CSL, clean and wrong labels apart."""
    figure = new_figure(6.0, 4.0)
    axes = figure.subplots()
    for is_noisy, colour, label in ((False, BLUE, "label as it is"), (True, ORANGE, "label changed")):
        some = found["noisy"] == is_noisy
        axes.scatter(found["csl_mean"][some], mem[some], s=7, alpha=0.5, color=colour, label=label)
    axes.set_xlabel("mean loss over epochs (CSL / 30, nats)")
    axes.set_ylabel(f"memorization ({MODELS} networks)")
    axes.set_xscale("log")
    axes.legend(frameon=False)
    plain_frame(axes)
    return figure


def main() -> None:
    """Run, report, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/noisy_labels"), help="folder of the scored run")
    parser.add_argument("--results", type=Path, default=HERE, help="folder of results.json and memorization.png")
    parser.add_argument("--models", type=int, default=MODELS)
    arguments = parser.parse_args()
    plan = compose_plan(*PROTOCOL, "seed=0", NOISE)
    trained = [train_on_subset(plan, r) for r in range(arguments.models)]
    mem = memorization(*(np.stack(masks) for masks in zip(*trained, strict=True))).values
    found = columns(train_scored(0, 0.1, arguments.out))
    compared = compare(found, mem)
    about = {
        "mean_noisy": float(np.nanmean(mem[found["noisy"]])),
        "mean_clean": float(np.nanmean(mem[~found["noisy"]])),
        "auroc": auroc(mem, found["noisy"]).value,
    }
    (arguments.results / "results.json").write_text(json.dumps({**about, "scores": compared}, indent=1) + "\n")
    save(draw(found, mem), arguments.results / "memorization.png")
    print(about)
    for name, numbers in compared.items():
        print(f"{name:36}", "  ".join(f"{key} {value:.3f}" for key, value in numbers.items()))
    failed = check(compared)
    print("all gates hold" if not failed else f"gates that do not hold: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
