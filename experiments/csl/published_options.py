"""What the published commands have in common: options, where they are lenient, how they tell a user's mistake."""

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from plastiscope.error import DataError, PlastiscopeError
from plastiscope.formats.csl_mem import read_data_index
from plastiscope.formats.loss_files import LossFiles, find_loss_files
from plastiscope.run.processes import leave_processes

IN_ORDER = "none"
"""Of --index: the rows are in the order of the data set as they are."""


def run(main: Callable[[], None]) -> None:
    """Run a command: a warning is one line, a user's mistake one sentence and exit code 2."""
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        main()
    except (PlastiscopeError, OSError) as error:  # OSError: a full disk, a folder that may not be written
        print(error, file=sys.stderr)
        sys.exit(2)
    finally:
        leave_processes()


def truth(text: str) -> bool:
    """A published boolean: true, yes, 1, on or false, no, 0, off, in any case."""
    word = text.strip().lower()
    if word in ("true", "t", "yes", "y", "1", "on"):
        return True
    if word in ("false", "f", "no", "n", "0", "off"):
        return False
    raise argparse.ArgumentTypeError(f"{text} is neither true nor false")


def batch_size(text: str) -> int:
    """A number of images; DataError, and no usage text, if there could be no batch of it."""
    if not text.strip().isdecimal() or int(text) < 1:
        raise DataError(f"--batch_size {text}: give a whole number of 1 or more.")
    return int(text)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """--run_idx, --noise_level, --start_epoch, --end_epoch: which files of a folder are meant."""
    parser.add_argument("--run_idx", type=int, default=1, help="r of the file names")
    parser.add_argument("--noise_level", type=float, default=0.01, help="z of the file names, as a number")
    parser.add_argument("--start_epoch", type=int, default=0)
    parser.add_argument("--end_epoch", type=int, default=199, help="inclusive")


def add_strict(parser: argparse.ArgumentParser) -> None:
    """--strict."""
    parser.add_argument("--strict", action="store_true", help="refuse what the published command passes over")


def add_device(parser: argparse.ArgumentParser, normalization: str = "lop") -> None:
    """--device and --normalization: where and how images are scored."""
    parser.add_argument("--device", default="auto", help="auto takes a CUDA device if there is one")
    parser.add_argument(
        "--normalization",
        choices=("lop", "csl_mem"),
        default=normalization,
        help="mean and std of the images, as in incremental CIFAR or as in the noisy-label study",
    )


def add_batches(parser: argparse.ArgumentParser) -> None:
    """--batch_size and --num_workers."""
    parser.add_argument("--batch_size", type=batch_size, default=256)
    parser.add_argument("--num_workers", type=int, default=4, help="accepted and unused: the images lie in memory")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """--data_path, --model_dir, --experiment_index: snapshots of incremental CIFAR."""
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--model_dir", type=Path, required=True)
    parser.add_argument("--experiment_index", type=int, default=0)


def find_files(options: argparse.Namespace, folder: Path) -> LossFiles:
    """The loss files that the options mean."""
    if options.end_epoch < options.start_epoch:
        raise DataError(
            f"--end_epoch {options.end_epoch} is before --start_epoch {options.start_epoch}; exchange them."
        )
    index = None if options.index in (None, IN_ORDER) else read_data_index(Path(options.index))
    span = (options.start_epoch, options.end_epoch)
    run_of = (options.dataset, options.run_idx, options.noise_level)
    files = find_loss_files(folder, *run_of, *span, options.strict, index)
    if files.csl_mem and options.index is None:
        text = (
            f"{folder} holds arrays of CSL-Mem, whose rows are in the order of the data set only if the loader had the "
            f"data index; --index data_index_{files.dataset}.pt puts them in order, --index {IN_ORDER} says they are"
        )
        if options.strict:
            raise DataError(f"{text}.")
        warnings.warn(f"{text}; rows are taken as sample ids", stacklevel=2)
    return files


def kept_epochs(
    there: Sequence[int], where: Path, start: int | None, end: int | None, step: int | None, gap_is_error: bool
) -> list[int]:
    """The epochs of the grid start, start + step, ... end that are there.

    Args:
        there: epochs that have a file, ascending.
        where: for what is said.
        start: first epoch; None = the first there is, or 0 with a step.
        end: last epoch, included; None = the last there is.
        step: of the grid; None = whatever is there between start and end.
        gap_is_error: whether a missing epoch of the grid is refused; otherwise it is left out, with a warning.

    Raises:
        DataError: a gap that is an error, or nothing is left.
    """
    if step is not None and step < 1:
        raise DataError(f"a step of {step} epochs: must be 1 or more.")
    first, last = start or 0, max(there, default=0) if end is None else end
    inside = {epoch for epoch in there if first <= epoch <= last}
    grid = sorted(inside) if step is None else list(range(first, last + 1, step))
    return _those_there(grid, inside, where, f"from {first} to {last}", gap_is_error)


def _those_there(grid: list[int], inside: set[int], where: Path, what: str, gap_is_error: bool) -> list[int]:
    missing, kept = [e for e in grid if e not in inside], [e for e in grid if e in inside]
    if missing and gap_is_error:
        raise DataError(
            f"{where} has no epoch {missing[0]} ({len(missing)} of the {len(grid)} epochs asked for are missing); ask "
            "for the epochs there are by their start, end and step, or complete them."
        )
    if not kept:
        raise DataError(f"{where} has none of the epochs asked for, {what}.")
    if missing:
        warnings.warn(
            f"{where} has {len(kept)} of the {len(grid)} epochs asked for, epoch {missing[0]} is the first missing "
            "one; they are left out, as published",
            stacklevel=3,
        )
    return kept


def chosen_epochs(text: str, there: Sequence[int], where: Path, gap_is_error: bool) -> list[int]:
    """The epochs of a list such as "0,500" that are there, with the warning or error of `kept_epochs`."""
    try:
        grid = sorted({int(word) for word in text.split(",")})
    except ValueError:
        raise DataError(f"--epochs {text}: give numbers with commas between them, such as 0,500.") from None
    return _those_there(grid, set(there), where, text, gap_is_error)


def enough_for_a_sum(kept: list[int], where: Path, strict: bool) -> list[int]:
    """The kept epochs; a warning, or a DataError when strict, if there is but one."""
    if len(kept) < 2:
        text = f"only epoch {kept[0]} of {where} remains; a cumulative loss of one epoch is a loss"
        if strict:
            raise DataError(f"{text}: ask for more epochs.")
        warnings.warn(text, stacklevel=2)
    return kept
