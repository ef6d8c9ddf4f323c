"""Snapshots: the weights at initialisation, at task ends, and every n epochs on request; never overwritten."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from plastiscope.error import RunError
from plastiscope.run.storage import remove_unfinished, write_by


class SavedWeights(Protocol):
    """Weights by epochs completed, to read; those of a run, or of a folder of checkpoints."""

    def epochs(self) -> list[int]:
        """All that there are, ascending, by epochs completed (0 = initialisation)."""

    def path(self, epochs_completed: int) -> Path:
        """Their file."""

    def load(self, epochs_completed: int) -> dict[str, Tensor]:
        """State dict on the CPU; raises RunError when there is none."""


class Snapshots:
    """The folder snapshots/: one bare state dict per file, named by the epochs completed by the run."""

    def __init__(self, folder: Path) -> None:
        """Use `folder`, which need not exist."""
        self.folder = folder

    def path(self, epochs_completed: int) -> Path:
        """File of the snapshot after so many epochs (0 = initialisation)."""
        return self.folder / f"epoch_{epochs_completed:06d}.pt"

    def epochs(self) -> list[int]:
        """All snapshots there are, ascending, by epochs completed."""
        return sorted(int(path.stem.removeprefix("epoch_")) for path in self.folder.glob("epoch_*.pt"))

    def save(self, epochs_completed: int, state: dict[str, Tensor]) -> None:
        """Write a snapshot; one that exists already is left as it is."""
        path = self.path(epochs_completed)
        if not path.exists():
            self.folder.mkdir(exist_ok=True)
            on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
            write_by(path, lambda file: torch.save(on_cpu, file))

    def load(self, epochs_completed: int) -> dict[str, Tensor]:
        """State dict on the CPU.

        Raises:
            RunError: there is none; says which there are.
        """
        path = self.path(epochs_completed)
        if not path.exists():
            there = ", ".join(map(str, self.epochs())) or "none"
            raise RunError(f"there is no snapshot after {epochs_completed} epochs in {self.folder}; there are: {there}")
        return torch.load(path, weights_only=True, map_location="cpu")

    def remove(self, epochs_completed: int) -> None:
        """Delete a snapshot, if it is there."""
        self.path(epochs_completed).unlink(missing_ok=True)

    def cut_back(self, epochs_completed: int) -> None:
        """Delete what is newer, and what a kill left unfinished: a resumed run writes it anew."""
        remove_unfinished(self.folder)
        for epochs in self.epochs():
            if epochs > epochs_completed:
                self.remove(epochs)


def digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values of a state dict."""
    found = hashlib.sha256()
    for name, tensor in state.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
