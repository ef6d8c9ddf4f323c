"""Per-sample losses and gradient norms of published runs: one file an epoch, in two naming schemes.

    A   loss_{dataset}_epoch_{e}.npy                     loss_grad_{dataset}_epoch_{e}.npy
    B   loss_{dataset}_run{r}_epoch_{e}_noise_{z}.npy    loss_grad_{dataset}_run{r}_epoch_{e}_noise_{z}.npy

Each holds one number a sample, float32 [n]; the row is the sample id. Files of the active samples alone are ragged, and
come with sample_ids_{dataset}_epoch_{e}.npy. Numbers in names count as numbers: noise_0.1, noise_0.10 and noise_1e-1
are the same.

A folder without either may hold the arrays of the CSL-Mem study (formats/csl_mem.py), whose rows need the data index.

The reader is strict. Published commands are lenient (`strict=False`): they take A before B, for losses and gradients
apart, and warn.
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.error import DataError
from plastiscope.formats.content import decimal_number, read_vector, whole_number, write_array
from plastiscope.formats.csl_mem import Ids, csl_mem_files
from plastiscope.formats.sample_trees import Tree, files_of, not_done, read_ids, unfinished
from plastiscope.formats.scoring_facts import facts_path, read_facts

Values = npt.NDArray[np.float32]
Row = tuple[int, Values]
"""Epoch, and values float32 [n] of all samples."""


@dataclass(frozen=True)
class LossFiles:
    """The files of one run, by epoch.

    Attributes:
        folder: where they are.
        dataset: as in the names.
        losses: path of the losses of each epoch, ascending.
        gradients: path of the gradient norms.
        ids: path of the sample ids of ragged files.
        facts: what the program that scored them wrote beside them (formats/scoring_facts.py); empty for others.
        csl_mem: whether they are of the CSL-Mem study.
        index: its data index: sample k is in row index[k]; None where row i is sample i.
    """

    folder: Path
    dataset: str
    losses: dict[int, Path]
    gradients: dict[int, Path]
    ids: dict[int, Path]
    facts: dict[str, Any]
    csl_mem: bool = False
    index: Ids | None = None


def loss_name(kind: str, dataset: str, epoch: int, run_idx: int | None = None, noise_level: float | None = None) -> str:
    """A published file name: `kind` is loss, loss_grad or sample_ids; scheme B when a run index is given."""
    if run_idx is None:
        return f"{kind}_{dataset}_epoch_{epoch}.npy"
    return f"{kind}_{dataset}_run{run_idx}_epoch_{epoch}_noise_{float(noise_level or 0.0)!r}.npy"


def write_losses(
    folder: Path,
    dataset: str,
    epoch: int,
    losses: npt.ArrayLike,
    gradients: npt.ArrayLike | None,
    run_idx: int | None = None,
    noise_level: float | None = None,
) -> None:
    """Write one epoch, gradients first: where there are losses, all of the epoch is there.

    Args:
        folder: made if missing.
        dataset: for the names.
        epoch: number of the epoch in the names.
        losses: [n], row = sample id, NaN where the sample was not scored.
        gradients: [n] or None.
        run_idx: writes scheme B, with `noise_level`; scheme A without it.
        noise_level: share of wrong labels.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for kind, values in (("loss_grad", gradients), ("loss", losses)):
        if values is not None:
            path = folder / loss_name(kind, dataset, epoch, run_idx, noise_level)
            write_array(path, np.asarray(values, dtype=np.float32))


