"""CSL and learning time of a tree of per-sample losses, under the published name and options.

    python experiments/csl/multi_gpu_csl_analysis.py --input_dir losses --output_dir csl --data_path data

Reads what multi_gpu_loss_generation writes. Each epoch has the images of the classes in training, so CSL is the mean
over the epochs in which an image's class was (csl_active_mean). One process does it: it reads files.
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from checkpoint_scoring import SCHEDULE, cifar100, read_class_order
from published_options import add_strict, enough_for_a_sum, kept_epochs, run
from torch import device

from plastiscope.error import DataError
from plastiscope.formats.csl_files import write_csl, write_csl_root
from plastiscope.formats.csl_of_losses import csl_and_learning_time
from plastiscope.formats.loss_files import LossSeries, loss_tree, read_losses
from plastiscope.formats.sample_trees import Tree, read_epoch

RUN_IDX, NOISE_LEVEL = 1, 0.0
"""In the names of csl_*, lt_* and metrics_*, which this command has no option for."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Aggregate the tree."""
    options = read_options(arguments)
    files = loss_tree(options.input_dir, options.dataset, options.strict)
    said = files.facts.get("experiment_index", options.experiment_index)
    if said != options.experiment_index:
        raise DataError(f"{options.input_dir} is of experiment {said}, not of {options.experiment_index}.")
    span = (options.start_epoch, options.end_epoch, None)
    kept = kept_epochs(list(files.losses), options.input_dir, *span, gap_is_error=True)
    enough_for_a_sum(kept, options.input_dir, options.strict)
    series = read_losses(files, kept, fill=not options.strict, refuse_nan=options.strict)
    csl, lt, facts = csl_and_learning_time(series, active=True)
    labels = labels_of(series, len(csl), options)
    source = {"input_dir": str(options.input_dir), "source": "epoch_tree", "experiment_index": options.experiment_index}
    write_csl(options.output_dir, options.dataset, RUN_IDX, NOISE_LEVEL, csl, lt, facts | source, full_paths=True)
    write_csl_root(options.output_dir, options.dataset, labels, csl, lt)
    print(f"csl_active_mean of {int((csl == csl).sum())} images over {len(kept)} epochs: {options.output_dir}")


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input_dir", type=Path, required=True)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--data_path", type=Path, default=None, help="compares labels with those of CIFAR-100 there")
    parser.add_argument("--class_order_file", type=Path, default=None, help="compares classes with those it says")
    parser.add_argument("--experiment_index", type=int, default=0)
    parser.add_argument("--start_epoch", type=int, default=None)
    parser.add_argument("--end_epoch", type=int, default=None, help="inclusive")
    parser.add_argument("--dataset", default="cifar100")
    add_strict(parser)
    return parser.parse_args(arguments)


def labels_of(series: LossSeries, count: int, options: argparse.Namespace) -> np.ndarray:
    """The class of each of `count` samples by id, -1 where the tree has none.

    Raises:
        DataError: epochs disagree, or the images' own labels do.
    """
    labels = np.full(count, -1, np.int64)
    order = None if options.class_order_file is None else read_class_order(options.class_order_file)
    for epoch in series.epochs:
        scores = read_epoch(options.input_dir, Tree.loss, epoch)
        before = labels[scores.ids]
        if ((before >= 0) & (before != scores.labels)).any():
            raise DataError(f"{options.input_dir} (epoch {epoch}): labels are not those of the epochs before.")
        labels[scores.ids] = scores.labels
        seen = None if order is None else order[: SCHEDULE.classes_seen(epoch)]
        if seen is not None and not set(scores.labels.tolist()) <= set(seen):
            text = f"{options.input_dir} (epoch {epoch}) has images of classes that are not in training yet"
            if options.strict:
                raise DataError(f"{text}; is {options.class_order_file} the class order of this run?")
            warnings.warn(text, stacklevel=2)
    if options.data_path is not None:
        own = cifar100(options.data_path, "lop", device("cpu")).labels.numpy()
        if len(own) < count or (labels != own[:count])[labels >= 0].any():
            raise DataError(f"{options.input_dir} has other labels than the images in {options.data_path}.")
    return labels


if __name__ == "__main__":
    run(main)
