"""ResNet-18 as the published incremental CIFAR study has it."""

from dataclasses import dataclass

from torch import Tensor, nn

from plastiscope.error import require
from plastiscope.net.pixels import image_shape
from plastiscope.net.units import TIED, Layer, Site, UnitDescription, columns, rows, width_of

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

    def __post_init__(self) -> None:
        """Check the range."""
        require(self.width > 0, "width", self.width, "must be 1 or more")

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when the inputs are no images or too small."""
        channels, _, _ = image_shape(input_shape, "resnet18", SMALLEST)
        return ResNet(channels, self.width, outputs)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; one ReLU, called twice."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        """Make the block; the shortcut is a 1x1 convolution where the shape changes."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[b, inputs, h, w] -> [b, width, h/stride, w/stride]."""
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Stem, four stages of two blocks, average pooling, head; names as in the published checkpoints."""

    def __init__(self, channels: int, width: int, outputs: int) -> None:
        """Make and initialise the network."""
        super().__init__()
        # Measured faster on the CPU, docs/benchmarks.md. Not below 16 channels: there the backward of a 1x1 convolution
        # of stride 2 in channels_last writes past its memory on large images (torch 2.13, CPU), and the process dies.
        self.prefers_channels_last = width >= 16
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = nn.Sequential(Block(width, width, 1), Block(width, width, 1))
        self.layer2 = nn.Sequential(Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.layer3 = nn.Sequential(Block(2 * width, 4 * width, 2), Block(4 * width, 4 * width, 1))
        self.layer4 = nn.Sequential(Block(4 * width, 8 * width, 2), Block(8 * width, 8 * width, 1))
        self.output_pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.kaiming_normal_(self.fc.weight, nonlinearity="linear")
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """[b, channels, h, w] -> [b, outputs]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.output_pool(x).flatten(1))

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
        return UnitDescription(tuple(layers), head="fc")

    def _has_shortcut(self, block: str) -> bool:
        return self.get_submodule(block).downsample is not None

    def _inner(self, block: str) -> Layer:
        return Layer(
            name=f"{block}.conv1",
            width=width_of(self, f"{block}.conv1"),
            site=Site(f"{block}.relu"),
            incoming=rows(self, f"{block}.conv1"),
            norm=f"{block}.bn1",
            consumers=(columns(f"{block}.conv2"),),
            activation="relu",
        )

    def _tied(self, conv: str, norm: str, site: Site, group: str, following: str | None) -> Layer:
        if following is None:
            readers = ["fc"]
        else:
            readers = [f"{following}.conv1", *([f"{following}.downsample.0"] if self._has_shortcut(following) else [])]
        shortcut = conv.replace("conv2", "downsample")
        has_shortcut = conv != "conv1" and self._has_shortcut(conv.removesuffix(".conv2"))
        return Layer(
            name=conv,
            width=width_of(self, conv),
            site=site,
            incoming=rows(self, conv),
            norm=norm,
            consumers=tuple(columns(reader) for reader in readers),
            residual_group=group,
            replaceable=False,
            reason=TIED,
            activation="relu",
            shortcut=rows(self, f"{shortcut}.0") if has_shortcut else (),
            shortcut_norm=f"{shortcut}.1" if has_shortcut else None,
        )
