"""Means over bins of equal size of a sequence that arrives piece by piece."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OpenBin:
    """The values that no whole bin holds yet: their sum and their number."""

    total: float = 0.0
    count: int = 0

    def filled(self, values: Values, size: int) -> tuple[Values, "OpenBin"]:
        """Go on with more values.

        Args:
            values: float64 [n], those that follow.
            size: values of a bin.

        Returns:
            The means of the bins that are whole now, float64 [b], b = (count + n) // size, and what is open after them.
        """
        missing = size - self.count
        if len(values) < missing:
            return np.empty(0), OpenBin(self.total + float(values.sum()), self.count + len(values))
        first = self.total + float(values[:missing].sum())
        whole = (len(values) - missing) // size
        end = missing + whole * size
        sums = np.concatenate([[first], values[missing:end].reshape(whole, size).sum(1)])
        return sums / size, OpenBin(float(values[end:].sum()), len(values) - end)
