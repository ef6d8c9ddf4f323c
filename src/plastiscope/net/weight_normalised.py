"""Weight-normalised linear layers and convolutions: w_i = c g_i v_i / max(||v_i||, eps), y = w x + b.

v_i, the parameter `weight`, is the raw incoming vector of a unit or filter; g_i, the parameter `scale`, its learned
length in units of the constant c, `gain`. The output does not depend on the length of v (Salimans and Kingma 2016).
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-12
"""Smallest ||v_i|| that is divided by."""
STATISTIC_EPS = 1e-8
"""Added to the statistic of the inputs."""


class InputStatistic(Enum):
    """What the weights are further divided by the root of."""

    none = "none"
    variance = "variance"
    """Of each input over samples and positions (divided by n), averaged over the inputs."""
    second_moment = "second_moment"
    """Mean square of the inputs."""


class WeightNormalised:
    """What linear layers and convolutions share; parameters may have leading axes (replicas)."""

    axes: int
    """Axes of a row of v: 1, of a convolution 3."""
    weight: Tensor
    bias: Any
    scale: nn.Parameter
    running: Tensor
    updates: Tensor
    training: bool

    def _prepare(self, gain: float, statistic: InputStatistic, rate: float) -> None:
        assert isinstance(self, nn.Module)
        self.gain, self.input_statistic, self.statistic_rate = gain, statistic, rate
        self.scale = nn.Parameter(torch.ones(self.weight.shape[0]))
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        if statistic is not InputStatistic.none:
            self.register_buffer("running", torch.zeros(()))
            self.register_buffer("updates", torch.zeros((), dtype=torch.int64))

    def row_norms(self) -> Tensor:
        """||v_i||, [..., out]."""
        return torch.linalg.vector_norm(self.weight, dim=tuple(range(-self.axes, 0)))

    def factors(self) -> Tensor:
        """w_i / v_i, [..., out]: c g_i / max(||v_i||, eps), over the root of the statistic if there is one."""
        factors = self.gain * self.scale / self.row_norms().clamp_min(EPS)
        if self.input_statistic is InputStatistic.none:
            return factors
        return factors * (self.statistic().unsqueeze(-1) + STATISTIC_EPS).rsqrt()

    def effective_weight(self) -> Tensor:
        """w, of the shape of `weight`: what a plain layer would hold."""
        factors = self.factors()
        return self.weight * factors.reshape(*factors.shape, *[1] * self.axes)

    def statistic(self) -> Tensor:
        """The tracked statistic without the weight of its start, s_run / (1 - (1 - a)^t); 1 before any update."""
        share = -torch.expm1(self.updates.to(self.running.dtype) * math.log1p(-self.statistic_rate))
        is_new = self.updates == 0
        return torch.where(is_new, 1.0, self.running / torch.where(is_new, 1.0, share))

    def _track(self, x: Tensor, others: tuple[int, ...]) -> None:
        """Count the statistic of a training batch, whose axes but that of the inputs are `others`."""
        if self.input_statistic is InputStatistic.none or not self.training:
            return
        with torch.no_grad():
            found = x.square() if self.input_statistic is InputStatistic.second_moment else x.var(others, correction=0)
            self.running.mul_(1 - self.statistic_rate).add_(found.mean(), alpha=self.statistic_rate)
            self.updates += 1

    @contextmanager
    def keeping_effective_weights(self) -> Iterator[None]:
        """Inside, some columns of `weight` are set to zero; the effective weights of the others stay as they were.

        Zeros make v_k shorter, which would lengthen all that is left of w_k, so g_k becomes g_k ||v_k after|| /
        ||v_k before||. Learners that replace units need this where such a layer reads the units.
        """
        with torch.no_grad():
            before = self.row_norms()
            yield
            self.scale.mul_(self.row_norms() / before.clamp_min(EPS))

    @torch.no_grad()
    def forget_inputs(self, columns: Tensor) -> None:
        """Zero the weights that read some inputs, and keep all others.

        Args:
            columns: int64 [n], of inputs (of a convolution, input channels).
        """
        with self.keeping_effective_weights():
            self.weight.index_fill_(-self.axes, columns, 0.0)

    @torch.no_grad()
    def fresh_rows(self, rows: Tensor, values: Tensor) -> None:
        """Give some units new raw vectors, g_i = 1 and no bias.

        Args:
            rows: int64 [n], of units.
            values: v [n, ...] of these.
        """
        self.weight.index_copy_(0, rows, values)
        self.scale.index_fill_(0, rows, 1.0)
        if self.bias is not None:
            self.bias.index_fill_(0, rows, 0.0)

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """Outputs 0 on all inputs, and able to learn: g = 0 and b = 0, v as it is."""
        nn.init.zeros_(self.scale)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class WeightNormLinear(WeightNormalised, nn.Linear):
    """A weight-normalised linear layer."""

    axes = 1

    def __init__(
        self,
        inputs: int,
        outputs: int,
        bias: bool = True,
        gain: float = 1.0,
        statistic: InputStatistic = InputStatistic.none,
        rate: float = 0.01,
    ) -> None:
        """Draw v as torch draws a linear layer's weights; g = 1, b = 0.

        Args:
            inputs: dimensions.
            outputs: units.
            bias: whether there is one.
            gain: c.
            statistic: of the inputs, that the weights are divided by the root of.
            rate: a, the weight of a batch in it.
        """
        super().__init__(inputs, outputs, bias)
        self._prepare(gain, statistic, rate)

    def forward(self, input: Tensor) -> Tensor:
        """[b, ..., inputs] -> [b, ..., outputs]; outputs are scaled instead of weights, which are more."""
        self._track(input, tuple(range(input.ndim - 1)))
        outputs = F.linear(input, self.weight) * self.factors()
        return outputs if self.bias is None else outputs + self.bias


class WeightNormConv2d(WeightNormalised, nn.Conv2d):
    """A weight-normalised convolution: each filter by itself."""

    axes = 3

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        groups: int = 1,
        bias: bool = True,
        gain: float = 1.0,
        statistic: InputStatistic = InputStatistic.none,
        rate: float = 0.01,
    ) -> None:
        """Draw v as torch draws a convolution's kernels; g = 1, b = 0; see `WeightNormLinear` and nn.Conv2d."""
        super().__init__(inputs, outputs, kernel_size, stride, padding, groups=groups, bias=bias)
        self._prepare(gain, statistic, rate)

    def forward(self, input: Tensor) -> Tensor:
        """[b, inputs, h, w] -> [b, outputs, h', w']."""
        self._track(input, (0, 2, 3))
        return self._conv_forward(input, self.effective_weight(), self.bias)
