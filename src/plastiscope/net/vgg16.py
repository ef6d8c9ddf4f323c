"""VGG-16 for images of 32x32 pixels."""

from dataclasses import dataclass, field

from torch import nn

from plastiscope.error import require
from plastiscope.net.activation import Activation
from plastiscope.net.chain import Chain, Norm, check_activation, check_init
from plastiscope.net.convnet import ConvFeedForward, Convolution, Names
from plastiscope.net.layers import Init, Layers
from plastiscope.net.pixels import image_shape

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
"""Multiple of `width`, and convolutions, of each stage; pooling ends it."""
SMALLEST = 2 ** len(STAGES)
"""Pixels a side: the halvings leave one."""


@dataclass(kw_only=True)
class Vgg16:
    """VGG-16 (Simonyan and Zisserman 2015) in the form usual for CIFAR: 13 convolutions of 3x3 with padding, one head.

    14,728,266 parameters at width 64 with batch normalisation, 3 input channels and 10 outputs.
    """

    width: int = 64
    """Channels of the first stage; the others have 2, 4, 8 and 8 times as many."""
    widths: list[int] = field(default_factory=list)
    """Units of fully connected hidden layers before the head; none usually, 2 of 4096 in the original."""
    activation: Activation = Activation.relu
    norm: Norm = Norm.batch
    """Before pooling and activation: none, batch, layer; none is hard to train unless init=kaiming_uniform."""
    init: Init = Init.default
    layers: Layers = field(default_factory=Layers)
    """How convolutions and linear layers are parametrised."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.width > 0, "width", self.width, "must be 1 or more")
        require(all(width > 0 for width in self.widths), "widths", self.widths, "each must be 1 or more")
        check_init(self.init, self.layers)
        check_activation(self.activation, self.layers)

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when the images are too small."""
        shape, names = image_shape(input_shape, "vgg16", SMALLEST), Names()
        convolutions = [
            Convolution(multiple * self.width, kernel_size=3, padding=1, is_pooled=i == number - 1)
            for multiple, number in STAGES
            for i in range(number)
        ]
        chain = Chain(shape[0], self.activation, self.layers, names.part)
        norms = (self.norm, self.norm)
        return ConvFeedForward(chain, convolutions, self.widths, norms, shape, outputs, self.init, names)
