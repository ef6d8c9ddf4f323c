"""Input curvature of incremental-CIFAR snapshots on several processes, under the published name and options.

    torchrun --standalone --nproc_per_node=4 experiments/csl/multi_gpu_curvature_analysis.py --data_path data
        --model_dir base/model_parameters --save_base_dir curvature --epochs 0,2000,4000

Writes a tree epoch_{E:04d}/ with what per_image_curve computes, of the images whose classes are in training at E.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from checkpoint_scoring import (
    Claim,
    Scorer,
    choose_device,
    cifar100,
    class_order_of,
    epoch_scores,
    find_snapshots,
    score_each,
    tree_facts,
)
from per_image_curve import BATCH_SIZE, add_curvature_options, check_scaling, curvature_facts, curvature_score
from published_options import add_model_options, chosen_epochs, kept_epochs, run

from plastiscope.data.samples import Samples
from plastiscope.formats.sample_trees import Tree, main_file, write_epoch
from plastiscope.formats.scoring_facts import facts_path
from plastiscope.run.processes import Part, join_processes

ORIGIN = ("model_dir", "experiment_index", "normalization", "class_order", "scaling", "seed")


def main(arguments: Sequence[str] | None = None) -> None:
    """Probe every image of every snapshot."""
    options = read_options(arguments)
    check_scaling(options)
    processes, checkpoints = join_processes(), find_snapshots(options)
    epochs = wanted_epochs(options, checkpoints.epochs(), checkpoints.folder)
    order = class_order_of(options.model_dir, None, options.experiment_index, options.strict)
    folder = options.save_base_dir
    facts = curvature_facts(options) | tree_facts(options, order)
    outputs = [main_file(folder, Tree.curvature, epoch) for epoch in epochs]
    claimed = Claim.make(facts_path(folder, "curvature"), facts, ORIGIN, outputs)
    samples = cifar100(options.data_path, options.normalization, choose_device(options.device, processes))
    scorer = Scorer(samples, order, BATCH_SIZE, processes)

    def write(epoch: int, scored: Samples, values: Part, seconds: float) -> Path:
        classes = scored.labels.unique().tolist()
        about = {"num_gpus": processes.world, "compute_time_seconds": seconds, "allowed_classes": classes}
        return write_epoch(folder, Tree.curvature, epoch_scores(epoch, scored, values, **about))

    score_each(checkpoints, epochs, claimed, scorer, curvature_score(options), write)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start_epoch", type=int, default=0)
    parser.add_argument("--end_epoch", type=int, default=4000, help="inclusive")
    parser.add_argument("--step", type=int, default=200)
    parser.add_argument("--epochs", default=None, help="such as 0,500: these instead of the grid")
    parser.add_argument("--save_base_dir", type=Path, required=True)
    add_model_options(parser)
    add_curvature_options(parser)
    return parser.parse_args(arguments)


def wanted_epochs(options: argparse.Namespace, there: list[int], where: Path) -> list[int]:
    """Those of --epochs, or of the grid."""
    if options.epochs is not None:
        return chosen_epochs(options.epochs, there, where, options.strict)
    span = (options.start_epoch, options.end_epoch, options.step)
    return kept_epochs(there, where, *span, gap_is_error=options.strict)


if __name__ == "__main__":
    run(main)
