"""Which published values stand in a picture: those whose protocol the runs follow, or all of their kind, told apart."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from plastiscope.collect.curves import SeedCurve
from plastiscope.collect.published_values import PublishedArm
from plastiscope.collect.settings import Settings, analyses_of, flat, is_alike, is_of_training, said
from plastiscope.figure.curves import Mark

REFERENCES = ("published", "all", "none")
"""What `reference=` may be: values of the runs' own protocol; also those of another one, hollow; no values."""
WITHOUT_EFFECT = (
    *("compile", "precision", "learner.autograd"),
    *("task_shift_mode.compose", "task_shift_mode.class_order", "task_shift_mode.exact_test"),
)
"""Settings of training that leave what a figure shows as it is, but for rounding and chance."""
OF_ANALYSES = ("online.bin_size", "representation.theta")
"""Settings of analyses that change what the figures of these analyses show."""
MOST_SAID = 4
"""Settings that a note names."""


@lru_cache(maxsize=64)
def _preset(name: str) -> dict[str, Any]:
    """The settings of a preset, as those of a run are read."""
    from plastiscope.build import compose_config, plain

    return flat(plain(compose_config(f"experiment={name}")))


def protocol(arm: PublishedArm, analysis: str = "") -> dict[str, Any]:
    """The settings that an arm's values belong to, those that change what a figure of this analysis shows."""
    settings = {**_preset(arm.preset), **arm.changes}
    analyses = analyses_of(settings)

    def counts(key: str) -> bool:
        if key in OF_ANALYSES:
            return key.split(".")[0] == analysis
        is_wanted = not arm.only or key.split(".")[0] in arm.only
        return is_wanted and key not in WITHOUT_EFFECT and is_of_training(key, analyses)

    return {key: value for key, value in settings.items() if counts(key)}


def is_of_kind(arm: PublishedArm, settings: Settings) -> bool:
    """Whether runs have the arm's data and learner, and all settings that tell it from other arms."""
    is_same = settings.get("data") == arm.data and (bool(arm.only) or settings.get("learner") == arm.learner)
    return is_same and all(key in settings for key in arm.needs)


def departures(arm: PublishedArm, settings: Settings, analysis: str = "") -> dict[str, tuple[Any, Any]]:
    """Settings in which runs depart from an arm's protocol: the published value and theirs.

    What is not known of a run, as of published results and of runs of older versions, is no departure.
    """
    found = {}
    for key, published in protocol(arm, analysis).items():
        here = settings.get(key, published)
        if not any(is_alike(here, value) for value in arm.also.get(key, (published,))):
            found[key] = (published, here)
    return found


def marks_of(
    found: Sequence[SeedCurve], arms: Sequence[PublishedArm], analysis: str = "", reference: str = "published"
) -> tuple[list[Mark], list[str]]:
    """Published values within the range of the curves, in the colour of theirs; and what is to be said.

    Args:
        found: the curves of a picture.
        arms: the published ones of its figure.
        analysis: whose settings change what the figure shows; "" = of none.
        reference: one of `REFERENCES`.
    """
    if reference == "none":
        return [], []
    last = max((curve.x.max(initial=0) for curve in found), default=0)
    of_all = [arm for arm in arms if not arm.is_of_curve]
    marks = [mark for arm in of_all for mark in _lines_for_all(arm, found, analysis, reference == "all")]
    notes = []
    for i, curve in enumerate(found):
        arm, away = _nearest(arms, curve.group.settings, analysis)
        if arm is None:
            continue
        if away and reference != "all":
            notes.append(_note(curve.group.label, arm, away))
        else:
            marks += [mark for mark in _marks(arm, i, bool(away)) if (mark.x or 0) <= 1.02 * last]
    return marks, notes


def _lines_for_all(arm: PublishedArm, found: Sequence[SeedCurve], analysis: str, others_too: bool) -> list[Mark]:
    """Lines of a whole picture: of none of its curves' settings, or of what some of them share."""
    if not arm.preset:
        return [Mark(None, y, label=label) for label, y in arm.lines.items()]
    of_kind = [curve.group.settings for curve in found if is_of_kind(arm, curve.group.settings)]
    is_other = all(departures(arm, settings, analysis) for settings in of_kind)
    if not of_kind or (is_other and not others_too):
        return []
    return [Mark(None, y, label=label, is_other=is_other) for label, y in arm.lines.items()]


Departures = Mapping[str, tuple[Any, Any]]


def _nearest(arms: Sequence[PublishedArm], settings: Settings, analysis: str) -> tuple[PublishedArm | None, Departures]:
    """The arm of these runs' kind from which they depart least, the first one of several; and how."""
    of_kind = [arm for arm in arms if arm.is_of_curve and is_of_kind(arm, settings)]
    pairs = [(arm, departures(arm, settings, analysis)) for arm in of_kind]
    return min(pairs, key=lambda pair: len(pair[1]), default=(None, {}))


def _marks(arm: PublishedArm, curve: int, is_other: bool) -> list[Mark]:
    return [
        *(Mark(x, y, curve, is_other=is_other) for x, y in arm.points),
        *(Mark(x, y, curve, is_bound=True, is_other=is_other) for x, y in arm.bounds),
        *(Mark(None, y, curve, label=label, is_other=is_other) for label, y in arm.lines.items()),
    ]


def _note(label: str, arm: PublishedArm, away: Departures) -> str:
    some = [f"{key}={said(here)}, published {said(there)}" for key, (there, here) in list(away.items())[:MOST_SAID]]
    more = f"; and {len(away) - MOST_SAID} more" if len(away) > MOST_SAID else ""
    return (
        f"{label or 'these runs'}: no published values, they are of another protocol than experiment={arm.preset} "
        f"({'; '.join(some)}{more}); reference=all draws them hollow"
    )
