"""What per-sample analyses share: scoring all samples of a task in chunks, rows of the store, means for the log."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plastiscope.analysis.analysis import Analysis
from plastiscope.analysis.population import ScoredSamples, population, refuse_stream
from plastiscope.data.samples import Batch
from plastiscope.error import RunError, require
from plastiscope.event import Context, Numbers
from plastiscope.run.processes import Part, share_out
from plastiscope.run.sample_store import SampleBlock, Values
from plastiscope.task_shift_mode.task import Task

Score = Callable[[Batch], Mapping[str, Tensor]]
"""A batch -> values [b] of each of its samples, by metric: "loss", or with its layer "persample_strict.linear_1"."""

MOST_PARTS = 64
"""Parts of a population that processes share out; a part is some chunks."""
INITIAL = {"train": "initial", "validation": "initial_validation", "later": "initial_later"}
"""Names of the subsets before any training; these numbers share a row with those of the first task's end."""


@dataclass(kw_only=True)
class SampleAnalysis(Analysis):
    """Base of the analyses that give each sample numbers; `every` counts epochs."""

    batch_size: int = 500
    """Samples in a forward; the last bits of a value depend on it."""
    initial: bool = False
    """Also score the network as it is before any training, epoch 0."""

    shared_events = ("on_task_begin", "on_epoch_end")

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(self.batch_size >= 1, "batch_size", self.batch_size, "must be 1 or more")
        self._population: tuple[Task, ScoredSamples] | None = None
        self._epochs: tuple[Task, list[int]] | None = None

    @abstractmethod
    def score(self, context: Context, task: Task) -> Score:
        """What to measure of each batch of clean inputs; the network is in evaluation mode, parameters frozen."""

    def on_task_begin(self, context: Context) -> Numbers:
        """Score the untrained network, if it is asked for; refuse a stream before anything is trained on it."""
        refuse_stream(context, self.name)
        if context.epochs_completed == 0 and 0 in self.epochs(context):
            return self.look(context)
        return {}

    def on_epoch_end(self, context: Context) -> Numbers:
        """Score all samples, if the epoch is due."""
        if context.epochs_completed in self.epochs(context):
            return self.look(context)
        return {}

    def epochs(self, context: Context) -> list[int]:
        """Epochs completed at which the current task's samples are scored, the row axis of what this measures."""
        task = context.current_task
        if self._epochs is None or self._epochs[0] is not task:
            there = context.epochs_of_task()
            has_initial = self.initial and context.task_idx == 0 and (not context.is_replay or 0 in there)
            due = [e for e in there if e > 0 and self.is_due(e)]
            self._epochs = (task, [0, *due] if has_initial else due)
        return self._epochs[1]

    def samples(self, context: Context) -> ScoredSamples:
        """The samples of the current task's block."""
        task = context.current_task
        if self._population is None or self._population[0] is not task:
            self._population = (task, population(context, self.name))
        return self._population[1]

    def block(self, context: Context) -> SampleBlock:
        """The block of the current task in the run's store, to write into."""
        return context.sample_store.open(context.task_idx, self.samples(context).about, context.epochs_of_task())

    def look(self, context: Context) -> Numbers:
        """Score all samples of the task with the current weights, write the rows, return their means."""
        score = self.score(context, context.current_task)
        values = self.score_all(context, score)
        return self.record(context, values)

    def score_all(self, context: Context, score: Score) -> dict[str, Values]:
        """Values float32 [n] by metric; several processes share the samples out."""
        parts = self.shared(context, lambda batches: _scored(batches, score))
        return merged(parts, self.samples(context))

    def shared(self, context: Context, measure: Callable[[Iterable[Batch]], Part], stage: str = "") -> list[Part]:
        """What `measure` makes of the samples, part by part in their order; several processes share the parts out.

        Args:
            context: at a task.
            measure: called with the batches of a part; must give the same arrays whoever calls it.
            stage: name of one pass of several of the same look.
        """
        chunks = self.samples(context).chunks(self.batch_size)
        parts = np.array_split(np.arange(len(chunks)), min(len(chunks), MOST_PARTS))

        def compute(i: int) -> Part:
            return measure(chain.from_iterable(chunks[c].batches(self.batch_size) for c in parts[i]))

        if not context.is_replay and context.processes.world == 1:
            return [compute(i) for i in range(len(parts))]
        folder = self.parts_folder(context)
        folder = folder.with_name(folder.name + stage)
        return share_out(folder, len(parts), compute, context.processes)

    def parts_folder(self, context: Context) -> Path:
        """Where finished parts of a shared look wait for the others; those of other weights are not taken for them."""
        weights = context.weights_digest[:16]
        return context.run_folder / "parts" / f"{self.name}_epoch_{context.epochs_completed:06d}_{weights}"

    def record(self, context: Context, values: Mapping[str, Values], epochs: Sequence[int] | None = None) -> Numbers:
        """Write one row of each metric and return the means of each subset over the samples that have a value.

        Args:
            context: at one of `epochs`.
            values: float32 [n] by metric, in the order of the block's columns.
            epochs: epochs completed at which the metrics are measured in this task; by default `self.epochs`.
        """
        if context.processes.is_first:
            block, axis = self.block(context), self.epochs(context) if epochs is None else epochs
            for metric, row in values.items():
                block.write(metric, context.epochs_completed, row, axis)
        return self.means(context, values)

    def fill_in(self, context: Context, values: Mapping[str, Values]) -> Numbers:
        """Write rows that another analysis may keep too, where it has left room and no row; returns their means.

        Whoever measures more epochs has reserved the row axis before (`is_late`); epoch 0 alone makes none. Values that
        another analysis owns get no rows but those that it has reserved.
        """
        if context.processes.is_first:
            block, at = self.block(context), context.epochs_completed
            is_free = {metric: at > 0 and metric not in context.owned_metrics for metric in values}
            has_room = {m: at in block.epochs(m) if block.has(m) else is_free[m] for m in values}
            missing = {m: row for m, row in values.items() if has_room[m] and not block.is_written(m, at)}
            if missing:
                self.record(context, missing, self.epochs(context))
        return self.means(context, values)

    def means(self, context: Context, values: Mapping[str, Values]) -> Numbers:
        """Means of values by metric over each subset's samples that have one, by key."""
        numbers = {}
        for subset, columns in self.samples(context).subsets.items():
            for metric, row in values.items():
                quantity, _, layer = metric.partition(".")
                if not np.isnan(value := mean(row[columns])):
                    name = subset if context.epochs_completed else INITIAL[subset]
                    numbers[self.key(name, layer or "total", quantity)] = value
        return numbers


def mean(values: Values) -> float:
    """Mean in float64 over what is not NaN; NaN of nothing."""
    known = values[~np.isnan(values)]
    return float(known.mean(dtype=np.float64)) if len(known) else float("nan")


def _scored(batches: Iterable[Batch], score: Score) -> Part:
    """Ids and values of the samples of some batches, in their order."""
    ids: list[Tensor] = []
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        ids.append(batch.ids)
        for metric, values in score(batch).items():
            found.setdefault(metric, []).append(values.detach().to(torch.float32))
    arrays = {metric: torch.cat(values).cpu().numpy() for metric, values in found.items()}
    return {"ids": torch.cat(ids).cpu().numpy(), **arrays}


def merged(parts: list[Part], samples: ScoredSamples) -> dict[str, Values]:
    """Values by metric: the parts one after the other.

    Raises:
        RunError: they do not hold each sample once, in its place.
    """
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    ids = joined.pop("ids", np.empty(0, np.int64))
    if not np.array_equal(ids, samples.about.ids):
        raise RunError(
            f"the parts hold {len(ids)} samples ({len(np.unique(ids))} of them distinct) where {len(samples)} were to "
            "be scored: they are of another run. Delete the folder parts/ and start again"
        )
    return joined
