"""Layers that hold the factors of a singular value decomposition: y = c U psi(s * (V^T x)) + b.

U [out, r] and V [in, r] have orthonormal columns, s [r] are the singular values but for c, psi is a non-linearity
between the factors. With psi = identity the layer is linear, W = c U diag(s) V^T.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastiscope.error import ConfigError


class Sign(Enum):
    """What s is of the parameter `singular`."""

    abs = "abs"
    signed = "signed"
    """The parameter itself."""
    softplus = "softplus"


class Orthogonal(Enum):
    """What keeps the columns of U and V orthonormal."""

    parametrised = "parametrised"
    """U and V are the orthonormal factors of QR decompositions of the parameters, so they are exact at every step."""
    penalty = "penalty"
    """mu (||U^T U - I||_F^2 + ||V^T V - I||_F^2) is added to the loss of a training step."""
    none = "none"


class Inner(Enum):
    """psi, by its name in torch.nn.functional."""

    identity = "identity"
    relu = "relu"
    leaky_relu = "leaky_relu"
    gelu = "gelu"
    silu = "silu"
    tanh = "tanh"
    sigmoid = "sigmoid"

    @property
    def function(self) -> Callable[[Tensor], Tensor]:
        """The function."""
        return (lambda z: z) if self is Inner.identity else getattr(F, self.value)


@dataclass(frozen=True, kw_only=True)
class SvdSettings:
    """Of an SVD-parametrised layer.

    Attributes:
        rank: r, or the smaller of inputs and outputs if there are fewer; None = that.
        sign: what s is of its parameter.
        inner: psi.
        orthogonal: what keeps U and V orthonormal.
        penalty: mu.
    """

    rank: int | None = None
    sign: Sign = Sign.abs
    inner: Inner = Inner.identity
    orthogonal: Orthogonal = Orthogonal.parametrised
    penalty: float = 1e-4


def orthonormal(a: Tensor) -> Tensor:
    """Q of a = Q R with positive diagonal of R, [..., n, r], n >= r: orthonormal columns that span those of `a`.

    An orthonormal `a` is its own Q.
    """
    q, r = torch.linalg.qr(a)
    return q * torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).unsqueeze(-2)


def departure(a: Tensor) -> Tensor:
    """A^T A - I, [..., r, r], of a [..., n, r]."""
    return a.mT @ a - torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


class Factors(nn.Module):
    """What linear layers and convolutions share; subclasses say what V reads."""

    bias: nn.Parameter | None

    row_obstacle = column_obstacle = "{path} holds factors of its weights, of which no row or column is a unit's own"

    def __init__(self, inputs: int, outputs: int, bias: bool, gain: float, settings: SvdSettings) -> None:
        """Draw uniform orthonormal U and V, s ~ N(1, .1^2); c = gain sqrt(out/r), b = 0."""
        super().__init__()
        self.settings = settings
        rank = min(inputs, outputs, settings.rank or inputs)
        self.gain = gain * math.sqrt(outputs / rank)
        self.left = nn.Parameter(nn.init.orthogonal_(torch.empty(outputs, rank)))
        self.right = nn.Parameter(nn.init.orthogonal_(torch.empty(inputs, rank)))
        start = nn.init.normal_(torch.empty(rank), 1.0, 0.1)
        is_softplus = settings.sign is Sign.softplus
        self.singular = nn.Parameter(start.clamp_min(0.01).expm1().log() if is_softplus else start)
        self.register_parameter("bias", nn.Parameter(torch.zeros(outputs)) if bias else None)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        """U [out, r], s [r], V [in, r]."""
        is_exact = self.settings.orthogonal is Orthogonal.parametrised
        left, right = (orthonormal(a) if is_exact else a for a in (self.left, self.right))
        return left, self._signed(self.singular), right

    def _signed(self, singular: Tensor) -> Tensor:
        if self.settings.sign is Sign.signed:
            return singular
        return singular.abs() if self.settings.sign is Sign.abs else F.softplus(singular)

    def singular_values(self) -> Tensor:
        """[r], c |s|: those of W where psi is the identity and U, V are orthonormal."""
        return self.gain * self._signed(self.singular).detach().abs()

    def product(self) -> Tensor:
        """W = c U diag(s) V^T, [out, in]; what the layer computes where psi is the identity."""
        left, s, right = self.factors()
        return self.gain * (left * s) @ right.mT

    def numbers(self) -> dict[str, float]:
        """What is logged of the layer."""
        values = self.singular_values()
        return {"largest_singular_value": values.max().item(), "smallest_singular_value": values.min().item()}

    def penalty(self) -> Tensor:
        """The summand mu (||U^T U - I||_F^2 + ||V^T V - I||_F^2) of the loss; 0 unless `orthogonal` is penalty."""
        if self.settings.orthogonal is not Orthogonal.penalty:
            return self.left.new_zeros(())
        squares = departure(self.left).square().sum() + departure(self.right).square().sum()
        return self.settings.penalty * squares

    @torch.no_grad()
    def add_penalty_gradient(self) -> None:
        """Add 4 mu A (A^T A - I), the gradient of the penalty, to `.grad` of both factors, if it is in use."""
        if self.settings.orthogonal is Orthogonal.penalty:
            for a in (self.left, self.right):
                if a.grad is not None:
                    a.grad.add_(a @ departure(a), alpha=4 * self.settings.penalty)

    @torch.no_grad()
    def start_at_zero(self) -> None:
        """Outputs 0 on all inputs, and able to learn: s = 0 and b = 0.

        Raises:
            ConfigError: s cannot be 0, or could not leave it.
        """
        if self.settings.sign is not Sign.signed:
            raise ConfigError(
                f"singular_values={self.settings.sign.value}: a head with these cannot start at zero and learn, as the "
                "task asks; use net.layers.head=plain or net.layers.singular_values=signed"
            )
        nn.init.zeros_(self.singular)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


def penalised(net: nn.Module) -> list[Factors]:
    """The layers of a network whose departure from orthonormality a training step penalises."""
    layers = (module for module in net.modules() if isinstance(module, Factors))
    return [layer for layer in layers if layer.settings.orthogonal is Orthogonal.penalty]


class SvdLinear(Factors):
    """A linear layer of factors; linear only if psi is the identity."""

    def __init__(
        self, inputs: int, outputs: int, bias: bool = True, gain: float = 1.0, settings: SvdSettings | None = None
    ) -> None:
        """Make and draw the factors; the gain keeps the mean square of an output at gain^2 times that of an input."""
        super().__init__(inputs, outputs, bias, gain, settings or SvdSettings())
        self.in_features, self.out_features = inputs, outputs

    def forward(self, x: Tensor) -> Tensor:
        """[b, ..., inputs] -> [b, ..., outputs]."""
        left, s, right = self.factors()
        inner = self.settings.inner.function(F.linear(x, (right * s).mT))
        return F.linear(inner, self.gain * left, self.bias)


class SvdConv2d(Factors):
    """A convolution of factors: V holds r filters (channel, row, column), U is a 1x1 convolution with the bias."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
        gain: float = 1.0,
        settings: SvdSettings | None = None,
    ) -> None:
        """Make and draw the factors; stride and padding are those of V."""
        super().__init__(inputs * kernel_size**2, outputs, bias, gain, settings or SvdSettings())
        self.in_channels, self.out_channels, self.kernel_size = inputs, outputs, kernel_size
        self.stride, self.padding = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, h, w] -> [b, outputs, h', w']; one convolution where psi is the identity."""
        if self.settings.inner is Inner.identity:
            return F.conv2d(x, self._kernel(self.product()), self.bias, self.stride, self.padding)
        left, s, right = self.factors()
        seen = F.conv2d(x, self._kernel((right * s).mT), None, self.stride, self.padding)
        return F.conv2d(self.settings.inner.function(seen), (self.gain * left)[:, :, None, None], self.bias)

    def _kernel(self, matrix: Tensor) -> Tensor:
        """[n, inputs * k * k] as filters."""
        return matrix.unflatten(1, (self.in_channels, self.kernel_size, self.kernel_size))
