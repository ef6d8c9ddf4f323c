"""One row per sample from the per-sample store: CSL, learning time and the other dynamics, in bounded memory.

    columns = table(load_run(folder).sample_store)      # {"sample_id": ..., "csl_sum": ..., "lt_frac": ..., ...}

The samples are taken `size` at a time and the epochs in small pieces, so a run of a million samples needs little more
memory than its result. Learning time takes a pass of its own before, for tau. Sums are float64, results float32.
Formulas: measure/dynamics.py, measure/learning_time.py.

An epoch counts when it is in the row axis of the metric: each metric has its own, as it may be measured more seldom.
Rows that were to be written and are not are refused, unless the caller names the epochs to keep.
"""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from plastiscope.error import RunError, require
from plastiscope.measure.dynamics import ActiveSum, CorrectDynamics, LossDynamics, trapezoid_weights
from plastiscope.measure.learning_time import TOLERANCE, LearningTime, RunningMean, threshold
from plastiscope.run.sample_store import SPLITS, Ids, SampleBlock, SampleStore
from plastiscope.run.sample_view import SAMPLES_AT_ONCE, Piece, SampleView, is_begun, union

Columns = dict[str, npt.NDArray]
"""Values [n] by column."""

Measure = TypeVar("Measure", bound=ActiveSum | RunningMean)
WHOLE_NUMBERS = {"sample_id": np.int64, "label": np.int32, "label_trained": np.int32, "split": np.uint8,
                 "entry_task": np.int16, "n_active": np.int32, "n_presentations": np.int32,
                 "first_epoch": np.int32, "last_epoch": np.int32, "never_learned": np.bool_,
                 "lt_censored": np.bool_}  # fmt: skip
"""Columns that are not float32."""
ABOUT = {"labels": "label", "labels_trained": "label_trained", "split": "split", "entry_task": "entry_task"}
"""Column of each small file of a block."""


def table(store: SampleStore, **options: Any) -> Columns:
    """All columns of all samples, by ascending id; options and errors as of `Aggregation`."""
    return Aggregation(store, **options).table()


def aggregate(store: SampleStore, **options: Any) -> Iterator[Columns]:
    """The same in parts, `size` samples each; options and errors as of `Aggregation`."""
    return Aggregation(store, **options).parts()


def csl_and_learning_time(store: SampleStore, **options: Any) -> Columns:
    """Only sample_id, n_active, csl_sum, csl_active_mean and, where norms were measured, lt_frac: the leanest pass."""
    return Aggregation(store, **options).lean_table()


