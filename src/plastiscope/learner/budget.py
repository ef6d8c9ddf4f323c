"""How many units of a layer are replaced at a step: host arithmetic, for the count does not depend on which ones."""

from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from plastiscope.measure.keyed import keyed_uniform


class Count(Enum):
    """What the replacement rate is multiplied by."""

    eligible = "eligible"
    """The units older than the maturity threshold."""
    all = "all"
    """The whole width as soon as one unit is eligible (published convolutional and residual code)."""


class Budget:
    """Counts the units of one layer that are older than the maturity threshold, and what is due.

    A unit replaced at step s has age t - s at step t and is eligible when that is more than the threshold. With
    `accumulate` the rate times the count is carried over until it makes a whole unit; the carry is kept as an integer
    fraction, so nothing is lost to rounding. Without it one unit is replaced with that probability, or floor of it.
    """

    def __init__(self, width: int, rate: float, maturity: int, count: Count, draw: Callable[[int], float] | None):
        """Start with `width` units of age 0 after step 0.

        Args:
            width: number of units.
            rate: units replaced per eligible unit and step.
            maturity: threshold on the age, in steps.
            count: what the rate is multiplied by.
            draw: uniform number of a step, when fractions are not accumulated; else None.
        """
        self.width, self.maturity, self.count, self.draw = width, maturity, count, draw
        self.numerator, self.denominator = Fraction(str(rate)).as_integer_ratio()
        self.carry = 0
        self.replaced: deque[tuple[int, int]] = deque()
        self.immature = 0
        self.start_anew(0)

    def start_anew(self, step: int) -> None:
        """All units are fresh after `step`."""
        self.carry, self.immature = 0, self.width
        self.replaced = deque([(step, self.width)])

    def due(self, step: int) -> int:
        """Units to replace at `step` (from 1, ascending, each asked once); they are taken as replaced."""
        replaced = self.replaced
        while replaced and step - replaced[0][0] > self.maturity:
            self.immature -= replaced.popleft()[1]
        eligible = self.width - self.immature
        if not eligible:
            return 0
        number = self._number(step, self.width if self.count is Count.all else eligible)
        if number:
            number = min(number, eligible)
            replaced.append((step, number))
            self.immature += number
        return number

    def _number(self, step: int, counted: int) -> int:
        share = self.numerator * counted
        if self.draw is None:
            number, self.carry = divmod(self.carry + share, self.denominator)
            return number
        if share >= self.denominator:
            return share // self.denominator
        return int(self.draw(step) * self.denominator < share)

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"carry": self.carry, "replaced": [list(pair) for pair in self.replaced]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.carry = state["carry"]
        self.replaced = deque((step, number) for step, number in state["replaced"])
        self.immature = sum(number for _, number in self.replaced)


class RunsBudget:
    """`Budget` without carrying, for several runs: at a step each replaces another number of units."""

    def __init__(self, width: int, rate: float, maturity: int, count: Count, draws: Sequence["StepDraws"]) -> None:
        """Start with `width` units of age 0 after step 0, in each of the runs that `draws` names."""
        self.width, self.maturity, self.draws = width, maturity, draws
        numerator, denominator = Fraction(str(rate)).as_integer_ratio()
        shares = [numerator * (width if count is Count.all and eligible else eligible) for eligible in range(width + 1)]
        self._whole = np.array([share // denominator for share in shares])
        self._share, self._denominator = np.array(shares, dtype=np.float64), float(denominator)
        self.start_anew(0)

    def start_anew(self, step: int) -> None:
        """All units are fresh after `step`."""
        self.immature = np.full(len(self.draws), self.width)
        self.replaced = deque([(step, self.immature)])

    def due(self, step: int) -> npt.NDArray[np.int64] | None:
        """Units of each run to replace at `step` (from 1, ascending, each asked once), int64 [runs]; None = nowhere."""
        replaced = self.replaced
        while replaced and step - replaced[0][0] > self.maturity:
            self.immature = self.immature - replaced.popleft()[1]
        eligible = self.width - self.immature
        if not eligible.any():
            return None
        drawn = np.array([draw(step) for draw in self.draws]) * self._denominator < self._share[eligible]
        number = np.minimum(np.where(self._whole[eligible], self._whole[eligible], drawn), eligible)
        if not number.any():
            return None
        replaced.append((step, number))
        self.immature = self.immature + number
        return number

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers."""
        return {"replaced": [[step, number.tolist()] for step, number in self.replaced]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.replaced = deque((step, np.array(number)) for step, number in state["replaced"])
        self.immature = sum((number for _, number in self.replaced), np.zeros(len(self.draws), dtype=np.int64))


class StepDraws:
    """A uniform number for each step, keyed by (seed, purpose, step); drawn in blocks."""

    BLOCK = 1024

    def __init__(self, seed: int, purpose: str) -> None:
        """Name the stream."""
        self.seed, self.purpose = seed, purpose
        self._first, self._block = -1, [0.0]

    def __call__(self, step: int) -> float:
        """The number of `step`, in [0, 1)."""
        first = step - step % self.BLOCK
        if first != self._first:
            ids = torch.arange(first, first + self.BLOCK)
            self._first, self._block = first, keyed_uniform(self.seed, self.purpose, ids).tolist()
        return self._block[step - first]
