"""What tells a run from others: the settings that stay as they are, in config.yaml, and run.json."""

import sys
import time
from pathlib import Path
from typing import Any

import torch

from plastiscope.build import Plan, config_hash, differences, to_yaml
from plastiscope.error import RunError
from plastiscope.replicas import Made
from plastiscope.run.start import kept_code, last_start, other_code, other_hardware, this_start
from plastiscope.run.status import State, read_status
from plastiscope.run.storage import write_atomic, write_json
from plastiscope.settings import OtherCode, is_resumable

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


def changed_since(stored: dict[str, Any], device: torch.device, wanted: OtherCode) -> str:
    """What to tell of a run that goes on with other code, or on other hardware, than at its last start; "" if nothing.

    Args:
        stored: its run.json.
        device: in use now.
        wanted: whether other code is to be refused.

    Raises:
        RunError: other code, and `wanted` is refuse.
    """
    before, now = last_start(stored), this_start(device)
    code, hardware = other_code(before, now), other_hardware(before, now)
    where = kept_code(before)
    again = f"PYTHONPATH={where} imports the former one" if where else "go back to the former one"
    if code and wanted is OtherCode.refuse:
        raise RunError(
            f"the run would go on with other code: {', '.join(code)}. For the same bits {again}; to go on all the "
            "same, resume_other_code=warn"
        )
    if not code + hardware:
        return ""
    return (
        f"the run goes on with other code or hardware than before: {', '.join(code + hardware)}.\n"
        "Its numbers may no longer equal, to the last bit, those of a run that was never stopped"
        + (f"; if they must, {again}, or have it refused by resume_other_code=refuse" if code else "")
    )


def identity_hash(plan: Plan) -> str:
    """Hash of all settings that a run may not change as it goes on."""
    return config_hash(_without_resumable(plan.config))


def _without_resumable(node: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    kept = {key: value for key, value in node.items() if not is_resumable(f"{prefix}{key}")}
    return {k: _without_resumable(v, f"{prefix}{k}.") if isinstance(v, dict) else v for k, v in kept.items()}


def first_identity(plan: Plan, made: Made, r: int, overrides: list[str], start: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of a run from its first start on.

    Args:
        plan: of the run, or of the group of runs.
        made: data and networks.
        r: which of them are its own.
        overrides: as on the command line.
        start: the first one.
    """
    data, net = made.data[r], made.nets[r]
    return {
        "schema_version": SCHEMA_VERSION,
        "started": time.time(),
        "versions": start["versions"],
        "revision": start["code"]["revision"],
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


def write_identity(folder: Path, plan: Plan, identity: dict[str, Any], start: dict[str, Any]) -> None:
    """config.yaml, and run.json with all that tells the run from others.

    Args:
        folder: of the run, or of the group of runs.
        plan: its own.
        identity: as it was stored, or the first one; with what it came from.
        start: this one, which is noted after those before it.
    """
    write_atomic(folder / "config.yaml", to_yaml(plan.config).encode())
    now = {"config_hash": identity_hash(plan), "starts": [*identity.get("starts", []), start]}
    write_json(folder / "run.json", {**identity, **now})
