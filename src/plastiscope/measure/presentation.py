"""How much the order of presentation changes from one epoch to the next."""

import torch
from torch import Tensor


def order_change(order: Tensor, previous: Tensor) -> float:
    """Mean displacement of the samples between two orders, in units of what independent random orders have.

    With p(i) the place of sample i: mean_i |p(i) - p'(i)| / ((n^2 - 1) / (3 n)). 0 = the same order, 1 = as different
    as two random ones are on average, 1.5 (1.5 n^2 / (n^2 - 1) for even n) = the reverse.

    Args:
        order: int64 [n], a permutation; place j holds sample order[j]; n >= 2.
        previous: the same for the other order.
    """
    n = len(order)
    moved = order.argsort().sub(previous.argsort()).abs().to(torch.float64).mean()
    return float(moved) / ((n * n - 1) / (3 * n))
