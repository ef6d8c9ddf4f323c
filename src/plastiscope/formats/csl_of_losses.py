"""CSL and learning time of per-sample loss files: one row in memory at a time, two passes over the gradients."""

from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.formats.loss_files import LossFiles, LossSeries
from plastiscope.measure.dynamics import LossDynamics
from plastiscope.measure.learning_time import LearningTime, RunningMean, threshold

Scores = npt.NDArray[np.float64]
_FROM_SCORING = (
    "grad_kind", "contains_l2", "weight_decay", "mode", "logit_scope", "split", "normalization", "results_dir",
    "experiment_index",
)  # fmt: skip
"""What the program that scored the files knows of them."""


def csl_and_learning_time(series: LossSeries, active: bool) -> tuple[Scores, Scores | None, dict[str, Any]]:
    """CSL and learning time by sample id, and the facts for `write_csl`.

    Args:
        series: losses and gradient norms of the kept epochs.
        active: NaN means "class not in training": CSL is the mean over the active epochs (csl_active_mean) instead of
            the sum over all (csl_sum), in which NaN stays NaN.

    Returns:
        csl [n] and lt_frac of the norm [n], at position i the sample with id i, NaN for ids that the files do not have;
        lt None when there are no gradients.
    """
    losses = LossDynamics(len(series.ids), len(series.epochs))
    for _, row in series.losses():
        losses.add(row[None])
    csl = losses.mean_of_active if active else losses.sum_of_all
    facts = {key: series.files.facts.get(key) for key in _FROM_SCORING}
    facts["grad_kind"] = (facts["grad_kind"] or "unknown") if series.has_gradients else None
    facts |= {"mode": facts["mode"] or "posthoc", "id_kind": series.id_kind}
    facts |= {"kept_epochs": series.epochs, "losses_shape": [len(series.epochs), len(csl)]}
    facts |= {"filled_epochs": series.filled_epochs, "csl_definition": "csl_active_mean" if active else "csl_sum"}
    if not series.has_gradients:
        return _by_id(csl, series), None, facts
    times = _learning_time(series)
    facts |= {"loss_grads_shape": [len(series.epochs), len(csl)], "tau": times.tau, "lt_definition": "lt_frac, norm"}
    return _by_id(csl, series), _by_id(times.fraction, series), facts


def _learning_time(series: LossSeries) -> LearningTime:
    means = RunningMean(len(series.ids))
    for _, row in series.gradients():
        means.add(row[None])
    times = LearningTime(len(series.ids), threshold([means.total()]))
    for _, row in series.gradients():
        times.add(row[None])
    return times


def _by_id(values: Scores, series: LossSeries) -> Scores:
    """Values at the position that their id says."""
    if len(series.ids) == 0 or series.ids[-1] == len(series.ids) - 1:  # unique and ascending: 0 .. n - 1
        return values
    row = np.full(series.ids[-1] + 1, np.nan)
    row[series.ids] = values
    return row


def is_class_incremental(files: LossFiles) -> bool:
    """Whether the losses are of the classes in training at each epoch: ragged files, or files that say so."""
    return bool(files.ids) or files.facts.get("logit_scope") == "active"
