"""ResNet-18 as the published incremental CIFAR study has it."""

from dataclasses import dataclass, field
from typing import cast

from torch import Tensor, nn

from plastiscope.error import require
from plastiscope.net.activation import Activation
from plastiscope.net.layers import WEIGHTS, Layers, kaiming_normal
from plastiscope.net.pixels import image_shape
from plastiscope.net.units import (
    TIED,
    Layer,
    Site,
    UnitDescription,
    Wire,
    column_obstacle,
    columns,
    row_obstacle,
    rows,
    width_of,
)

GAIN = Activation.relu.gain
SMALLEST = 8
"""Pixels a side: the three halvings leave one."""


@dataclass(kw_only=True)
class ResNet18:
    """ResNet-18 for small images: 3x3 stem of stride 1, no max-pooling, every convolution with a bias.

    11,224,932 parameters and 142 state-dict keys at width 64 with 3 input channels and 100 outputs. Convolutions start
    Kaiming-normal (fan-in, gain of ReLU), the head Kaiming-normal with gain 1, biases 0, BN weights 1 and biases 0.
    """

    width: int = 64
    """Channels of the stem; the stages have 1, 2, 4 and 8 times as many."""
    layers: Layers = field(default_factory=Layers)
    """How convolutions and the head are parametrised."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.width > 0, "width", self.width, "must be 1 or more")
        phi_at = self.layers.phi_at.value
        require(
            not self.layers.is_mapped, "layers.phi_at", phi_at, "must be output: blocks have sums before activations"
        )

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when the inputs are no images or too small."""
        channels, _, _ = image_shape(input_shape, "resnet18", SMALLEST)
        return ResNet(channels, self.width, outputs, self.layers)


@dataclass(frozen=True)
class Family:
    """What published ResNets of this shape differ in: names of the parts in a state dict, biases of convolutions."""

    head: str = "fc"
    shortcut: str = "downsample"
    conv_bias: bool = True


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; one ReLU, called twice."""

    counts_axes_from_right = True

    def __init__(self, inputs: int, width: int, stride: int, family: Family, layers: Layers) -> None:
        """Make the block; the shortcut is a 1x1 convolution where the shape changes."""
        super().__init__()
        self.family, bias = family, family.conv_bias
        self.conv1 = layers.conv(inputs, width, 3, GAIN, stride, padding=1, bias=bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = layers.conv(width, width, 3, GAIN, padding=1, bias=bias)
        self.bn2 = nn.BatchNorm2d(width)
        self.has_shortcut = stride != 1 or inputs != width
        if self.has_shortcut:
            across = layers.conv(inputs, width, 1, GAIN, stride, bias=bias)
            shortcut = nn.Sequential(across, nn.BatchNorm2d(width))
            self.add_module(family.shortcut, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, h, w] -> [b, width, h/stride, w/stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (getattr(self, self.family.shortcut)(x) if self.has_shortcut else x))


class ResNet(nn.Module):
    """Stem, four stages of two blocks, average pooling, head; names as in the published checkpoints."""

    family = Family()
    counts_axes_from_right = True

    def __init__(self, channels: int, width: int, outputs: int, layers: Layers | None = None) -> None:
        """Make and initialise the network; `layers` None = plain ones."""
        super().__init__()
        layers = layers or Layers()
        # Measured faster on the CPU, docs/benchmarks.md. Not below 16 channels: there the backward of a 1x1 convolution
        # of stride 2 in channels_last writes past its memory on large images (torch 2.13, CPU), and the process dies.
        self.prefers_channels_last = width >= 16
        self.conv1 = layers.conv(channels, width, 3, GAIN, padding=1, bias=self.family.conv_bias)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(width, width, 1, layers)
        self.layer2 = self._stage(width, 2 * width, 2, layers)
        self.layer3 = self._stage(2 * width, 4 * width, 2, layers)
        self.layer4 = self._stage(4 * width, 8 * width, 2, layers)
        self.output_pool = nn.AdaptiveAvgPool2d(1)
        self.add_module(self.family.head, layers.of_head().linear(8 * width, outputs, 1.0))
        self.initialise()

    def initialise(self) -> None:
        """Draw the first weights."""
        for module in self.modules():
            if isinstance(module, WEIGHTS) and hasattr(module, "out_channels"):
                kaiming_normal(module, "relu")
        kaiming_normal(self.get_submodule(self.family.head), "linear")
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def _stage(self, inputs: int, width: int, stride: int, layers: Layers) -> nn.Sequential:
        first = Block(inputs, width, stride, self.family, layers)
        return nn.Sequential(first, Block(width, width, 1, self.family, layers))

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] -> [b, outputs]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return getattr(self, self.family.head)(self.output_pool(x).flatten(-3))

    def unit_description(self) -> UnitDescription:
        """17 layers: the stem, then of each block the inner one (replaceable) and the block's output (tied).

        The last block's features are the pooled ones. A block's output is read by the next block's first convolution,
        shortcut convolution and, through the identity path, by the next block's output of the same group.
        """
        blocks = [f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]
        group = "conv1"
        layers = [self._tied("conv1", "bn1", Site("relu"), group, blocks[0])]
        for block, following in zip(blocks, [*blocks[1:], None], strict=True):
            if self._has_shortcut(block):
                group = f"{block}.conv2"
            layers.append(self._inner(block))
            site = Site(f"{block}.relu", call=1) if following else Site("output_pool")
            layers.append(self._tied(f"{block}.conv2", f"{block}.bn2", site, group, following))
        return UnitDescription(tuple(layers), head=self.family.head)

    def _has_shortcut(self, block: str) -> bool:
        return cast(Block, self.get_submodule(block)).has_shortcut

    def _inner(self, block: str) -> Layer:
        reason = row_obstacle(self, f"{block}.conv1")
        return Layer(
            name=f"{block}.conv1",
            width=width_of(self, f"{block}.conv1"),
            site=Site(f"{block}.relu"),
            incoming=rows(self, f"{block}.conv1"),
            norm=f"{block}.bn1",
            consumers=self._read_by(f"{block}.conv2"),
            replaceable=not reason,
            reason=reason,
            activation="relu",
        )

    def _read_by(self, *readers: str) -> tuple[Wire, ...]:
        return tuple(columns(reader) for reader in readers if not column_obstacle(self, reader))

    def _tied(self, conv: str, norm: str, site: Site, group: str, following: str | None) -> Layer:
        if following is None:
            readers = [self.family.head]
        else:
            across = [f"{following}.{self.family.shortcut}.0"] if self._has_shortcut(following) else []
            readers = [f"{following}.conv1", *across]
        shortcut = conv.replace("conv2", self.family.shortcut)
        has_shortcut = conv != "conv1" and self._has_shortcut(conv.removesuffix(".conv2"))
        return Layer(
            name=conv,
            width=width_of(self, conv),
            site=site,
            incoming=rows(self, conv),
            norm=norm,
            consumers=self._read_by(*readers),
            residual_group=None if row_obstacle(self, conv) else group,
            replaceable=False,
            reason=row_obstacle(self, conv) or TIED,
            activation="relu",
            shortcut=rows(self, f"{shortcut}.0") if has_shortcut else (),
            shortcut_norm=f"{shortcut}.1" if has_shortcut else None,
        )
