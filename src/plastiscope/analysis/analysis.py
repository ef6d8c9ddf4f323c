"""What every analysis shares: how often it looks, and the names of its numbers."""

from dataclasses import dataclass
from enum import Enum

from plastiscope.error import require
from plastiscope.event import Callback
from plastiscope.learner.learner import LearnerConfig
from plastiscope.net.net import NetConfig


class When(Enum):
    """At which weights of a task an analysis looks that may look before training, too."""

    pre = "pre"
    """As the task begins: the shift has happened, nothing is trained yet."""
    post = "post"
    """At the task's end, those that were selected."""
    both = "both"


@dataclass(kw_only=True)
class Analysis(Callback):
    """Base of the components of the config group `analysis`; the events are those of `Callback`."""

    every: int = 1
    """Tasks from one look to the next, the first look after so many; epochs where the analysis looks at epochs."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.every >= 1, "every", self.every, "must be 1 or more")

    def take_components(self, net: NetConfig, learner: LearnerConfig) -> None:
        """What the run trains and how, told once it is built; for analyses that train networks of their own."""

    def is_due(self, completed: int) -> bool:
        """Whether to look after `completed` tasks or epochs."""
        return completed % self.every == 0

    def key(self, subset: str, part: str, quantity: str) -> str:
        """Name of a number: <analysis>/<subset>/<layer, total or layer_mean>/<quantity>."""
        return f"{self.name}/{subset}/{part}/{quantity}"
