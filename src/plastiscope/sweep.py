"""Sweeps over components, and settings that only the swept ones have.

Hydra checks the settings of a sweep that are not swept themselves against a config in which each swept group has its
default option; it would refuse `-m experiment=continual_imagenet,continual_imagenet/l2 data.folder=...`, for the
default data set has no folder. `++` before such a setting keeps it from that, and from telling a misspelt one; so here
every combination of the swept options is composed with the setting as it was given.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Protocol, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig

from plastiscope.error import ConfigError

T = TypeVar("T")


class Advise(Protocol):
    """Calls what reads or composes overrides, and says its errors in our words."""

    def __call__(self, command: Callable[[], T], overrides: list[str]) -> T:
        """What `command` gives."""


def spelled_out(words: Sequence[str], advise: Advise) -> list[str]:
    """The words of a command, with `++` before each setting that only the options of a swept group have.

    Args:
        words: of the command line.
        advise: by which Hydra is called.

    Raises:
        ConfigError: a combination of swept options has no such setting.
    """
    given = [word for word in words if "=" in word and not word.startswith(("-", "hydra."))]
    parsed = advise(lambda: OverridesParser.create().parse_overrides(given), given)
    of_groups = [override for override in parsed if _is_of_group(override)]
    swept = [override for override in of_groups if override.is_sweep_override()]
    if not swept:
        return list(words)
    fixed = [override for override in of_groups if not override.is_sweep_override()]
    default = advise(lambda: _composed(_lines(fixed), words), _lines(fixed))
    unknown = [
        override
        for override in parsed
        if override.type is OverrideType.CHANGE
        and not override.is_sweep_override()
        and not _is_of_group(override)
        and not _is_in(default, override.key_or_group)
    ]
    if not unknown:
        return list(words)
    for options in _combinations(swept):
        overrides = [*_lines(fixed), *options, *_lines(unknown)]
        try:
            advise(partial(_composed, overrides, words), overrides)
        except ConfigError as error:
            raise ConfigError(f"{' '.join(options)}: {error}") from None
    told = set(_lines(unknown))
    return [f"++{word}" if word in told else word for word in words]


def _combinations(swept: Sequence[Override]) -> Iterator[tuple[str, ...]]:
    each = [[f"{one.get_key_element()}={option}" for option in one.sweep_string_iterator()] for one in swept]
    return itertools.product(*each)


def _lines(overrides: Sequence[Override]) -> list[str]:
    return [override.input_line or "" for override in overrides]


def _is_of_group(override: Override) -> bool:
    """Whether it chooses components, such as `learner=l2`."""
    folder = resources.files("plastiscope.configs") / override.key_or_group
    return "." not in override.key_or_group and folder.is_dir()


def _composed(overrides: list[str], words: Sequence[str]) -> DictConfig:
    """The config of these overrides, also with YAML files of the folder that the command adds (--config-dir)."""
    added = [f"hydra.searchpath=[file://{folder}]" for folder in _config_folders(words)]
    with initialize_config_module("plastiscope.configs", version_base="1.3"):
        return compose("config", [*overrides, *added])


def _config_folders(words: Sequence[str]) -> list[Path]:
    found = [after for word, after in itertools.pairwise(words) if word in ("--config-dir", "-cd")]
    found += [word.partition("=")[2] for word in words if word.startswith("--config-dir=")]
    return [Path(folder).absolute() for folder in found]


def _is_in(config: DictConfig, key: str) -> bool:
    """Whether a config has a setting, be it null."""
    node = config
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return False
        node = node._get_node(part)  # type: ignore[assignment]
    return True