@dataclass(kw_only=True)
class Aggregation:
    """What to aggregate of a store, and how.

    Columns come from the metrics that there are: those of the loss, of `correct`, of `margin`, and of the gradient
    norm. `csl_sum`, `csl_mean`, `csl_trapz`, `csl_all`, `csg` and `csl_task_<k>` are NaN where one of the kept epochs
    is; all others are about the active epochs, those in which the class of the sample is in training.
    """

    store: SampleStore = field(kw_only=False)
    """The per-sample values of a run."""
    online: bool = False
    """Take what was measured in the training forward (online_loss, ...) and not after the epochs."""
    first_epochs: int | None = None
    """H of the column csl_first_<H>; None = no such column."""
    norms: str = "grad_input_l2"
    """Metric of the gradient norm, for learning time and csg."""
    tau: float | None = None
    """Threshold of lt_frac, on the norm, also for single tasks; None = the mean of R."""
    tau_norm2: float | None = None
    """Threshold of lt_frac_norm2 and lt_first, on the squared norm; None = the mean of R."""
    window: int | None = None
    """Learning time over the first so many active epochs of each sample; None = over all of them."""
    tolerance: float = TOLERANCE
    """Relative, of the comparison with tau."""
    per_task: bool = False
    """Also csl_task_<k> and lt_frac_task_<k>, over the epochs of task k alone."""
    tasks: Collection[int] | None = None
    """Tasks whose epochs are kept; None = all."""
    epochs: Collection[int] | None = None
    """Epochs completed that are kept; None = all, and none may be missing."""
    splits: Collection[str] = ("train",)
    """Which samples: train, validation, test."""
    size: int = SAMPLES_AT_ONCE
    """Samples that are held at once."""

    def __post_init__(self) -> None:
        """Check the options and that every row that is wanted is there."""
        require(self.size >= 1, "size", self.size, "must be 1 or more")
        require(self.first_epochs is None or self.first_epochs >= 1, "first_epochs", self.first_epochs, "must be >= 1")
        unknown = set(self.splits) - set(SPLITS)
        require(not unknown, "splits", sorted(self.splits), f"may be {', '.join(SPLITS)}")
        names = {"loss": "loss", "correct": "correct", "margin": "margin", "loss_all": "loss_all", "norms": self.norms}
        if self.online:
            names = {role: f"online_{role}" for role in ("loss", "correct", "margin")}
        self._tasks = sorted(self.store.tasks() if self.tasks is None else set(self.tasks))
        self._names = names.values()
        there = {metric for k in self._tasks for metric in self.store.block(k).metrics()}
        begun = {name for k in self._tasks for name in names.values() if is_begun(self.store.block(k), name)}
        views = {
            role: SampleView(self.store, name, self.ids, self._tasks) for role, name in names.items() if name in begun
        }
        if not views:
            raise RunError(
                f"{self.store.folder} has none of the metrics {', '.join(names.values())}; there are: "
                f"{', '.join(sorted(there)) or 'none'}. Run with analysis=[csl]"
            )
        self._views = {role: view for role, view in views.items() if len(self._kept(view)) or self._lacks(view)}
        self._refuse_incomplete()
        self._has_classes = names["correct"] in there
        self._taus: dict[tuple[bool, int | None], float] = {}

    @cached_property
    def ids(self) -> Ids:
        """Samples of the wanted splits in the blocks that have one of the metrics, int64 [n], ascending."""
        blocks = map(self.store.block, self._tasks)
        return union(self._wanted(block) for block in blocks if any(is_begun(block, name) for name in self._names))

    def kept_epochs(self, role: str = "loss") -> npt.NDArray[np.int32]:
        """Epochs completed of the rows that count for "loss", "correct", "margin", "loss_all" or "norms", ascending."""
        return self._kept(self._views[role])

    def tau_of(self, squared: bool, task: int | None = None) -> float:
        """Threshold of learning time, as given, or measured over all samples and all epochs (or those of a task)."""
        given = self.tau_norm2 if squared else self.tau
        if given is not None:
            return given
        if (squared, task) not in self._taus:
            means = (self._fed("norms", s, RunningMean(_count(s), squared, self.window), task) for s in self._slices())
            self._taus[squared, task] = threshold([mean.total() for mean in means])
        return self._taus[squared, task]

    @property
    def taus(self) -> tuple[float, float]:
        """Thresholds on the norm and on the squared norm, over all tasks."""
        return self.tau_of(False), self.tau_of(True)

    def parts(self) -> Iterator[Columns]:
        """All columns, `size` samples at a time."""
        for samples in self._slices():
            yield self._part(samples)

    def table(self) -> Columns:
        """All columns."""
        return self._joined(self._part)

    def lean_table(self) -> Columns:
        """See `csl_and_learning_time`."""
        return self._joined(self._lean_part)

    def _part(self, samples: slice) -> Columns:
        about = self._about(samples)
        columns = dict(about)
        if "loss" in self._views:
            columns |= self._of_losses(samples, about["label_trained"])
        if "correct" in self._views:
            columns |= self._of_correct(samples)
        if "margin" in self._views:
            columns["aum"] = self._sum("margin", samples).mean_of_active
        if "loss_all" in self._views:
            columns["csl_all"] = self._sum("loss_all", samples).sum_of_all
        if "norms" in self._views:
            columns |= self._of_norms(samples)
        return _stored(columns | (self._of_tasks(samples) if self.per_task else {}))

    def _lean_part(self, samples: slice) -> Columns:
        columns: Columns = {"sample_id": self.ids[samples]}
        if "loss" in self._views:
            losses = self._sum("loss", samples)
            columns |= {"n_active": losses.count, "csl_sum": losses.sum_of_all}
            columns["csl_active_mean"] = losses.mean_of_active
        if "norms" in self._views:
            columns["lt_frac"] = self._learning_time(samples, False).fraction
        return _stored(columns)

    def _of_losses(self, samples: slice, label: npt.NDArray) -> Columns:
        epochs = self.kept_epochs()
        weights, found = trapezoid_weights(epochs), LossDynamics(_count(samples), len(epochs), self.first_epochs)
        for piece in self._pieces("loss", samples):
            found.add(piece.values, piece.where, weights[np.searchsorted(epochs, piece.epochs)])
        has_class = (label >= 0) & self._has_classes  # exp(-loss) of a regression is no probability
        columns: Columns = {
            "n_active": found.count,
            "csl_sum": found.sum_of_all,
            "csl_mean": found.sum_of_all / len(epochs),
            "csl_trapz": found.csl_trapz,
            "csl_active_sum": found.sum_of_active,
            "csl_active_mean": found.mean_of_active,
            "loss_final": found.loss_final,
            "confidence": np.where(has_class, found.confidence, np.nan),
            "variability": np.where(has_class, found.variability, np.nan),
        }
        if self.first_epochs is not None:
            columns[f"csl_first_{self.first_epochs}"] = found.csl_first
        return columns

    def _of_correct(self, samples: slice) -> Columns:
        found = self._fed("correct", samples, CorrectDynamics(_count(samples), len(self.kept_epochs("correct"))))
        names = ("first_learn", "learn_forever", "cum_error", "correctness", "forgetting_events", "never_learned")
        return {name: getattr(found, name) for name in names}

    def _of_norms(self, samples: slice) -> Columns:
        norm2 = self._learning_time(samples, True)
        squares = ActiveSum(_count(samples), len(self.kept_epochs("norms")))
        for piece in self._pieces("norms", samples):
            squares.add(np.square(piece.values, dtype=np.float64), piece.where)
        return {
            "lt_frac": self._learning_time(samples, False).fraction,
            "lt_frac_norm2": norm2.fraction,
            "lt_first": norm2.first,
            "lt_censored": norm2.censored,
            "csg": squares.sum_of_all,
        }

    def _of_tasks(self, samples: slice) -> Columns:
        columns: Columns = {}
        for k in self._tasks:
            if "loss" in self._views:
                columns[f"csl_task_{k}"] = self._sum("loss", samples, k).sum_of_all
            if "norms" in self._views:
                columns[f"lt_frac_task_{k}"] = self._learning_time(samples, False, k).fraction
        return columns

    def _about(self, samples: slice) -> Columns:
        """Who the samples are, in how many epochs they were trained on, and after which first and last (-1 = none)."""
        ids = self.ids[samples]
        columns: Columns = {name: np.full(len(ids), -1, np.int32) for name in ABOUT.values()}
        presentations = np.zeros(len(ids), np.int32)
        first_epoch, last_epoch = np.full((2, len(ids)), -1, np.int32)
        last = max(self.kept_epochs(role)[-1] for role in self._views)
        for k in self._tasks:
            block = self.store.block(k)
            where, own = block.find(ids)
            found = {ABOUT[name]: block.array(name, mapped=True)[own] for name in ABOUT}
            axis = block.array("epochs_completed")
            axis = axis[(axis > 0) & (axis <= last)]
            is_trained = (found["split"] == SPLITS.index("train")) & (found["entry_task"] <= k)
            presentations[where] += is_trained * np.int32(len(axis))
            if len(axis):
                is_first = is_trained & (first_epoch[where] < 0)
                first_epoch[where] = np.where(is_first, axis.min(), first_epoch[where])
                last_epoch[where] = np.where(is_trained, axis.max(), last_epoch[where])
            is_known = columns["split"][where] >= 0
            _refuse_other_labels(columns["label"][where][is_known], found["label"][is_known], block)
            for name, values in found.items():
                columns[name][where] = np.where(is_known, columns[name][where], values)
        presented = {"n_presentations": presentations, "first_epoch": first_epoch, "last_epoch": last_epoch}
        return {"sample_id": ids, **columns, **presented}

    def _learning_time(self, samples: slice, squared: bool, task: int | None = None) -> LearningTime:
        tau = self.tau_of(squared, task)
        return self._fed(
            "norms", samples, LearningTime(_count(samples), tau, squared, self.window, self.tolerance), task
        )

    def _sum(self, role: str, samples: slice, task: int | None = None) -> ActiveSum:
        view, epochs = self._views[role], self.kept_epochs(role)
        is_asked = np.isin(view.epochs_completed, epochs) & ((view.tasks == task) | (task is None))
        return self._fed(role, samples, ActiveSum(_count(samples), int(is_asked.sum())), task)

    def _fed(self, role: str, samples: slice, measure: Measure, task: int | None = None) -> Measure:
        """The measure, after all rows of some samples."""
        for piece in self._pieces(role, samples, task):
            measure.add(piece.values, piece.where)
        return measure

    def _pieces(self, role: str, samples: slice, task: int | None = None) -> Iterator[Piece]:
        pieces = self._views[role].pieces(samples, None if self.epochs is None else self.kept_epochs(role), task)
        return (piece for piece in pieces if piece.values.size)

    def _slices(self) -> Iterator[slice]:
        for start in range(0, len(self.ids), self.size):
            yield slice(start, min(start + self.size, len(self.ids)))

    def _joined(self, part: Callable[[slice], Columns]) -> Columns:
        """Columns of all samples, filled part by part."""
        columns: Columns = {}
        for samples in self._slices() if len(self.ids) else [slice(0, 0)]:
            for name, values in part(samples).items():
                if name not in columns:
                    columns[name] = np.empty(len(self.ids), values.dtype)
                columns[name][samples] = values
        return columns

    def _wanted(self, block: SampleBlock) -> Ids:
        """Ids of a block that are of the wanted splits."""
        is_wanted = np.isin(block.array("split"), [SPLITS.index(split) for split in self.splits])
        return block.ids if is_wanted.all() else block.ids[is_wanted]

    def _kept(self, view: SampleView) -> npt.NDArray[np.int32]:
        epochs = view.epochs_completed
        return epochs if self.epochs is None else epochs[np.isin(epochs, list(self.epochs))]

    def _lacks(self, view: SampleView) -> list[tuple[int, int]]:
        """(task, epoch) of the rows that are wanted and are not whole."""
        missing = sorted([*view.missing, *self._left_out(view)])
        return [(k, e) for k, e in missing if self.epochs is None or e in self.epochs]

    def _left_out(self, view: SampleView) -> list[tuple[int, int]]:
        """(task, epoch) of the rows of blocks that have other metrics and not this one, though it was due there.

        A metric that is measured every so many epochs is due where the number divides: the epochs of the other blocks
        have it as a common divisor.
        """
        every = int(np.gcd.reduce([0, *view.epochs_completed.tolist(), *(e for _, e in view.missing)]))
        blocks = {k: self.store.block(k) for k in self._tasks}
        lacking = [b for b in blocks.items() if b[1].metrics() and not is_begun(b[1], view.metric)]
        axes = ((k, block.array("epochs_completed").tolist()) for k, block in lacking)
        return [(k, e) for k, axis in axes for e in axis if every and e > 0 and e % every == 0]

    def _refuse_incomplete(self) -> None:
        for view in self._views.values():
            if lacks := self._lacks(view):
                k, epoch = lacks[0]
                block = self.store.block(k)
                if not block.has(view.metric):
                    raise RunError(
                        f"{block.folder}/{view.metric}.done is not there: task {k} lacks {view.metric} of epoch "
                        f"{epoch} ({len(lacks)} missing in all). Put its files back, or give the epochs to keep"
                    )
                raise RunError(
                    f"{block.folder}/{view.metric}.npy lacks the row of epoch {epoch} ({len(lacks)} "
                    "missing in all): the run goes on or was stopped. Finish it, or give the epochs to keep"
                )
        there = {e for view in self._views.values() for e in view.epochs_completed.tolist()}
        if absent := sorted(set(self.epochs or ()) - there):
            raise RunError(f"{self.store.folder} has no row of epoch {absent[0]}, which is to be kept; keep others")


def _count(samples: slice) -> int:
    return samples.stop - samples.start


def _stored(columns: Columns) -> Columns:
    """Columns as they are kept: float32, but for whole numbers and flags."""
    return {name: values.astype(WHOLE_NUMBERS.get(name, np.float32), copy=False) for name, values in columns.items()}


def _refuse_other_labels(known: npt.NDArray, found: npt.NDArray, block: SampleBlock) -> None:
    if (known != found).any():
        raise RunError(
            f"{block.folder}/labels.npy gives {int((known != found).sum())} samples other classes than the blocks of "
            "earlier tasks do: the ids are not those of one data set"
        )
