"""L2 regularisation: the penalty lambda/2 ||theta||^2, which keeps weights small."""

from dataclasses import dataclass

from plastiscope.learner.learner import LearnerConfig


@dataclass(kw_only=True)
class L2(LearnerConfig):
    """Backprop with weight decay: gradient += lambda theta in SGD and Adam, decoupled in AdamW."""

    weight_decay: float = 1e-4