def find_loss_files(
    folder: Path,
    dataset: str,
    run_idx: int = 1,
    noise_level: float = 0.0,
    start: int = 0,
    end: int | None = None,
    strict: bool = True,
    index: Ids | None = None,
) -> LossFiles:
    """The loss files of the epochs from `start` to `end`, both included; `end` None = the last there is.

    Scheme A names no run: its files count whatever `run_idx` and `noise_level` say. Without losses in A or B those of
    CSL-Mem are taken.

    Args:
        folder: where they are.
        dataset: as in the names.
        run_idx: r of scheme B, idx of CSL-Mem.
        noise_level: z of scheme B, noise of CSL-Mem.
        start: first epoch.
        end: last epoch.
        strict: refuse files of both schemes.
        index: the data index of CSL-Mem (`read_data_index`), where its loader was in file order.

    Raises:
        DataError: no folder, no losses in these epochs, two files that stand for the same epoch, an index for files
            that are not of CSL-Mem; when strict also files of both schemes.
    """
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} of per-sample losses.")
    by_scheme = _by_scheme(folder, dataset, run_idx, noise_level, start, end)
    both = _both(by_scheme, strict)
    if both:
        warnings.warn(both, stacklevel=2)
    losses, gradients = (
        dict(sorted((by_scheme.get((kind, "B"), {}) | by_scheme.get((kind, "A"), {})).items()))
        for kind in ("loss", "loss_grad")
    )
    if losses and index is not None:
        path = next(iter(losses.values()))
        raise DataError(f"{path} is not of CSL-Mem: its rows are sample ids already; leave the data index out.")
    if losses:
        is_b = ("loss", "A") not in by_scheme
        facts = read_facts(facts_path(folder, dataset, *((run_idx, noise_level) if is_b else ())))
        return LossFiles(folder, dataset, losses, gradients, by_scheme.get(("sample_ids", "A"), {}), facts)
    losses, gradients = (_of_csl_mem(folder, kind, dataset, run_idx, noise_level) for kind in ("loss", "loss_grad"))
    losses = {e: path for e, path in losses.items() if start <= e and (end is None or e <= end)}
    if losses:
        return LossFiles(folder, dataset, losses, gradients, {}, {}, csl_mem=True, index=index)
    last = "on" if end is None else f"to {end}"
    raise DataError(
        f"{folder} has no losses of {dataset} from epoch {start} {last}, neither "
        f"{loss_name('loss', dataset, start)} and so on nor "
        f"{loss_name('loss', dataset, start, run_idx, noise_level)} nor names of CSL-Mem; check the folder, the "
        "data set, the run index and the noise level."
    )


def _by_scheme(
    folder: Path, dataset: str, run_idx: int, noise_level: float, start: int, end: int | None
) -> dict[tuple[str, str], dict[int, Path]]:
    """The files of schemes A and B by kind, scheme and epoch.

    Raises:
        DataError: two files of one scheme stand for the same epoch.
    """
    by_scheme: dict[tuple[str, str], dict[int, Path]] = {}
    for path in sorted(folder.iterdir()):
        named = _parse(path.name, dataset, run_idx, noise_level)
        if named is None or named[2] < start or (end is not None and named[2] > end):
            continue
        kind, scheme, epoch = named
        files = by_scheme.setdefault((kind, scheme), {})
        if epoch in files:
            raise DataError(f"{files[epoch]} and {path.name} both stand for epoch {epoch}; leave one there.")
        files[epoch] = path
    return by_scheme


def _of_csl_mem(folder: Path, kind: str, dataset: str, run_idx: int, noise_level: float) -> dict[int, Path]:
    quantity = "imagenet_loss" if (kind, dataset) == ("loss", "imagenet") else kind
    return csl_mem_files(folder, quantity, dataset=dataset, idx=run_idx, noise=noise_level)


def loss_tree(root: Path, dataset: str, strict: bool = True) -> LossFiles:
    """The losses of a tree epoch_{E:04d}, whose folders hold ids of their own.

    Args:
        root: of the tree.
        dataset: for the names of what is made of it.
        strict: refuse a tree of ours with a folder that is not complete; otherwise its epoch is left out, with a
            warning.

    Raises:
        DataError: no such tree, no losses in it; when strict also an incomplete folder.
    """
    waiting = unfinished(root, Tree.loss)
    if waiting and strict:
        epoch, folder = next(iter(waiting.items()))
        raise DataError(not_done(folder, epoch))
    if waiting:
        warnings.warn(
            f"{root}: epoch {_listed(list(waiting))} has no mark `done` and is left out as if it were missing; remove "
            "such folders and score them again",
            stacklevel=2,
        )
    losses = {e: path for e, path in files_of(root, Tree.loss, "loss").items() if e not in waiting}
    if not losses:
        raise DataError(f"{root} has no per_sample_losses.npy in its folders.")
    gradients, ids = files_of(root, Tree.loss, "loss_grad"), files_of(root, Tree.loss, "ids")
    missing = next((epoch for epoch in losses if epoch not in ids), None)
    if missing is not None:
        raise DataError(f"{losses[missing]} (epoch {missing}) has no per_sample_ids.csv, and row i is not sample i.")
    return LossFiles(root, dataset, losses, gradients, ids, read_facts(facts_path(root, "loss")))


