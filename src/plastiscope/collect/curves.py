"""Curves of many runs: which runs are seeds of one kind, and their values side by side."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt

from plastiscope.collect.runs import CollectedRun
from plastiscope.collect.settings import MISSING, differing, matches, said
from plastiscope.error import ConfigError, DataError
from plastiscope.measure.over_seeds import Band, over_seeds, smoothed

Array = npt.NDArray[np.float64]
Points = tuple[Array, Array]
"""x ascending [p], and y [p]."""

EPOCHS_COMPLETED, TASK = "epochs_completed", "task_idx"


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        label: what tells it from the other groups, such as "learner=l2, learner.lr=0.01"; "" if there is one.
        settings: of the first run.
        runs: by seed.
    """

    label: str
    settings: Mapping[str, Any]
    runs: Mapping[int, CollectedRun]


@dataclass(frozen=True, eq=False)
class SeedCurve:
    """A group's curve.

    Attributes:
        group: whose.
        x: [p].
        values: [seeds, p] in the order of `group.runs`; NaN = not measured.
    """

    group: Group
    x: Array
    values: Array

    def band(self) -> Band:
        """What the seeds say."""
        return over_seeds(self.values)

    def changed(self, change: Callable[[Array], Array]) -> "SeedCurve":
        """The curve of other values."""
        return SeedCurve(self.group, self.x, change(self.values))


def chosen(runs: Sequence[CollectedRun], wanted: Mapping[str, str]) -> list[CollectedRun]:
    """The runs with all these settings.

    Raises:
        ConfigError: no run has such a setting, or this value of it; says which there are.
    """
    for key, text in wanted.items():
        there = {said(run.settings[key]) for run in runs if key in run.settings}
        if not there:
            raise ConfigError(f"{key}={text}: no run has such a setting")
        runs = [run for run in runs if matches(run.settings, {key: text})]
        if not runs:
            raise ConfigError(f"{key}={text}: no run has this value; there are: {', '.join(sorted(there))}")
    return list(runs)


def grouped(runs: Sequence[CollectedRun], by: Sequence[str] | None, y: str = "") -> list[Group]:
    """Runs side by side that differ in the seed alone.

    Args:
        runs: with the numbers in question.
        by: settings that tell the groups apart; None = as few as do, of those in which the runs differ.
        y: the number in question; if it is an analysis's, the settings of that analysis count too.

    Raises:
        ConfigError: runs of a group differ in other settings, which are named; or a seed stands twice in it.
    """
    keep = [y.split("/")[0]]
    keys = telling(runs, differing([run.settings for run in runs], keep=keep)) if by is None else list(by)
    for key in keys:
        if not any(key in run.settings for run in runs):
            raise ConfigError(f"group={key}: no run has such a setting; they differ in {_listed(_differ(runs, keep))}")
    parts: dict[tuple[str, ...], list[CollectedRun]] = {}
    for run in runs:
        parts.setdefault(_values(run, keys), []).append(run)
    return [_group(keys, values, members, keep) for values, members in sorted(parts.items(), key=_by_value)]


def arms(runs: Sequence[CollectedRun], by: Sequence[str] | None) -> dict[str, int]:
    """Which arm each run is of, by its label: the same one in all figures that are drawn of these runs.

    Args:
        runs: all of them, also those that a figure has no numbers of.
        by: settings that tell the arms apart; None = as few as do.
    """
    keys = telling(runs, differing([run.settings for run in runs])) if by is None else by
    parts = sorted({(_values(run, keys), None) for run in runs}, key=_by_value)
    order = {values: i for i, (values, _) in enumerate(parts)}
    return {run.label: order[_values(run, keys)] for run in runs}


def distinct(arms_shown: Sequence[int], most: int) -> list[int]:
    """A number below `most` for each curve of a picture: that of its arm, or a free one where another curve has it."""
    wanted = [arm % most for arm in arms_shown]
    free = iter(sorted(set(range(most)) - set(wanted)))
    return [next(free) if arm in wanted[:i] else arm for i, arm in enumerate(wanted)]


