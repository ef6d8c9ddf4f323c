"""From the composed config to typed objects: each block is merged into the dataclass that its `_target_` names.

There is no registry: `_target_` is it. Everything is checked here before any data, network or file is touched.
"""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from plastiscope.advice import GROUPS, known_analyses, nearest, not_selected, selected
from plastiscope.analysis.analysis import Analysis
from plastiscope.data.samples import DataConfig
from plastiscope.error import ConfigError
from plastiscope.event import Callback
from plastiscope.learner.learner import LearnerConfig
from plastiscope.net.foreign import Foreign
from plastiscope.net.net import NetConfig
from plastiscope.settings import Settings
from plastiscope.task_shift_mode.task import TaskShiftConfig

TRUSTED = (*(f"plastiscope.{room}." for room in (*GROUPS, "analysis")), "torch.nn.", "torchvision.models.")
"""What a config found in a run folder may name; more of torch (torch.hub, say) would run code from elsewhere."""
ANALYSABLE = ("analysis", "device", "threads", "samples", "figures", "use_wandb", "wandb", "verbose")
"""Settings that do not change what was trained, so that an analysis of a finished run may have its own."""
REPLAYABLE = ("replay.start", "replay.end", "replay.share")
"""The same of those that say what is walked."""
PLACES = ("data.folder", "data.file", "data.download")
"""Where the data lie may have changed; that they are the same is checked when they are read."""


@dataclass(frozen=True)
class Plan:
    """A run as typed objects, nothing touched yet.

    Attributes:
        settings: the top level.
        data, net, learner, task_shift_mode: the components.
        analyses: the selected analyses, in order.
        arch: short name of the network, for folders.
        data_name: short name of the data, for files.
        config: the resolved config as plain containers, every option with its value.
    """

    settings: Settings
    data: DataConfig
    net: NetConfig
    learner: LearnerConfig
    task_shift_mode: TaskShiftConfig
    analyses: list[Callback]
    arch: str
    data_name: str
    config: dict[str, Any]


def build(config: DictConfig, overrides: Sequence[str] = ()) -> Plan:
    """Check a composed config and build its components.

    Args:
        config: composed.
        overrides: as on the command line. What an experiment sets of an analysis that is not selected does not count;
            what an override sets of it is refused.

    Raises:
        ConfigError: unknown key, wrong type, value out of range, settings of an analysis that is not selected.
    """
    nodes = _selected_only(plain(config), overrides)
    top = {field.name for field in dataclasses.fields(Settings)}
    settings = merge(Settings, {key: value for key, value in nodes.items() if key in top}, "")
    extra = [key for key in nodes if key not in top and key not in GROUPS]
    analyses = [_analysis(key, nodes[key], [*top, *GROUPS]) for key in extra]
    parts = {key: _chosen(nodes.get(key), key, overrides) for key in GROUPS}
    for analysis in analyses:
        if isinstance(analysis, Analysis):
            analysis.take_components(parts["net"], parts["learner"])
    resolved = _settings(settings)
    resolved |= {key: _resolved(parts[key], nodes[key]) for key in GROUPS}
    resolved |= {key: _resolved(analysis, nodes[key]) for key, analysis in zip(extra, analyses, strict=True)}
    arch, data_name = _short_name(nodes["net"]), _short_name(nodes["data"])
    analyses = sorted(analyses, key=lambda analysis: analysis.is_late)
    return Plan(settings=settings, analyses=analyses, arch=arch, data_name=data_name, config=resolved, **parts)