def _parse(name: str, dataset: str, run_idx: int, noise_level: float) -> tuple[str, str, int] | None:
    """Kind, scheme and epoch of a file name; None if it is not of this run."""
    start = rf"(loss|loss_grad|sample_ids)_{re.escape(dataset)}"
    if match := re.fullmatch(rf"{start}_epoch_([^_]+)\.npy", name):
        epoch = whole_number(match[2])
        return None if epoch is None else (match[1], "A", epoch)
    if match := re.fullmatch(rf"{start}_run([^_]+)_epoch_([^_]+)_noise_([^_]+)\.npy", name):
        epoch = whole_number(match[3])
        mine = whole_number(match[2]) == run_idx and decimal_number(match[4]) == float(noise_level)
        return (match[1], "B", epoch) if mine and epoch is not None else None
    return None


def _both(by_scheme: dict[tuple[str, str], dict[int, Path]], strict: bool) -> str | None:
    """What is wrong when files of both schemes are there; None if all is of one.

    Raises:
        DataError: the same, when strict.
    """
    a, b = (
        {e: path for kind in ("loss", "loss_grad") for e, path in by_scheme.get((kind, s), {}).items()} for s in "AB"
    )
    if not a or not b:
        return None
    epoch = min(set(a) & set(b), default=min(a))
    other = b.get(epoch, next(iter(b.values())))
    text = f"{a[epoch]} (epoch {epoch}) and {other.name} are of two naming schemes"
    if strict:
        raise DataError(f"{text}; leave the files of one run, in one scheme.")
    return (
        f"{text}; where both are there, the name without run and noise level is taken, for losses and gradients apart"
    )


@dataclass(frozen=True)
class LossSeries:
    """Losses and gradient norms of chosen epochs, read row by row.

    Attributes:
        files: where they are.
        epochs: ascending; all have losses.
        ids: int64 [n] ascending; the row positions where the files carry no ids.
        filled_epochs: epochs whose missing gradient norms are replaced by the losses.
        has_gradients: whether there are any.
        refuse_nan: whether NaN is an error, save where it means "class not in training" (full rows of files that say
            so).
    """

    files: LossFiles
    epochs: list[int]
    ids: npt.NDArray[np.int64]
    filled_epochs: list[int]
    has_gradients: bool
    refuse_nan: bool = False

    @property
    def id_kind(self) -> str:
        """Whether ids are row positions, as the names without ids mean, or come from files or from the data index."""
        if self.files.index is not None:
            return "data_index"
        return "ids_file" if self.files.ids else "row"

    def losses(self) -> Iterator[Row]:
        """The losses, epoch by epoch; NaN for samples that an epoch does not have."""
        for epoch in self.epochs:
            yield epoch, self._values(self.files.losses[epoch], epoch)

    def gradients(self) -> Iterator[Row]:
        """The gradient norms, epoch by epoch, filled where `filled_epochs` says so."""
        for epoch in self.epochs:
            path = self.files.losses if epoch in self.filled_epochs else self.files.gradients
            row = self._values(path[epoch], epoch)
            if (row < 0).any():
                raise DataError(f"{path[epoch]} (epoch {epoch}) holds a negative number, which no gradient norm is.")
            yield epoch, row

    def _values(self, path: Path, epoch: int) -> Values:
        values = _vector(path, epoch).astype(np.float32, copy=False)
        ids = _ids(self.files, epoch)
        if (ids is not None) and ids.min(initial=0) < 0:
            raise DataError(f"{self.files.ids[epoch]} (epoch {epoch}) holds a negative sample id.")
        if ids is not None and len(values) != len(ids):
            raise DataError(
                f"{path} (epoch {epoch}) has {len(values)} values, and {self.files.ids[epoch]} has {len(ids)} sample "
                "ids; get both files again."
            )
        expected = len(self.ids) if ids is None else len(ids)
        if len(values) != expected or (ids is None and self.files.ids):
            raise DataError(
                f"{path} (epoch {epoch}) has {len(values)} values, and there are {expected} samples; arrays of unequal "
                f"lengths need {loss_name('sample_ids', self.files.dataset, epoch)} beside them."
            )
        self._check_nan(values, path, epoch)
        if ids is None:
            return values if self.files.index is None else values[self.files.index]
        row = np.full(len(self.ids), np.nan, np.float32)
        row[np.searchsorted(self.ids, ids)] = values
        return row

    def _check_nan(self, values: Values, path: Path, epoch: int) -> None:
        not_in_training = not self.files.ids and self.files.facts.get("logit_scope") == "active"
        bad = np.isnan(values)
        if self.refuse_nan and not not_in_training and bad.any():
            raise DataError(
                f"{path} (epoch {epoch}) has NaN in {bad.sum()} rows, first in row {bad.argmax()}; leave the epoch "
                "out, or score it again."
            )