def _values(run: CollectedRun, keys: Sequence[str]) -> tuple[str, ...]:
    return tuple(said(run.settings.get(key, MISSING)) for key in keys)


def _by_value(part: tuple[tuple[str, ...], Any]) -> list[tuple[float, str]]:
    """Numbers by what they are worth, before texts."""
    return [(float(text), text) if _is_number(text) else (float("inf"), text) for text in part[0]]


def _is_number(text: str) -> bool:
    try:
        return np.isfinite(float(text))
    except ValueError:
        return False


def telling(runs: Sequence[CollectedRun], keys: Sequence[str]) -> list[str]:
    """As few of the keys as tell apart what all of them do; components before their settings."""

    def parts(some: Sequence[str]) -> int:
        return len({tuple(said(run.settings.get(key, MISSING)) for key in some) for run in runs})

    found: list[str] = []
    for key in sorted(keys, key=lambda key: key.count(".")):
        if parts([*found, key]) > parts(found):
            found.append(key)
    for key in [key for key in found if "." in key]:  # a component stays: it says more than its settings
        others = [other for other in found if other != key]
        if parts(others) == parts(keys):
            found = others
    return found


def _group(keys: Sequence[str], values: Sequence[str], members: Sequence[CollectedRun], keep: Sequence[str]) -> Group:
    pairs = zip(keys, values, strict=True)
    label = ", ".join(f"{key}={value}" for key, value in pairs if value != MISSING)
    where = f"runs of {label}" if label else "the runs"
    if other := _differ(members, keep):
        values_of = {key: sorted({said(run.settings[key]) for run in members if key in run.settings}) for key in other}
        shown = [f"{key} ({_listed(there)})" for key, there in values_of.items()]
        apart = ",".join([*keys, *telling(members, other)])
        raise ConfigError(
            f"{where} differ in {_listed(shown)}: tell them apart with group={apart}, or choose some with "
            f"{other[0]}=VALUE"
        )
    by_seed: dict[int, CollectedRun] = {}
    for run in sorted(members, key=lambda run: bool(run.replay_of)):  # the run itself before looks at its weights
        seed = -1 if run.seed is None else run.seed
        if seed not in by_seed:
            by_seed[seed] = run
        elif not run.replay_of:
            raise ConfigError(
                f"{where} have seed {seed} twice, in {by_seed[seed].label} and {run.label}, and would count double; "
                "give the folders that are meant"
            )
    return Group(label, members[0].settings, dict(sorted(by_seed.items())))


def _differ(runs: Sequence[CollectedRun], keep: Sequence[str]) -> list[str]:
    return differing([run.settings for run in runs], keep=keep)


def _listed(what: Sequence[str], most: int = 6) -> str:
    return ", ".join(what[:most]) + (", ..." if len(what) > most else "") if what else "nothing"


def keys_of(runs: Sequence[CollectedRun]) -> list[str]:
    """Names of all logged numbers."""
    columns = [name for run in runs if run.rows is not None for name in run.rows.column_names]
    return [name for name in dict.fromkeys(columns) if name not in ("kind", "global_epoch", "task_idx", "epoch")]


def points(run: CollectedRun, y: str, x: str, kinds: Sequence[str] = ()) -> Points:
    """A run's values of y over x; those at the same x are averaged, what was not measured is left out.

    Args:
        run: with its rows.
        y: a logged number.
        x: epochs_completed, or any column of the log.
        kinds: of the rows; none = all that have y.
    """
    if run.rows is None or y not in run.rows.column_names:
        return np.empty(0), np.empty(0)
    values = column(run, y)
    known = np.isfinite(values)
    if kinds:
        known &= np.isin(run.rows.column("kind").to_pylist(), kinds)
    places = column(run, "global_epoch") + 1 if x == EPOCHS_COMPLETED else column(run, x)
    known &= np.isfinite(places)
    at, where = np.unique(places[known], return_inverse=True)
    counts = np.maximum(np.bincount(where, minlength=len(at)), 1)
    return at, np.bincount(where, values[known], len(at)) / counts


