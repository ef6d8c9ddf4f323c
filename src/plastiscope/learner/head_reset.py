"""Backprop with a fresh head for each task: old features, a new readout."""

from dataclasses import dataclass

from plastiscope.learner.learner import LearnerConfig, Reset


@dataclass(kw_only=True)
class HeadReset(LearnerConfig):
    """At the start of each task but the first the head and the optimiser's state of it start anew."""

    reset: Reset = Reset.head
