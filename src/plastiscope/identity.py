"""What tells a run from others: the settings that stay as they are, in config.yaml, and run.json."""

import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from plastiscope.branch import Branch
from plastiscope.build import Plan, config_hash, differences, to_yaml
from plastiscope.error import RunError
from plastiscope.replicas import Made
from plastiscope.run.status import State, read_status
from plastiscope.run.storage import write_atomic, write_json
from plastiscope.settings import is_resumable
from plastiscope.source import Source

SCHEMA_VERSION = 1


def holds_finished(plan: Plan, theirs: dict[str, Any], folder: Path) -> bool:
    """Whether the folder, with `theirs` as its config, holds the run of `plan`, finished.

    Raises:
        RunError: it holds another run.
    """
    other = [key for key in differences(plan.config, theirs) if not is_resumable(key)]
    if other:
        raise RunError(
            f"{folder} belongs to a run with other settings: {', '.join(other)}. "
            "Give the same settings to go on, or another folder (hydra.run.dir=...) to start anew"
        )
    return read_status(folder).get("state") == State.done.value and theirs["num_tasks"] >= plan.settings.num_tasks


def identity_hash(plan: Plan) -> str:
    """Hash of all settings that a run may not change as it goes on."""
    return config_hash(_without_resumable(plan.config))


def _without_resumable(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    kept = {key: value for key, value in node.items() if not is_resumable(f"{prefix}{key}")}
    return {k: _without_resumable(v, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in kept.items()}


def write_identity(
    plan: Plan,
    folder: Path,
    made: Made,
    r: int,
    device: torch.device,
    overrides: list[str],
    stored: dict[str, Any] | None,
    source: Source | None = None,
    group: Path | None = None,
    branch: Branch | None = None,
) -> None:
    """config.yaml, and run.json with all that tells the run from others; on a resume only what may change.

    Args:
        plan: of the run, or of the group of runs.
        folder: its own.
        made: data and networks.
        r: which of them are its own.
        device: in use.
        overrides: as on the command line.
        stored: the run.json that is there.
        source: in a replay, of the weights.
        group: folder of the group that it belongs to.
        branch: the run that it branches off.
    """
    data, net = made.data[r], made.nets[r]
    write_atomic(folder / "config.yaml", to_yaml(plan.config).encode())
    identity = stored or {
        "schema_version": SCHEMA_VERSION,
        "started": time.time(),
        "versions": _versions(),
        "revision": _revision(),
        "command": sys.argv,
        "overrides": overrides,
        "seed": plan.settings.seed,
        "threads": torch.get_num_threads(),
        "arch": plan.arch,
        "data": data.description,
        "input_shape": list(data.input_shape),
        "outputs": made.shifts[r].outputs,
        "parameters": sum(p.numel() for p in net.parameters()),
        "units": made.learner.units.num_units,
    }
    if source is not None:
        identity = {**identity, "replay_of": source.identity(folder)}
    if branch is not None:
        identity = {**identity, "branch_of": branch.identity}
    if group is not None:
        identity = {**identity, "replica_of": str(group.resolve())}
    write_json(folder / "run.json", {**identity, "device": str(device), "config_hash": identity_hash(plan)})


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("plastiscope", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def _revision() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
