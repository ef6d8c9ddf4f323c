"""Settings of runs as dotted keys, and where the configs of several runs differ.

A config.yaml is read as plain data: nothing that it names is imported, so a stranger's run folder is safe to collect.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from plastiscope.error import ConfigError

Settings = Mapping[str, Any]
"""Numbers, flags and texts by dotted key; lists as JSON text. `learner` is the short name of learner._target_."""

NOT_OF_TRAINING = (
    *("seed", "name", "num_tasks", "replicas", "device", "threads", "verbose", "figures", "use_wandb", "wandb"),
    *("checkpoint_every_s", "snapshots", "samples", "replay", "dry_run", "resume_other_code"),
    *("data.folder", "data.file", "data.download"),
)
"""Settings, with all below them, in which runs of one kind may differ: they say how long, where and how it is told."""
GROUPS = ("data", "net", "learner", "task_shift_mode")
"""Blocks that are not analyses."""


def read_settings(folder: Path) -> dict[str, Any]:
    """The settings of a run folder; empty if it has no config (a run that failed before it began).

    Raises:
        ConfigError: config.yaml is damaged.
    """
    return read_config(folder / "config.yaml", "put it back, or move the folder out of the way")


def read_config(path: Path, advice: str) -> dict[str, Any]:
    """The settings of a config; empty if there is none.

    Args:
        path: of the file.
        advice: what to do if it is damaged.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        text = path.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError):
        raise _damaged(path, advice) from None
    found: dict[str, Any] = {}
    for block in re.split(r"(?m)^(?=[^\s#-])", text):  # blocks are alike in many runs, and reading YAML is slow
        if block.strip():
            found |= _flat_block(block, path, advice)
    return found


def _damaged(path: Path, advice: str) -> ConfigError:
    return ConfigError(f"{path} is damaged; {advice}")


def _flat_block(block: str, path: Path, advice: str) -> dict[str, Any]:
    from yaml import YAMLError

    try:
        return dict(_parsed_block(block))
    except (YAMLError, AttributeError):
        raise _damaged(path, advice) from None


@lru_cache(maxsize=4096)
def _parsed_block(block: str) -> tuple[tuple[str, Any], ...]:
    import yaml

    return tuple(flat(yaml.load(block, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))).items())


def flat(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys of nested settings; `learner._target_` becomes `learner`, its module's (or class's) short name."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        if key == "_target_":
            found[prefix.rstrip(".")] = short_name(str(value))
        elif isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = json.dumps(value) if isinstance(value, list | dict) else value
    return found


def short_name(target: str) -> str:
    """Of a component: the module of ours, the class of others."""
    parts = target.split(".")
    return parts[-2 if target.startswith("plastiscope.") and len(parts) > 1 else -1].lower()


def is_of_training(key: str, analyses: Iterable[str] = ()) -> bool:
    """Whether runs that differ in a setting are of different kinds; those of analyses are not."""
    free = (*NOT_OF_TRAINING, *analyses)
    return not any(key == name or key.startswith(f"{name}.") for name in free)


def analyses_of(settings: Settings) -> list[str]:
    """Names of a run's analyses: blocks with a component that is none of the four groups."""
    return [key for key in settings if "." not in key and key not in GROUPS and f"{key}.every" in settings]


MISSING = "(none)"
"""What stands for a setting that a run does not have."""


def differing(all_settings: Sequence[Settings], only_training: bool = True, keep: Sequence[str] = ()) -> list[str]:
    """Keys in which some of the settings differ, in the order of the first ones.

    A setting that some runs do not have is no difference: its component differs, or the run is older than it.

    Args:
        all_settings: of each run.
        only_training: leave out the seed, settings that change no number, and those of analyses.
        keep: analyses whose settings count all the same.
    """
    values: dict[str, set[Any]] = {}
    for settings in all_settings:
        for key, value in settings.items():
            values.setdefault(key, set()).add(_hashable(value))
    found = [key for key, there in values.items() if len(there) > 1]
    names = {name for settings in all_settings for name in analyses_of(settings) if name not in keep}
    return [key for key in found if not only_training or is_of_training(key, names)]


def difference(ours: Settings, theirs: Settings) -> dict[str, tuple[Any, Any]]:
    """The two values of each key at which two runs' settings differ; `MISSING` where one does not have it.

    Of an analysis that one of them does not have its name is enough.
    """
    only = [name for name in {*analyses_of(ours), *analyses_of(theirs)} if (name in ours) != (name in theirs)]
    pairs = {key: (ours.get(key, MISSING), theirs.get(key, MISSING)) for key in {**ours, **theirs}}
    return {
        key: (a, b)
        for key, (a, b) in pairs.items()
        if _hashable(a) != _hashable(b) and not any(key.startswith(f"{name}.") for name in only)
    }


def _hashable(value: Any) -> tuple[str, Any]:
    """1 and 1.0 are one value, 1 and True are not."""
    return ("flag" if isinstance(value, bool) else "value", value)


def is_alike(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; numbers by what they are worth."""
    return _hashable(one) == _hashable(other)


def said(value: Any) -> str:
    """A value for people, as a command line would have it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def matches(settings: Settings, wanted: Mapping[str, str]) -> bool:
    """Whether a run has all these settings; values as on a command line, numbers by what they are worth."""
    return all(key in settings and is_same(settings[key], text) for key, text in wanted.items())


def is_same(value: Any, text: str) -> bool:
    """Whether a text means a value."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return float(text) == float(value)
        except ValueError:
            return False
    return said(value).replace(" ", "") == text.replace(" ", "")
