"""Per-sample values that the training forwards have computed already: losses, hits and margins of an epoch."""

import numpy as np
import torch
from torch import Tensor

from plastiscope.event import Context
from plastiscope.measure.loss import Loss, margin
from plastiscope.run.sample_store import Values

MOST_WAITING = 4_000_000
"""Outputs that are kept before margins are made of them; a step then costs no more than a list's append."""


class PresentedMargins:
    """Margins of an epoch's presentations, in their order; made of the steps' outputs, many steps at once."""

    def __init__(self, made: Tensor | None = None) -> None:
        """Begin an epoch, or go on after the margins `made`."""
        self._made = torch.empty(0) if made is None else made
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._size = 0

    def add(self, outputs: Tensor, targets: Tensor) -> None:
        """Note the active outputs [b, k] and the targets of a step; both are kept as they are, nothing is computed."""
        self._waiting.append((outputs, targets))
        self._size += outputs.numel()
        if self._size >= MOST_WAITING:
            self.all()

    def all(self) -> Tensor:
        """Margins float32 [n] of all presentations so far; a new tensor whenever there are new ones."""
        if self._waiting:
            outputs, targets = (torch.cat(some) for some in zip(*self._waiting, strict=True))
            self._made = torch.cat([self._made.to(outputs.device), margin(outputs, targets).float()])
            self._waiting, self._size = [], 0
        return self._made


def presented_values(context: Context, margins: Tensor, columns: int) -> dict[str, Values]:
    """What the steps of the epoch just over saw of each sample, as rows of the store.

    Values are from before the update, in training mode, of augmented inputs. Of a sample that was presented several
    times the last value counts; one that was not presented has NaN.

    Args:
        context: at the end of an epoch of training.
        margins: [presentations], in the order of presentation; of class targets only.
        columns: samples of the block; the task's training samples come first, in the order of the task.

    Returns:
        online_loss, and of class targets online_correct (0 or 1) and online_margin, float32 [columns].
    """
    order, record, task = context.order, context.record, context.current_task
    assert order is not None and record is not None
    seen = {"online_loss": record.losses}
    if task.loss is Loss.cross_entropy:
        seen |= {"online_correct": record.correct.float(), "online_margin": margins.to(order.device)}
    scattered = torch.full((len(seen), len(task.train)), float("nan"), device=order.device)
    scattered[:, order] = torch.stack(list(seen.values()))
    rows = np.full((len(seen), columns), np.nan, np.float32)
    rows[:, : len(task.train)] = scattered.cpu().numpy()
    return dict(zip(seen, rows, strict=True))
