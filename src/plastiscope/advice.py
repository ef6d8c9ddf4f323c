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


def not_selected(name: str, chosen: list[str]) -> str:
    """What to tell someone who sets an analysis that is not selected."""
    return f"{name}: this analysis is not selected; select it with analysis=[{','.join([*chosen, name])}]"


def selected(plain: dict[str, Any]) -> list[str]:
    """Names of the selected analyses: blocks beside the groups that have a `_target_`."""
    return [k for k, v in plain.items() if k not in GROUPS and isinstance(v, dict) and "_target_" in v]
