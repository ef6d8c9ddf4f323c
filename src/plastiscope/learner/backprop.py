"""Plain backpropagation: the learner that loses plasticity, and the baseline of all others."""

from dataclasses import dataclass

from plastiscope.learner.learner import LearnerConfig


@dataclass(kw_only=True)
class Backprop(LearnerConfig):
    """SGD, Adam or AdamW, with weight decay, a schedule that restarts with each task, clipping, resets on request."""
