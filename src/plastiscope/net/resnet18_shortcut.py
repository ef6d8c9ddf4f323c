"""ResNet-18 for small images as kuangliu/pytorch-cifar has it: convolutions without bias, other names of the parts."""

from dataclasses import dataclass

from torch import nn

from plastiscope.error import require
from plastiscope.net.pixels import image_shape
from plastiscope.net.resnet18 import SMALLEST, Family, ResNet


@dataclass(kw_only=True)
class ResNet18Shortcut:
    """The ResNet-18 whose state dict says `shortcut` and `linear`, as noisy-CIFAR checkpoints of other programs do.

    The same stem, stages and pooling as `resnet18`, but no convolution has a bias, and weights start as torch draws
    them. 11,220,132 parameters and 122 state-dict keys at width 64 with 3 input channels and 100 outputs.
    """

    width: int = 64
    """Channels of the stem; the stages have 1, 2, 4 and 8 times as many."""

    def __post_init__(self) -> None:
        """Check the range."""
        require(self.width > 0, "width", self.width, "must be 1 or more")

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when the inputs are no images or too small."""
        channels, _, _ = image_shape(input_shape, "resnet18_shortcut", SMALLEST)
        return ShortcutResNet(channels, self.width, outputs)


class ShortcutResNet(ResNet):
    """The network; names as in kuangliu/pytorch-cifar."""

    family = Family(head="linear", shortcut="shortcut", conv_bias=False)

    def initialise(self) -> None:
        """Leave the weights as torch draws them."""