def read_losses(
    files: LossFiles, epochs: list[int] | None = None, fill: bool = False, refuse_nan: bool = False
) -> LossSeries:
    """The series of `epochs`, or of all epochs of `files`.

    Args:
        files: what there is.
        epochs: ascending; all by default.
        fill: put the losses in the place of missing gradient norms, as published, and warn once. It mixes units and
            moves the threshold of the learning time for everyone.
        refuse_nan: make NaN an error (`LossSeries.refuse_nan`).

    Raises:
        DataError: an epoch without losses; gradient norms of some epochs only, without `fill`; ids that repeat; a data
            index of another length.
    """
    epochs = list(files.losses) if epochs is None else epochs
    missing = [epoch for epoch in epochs if epoch not in files.losses]
    if missing:
        raise DataError(f"{files.folder} has no losses of epoch {_listed(missing)}.")
    unfilled = [epoch for epoch in epochs if epoch not in files.gradients]
    has_gradients = len(unfilled) < len(epochs)
    if has_gradients and unfilled and not fill:
        raise DataError(
            f"{files.folder} has gradient norms of some epochs and none of epoch {_listed(unfilled)}; score these "
            "epochs, or leave them out."
        )
    if has_gradients and unfilled:
        warnings.warn(
            f"{files.folder} has no gradient norms of epoch {_listed(unfilled)}: the losses stand in for them, as "
            "published, which mixes units and moves the learning time of every sample",
            stacklevel=2,
        )
    ids = _all_ids(files, epochs)
    if files.index is not None and len(files.index) != len(ids):
        raise DataError(f"The data index has {len(files.index)} samples, and {files.losses[epochs[0]]} has {len(ids)}.")
    return LossSeries(files, epochs, ids, unfilled if has_gradients else [], has_gradients, refuse_nan)


def _ids(files: LossFiles, epoch: int) -> npt.NDArray[np.int64] | None:
    path = files.ids.get(epoch)
    try:
        return None if path is None else read_ids(path)
    except DataError as error:
        raise DataError(f"Epoch {epoch}: {error}") from None


def _vector(path: Path, epoch: int) -> npt.NDArray[Any]:
    """`read_vector`, and errors name the epoch."""
    try:
        return read_vector(path)
    except DataError as error:
        raise DataError(f"Epoch {epoch}: {error}") from None


def _all_ids(files: LossFiles, epochs: list[int]) -> npt.NDArray[np.int64]:
    """The ids of all files together, or the rows of the first file."""
    if not files.ids:
        return np.arange(len(_vector(files.losses[epochs[0]], epochs[0])))
    each = [ids for epoch in epochs if (ids := _ids(files, epoch)) is not None]
    return np.unique(np.concatenate(each)) if each else np.arange(len(_vector(files.losses[epochs[0]], epochs[0])))


def _listed(epochs: list[int]) -> str:
    """The first few epochs of a list, and how many more."""
    more = f" and {len(epochs) - 5} more" if len(epochs) > 5 else ""
    return ", ".join(map(str, epochs[:5])) + more
