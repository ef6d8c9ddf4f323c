"""A fresh network for each task: the baseline that loses no plasticity, and keeps nothing."""

from dataclasses import dataclass

from plastiscope.learner.learner import LearnerConfig, Reset


@dataclass(kw_only=True)
class Retrained(LearnerConfig):
    """At the start of each task but the first network, running statistics and optimiser start anew."""

    reset: Reset = Reset.network
