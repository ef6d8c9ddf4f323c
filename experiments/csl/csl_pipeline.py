"""CSL and learning time from loss files or straight from snapshots, under the published name and options.

python experiments/csl/csl_pipeline.py --source model_parameters --results_dir results/base --data_path data
    --end_epoch 4000
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from compute_csl import add_aggregation_options, aggregate
from published_options import find_files, kept_epochs, run
from score_incremental_cifar_loss import add_results_options, score_snapshots, snapshots

from plastiscope.error import DataError


def main(arguments: Sequence[str] | None = None) -> None:
    """Score if asked to, aggregate."""
    options = read_options(arguments)
    from_losses(options) if options.source == "per_samples" else from_snapshots(options)


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", choices=("per_samples", "model_parameters"), default="per_samples")
    parser.add_argument("--input_dir", type=Path, default=None, help="of loss files; ./results/per_sample_losses")
    add_aggregation_options(parser)
    parser.add_argument("--epoch_step", type=int, default=None, help="1 for per_samples; else the snapshots there are")
    add_results_options(parser, required=False)
    parser.add_argument("--per_sample_out_dir", type=Path, default=None, help="results_dir/per_sample_losses_inc")
    return parser.parse_args(arguments)


def from_losses(options: argparse.Namespace) -> None:
    """What compute_csl does."""
    folder = options.input_dir or Path("./results/per_sample_losses")
    files = find_files(options, folder)
    step = 1 if options.epoch_step is None else options.epoch_step
    kept = kept_epochs(
        list(files.losses), folder, options.start_epoch, options.end_epoch, step, gap_is_error=options.strict
    )
    aggregate(files, kept, options, {"input_dir": str(folder), "source": options.source})


def from_snapshots(options: argparse.Namespace) -> None:
    """Score the snapshots found between start and end, or exactly those of the grid if a step is given."""
    for name in ("results_dir", "data_path"):
        if getattr(options, name) is None:
            raise DataError(f"--source model_parameters needs --{name}.")
    if options.index is not None:
        raise DataError("--index is for CSL-Mem arrays; --source model_parameters has none: leave it out.")
    checkpoints = snapshots(options)
    span = (options.start_epoch, options.end_epoch, options.epoch_step)
    kept = kept_epochs(checkpoints.epochs(), checkpoints.folder, *span, gap_is_error=True)
    folder = score_snapshots(options, checkpoints, kept, options.per_sample_out_dir)
    aggregate(find_files(options, folder), kept, options, {"input_dir": str(folder), "source": options.source})


if __name__ == "__main__":
    run(main)
