"""What belongs to one of the runs that a trainer advances."""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from plastiscope.event import Numbers
from plastiscope.follow import tell_followers
from plastiscope.loop import Events
from plastiscope.selection import BestWeights


@dataclass(kw_only=True)
class TrainedRun(Events):
    """One run of the loop.

    Attributes:
        index: in the stack; 0 of a run alone.
        best: weights of the task, by the run's selection.
        last_row: the newest epoch's numbers.
        task_begin_row: numbers measured as the task began, for the task's row; None before that.
        failure: why it cannot go on beside the others; empty while it does.
    """

    index: int = 0
    best: BestWeights
    last_row: Numbers = field(default_factory=dict)
    task_begin_row: Numbers | None = None
    failure: str = ""

    @property
    def net(self) -> nn.Module:
        """Its network."""
        return self.context.net

    def fire(self, event: str) -> Numbers:
        """Fire an event; other processes take their share of what is shared out in it."""
        if self.context.processes.world > 1:
            tell_followers(self, event)
        return super().fire(event)

    def state_dict(self) -> dict[str, Any]:
        """Its own state, beside that of the loop."""
        return {
            "best": self.best.state_dict(),
            "last_row": self.last_row,
            "task_begin_row": self.task_begin_row,
            "callbacks": self.callback_states(),
            "failure": self.failure,
        }

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Take back what `state_dict` gave."""
        self.best.load_state_dict(state["best"], device)
        self.last_row, self.task_begin_row = state["last_row"], state["task_begin_row"]
        self.load_callbacks(state["callbacks"])
        self.failure = state["failure"]
        if self.failure:
            self.journal.fail(self.failure)
