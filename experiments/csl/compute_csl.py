"""CSL and learning time of per-sample loss files, under the published name, options and defaults.

python experiments/csl/compute_csl.py --input_dir losses --run_idx 1 --noise_level 0.01 --output_dir csl
"""

import argparse
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from published_options import add_run_options, add_strict, enough_for_a_sum, find_files, kept_epochs, run

from plastiscope.error import DataError
from plastiscope.formats.csl_files import write_csl
from plastiscope.formats.csl_of_losses import csl_and_learning_time, is_class_incremental
from plastiscope.formats.loss_files import LossFiles, read_losses


def main(arguments: Sequence[str] | None = None) -> None:
    """Write csl_*, lt_* and metrics_*."""
    options = read_options(arguments)
    files = find_files(options, options.input_dir)
    span = (options.start_epoch, options.end_epoch, options.epoch_step)
    kept = kept_epochs(list(files.losses), options.input_dir, *span, gap_is_error=options.strict)
    aggregate(files, kept, options, {"input_dir": str(options.input_dir), "source": "per_samples"})


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The published options, and those of ours."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--input_dir", type=Path, default=Path("./results/per_sample_losses"))
    add_aggregation_options(parser)
    parser.add_argument("--epoch_step", type=int, default=1)
    return parser.parse_args(arguments)


def add_aggregation_options(parser: argparse.ArgumentParser) -> None:
    """The options that say which files are aggregated, and where to."""
    parser.add_argument("--dataset", default="cifar100")
    add_run_options(parser)
    parser.add_argument("--output_dir", type=Path, default=Path("./results/csl"))
    parser.add_argument(
        "--grad-kind", choices=("input", "param", "unknown"), default=None,
        help="what the gradient files hold; by default as the program that scored them says, or unknown",
    )  # fmt: skip
    parser.add_argument(
        "--index", default=None,
        help="data_index_{ds}.pt of CSL-Mem arrays, whose row index[k] has sample k; none: row k has it",
    )  # fmt: skip
    add_strict(parser)


def aggregate(files: LossFiles, kept: list[int], options: argparse.Namespace, source: dict[str, Any]) -> None:
    """Aggregate the kept epochs of `files` and say what was done."""
    enough_for_a_sum(kept, files.folder, options.strict)
    series = read_losses(files, kept, fill=not options.strict, refuse_nan=options.strict)
    left_out_on_purpose = "grad_kind" in files.facts and files.facts["grad_kind"] is None
    if options.strict and not series.has_gradients and not left_out_on_purpose:
        raise DataError(
            f"{files.folder} has no gradient files, so there is no learning time; score them, or leave --strict out."
        )
    csl, lt, facts = csl_and_learning_time(series, active=is_class_incremental(files))
    said = files.facts.get("grad_kind")
    if lt is not None and options.grad_kind is not None:
        if said is not None and said != options.grad_kind:
            raise DataError(
                f"{files.folder} says that its gradients are of kind {said}, and --grad-kind says {options.grad_kind}; "
                "leave --grad-kind out."
            )
        facts["grad_kind"] = options.grad_kind
    missing = int((csl != csl).sum())
    if missing:
        warnings.warn(f"{missing} of {len(csl)} samples have no CSL: NaN stays NaN", stacklevel=2)
    paths = write_csl(
        options.output_dir,
        files.dataset,
        options.run_idx,
        options.noise_level,
        csl,
        lt,
        facts | source | ({} if options.index is None else {"index": options.index}),
        full_paths=True,
    )
    print(f"{facts['csl_definition']} of {len(csl)} samples over {len(kept)} epochs ({kept[0]} to {kept[-1]})")
    if lt is None:
        print(f"no learning time: {files.folder} has no gradient files for these epochs")
    for path in paths:
        print(path)


if __name__ == "__main__":
    run(main)
