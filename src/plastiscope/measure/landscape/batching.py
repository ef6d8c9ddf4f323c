"""Whether a network in evaluation mode is a function of each sample alone, found out by a few forwards.

What no module shows: noise or a normalisation over the batch that the forward calls as a function (`F.dropout(h)`,
`F.batch_norm(h, None, None, training=True)`, `h - h.mean(0)`).
"""

import math

import torch
from torch import Tensor

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.frozen import FrozenLoss

SAMPLES = 16
"""That are looked at, at most."""
ROUNDING = 100
"""Two forwards that differ by more units of rounding of the largest number are random."""


@torch.no_grad()
def refuse_random(frozen: FrozenLoss) -> None:
    """Two forwards of the same samples must agree.

    Raises:
        ConfigError: they do not.
    """
    first, again = _numbers(frozen, SAMPLES), _numbers(frozen, SAMPLES)
    if _difference(first, again) > ROUNDING * torch.finfo(first.dtype).eps:
        raise ConfigError(
            "two forwards of the same samples differ, so the network is random though it is in evaluation mode, and "
            "its landscape would be noise: give functions such as F.dropout training=self.training, or use modules "
            "(nn.Dropout), which eval() turns off"
        )


@torch.no_grad()
def couples_samples(frozen: FrozenLoss) -> bool:
    """Whether outputs or losses of samples are others beside fewer samples.

    Kernels for another size of batch round otherwise, so only what is far above rounding counts.
    """
    n = min(SAMPLES, len(frozen))
    if n < 2:
        return False
    whole = _numbers(frozen, n)
    try:
        part = _numbers(frozen, n // 2)
    except ValueError:  # a normalisation knows no variance of a single sample
        return True
    return _difference(whole[: len(part)], part) > 30 * math.sqrt(torch.finfo(whole.dtype).eps)


def _numbers(frozen: FrozenLoss, n: int) -> Tensor:
    """Outputs and losses of the first samples in one batch, a row each."""
    outputs = frozen.outputs(frozen.inputs[:n])
    return torch.cat([outputs, frozen.per_sample(outputs, frozen.targets[:n]).to(outputs.dtype).unsqueeze(1)], 1)


def _difference(a: Tensor, b: Tensor) -> float:
    """Largest difference relative to the largest number; 0 of what is not finite in both."""
    finite = torch.isfinite(a) & torch.isfinite(b)
    largest = a[finite].abs().max().item() if finite.any() else 0.0
    return (a - b)[finite].abs().max().item() / largest if largest else 0.0
