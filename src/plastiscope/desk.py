"""The folders of what is run: locks, identity, journals, mirror, status, from the beginning to the end."""

import contextlib
import shutil
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from plastiscope.branch import Branch
from plastiscope.build import Plan
from plastiscope.identity import first_identity, identity_hash, write_identity
from plastiscope.replicas import Made, folder_of
from plastiscope.run.folder import FolderLock
from plastiscope.run.heartbeat import Heartbeat
from plastiscope.run.journal import Journal
from plastiscope.run.keeper import Keeper
from plastiscope.run.signals import StopRequest
from plastiscope.run.start import this_start
from plastiscope.run.status import State, read_status, write_status
from plastiscope.run.storage import read_json
from plastiscope.run.wandb_sink import WandbSink
from plastiscope.source import Source


class Desk:
    """The folder of one run; or that of several which advance together, with a folder for each in it.

    Attributes:
        folder: of the run or the group.
        journals: of each run.
        keeper: of the loop over them.
    """

    keeper: Keeper

    def __init__(self, folder: Path) -> None:
        """Nothing is touched yet."""
        self.folder = folder
        self.journals: list[Journal] = []
        self._locks: list[FolderLock] = []
        self._heartbeat: Heartbeat | None = None
        self._has_failed = False

    def open(
        self,
        made: Made,
        device: torch.device,
        overrides: list[str],
        source: Source | None,
        branches: Sequence[Branch] = (),
    ) -> None:
        """Take the folders and say in them whose they are.

        Raises:
            RunError: another process has one, or something else lies in it.
        """
        start, several = this_start(device), len(made.plans) > 1
        origins: list[dict[str, Any]] = [{"branch_of": branch.identity} for branch in branches] or [
            {} for _ in made.plans
        ]
        if source is not None:
            origins[0]["replay_of"] = source.identity(self.folder)

        def identify(folder: Path, plan: Plan, r: int, origin: dict[str, Any]) -> None:
            known = read_json(folder / "run.json") or first_identity(plan, made, r, overrides, start)
            write_identity(folder, plan, {**known, **origin, "device": str(device)}, start)

        folders = [folder_of(self.folder, plan) for plan in made.plans] if several else [self.folder]
        self._take(self.folder)
        if several:
            identify(self.folder, made.plan, 0, {})
        for r, (folder, plan) in enumerate(zip(folders, made.plans, strict=True)):
            if several:
                self._take(folder)
                origins[r]["replica_of"] = str(self.folder.resolve())
            identify(folder, plan, r, origins[r])
        self._heartbeat = Heartbeat(list(dict.fromkeys([self.folder, *folders])))
        stop, settings = StopRequest(), made.plan.settings
        self.journals = [Journal(folder, settings.snapshots, stop) for folder in folders]
        self.keeper = Keeper(self.folder, self.journals, stop, settings.checkpoint_every_s, identity_hash(made.plan))

    def _take(self, folder: Path) -> None:
        self._locks.append(FolderLock(folder))
        write_status(folder, State.running, error=None)
        (folder / "traceback.txt").unlink(missing_ok=True)

    def mirror(self, made: Made) -> None:
        """Open the W&B run of each, where one is wanted."""
        settings = made.plan.settings
        for plan, journal in zip(made.plans, self.journals, strict=True) if settings.use_wandb else ():
            alone = len(self.journals) == 1
            journal.wandb = WandbSink(journal.folder, settings.wandb, plan.config, journal.past_rows(), alone)
            if journal.wandb.note and journal is self.journals[0]:
                print(journal.wandb.note, flush=True)

    def clear_parts(self) -> None:
        """All is trained: what processes have handed each other goes, and what was left of a start that was killed."""
        for journal in self.journals:
            shutil.rmtree(journal.folder / "parts", ignore_errors=True)

    def finish(self, num_tasks: int, figures: bool) -> None:
        """All is trained: figures, and the status of each folder; runs that failed stay so."""
        for journal in self.journals:
            if not journal.has_failed:
                if figures:
                    _draw(journal.folder)
                write_status(journal.folder, State.done, num_tasks=num_tasks)
        write_status(self.folder, State.done, num_tasks=num_tasks)
        self.keeper.say(f"done: {self.folder}")
        if failed := [journal.folder.name for journal in self.journals if journal.has_failed]:
            print(f"failed: {', '.join(failed)}; the status.json of each says why", file=sys.stderr)

    def fail(self, error: Exception) -> None:
        """Say in the folders why it failed, if it had begun."""
        if not self._locks:
            return
        self._has_failed = True
        record_failure(self.folder, error)
        for journal in self.journals:
            if journal.folder != self.folder and not journal.has_failed:
                record_failure(journal.folder, error)

    def close(self) -> None:
        """Close what is open, and let go of the folders; of a run that failed, a disk's further errors are not told."""
        done = not self._has_failed and read_status(self.folder).get("state") == State.done.value
        with contextlib.suppress(*[OSError] if self._has_failed else []), contextlib.ExitStack() as last:
            for lock in self._locks:
                last.callback(lock.release)
            if self._heartbeat is not None:
                last.callback(self._heartbeat.stop)
            if self.journals:
                last.callback(self.keeper.close)
            for journal in self.journals:
                last.callback(journal.close, 0 if done and not journal.has_failed else 1)


def record_failure(folder: Path, error: Exception) -> None:
    """Status and traceback of a run that failed, as far as the disk takes them: the error itself is to reach people."""
    with contextlib.suppress(OSError):
        write_status(folder, State.failed, error=str(error) or type(error).__name__)
    with contextlib.suppress(OSError):
        (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))


def _draw(folder: Path) -> None:
    from plastiscope.figure.run import draw_run

    draw_run(folder)
