"""What to tell someone who mistyped a setting. Loads nothing heavy, so that a mistake is told within the second."""

import difflib
from importlib import resources
from typing import Any

GROUPS = ("data", "net", "learner", "task_shift_mode")
"""The config groups that give one component each; other blocks of the config are analyses."""


def nearest(word: str, words: list[str], shown: list[str] | None = None) -> str:
    """A question for the nearest of `words`, or a list of those to be shown (all of them by default)."""
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else f"; there are: {', '.join(sorted(shown or words))}"


def known_analyses() -> list[str]:
    """Names of all analyses that come with plastiscope."""
    folder = resources.files("plastiscope.configs") / "analysis"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def arms_of(study: str) -> list[str]:
    """Names of the arms of a study, as `experiment=<study>/<arm>` takes them; empty if it has none."""
    folder = resources.files("plastiscope.configs") / "experiment" / study
    if not folder.is_dir():
        return []
    return sorted(f"{study}/{entry.name.removesuffix('.yaml')}" for entry in folder.iterdir())


def launchers() -> list[str]:
    """The launchers that come with plastiscope."""
    folder = resources.files("plastiscope.configs") / "launcher"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir())


def no_option(group: str, option: str, there: list[str]) -> str:
    """What to tell someone who names an option that a config group does not have.

    Args:
        group: of the config.
        option: as it was given.
        there: the options that the group has.
    """
    arms = arms_of(option.split("/")[0]) if group == "experiment" and "/" in option else []
    shown = [option.split("/")[0], *arms] if arms else there
    return f"{group}={option}: there is no such option. Available options in '{group}': {', '.join(shown)}"


def not_selected(name: str, chosen: list[str]) -> str:
    """What to tell someone who sets an analysis that is not selected."""
    return f"{name}: this analysis is not selected; select it with analysis=[{','.join([*chosen, name])}]"


def selected(plain: dict[str, Any]) -> list[str]:
    """Names of the selected analyses: blocks beside the groups that have a `_target_`."""
    return [k for k, v in plain.items() if k not in GROUPS and isinstance(v, dict) and "_target_" in v]
