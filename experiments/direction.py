"""Tests of a direction over seeds, for the studies of published experiments."""

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def mean_and_error(values: Array) -> dict[str, float]:
    """Mean over seeds and its standard error, s / sqrt(n) with s of n - 1 degrees of freedom; `values` is [seeds]."""
    return {"mean": float(values.mean()), "error": float(values.std(ddof=1) / len(values) ** 0.5)}


def rise(before: Array, after: Array) -> dict[str, Any]:
    """Is `after` larger than `before`, seed by seed?

    Two one-sided tests of the differences. The Wilcoxon signed-rank test asks only that they are symmetric about zero
    where nothing rises; with n seeds no p is below 2^-n. The paired t-test asks that their mean is normal. `p` is that
    of a rise, `p_fall` that of a fall; where nothing differs at all both are 1.

    Args:
        before: [seeds].
        after: [seeds], in the same order.
    """
    from scipy.stats import ttest_rel, wilcoxon

    tests = {"wilcoxon": wilcoxon, "paired_t": ttest_rel}
    sides = {"p": "greater", "p_fall": "less"}
    differs = bool((after != before).any())
    return {
        "n": len(before),
        "difference": mean_and_error(after - before),
        "larger": int((after > before).sum()),
        **{
            name: {
                key: float(test(after, before, alternative=side).pvalue) if differs else 1.0
                for key, side in sides.items()
            }
            for name, test in tests.items()
        },
    }