def _selected_only(nodes: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The config without what an experiment sets of analyses that are not selected."""
    roots, chosen = {_key(override).split(".")[0] for override in overrides}, selected(nodes)
    unselected = [name for name in known_analyses() if name in nodes and name not in chosen]
    for name in unselected:
        if name in roots:
            raise ConfigError(not_selected(name, chosen))
    return {key: node for key, node in nodes.items() if key not in unselected}


def _key(override: str) -> str:
    return re.split("[=@]", override.lstrip("+~"))[0]


def compose_plan(*overrides: str) -> Plan:
    """The plan of `plastiscope <overrides>`, for scripts.

    Raises:
        ConfigError: as `build`.
    """
    return build(compose_config(*overrides), overrides)


def compose_config(*overrides: str) -> DictConfig:
    """The config of `plastiscope <overrides>`, as composed, not checked."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("plastiscope.configs", version_base="1.3"):
        return compose("config", list(overrides))


def with_analyses(stored: DictConfig, overrides: list[str]) -> DictConfig:
    """The config of a run with other analyses, and the settings that `overrides` name; as `plastiscope` composes them.

    Args:
        stored: the run's own config.
        overrides: as on the command line, `analysis=[...]` among them.

    Raises:
        ConfigError: a setting that only a training may have.
    """
    composed = compose_config("~experiment", *overrides)  # its settings are of another run
    chosen = selected(plain(composed))
    keys = [_key(override) for override in overrides]
    for key in keys:
        if key.split(".")[0] not in (*ANALYSABLE, *chosen) and key not in (*REPLAYABLE, *PLACES):
            raise ConfigError(
                f"{key}: belongs to the training, which is over; an analysis of its weights may set "
                f"{', '.join((*ANALYSABLE, *REPLAYABLE, *PLACES))} and what the chosen analyses have"
            )
    kept = [key for key in stored if key not in selected(plain(stored))]
    config = OmegaConf.create({"replay": composed["replay"], **{key: stored[key] for key in kept}})
    for key in keys:
        if key != "analysis" and key.split(".")[0] not in chosen:
            OmegaConf.update(config, key, OmegaConf.select(composed, key), force_add=True)
    for name in chosen:
        config[name] = composed[name]
    return config


def plain(config: DictConfig) -> dict[str, Any]:
    """The config as plain containers, interpolations resolved.

    Raises:
        ConfigError: an interpolation that leads nowhere.
    """
    try:
        return OmegaConf.to_container(config, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None


def _chosen(node: Any, group: str, overrides: Sequence[str]) -> Any:
    """The component of a group; says so where the arm of a study sets what the one chosen instead does not have."""
    try:
        return component(node, group)
    except ConfigError as error:
        key, _, what = str(error).partition(": ")
        given = {_key(override): override.partition("=")[2] for override in overrides}
        study, is_arm, _ = given.get("experiment", "").partition("/")
        if not is_arm or group not in given or key in given or not what.startswith("there is no such setting"):
            raise
        raise ConfigError(
            f"{key}: experiment={given['experiment']} sets it, and {group}={given[group]} has no such setting; "
            f"begin with experiment={study}"
        ) from None


def component(node: Any, key: str) -> Any:
    """The object that the block `key` describes: its dataclass, filled in; a foreign network is wrapped."""
    if not isinstance(node, dict) or not node.get("_target_") or node["_target_"] == "???":
        raise ConfigError(f"{key}._target_ is missing: it names the class of the component, such as {key}=<option>")
    target = locate(node["_target_"], key)
    values = {name: value for name, value in node.items() if name != "_target_"}
    if dataclasses.is_dataclass(target) and isinstance(target, type):
        return merge(target, values, key)
    if key != "net":
        raise ConfigError(f"{key}._target_={node['_target_']}: must be a dataclass of settings (docs/extending.md)")
    return Foreign(lambda: target(**values), node["_target_"])


def merge(cls: type, values: dict[str, Any], key: str) -> Any:
    """An instance of the dataclass `cls` with `values`, typed; errors name the whole key."""
    prefix = f"{key}." if key else ""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), values)
        return OmegaConf.to_object(merged)
    except (ConfigError, OmegaConfBaseException) as error:
        for field in dataclasses.fields(cls):  # what is wrong in nested settings is said first, with the whole key
            if dataclasses.is_dataclass(field.type) and isinstance(values.get(field.name), dict):
                merge(cast(type, field.type), values[field.name], f"{prefix}{field.name}")
        said = f"{prefix}{error}" if isinstance(error, ConfigError) else _explain(error, cls, prefix)
        raise ConfigError(said) from None


def _explain(error: OmegaConfBaseException, cls: type, prefix: str) -> str:
    where = str(error.full_key or error.key or "")
    names = [field.name for field in dataclasses.fields(cls)]
    if where and re.split(r"[.\[]", where)[0] not in names:
        return f"{prefix}{where}: there is no such setting{nearest(where, names)}"
    if isinstance(error, MissingMandatoryValue):
        return f"{prefix}{where} must be given"
    if "is not a ListConfig" in str(error):
        return f"{prefix}{where}: must be a list, such as [1,2]"
    return f"{prefix}{where}: {str(error).splitlines()[0]}"


def locate(target: str, key: str) -> Any:
    """The object that a dotted path names."""
    if target.startswith("torchvision."):
        from plastiscope.data.vision import vision

        vision()
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"{key}._target_={target}: cannot be imported ({error}); check the path") from None


def _analysis(key: str, node: Any, keys: list[str]) -> Callback:
    if key == "analysis":
        raise ConfigError("the YAML of an analysis must begin with the line `# @package <its name>`; one does not")
    if isinstance(node, dict) and "_target_" in node:
        analysis: Callback = component(node, key)
        analysis.name = key
        return analysis
    raise ConfigError(f"{key}: there is no such setting{nearest(key, keys + known_analyses())}")


