"""Per-sample dormancy of incremental-CIFAR snapshots on several processes, under the published name and options.

    torchrun --standalone --nproc_per_node=4 experiments/csl/multi_gpu_dormant_analysis.py --data_path data
        --model_dir base/model_parameters --save_base_dir dormancy --class_order_file base/class_order/index-0.npy

Also under srun, and alone. The share of a sample's dormant units is the published one (`persample_module`): the raw
outputs of all 21 convolutions and linear layers, signs included. Writes dormant_props_epoch_{E}.npy and its companions,
and the same as a tree epoch_{E:04d}/. The bytes of the arrays do not depend on the number of processes.
"""

import argparse
import warnings
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
from published_options import add_batches, add_device, add_model_options, add_strict, kept_epochs, run
from torch import Tensor, nn

from plastiscope.analysis.dormancy_pass import module_dormancy
from plastiscope.data.samples import Batch, Samples
from plastiscope.error import DataError
from plastiscope.formats.flat_files import dormancy_file, write_dormancy
from plastiscope.formats.sample_trees import Tree, write_epoch
from plastiscope.formats.scoring_facts import facts_path
from plastiscope.run.processes import Part, join_processes

UNUSED_THRESHOLD = 0.01
ORIGIN = ("model_dir", "experiment_index", "normalization", "class_order")


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the snapshots together."""
    options = read_options(arguments)
    processes = join_processes()
    checkpoints = find_snapshots(options)
    span = (options.start_epoch, options.end_epoch, options.step)
    epochs = kept_epochs(checkpoints.epochs(), checkpoints.folder, *span, gap_is_error=options.strict)
    order = class_order_of(options.model_dir, options.class_order_file, options.experiment_index, options.strict)
    folder = options.save_base_dir
    facts = tree_facts(options, order) | {"definition": "persample_module, eps 1e-6"}
    claimed = Claim.make(facts_path(folder, "dormancy"), facts, ORIGIN, [dormancy_file(folder, e) for e in epochs])
    samples = cifar100(options.data_path, options.normalization, choose_device(options.device, processes))
    scorer = Scorer(samples, order, options.batch_size, processes)

    def write(epoch: int, scored: Samples, values: Part, seconds: float) -> Path:
        scores = epoch_scores(epoch, scored, values, compute_time_seconds=seconds)
        write_epoch(folder, Tree.dormancy, scores)
        return write_dormancy(folder, scores)

    score_each(checkpoints, epochs, claimed, scorer, dormant_share, write)


def dormant_share(net: nn.Module, batch: Batch, outputs: int) -> dict[str, Tensor]:
    """The share of units that are dormant on each image."""
    return {"dormant_prop": module_dormancy(net, [batch.inputs])}


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--start_epoch", type=int, default=None)
    parser.add_argument("--end_epoch", type=int, default=None, help="inclusive")
    parser.add_argument("--step", type=int, default=None, help="default: the snapshots there are")
    parser.add_argument("--save_base_dir", type=Path, required=True)
    parser.add_argument("--class_order_file", type=Path, default=None)
    parser.add_argument("--dormant_unit_threshold", type=float, default=UNUSED_THRESHOLD, help="accepted and unused")
    add_model_options(parser)
    add_batches(parser)
    add_device(parser)
    add_strict(parser)
    options = parser.parse_args(arguments)
    if options.dormant_unit_threshold != UNUSED_THRESHOLD:
        text = "--dormant_unit_threshold is not used by the published definition, whose eps is 1e-6"
        if options.strict:
            raise DataError(f"{text}; leave it out.")
        warnings.warn(text, stacklevel=2)
    return options


if __name__ == "__main__":
    run(main)
