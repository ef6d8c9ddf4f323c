"""The starts of a run: when, where and with what it was begun, and each time that it went on."""

import os
import platform
import socket
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from plastiscope.run.code import code_in_use

PACKAGES = ("plastiscope", "torch", "torchvision", "numpy", "hydra-core", "omegaconf", "wandb")
COMPUTING = ("python", "torch", "torchvision", "numpy")
"""Of the versions, those on which the last bits of a run's numbers may depend."""


def this_start(device: torch.device) -> dict[str, Any]:
    """What run.json keeps of a start: time, host, process, job, hardware, code, versions."""
    return {
        "time": time.time(),
        "host": socket.gethostname(),
        "process": os.getpid(),
        "job": _job(),
        "hardware": _hardware(device),
        "code": code_in_use(),
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that matter."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


def last_start(stored: dict[str, Any]) -> dict[str, Any]:
    """The last start that a run.json has; of a run of before they were kept, what it says of its beginning."""
    starts: list[dict[str, Any]] = stored.get("starts") or []
    known = {"code": {"revision": stored.get("revision")}, "versions": stored.get("versions", {})}
    return starts[-1] if starts else known


def other_code(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what the code of two starts differs, such as "torch (2.11.0, now 2.12.0)".

    Plastiscope's own is compared by the hash of its files; by its revision where an old run has no hash.
    """
    ours, theirs = now["code"], before["code"]
    key = "sha256" if theirs.get("sha256") else "revision"
    found = []
    if theirs.get(key) and ours[key] != theirs[key]:
        found.append(f"plastiscope ({_named(theirs)}, now {_named(ours)})")
    for name in COMPUTING:
        known, here = before["versions"].get(name), now["versions"][name]
        if known and known != here:
            found.append(f"{name} ({known}, now {here})")
    return found


def other_hardware(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The same of the hardware, whose kind may change the last bits too."""
    known, here = before.get("hardware"), now["hardware"]
    return [f"hardware ({known}, now {here})"] if known and known != here else []


def kept_code(before: dict[str, Any]) -> str:
    """PYTHONPATH with which the code of a start is imported again, if it was a copy made for jobs; else ""."""
    folder = before["code"].get("folder")
    place = Path(folder).parent if folder else Path()
    return str(place) if ".submitit" in place.parts and place.is_dir() else ""


def _named(code: dict[str, Any]) -> str:
    """A revision in short, or the hash of the files where that says nothing."""
    if not code.get("revision"):
        return f"files {code['sha256'][:8]}" if code.get("sha256") else "no revision"
    if not code.get("dirty"):
        return f"revision {code['revision'][:8]}"
    return f"revision {code['revision'][:8]} edited, files {code['sha256'][:8]}"


def _job() -> str | None:
    """SLURM's name of the job, such as 17_3."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type
