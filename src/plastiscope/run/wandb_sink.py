"""The W&B mirror of metrics.jsonl and timings.jsonl: numbers only; without it nothing is missing."""

import hashlib
import os
import shutil
import socket
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from plastiscope.error import RunError
from plastiscope.run.storage import read_json, write_json

Row = dict[str, Any]

_NOT_LOGGED = {"kind"}
NOTE = "W&B: no key or no network, so offline; `wandb sync` sends it later, use_wandb=false turns it off"


class Mode(Enum):
    """Where the mirror's rows go."""

    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True)
class WandbSettings:
    """Settings of the mirror, `wandb.*`."""

    project: str = "plastiscope"
    entity: str | None = None
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    mode: Mode | None = None
    """online, offline or disabled; null = WANDB_MODE, or else online when a key and a network are there."""


class WandbSink:
    """Sends rows to W&B; epoch and task-end rows of one step go as one, so neither is lost. `note` is to be said once.

    The run id follows from the folder. A resumed offline run is written anew from the logs, complete; a resumed online
    run goes on behind the rows it has (`wandb.json` counts them).
    """

    def __init__(self, folder: Path, settings: WandbSettings, config: Row, past: list[Row], alone: bool = True) -> None:
        """Open the run; `past` are the rows that the logs hold already; `alone`: no other of this process is open."""
        import wandb

        given = settings.mode or _environment_mode()
        self.mode = given or _possible_mode()
        self.note = "" if given or self.mode is Mode.online else NOTE
        self._folder, self._pending, self._sent = folder, {}, 0  # type: ignore[var-annotated]
        self._skip = (read_json(folder / "wandb.json") or {}).get("rows", 0) if self.mode is Mode.online else 0
        for stale in folder.glob("wandb/offline-run-*"):  # a prefix of what is written anew below
            shutil.rmtree(stale)
        try:
            self._run: Any = self._open(settings, config, alone)
        except wandb.errors.Error as error:
            reason = str(error).rstrip(".")
            raise RunError(f"W&B: {reason}. `wandb login` helps, or wandb.mode=offline, or use_wandb=false") from None
        self._run.define_metric("global_epoch")
        self._run.define_metric("*", step_metric="global_epoch")
        for row in past:
            self.log(row)

    def _open(self, settings: WandbSettings, config: Row, alone: bool) -> Any:
        import wandb

        return wandb.init(
            project=settings.project,
            entity=settings.entity,
            group=settings.group,
            tags=settings.tags,
            mode=self.mode.value,
            id=hashlib.sha256(str(self._folder.resolve()).encode()).hexdigest()[:16],
            name=self._folder.name,
            resume="allow" if self.mode is Mode.online else None,
            dir=str(self._folder),
            config=config,
            reinit="finish_previous" if alone else "create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, row: dict[str, Any]) -> None:
        """Add a row; it goes out when a row of another step comes."""
        if self._pending and row["global_epoch"] != self._pending["global_epoch"]:
            self.flush()
        self._pending.update({key: value for key, value in row.items() if key not in _NOT_LOGGED})

    def flush(self) -> None:
        """Send what is waiting."""
        if self._pending:
            if self._sent >= self._skip:
                self._run.log(self._pending)
                if self.mode is Mode.online:
                    write_json(self._folder / "wandb.json", {"rows": self._sent + 1})
            self._sent += 1
            self._pending = {}

    def close(self, exit_code: int = 0) -> None:
        """Send what is waiting and end the W&B run."""
        self.flush()
        self._run.finish(exit_code=exit_code)


def _environment_mode() -> Mode | None:
    named = os.environ.get("WANDB_MODE", "")
    return Mode(named) if named in Mode.__members__ else None


def _possible_mode() -> Mode:
    return Mode.online if _has_key() and _reachable() else Mode.offline


def _reachable() -> bool:
    """Whether the server answers at all; an online run without network would wait for minutes."""
    address = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai"))
    try:
        port = address.port or (443 if address.scheme == "https" else 80)
        with socket.create_connection((address.hostname or "", port), timeout=3):
            return True
    except OSError:
        return False


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        import netrc

        return any("wandb" in host for host in netrc.netrc(os.environ.get("NETRC")).hosts)
    except (OSError, ValueError, ImportError):
        return False
