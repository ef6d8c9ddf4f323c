"""What the published commands have in common: options, where they are lenient, how they tell a user's mistake."""

import argparse
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

from plastiscope.error import DataError, PlastiscopeError
from plastiscope.formats.loss_files import LossFiles, find_loss_files


def run(main: Callable[[], None]) -> None:
    """Run a command: a warning is one line, a user's mistake one sentence and exit code 2."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        main()
    except PlastiscopeError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def truth(text: str) -> bool:
    """A published boolean: true, yes, 1, on or false, no, 0, off, in any case."""
    word = text.strip().lower()
    if word in ("true", "t", "yes", "y", "1", "on"):
        return True
    if word in ("false", "f", "no", "n", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text} is neither true nor false")


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """--run_idx, --noise_level, --start_epoch, --end_epoch: which files of a folder are meant."""
    parser.add_argument("--run_idx", type=int, default=1, help="r of the file names")
    parser.add_argument("--noise_level", type=float, default=0.01, help="z of the file names, as a number")
    parser.add_argument("--start_epoch", type=int, default=0)
    parser.add_argument("--end_epoch", type=int, default=199, help="inclusive")


def add_strict(parser: argparse.ArgumentParser) -> None:
    """--strict."""
    parser.add_argument("--strict", action="store_true", help="refuse what the published command passes over")


def add_scoring_options(parser: argparse.ArgumentParser, normalization: str) -> None:
    """--batch_size, --num_workers, --device, --normalization: how checkpoints are scored."""
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--num_workers", type=int, default=4, help="accepted and unused: the images lie in memory")
    parser.add_argument("--device", default="auto", help="auto takes a CUDA device if there is one")
    parser.add_argument(
        "--normalization",
        choices=("lop", "csl_mem"),
        default=normalization,
        help="mean and std of the images, as in incremental CIFAR or as in the noisy-label study",
    )


def find_files(options: argparse.Namespace, folder: Path) -> LossFiles:
    """The loss files that the options mean."""
    if options.end_epoch < options.start_epoch:
        raise DataError(
            f"--end_epoch {options.end_epoch} is before --start_epoch {options.start_epoch}; exchange them."
        )
    return find_loss_files(
        folder,
        options.dataset,
        options.run_idx,
        options.noise_level,
        options.start_epoch,
        options.end_epoch,
        options.strict,
    )


def kept_epochs(there: list[int], options: argparse.Namespace, where: Path, gap_is_error: bool) -> list[int]:
    """The epochs of the grid start, start + step, ... end that are there.

    Args:
        there: epochs that have a file.
        options: start_epoch, end_epoch, epoch_step, strict; without a step all that are there.
        where: for what is said.
        gap_is_error: whether a missing epoch of the grid is refused; otherwise it is left out, with a warning.

    Raises:
        DataError: a gap that is an error, or nothing is left; when strict also if one epoch is left.
    """
    step = options.epoch_step
    if step is not None and step < 1:
        raise DataError(f"--epoch_step {step} must be 1 or more.")
    inside = [epoch for epoch in there if options.start_epoch <= epoch <= options.end_epoch]
    grid = inside if step is None else range(options.start_epoch, options.end_epoch + 1, step)
    missing = [epoch for epoch in grid if epoch not in inside]
    kept = [epoch for epoch in grid if epoch in inside]
    if missing and gap_is_error:
        raise DataError(
            f"{where} has no epoch {missing[0]} ({len(missing)} of the {len(grid)} epochs asked for are missing); "
            "ask for the epochs there are by --start_epoch, --end_epoch and --epoch_step, or complete them."
        )
    if not kept:
        raise DataError(
            f"{where} has none of the epochs {options.start_epoch} to {options.end_epoch} by {step}; there are "
            f"{', '.join(map(str, there[:5]))}{' ...' if len(there) > 5 else ''}."
        )
    if missing:
        warnings.warn(
            f"{where} has {len(kept)} of the {len(grid)} epochs asked for, epoch {missing[0]} is the first missing "
            "one; they are left out, as published",
            stacklevel=2,
        )
    if len(kept) < 2:
        text = (
            f"only epoch {kept[0]} of {where} remains between --start_epoch {options.start_epoch} and --end_epoch "
            f"{options.end_epoch}; a cumulative loss of one epoch is a loss"
        )
        if options.strict:
            raise DataError(f"{text}: ask for more epochs.")
        warnings.warn(text, stacklevel=2)
    return kept
