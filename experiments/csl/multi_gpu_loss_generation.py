"""Per-sample losses of incremental-CIFAR snapshots on several processes, under the published name and options.

    torchrun --standalone --nproc_per_node=4 experiments/csl/multi_gpu_loss_generation.py --data_path data
        --model_dir base/model_parameters --output_dir losses --compute_grad

Writes a tree epoch_{E:04d}/ of losses (and input-gradient norms) over the outputs of the classes in training at E, for
the images of these classes, and metadata_complete_pipeline.json at its root.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from checkpoint_scoring import (
    Claim,
    Scorer,
    choose_device,
    cifar100,
    class_order_of,
    epoch_scores,
    find_snapshots,
    losses,
    score_each,
    tree_facts,
)
from published_options import add_batches, add_device, add_model_options, add_strict, kept_epochs, run

from plastiscope.data.samples import Samples
from plastiscope.formats.sample_trees import Tree, main_file, write_epoch
from plastiscope.formats.scoring_facts import facts_path
from plastiscope.run.processes import Part, join_processes
from plastiscope.run.storage import write_json

ORIGIN = ("model_dir", "experiment_index", "normalization", "class_order", "grad_kind")


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the snapshots together."""
    options = read_options(arguments)
    processes, checkpoints = join_processes(), find_snapshots(options)
    span = (options.start_epoch, options.end_epoch, None)
    epochs = kept_epochs(checkpoints.epochs(), checkpoints.folder, *span, gap_is_error=True)
    order = class_order_of(options.model_dir, options.class_order_file, options.experiment_index, options.strict)
    folder = options.output_dir
    facts = tree_facts(options, order) | {"grad_kind": "input" if options.compute_grad else None}
    outputs = [main_file(folder, Tree.loss, epoch) for epoch in epochs]
    claimed = Claim.make(facts_path(folder, "loss"), facts, ORIGIN, outputs)
    samples = cifar100(options.data_path, options.normalization, choose_device(options.device, processes))
    scorer = Scorer(samples, order, options.batch_size, processes)

    def write(epoch: int, scored: Samples, values: Part, _: float) -> Path:
        named = {{"loss": "loss", "grad": "loss_grad"}[name]: array for name, array in values.items()}
        return write_epoch(folder, Tree.loss, epoch_scores(epoch, scored, named))

    score_each(checkpoints, epochs, claimed, scorer, partial(losses, compute_grad=options.compute_grad), write)
    if processes.is_first:
        write_json(folder / "metadata_complete_pipeline.json", facts | {"epochs": epochs, "num_gpus": processes.world})


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--class_order_file", type=Path, default=None)
    parser.add_argument("--start_epoch", type=int, default=1)
    parser.add_argument("--end_epoch", type=int, default=4000, help="inclusive")
    parser.add_argument("--compute_grad", action="store_true")
    add_model_options(parser)
    add_batches(parser)
    add_device(parser)
    add_strict(parser)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(main)
