"""ReDo: every so many steps all dormant units are replaced.

Source: Sokar et al. 2023, "The dormant neuron phenomenon in deep reinforcement learning" (arXiv 2302.12902).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from plastiscope.error import require
from plastiscope.learner.replacement import ReplacingConfig, ReplacingLearner
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_parameters import ByMask, Part, UnitSet


@dataclass(kw_only=True)
class Redo(ReplacingConfig):
    """Backprop, and every `reset_period` steps the replacement of dormant units."""

    reset_period: int = 1000
    """Optimiser steps between replacements."""
    tau: float = 0.1
    """A unit is dormant when E|h| is at most tau times its layer's mean, on the batch of the step."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(self.reset_period >= 1, "reset_period", self.reset_period, "must be 1 or more")
        require(self.tau >= 0, "tau", self.tau, "must be 0 or more")

    def make(self, trainee: Trainee) -> "RedoLearner":
        """The learner of `trainee`."""
        return RedoLearner(self, trainee)


def dormancy_scores(feature: Tensor, unit_axis: int, lead: int = 0) -> Tensor:
    """s_i = E|h_i| / mean_j E|h_j|, [*lead, units]; 0 for all units of a layer that is silent altogether.

    Args:
        feature: after the activation, [*lead, b, ...].
        unit_axis: of the units, without the leading axes.
        lead: number of leading axes.
    """
    magnitude = feature.abs().mean([d for d in range(lead, feature.ndim) if d != unit_axis + lead])
    mean = magnitude.mean(-1, keepdim=True)
    return torch.where(mean == 0, 0.0, magnitude / mean)


class RedoLearner(ReplacingLearner):
    """Replaces by masks: how many units are dormant is known to the device alone, and no step asks it."""

    config: Redo

    def wants_features(self) -> bool:
        """At the end of a period."""
        return (self.steps + 1) % self.config.reset_period == 0

    @torch.no_grad()
    def mechanism(self) -> None:
        """Count the step; at the end of a period replace the dormant units."""
        self.steps += 1
        if self.steps % self.config.reset_period:
            return
        features = dict(zip(self.parts, self.features.take(), strict=True))
        due = []
        for units in self.sets:
            dormant = self._dormant(units, features)
            due.append((units, ByMask(dormant)))
            self.replaced[units.name] = self.replaced[units.name] + dormant.sum(-1)
        self.replace(due)

    def _dormant(self, units: UnitSet, features: dict[Part, Tensor]) -> Tensor:
        """Mask of the dormant units; units that identity paths tie together have the mean score of their layers."""
        scores = [dormancy_scores(features[part], part.layer.unit_axis, self.lead) for part in units.parts]
        return torch.stack(scores).mean(0) <= self.config.tau