def _resolved(part: Any, node: dict[str, Any]) -> dict[str, Any]:
    if isinstance(part, Foreign):
        return node
    return {"_target_": node["_target_"], **_settings(part)}


def _settings(part: Any) -> dict[str, Any]:
    """Settings of a dataclass or of an instance of one, as plain containers."""
    return OmegaConf.to_container(OmegaConf.structured(part), enum_to_str=True)  # type: ignore[return-value]


def _short_name(node: dict[str, Any]) -> str:
    """Name of a component for folders and files: the module of ours, the class of others."""
    target = str(node["_target_"])
    return target.split(".")[-2 if target.startswith("plastiscope.") else -1].lower()


def read_config(folder: Path, trust: bool = False, changes: list[str] | None = None) -> DictConfig:
    """The config of a run folder, with changes such as "num_tasks=10".

    Raises:
        ConfigError: there is none; or, without `trust`, it names what is no component of ours, torch.nn or
            torchvision.models.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise ConfigError(f"{folder} is not a run folder: it has no config.yaml")
    try:
        config = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError):
        config = None
    if not isinstance(config, DictConfig) or "net" not in config:
        raise ConfigError(f"{path} is damaged; put it back, or start in another folder (hydra.run.dir=...)")
    for key in map(str, config):
        node = config[key]
        target = node.get("_target_") if isinstance(node, DictConfig) else None
        if target is not None and not str(target).startswith(TRUSTED) and not trust:
            raise ConfigError(
                f"{path} wants to run {target} (under {key}), which is no component of plastiscope, torch.nn or "
                "torchvision.models; give --trust if you trust the folder"
            )
    try:
        config.merge_with_dotlist(changes or [])
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return config


def to_yaml(content: dict[str, Any]) -> str:
    """YAML text of plain containers."""
    return OmegaConf.to_yaml(OmegaConf.create(content))


def config_hash(content: dict[str, Any]) -> str:
    """SHA-256 of a resolved config."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def as_known_to(plan: Plan, older: dict[str, Any]) -> Plan:
    """The plan without the settings that an older config does not know, where they stand at their default.

    So a run that was begun before there were these settings goes on as it began, under the hash that it began with.

    Args:
        plan: of now.
        older: resolved config of a run.
    """
    parts = {key: getattr(plan, key) for key in GROUPS}
    parts |= {analysis.name: analysis for analysis in plan.analyses if analysis.name in plan.config}
    defaults = _defaults(plan.settings) | {key: _defaults(part) for key, part in parts.items()}
    return replace(plan, config=_known(plan.config, older, defaults))


def _defaults(part: Any) -> Any:
    """What the settings of a component are where nothing is given."""
    return None if isinstance(part, Foreign) else _settings(type(part))


def _known(ours: Any, older: Any, defaults: Any) -> Any:
    """`ours` without the keys at their default that `older` has not."""
    if not (isinstance(ours, dict) and isinstance(older, dict) and isinstance(defaults, dict)):
        return ours
    return {
        key: _known(value, older.get(key), defaults.get(key))
        for key, value in ours.items()
        if key in older or key not in defaults or value != defaults[key]
    }


def differences(ours: Any, theirs: Any, prefix: str = "") -> list[str]:
    """Dotted keys at which two resolved configs differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        keys = [*ours, *(key for key in theirs if key not in ours)]
        return [d for k in keys for d in differences(ours.get(k), theirs.get(k), f"{prefix}.{k}" if prefix else str(k))]
    return [] if ours == theirs else [prefix]


@dataclass(frozen=True)
class SweepJob:
    """One job of a sweep.

    Attributes:
        overrides: its own, as its run.json has them.
        folder: name of its folder, the hash of those overrides that change its numbers.
    """

    overrides: tuple[str, ...]
    folder: str


def sweep_jobs(overrides: Sequence[str], naming: dict[str, Any]) -> list[SweepJob]:
    """The jobs of `plastiscope -m <overrides>`, in the order in which they are started.

    Args:
        overrides: of the sweep.
        naming: hydra.job.config.override_dirname of the sweep: kv_sep, item_sep, exclude_keys.

    Raises:
        ConfigError: Hydra cannot read an override.
    """
    from hydra._internal.config_loader_impl import get_overrides_dirname
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    try:
        batches = BasicSweeper.split_arguments(parser.parse_overrides(list(overrides)), None)
    except HydraException as error:
        raise ConfigError(f"overrides of a sweep cannot be read ({str(error).splitlines()[0]})") from None
    found = []
    for own in (own for batch in batches for own in batch):
        text = get_overrides_dirname(parser.parse_overrides(own), **naming)
        found.append(SweepJob(tuple(own), hashlib.sha256(text.encode()).hexdigest()[:12]))
    return found
