"""The convolutional network of the published continual ImageNet study, and others of its form."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from torch import nn

from plastiscope.error import require
from plastiscope.net.activation import Activation
from plastiscope.net.chain import Chain, ChainNet, Norm, check_activation, check_init
from plastiscope.net.layers import Init, Layers
from plastiscope.net.pixels import image_shape

POOL = 2


class NormAt(Enum):
    """Which hidden layers are normalised."""

    all = "all"
    conv = "conv"
    linear = "linear"


class Names(NamedTuple):
    """What the parts of a convolutional network are called."""

    conv: str = "conv_{}"
    linear: str = "linear_{}"
    head: str = "head"

    def part(self, name: str, part: str) -> str:
        """Name of what follows the weights `name`."""
        kind, _, number = name.rpartition("_")
        return f"pool_{number}" if part == "pool" else f"{kind}_{part}_{number}"


@dataclass(kw_only=True)
class ConvNet:
    """Convolutions without padding, each followed by 2x2 max-pooling, then fully connected layers.

    At its published size (3x32x32 inputs, 2 outputs) it has 177,218 parameters; torch's default initialisation.
    """

    channels: list[int] = field(default_factory=lambda: [32, 64, 128])
    """Of each convolution."""
    kernel_sizes: list[int] = field(default_factory=lambda: [5, 3, 3])
    """Of each convolution, in pixels a side."""
    widths: list[int] = field(default_factory=lambda: [128, 128])
    """Units of each fully connected hidden layer."""
    activation: Activation = Activation.relu
    norm: Norm = Norm.none
    """Before pooling and activation: none, batch, layer."""
    norm_at: NormAt = NormAt.all
    """Which hidden layers are normalised: all, conv, linear."""
    init: Init = Init.default
    layers: Layers = field(default_factory=Layers)
    """How convolutions and linear layers are parametrised."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(bool(self.channels) and min(self.channels) > 0, "channels", self.channels, "one or more, each above 0")
        same = len(self.kernel_sizes) == len(self.channels)
        require(same and min(self.kernel_sizes) > 0, "kernel_sizes", self.kernel_sizes, "one above 0 per convolution")
        require(all(width > 0 for width in self.widths), "widths", self.widths, "each must be 1 or more")
        check_init(self.init, self.layers)
        check_activation(self.activation, self.layers)

    @property
    def smallest(self) -> int:
        """Pixels a side that leave one pixel after the last pooling."""
        side = 1
        for kernel_size in reversed(self.kernel_sizes):
            side = side * POOL + kernel_size - 1
        return side

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when the images are too small."""
        shape = image_shape(input_shape, "convnet", self.smallest)
        return self.network(shape, outputs, Names())

    def network(self, shape: tuple[int, int, int], outputs: int, names: Names) -> nn.Module:
        """A freshly initialised network for images of (channels, height, width), its parts called by `names`."""
        convolutions = [Convolution(*sizes) for sizes in zip(self.channels, self.kernel_sizes, strict=True)]
        norms = (
            self.norm if self.norm_at is not NormAt.linear else Norm.none,
            self.norm if self.norm_at is not NormAt.conv else Norm.none,
        )
        chain = Chain(shape[0], self.activation, self.layers, names.part)
        return ConvFeedForward(chain, convolutions, self.widths, norms, shape, outputs, self.init, names)


@dataclass(frozen=True)
class Convolution:
    """A convolution of a network.

    Attributes:
        channels: of its output.
        kernel_size: pixels a side.
        padding: pixels a side.
        is_pooled: whether 2x2 max-pooling follows.
    """

    channels: int
    kernel_size: int
    padding: int = 0
    is_pooled: bool = True

    def side(self, before: int) -> int:
        """Pixels a side of what comes out."""
        after = before + 2 * self.padding - self.kernel_size + 1
        return after // POOL if self.is_pooled else after


class ConvFeedForward(ChainNet):
    """Convolution, norm, pooling, activation several times; flatten; linear, norm, activation several times; head.

    Where a convolution is pooled, the activation's output is the published tap, after pooling (`Chain.conv`).
    """

    prefers_channels_last = True  # measured faster on the CPU, docs/benchmarks.md

    def __init__(
        self,
        chain: Chain,
        convolutions: Sequence[Convolution],
        widths: Sequence[int],
        norms: tuple[Norm, Norm],
        input_shape: tuple[int, int, int],
        outputs: int,
        init: Init,
        names: Names,
    ) -> None:
        """Make the network.

        Args:
            chain: empty, of the images' channels.
            convolutions: at least one.
            widths: of the fully connected hidden layers.
            norms: of convolutions, and of fully connected layers.
            input_shape: channels, height, width.
            outputs: of the head.
            init: the distribution of initial weights.
            names: of the parts.
        """
        _, *sides = input_shape
        for i, conv in enumerate(convolutions, start=1):
            pool = nn.MaxPool2d(POOL) if conv.is_pooled else None
            chain.conv(names.conv.format(i), conv.channels, conv.kernel_size, conv.padding, norms[0], pool)
            sides = [conv.side(side) for side in sides]
        chain.flatten(sides[0] * sides[1])
        for i, width in enumerate(widths, start=1):
            chain.linear(names.linear.format(i), width, norms[1])
        head = names.head.format(len(widths) + 1)
        chain.head(head, outputs)
        super().__init__(chain, head, init)