def column(run: CollectedRun, name: str) -> Array:
    """A column of a run's rows; NaN = not measured, or no such column."""
    assert run.rows is not None
    if name not in run.rows.column_names:
        return np.full(run.rows.num_rows, np.nan)
    found = run.rows.column(name).to_numpy().astype(np.float64)
    return np.asarray(found)


def side_by_side(group: Group, each: Mapping[int, Points]) -> SeedCurve:
    """The points of each seed on the x of all of them."""
    x = np.unique(np.concatenate([at for at, _ in each.values()])) if each else np.empty(0)
    values = np.full((len(each), len(x)), np.nan)
    for row, (at, y) in zip(values, each.values(), strict=True):
        row[np.searchsorted(x, at)] = y
    return SeedCurve(group, x, values)


def curves(
    runs: Sequence[CollectedRun], y: str, x: str | None = None, by: Sequence[str] | None = None, smooth: int = 1
) -> list[SeedCurve]:
    """A curve for each group of runs that have the number y.

    Args:
        runs: as collected.
        y: a logged number, such as test_accuracy or representation/current/total/dormant_rate.
        x: epochs_completed, task_idx or any other logged number; None = task_idx where only task ends have y.
        by: as `grouped`.
        smooth: points of a centred moving mean, taken of each seed.

    Raises:
        ConfigError: as `grouped`; or there is no such number, with the nearest ones.
    """
    keys = keys_of(runs)
    for name in (y, x):
        if name not in (None, EPOCHS_COMPLETED, TASK, "global_epoch", "epoch") and name not in keys:
            raise ConfigError(f"no run has logged {name}{_nearest(str(name), keys)}")
    x = x or usual_axis(runs, y)
    having = [run for run in runs if len(points(run, y, x)[0])]
    if not having:
        raise DataError(f"no run has a value of {y} and {x} in one row yet")
    found = []
    for group in grouped(having, by, y):
        curve = side_by_side(group, {seed: points(run, y, x) for seed, run in group.runs.items()})
        found.append(curve.changed(lambda values: smoothed(values, smooth)))
    return found


def usual_axis(runs: Sequence[CollectedRun], y: str) -> str:
    """task_idx where only rows of task ends have y, else epochs_completed."""
    return EPOCHS_COMPLETED if any(len(points(run, y, "epoch", ["epoch"])[0]) for run in runs) else TASK


def _nearest(name: str, keys: Sequence[str]) -> str:
    """A question for the numbers that may be meant, the nearest ones first; or else those that there are.

    Near are names alike, such as test_acuracy, and those with such a last part, such as dormant_rate.
    """
    alike = get_close_matches(name, keys, n=3, cutoff=0.6)
    last = get_close_matches(name, {key.rpartition("/")[2] for key in keys}, n=1, cutoff=0.8)
    having = sorted((key for key in keys if key.rpartition("/")[2] in last), key=_usefulness)
    near = list(dict.fromkeys([*alike, *having]))[:4]
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; there are: {', '.join(listed_numbers(keys)) or 'none yet'}"


def listed_numbers(keys: Sequence[str]) -> list[str]:
    """Numbers for people: accuracies, losses and others of training, then how many each analysis has, with one."""
    of_analyses: dict[str, list[str]] = {}
    for key in sorted(keys, key=_usefulness):
        of_analyses.setdefault(key.partition("/")[0] if "/" in key else "", []).append(key)
    shown = of_analyses.pop("", [])
    return shown + [f"{name}/... ({len(there)}, such as {there[0]})" for name, there in sorted(of_analyses.items())]


KINDS_OF_NUMBERS = ("accuracy", "loss", "error")
"""Ends of names of what is asked for most, in this order."""


def _usefulness(key: str) -> tuple[bool, int, bool, bool, str]:
    """A number's place in a list: by kind; of the test set, and of whole networks rather than layers, before others."""
    kind = next((i for i, end in enumerate(KINDS_OF_NUMBERS) if key.endswith(end)), len(KINDS_OF_NUMBERS))
    return key.endswith("runtime"), kind, not key.startswith("test"), "/total/" not in key, key
