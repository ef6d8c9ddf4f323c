"""Per-sample losses and input-gradient norms of incremental-CIFAR snapshots, under the published name and options.

    python experiments/csl/score_incremental_cifar_loss.py --results_dir results/base --data_path data

Reads model_parameters/index-{i}_epoch-{E}.pt and class_order/index-{i}.npy of the results, writes scheme A. The loss
sees the outputs of the classes in training at E; images of other classes are NaN. Rows are sample ids;
split_cifar100.npy says which images (1) are for validation and never trained on.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from checkpoint_scoring import (
    Claim,
    Scorer,
    choose_device,
    cifar100,
    full_row,
    is_validation,
    losses,
    read_class_order,
    score_each,
)
from published_options import add_batches, add_device, add_strict, kept_epochs, run, truth

from plastiscope.data.samples import Samples
from plastiscope.formats.checkpoints import CheckpointFolder, Layout, Wanted, find_checkpoints
from plastiscope.formats.content import write_array
from plastiscope.formats.loss_files import loss_name, write_losses
from plastiscope.formats.scoring_facts import facts_path
from plastiscope.run.processes import Part, Processes

DATASET = "cifar100"
ORIGIN = ("results_dir", "experiment_index", "grad_kind", "normalization", "class_order")


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the snapshots."""
    options = read_options(arguments)
    checkpoints = snapshots(options)
    span = (options.start_epoch, options.end_epoch, None)
    epochs = kept_epochs(checkpoints.epochs(), checkpoints.folder, *span, gap_is_error=True)
    print(score_snapshots(options, checkpoints, epochs, options.output_dir))


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_results_options(parser, required=True)
    parser.add_argument("--start_epoch", type=int, default=None)
    parser.add_argument("--end_epoch", type=int, default=None, help="inclusive")
    parser.add_argument("--output_dir", type=Path, default=None, help="default: results_dir/per_sample_losses_inc")
    add_strict(parser)
    return parser.parse_args(arguments)


def add_results_options(parser: argparse.ArgumentParser, required: bool) -> None:
    """The options that say which results are scored, and how."""
    parser.add_argument("--results_dir", type=Path, required=required)
    parser.add_argument("--data_path", type=Path, required=required)
    parser.add_argument("--experiment_index", type=int, default=0)
    parser.add_argument("--compute_grad", type=truth, default=True)
    add_batches(parser)
    add_device(parser)


def snapshots(options: argparse.Namespace) -> CheckpointFolder:
    """The snapshots of the experiment."""
    return find_checkpoints(options.results_dir, Layout.incremental_cifar, Wanted(index=options.experiment_index))


def score_snapshots(
    options: argparse.Namespace, checkpoints: CheckpointFolder, epochs: Sequence[int], folder: Path | None
) -> Path:
    """Score the snapshots of these epochs into `folder`, or where the published command puts them; returns where."""
    folder = folder or options.results_dir / "per_sample_losses_inc"
    order = read_class_order(options.results_dir / "class_order" / f"index-{options.experiment_index}.npy")
    facts = {
        "results_dir": str(options.results_dir.resolve()),
        "experiment_index": options.experiment_index,
        "mode": "posthoc",
        "grad_kind": "input" if options.compute_grad else None,
        "contains_l2": False,
        "logit_scope": "active",
        "split": "train and validation, see split_cifar100.npy",
        "normalization": options.normalization,
        "class_order": list(order),
    }
    outputs = [folder / loss_name("loss", DATASET, epoch) for epoch in epochs]
    claimed = Claim.make(facts_path(folder, DATASET), facts, ORIGIN, outputs)
    samples = cifar100(options.data_path, options.normalization, choose_device(options.device, Processes()))
    scorer = Scorer(samples, order, options.batch_size, Processes())
    write_array(folder / f"split_{DATASET}.npy", is_validation(samples).astype(np.uint8))

    def write(epoch: int, scored: Samples, values: Part, _: float) -> Path:
        rows = {name: full_row(scorer, scored, row) for name, row in values.items()}
        write_losses(folder, DATASET, epoch, rows["loss"], rows.get("grad"))
        return folder / loss_name("loss", DATASET, epoch)

    score_each(checkpoints, epochs, claimed, scorer, partial(losses, compute_grad=options.compute_grad), write)
    return folder


if __name__ == "__main__":
    run(main)
