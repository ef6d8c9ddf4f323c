"""The convolutional network of the published continual ImageNet study."""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from plastiscope.error import require
from plastiscope.net.activation import Activation
from plastiscope.net.pixels import image_shape
from plastiscope.net.units import Layer, Site, UnitDescription, columns, rows, width_of

POOL = 2


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

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(bool(self.channels) and min(self.channels) > 0, "channels", self.channels, "one or more, each above 0")
        same = len(self.kernel_sizes) == len(self.channels)
        require(same and min(self.kernel_sizes) > 0, "kernel_sizes", self.kernel_sizes, "one above 0 per convolution")
        require(all(width > 0 for width in self.widths), "widths", self.widths, "each must be 1 or more")

    @property
    def smallest(self) -> int:
        """Pixels a side that leave one pixel after the last pooling."""
        side = 1
        for kernel_size in reversed(self.kernel_sizes):
            side = side * POOL + kernel_size - 1
        return side

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when the images are too small."""
        return ConvFeedForward(self, image_shape(input_shape, "convnet", self.smallest), outputs)


class ConvFeedForward(nn.Sequential):
    """Convolution, pooling, activation several times; flatten; linear, activation several times; head.

    Pooling stands before the activation: for activations that never fall it is the same function and the same
    gradient as after it, on a quarter of the pixels, and the activation's output is the published tap, after pooling.
    """

    prefers_channels_last = True  # measured faster on the CPU, docs/benchmarks.md

    def __init__(self, config: ConvNet, input_shape: tuple[int, int, int], outputs: int) -> None:
        """Make the network for images of (channels, height, width)."""
        inputs, *sides = input_shape
        modules: OrderedDict[str, nn.Module] = OrderedDict()
        for i, (width, kernel_size) in enumerate(zip(config.channels, config.kernel_sizes, strict=True), start=1):
            modules[f"conv_{i}"] = nn.Conv2d(inputs, width, kernel_size)
            modules[f"pool_{i}"] = nn.MaxPool2d(POOL)
            modules[f"conv_activation_{i}"] = config.activation.module()
            inputs, sides = width, [(side - kernel_size + 1) // POOL for side in sides]
        modules["flatten"] = nn.Flatten()
        self._pixels, self._activation = sides[0] * sides[1], config.activation.value
        inputs *= self._pixels
        for i, width in enumerate(config.widths, start=1):
            modules[f"linear_{i}"] = nn.Linear(inputs, width)
            modules[f"linear_activation_{i}"] = config.activation.module()
            inputs = width
        modules["head"] = nn.Linear(inputs, outputs)
        super().__init__(modules)

    def unit_description(self) -> UnitDescription:
        """One layer for each convolution and hidden linear layer; the last channels own several columns each."""
        names = [name for name, module in self.named_children() if isinstance(module, nn.Conv2d | nn.Linear)]
        layers = []
        for name, reader in pairwise(names):
            to_flat = name.startswith("conv") and not reader.startswith("conv")
            layers.append(
                Layer(
                    name=name,
                    width=width_of(self, name),
                    site=Site(name.replace("_", "_activation_")),
                    incoming=rows(self, name),
                    consumers=(columns(reader, self._pixels if to_flat else 1),),
                    activation=self._activation,
                )
            )
        return UnitDescription(tuple(layers), head="head")
