"""Continual backprop: each step the least useful of the mature units are replaced by fresh ones.

Source: Dohare et al. 2024, "Loss of plasticity in deep continual learning" (Nature 632), and the code published with
it, of which the defects are not reproduced; what moved published figures is a setting.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plastiscope.error import ConfigError, require
from plastiscope.learner.budget import Budget, Count, RunsBudget, StepDraws
from plastiscope.learner.learner import Reset
from plastiscope.learner.replacement import ReplacingConfig, ReplacingLearner, compensate
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.unit_parameters import ByIndex, ByMask, Chosen, ResidualMode, UnitSet
from plastiscope.learner.unit_statistics import FeatureMagnitude, UnitStatistics, UtilityType
from plastiscope.measure.keyed import keyed_uniform
from plastiscope.task_shift_mode.task import Task

Number = int | npt.NDArray[np.int64]
"""Units to replace: in every run, or in each of several."""


@dataclass(kw_only=True)
class ContinualBackprop(ReplacingConfig):
    """Backprop, and after each optimiser step the replacement of units."""

    replacement_rate: float = 1e-4
    """Units replaced per eligible unit and step."""
    maturity_threshold: int = 100
    """Steps; older units are eligible."""
    decay_rate: float = 0.99
    """Of the exponential means of utility and activation."""
    util_type: UtilityType = UtilityType.contribution
    """weight, contribution, zero_contribution, adaptation, adaptable_contribution, feature_by_input, random."""
    accumulate: bool = True
    """Carry fractions of a unit over to the next step; false: replace one with that probability (as published)."""
    count: Count = Count.eligible
    """What the rate is multiplied by: eligible units, or all once one is eligible (as published)."""
    feature_magnitude: FeatureMagnitude = FeatureMagnitude.mean
    """E|h| of contribution: mean, or cumulative: the sum over all steps (as published)."""
    compensate: bool | None = None
    """Whether consumers' biases take over the mean contribution of a replaced unit.

    null: where no batch norm follows the consumer, which would take it away; nowhere with residual_mode=legacy.
    true: at every consumer; all must have a bias.
    """

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        rate, decay = self.replacement_rate, self.decay_rate
        require(0 <= rate <= 1, "replacement_rate", rate, "must be in [0, 1]")
        require(0 <= decay < 1, "decay_rate", decay, "must be in [0, 1)")
        require(self.maturity_threshold >= 0, "maturity_threshold", self.maturity_threshold, "must be 0 or more")
        is_cumulative = self.feature_magnitude is FeatureMagnitude.cumulative
        require(
            not is_cumulative or self.util_type is UtilityType.contribution,
            "feature_magnitude",
            self.feature_magnitude.value,
            "only util_type=contribution has a feature magnitude",
        )

    def make(self, trainee: Trainee) -> "ContinualBackpropLearner":
        """The learner of `trainee`."""
        return ContinualBackpropLearner(self, trainee)


class ContinualBackpropLearner(ReplacingLearner):
    """Chooses by utility; how many is known on the host, so no step waits for the device."""

    config: ContinualBackprop

    def __init__(self, config: ContinualBackprop, trainee: Trainee) -> None:
        """Own the network; see ReplacingLearner."""
        super().__init__(config, trainee)
        self._check_biases()
        self.compensates = self._compensates()
        self.statistics = UnitStatistics(
            self.parts, config.util_type, config.decay_rate, config.feature_magnitude, self.compensates, self.lead
        )
        self.budgets = {units.name: self._budget(units) for units in self.sets}
        self.largest_chosen = self.statistics.utility.new_zeros(self.statistics.utility.shape[: self.lead])

    def _compensates(self) -> bool:
        """Whether any consumer takes over what replaced units contribute."""
        config = self.config
        if config.compensate is None and config.residual_mode is not ResidualMode.legacy:
            consumers = [consumer for part in self.parts for consumer in part.consumers]
            return any(consumer.bias is not None and not consumer.is_normalised for consumer in consumers)
        return config.compensate is True

    def _check_biases(self) -> None:
        for part in self.parts:
            for consumer in part.consumers:
                if self.config.compensate and consumer.bias is None:
                    raise ConfigError(
                        f"learner.compensate=true: {consumer.weight.name}, which reads the units of "
                        f"{part.layer.name}, has no bias; use learner.compensate=null"
                    )

    def _budget(self, units: UnitSet) -> Budget | RunsBudget:
        config, purpose = self.config, f"replacement/{units.name}"
        arguments = units.width, config.replacement_rate, config.maturity_threshold, config.count
        if config.accumulate:
            return Budget(*arguments, None)
        if isinstance(self.seed, int):
            return Budget(*arguments, StepDraws(self.seed, purpose))
        return RunsBudget(*arguments, [StepDraws(seed, purpose) for seed in self.seed])

    def begin_task(self, task: Task) -> None:
        """Start `task`; a network that is reset has fresh units only."""
        super().begin_task(task)
        if self.config.reset is Reset.network and task.index > 0:
            self.statistics.all_anew(self.steps)
            for budget in self.budgets.values():
                budget.start_anew(self.steps)

    def wants_features(self) -> bool:
        """Whether utility or compensation uses them."""
        return self.statistics.uses_features

    @torch.no_grad()
    def mechanism(self) -> None:
        """Update the utilities, and replace what is due."""
        self.steps += 1
        self.statistics.update(self.features.take() if self.statistics.uses_features else ())
        numbers = [(units, self.budgets[units.name].due(self.steps)) for units in self.sets]
        due = [(units, number) for units, number in numbers if number is not None and np.any(number)]
        if due:
            self._replace(due)

    def _replace(self, due: Sequence[tuple[UnitSet, Number]]) -> None:
        self.statistics.work_off()
        chosen = [(units, self._least_useful(units, number)) for units, number in due]
        if self.statistics.keeps_mean and self._compensates():
            for units, which in chosen:
                for part in units.parts:
                    compensate(part, which, self.statistics.corrected_mean(part), self.config.compensate is True)
        self.replace(chosen)
        for units, which in chosen:
            for part in units.parts:
                self.statistics.start_anew(part, which, self.steps)
        for units, number in due:
            self.replaced[units.name] += number if isinstance(number, int) else torch.from_numpy(number)

    def _least_useful(self, units: UnitSet, number: Number) -> Chosen:
        """The mature units with the least corrected utility, so many; or, int64 [runs], so many of each run.

        Units that identity paths tie together have the mean utility of their layers.
        """
        if self.config.util_type is UtilityType.random:
            born = self.statistics.born[..., self.statistics.places[units.parts[0]]]
            ids = torch.arange(units.width, device=born.device).expand(born.shape)
            scores = keyed_uniform(self.seed, f"utility/{units.name}", ids, self.steps)
        else:
            scores = torch.stack([self.statistics.corrected_utility(part) for part in units.parts]).mean(0)
        mature = self.statistics.is_mature(units.parts[0], self.steps, self.config.maturity_threshold)
        ranked = scores.masked_fill(~mature, float("inf"))
        most = number if isinstance(number, int) else int(number.max())
        least = ranked.topk(most, largest=False)
        if isinstance(number, int):
            self.largest_chosen = torch.maximum(self.largest_chosen, least.values.amax(-1))
            return ByIndex(least.indices)
        wanted = torch.from_numpy(np.arange(most) < number[:, None]).to(ranked.device)
        self.largest_chosen = torch.maximum(self.largest_chosen, least.values.where(wanted, 0.0).amax(-1))
        return ByMask(torch.zeros_like(mature).scatter_(-1, least.indices, wanted))

    def must_be_finite(self) -> dict[str, Tensor]:
        """Utilities, and the largest that was chosen: NaN comes last in the ranking, but might be all there is."""
        return {"utility of a unit": self.statistics.utility, "utility of a replaced unit": self.largest_chosen}

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: also the units' statistics by layer, and the carry of each set."""
        budgets = {name: budget.state_dict() for name, budget in self.budgets.items()}
        return super().state_dict() | {"units": self.statistics.state_dict(), "budgets": budgets}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        super().load_state_dict(state)
        self.statistics.load_state_dict(state["units"])
        for name, budget in self.budgets.items():
            budget.load_state_dict(state["budgets"][name])
