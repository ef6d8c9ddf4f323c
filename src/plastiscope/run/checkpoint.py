"""The checkpoint: two slots that alternate, each a torch file with a JSON beside it that vouches for it.

The JSON holds the checksum of the torch file, a counter and the size of the logs; it is written last, so a slot is
valid only when it is whole. The older slot is overwritten, so a valid one is always there.
"""

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from plastiscope.error import RunError
from plastiscope.run.storage import read_json, remove_unfinished, write_by, write_json

_SLOTS = ("a", "b")


class Checkpoints:
    """The folder checkpoint/ of a run."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which need not exist."""
        self.folder = folder

    def save(self, state: dict[str, Any], about: dict[str, Any]) -> None:
        """Write `state` (tensors, numbers, strings, containers) over the older slot.

        Args:
            state: what a resume needs.
            about: plain values that are readable without loading the state, such as the position and log sizes.
        """
        self.folder.mkdir(exist_ok=True)
        remove_unfinished(self.folder)
        counters = {slot: self._about(slot).get("counter", -1) for slot in _SLOTS}
        slot = min(_SLOTS, key=lambda s: counters[s])
        content = write_by(self.folder / f"{slot}.pt", lambda file: torch.save(state, file))
        digest = hashlib.sha256(content).hexdigest()
        write_json(self.folder / f"{slot}.json", {"counter": max(counters.values()) + 1, "sha256": digest, **about})

    def load(self) -> tuple[dict[str, Any], dict[str, Any], str] | None:
        """The newest whole checkpoint: (state, about, warning); None if there never was one.

        The warning is empty unless a newer slot was damaged.

        Raises:
            RunError: there are checkpoint files, but none is whole.
        """
        if not any((self.folder / f"{slot}.pt").exists() for slot in _SLOTS) or self._is_begun():
            return None
        damaged: list[Path] = []
        for slot in sorted(_SLOTS, key=lambda s: -self._about(s).get("counter", -1)):
            about, path = self._about(slot), self.folder / f"{slot}.pt"
            content = path.read_bytes() if path.exists() else b""
            if about and hashlib.sha256(content).hexdigest() == about["sha256"]:
                state = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
                warning = f"{damaged[0]} is damaged; going on from the previous checkpoint" if damaged else ""
                return state, about, warning
            if path.exists():
                damaged.append(path)
        raise RunError(
            f"no checkpoint in {self.folder} is whole (the files were cut short or changed); "
            "the run cannot be resumed: delete its folder to start again, its logs and snapshots can still be read"
        )

    def _is_begun(self) -> bool:
        """Whether a kill came between the two files of the very first checkpoint."""
        return [path.name for path in self.folder.glob("[ab].*")] == [f"{_SLOTS[0]}.pt"]

    def _about(self, slot: str) -> dict[str, Any]:
        return read_json(self.folder / f"{slot}.json") or {}
