"""The ConvNet2 of the published continual ImageNet study."""

from dataclasses import dataclass

from torch import nn

from plastiscope.net.convnet import ConvNet, Names
from plastiscope.net.pixels import image_shape


class PublishedNames(Names):
    """As in the published state dicts: conv1, conv2, ..., fc1, fc2, ...; the head is the last fc."""

    def part(self, name: str, part: str) -> str:
        """Name of what follows the weights `name`."""
        return f"{name}_{part}"


@dataclass(kw_only=True)
class ConvNet2(ConvNet):
    """The network of the layer-wise form of continual backprop: `convnet` with the published names of its weights.

    The published class holds modules that replace units in themselves; here learner=continual_backprop does that, to
    any network. 178,250 parameters with 3x32x32 inputs and its 10 outputs.
    """

    def make(self, input_shape: tuple[int, ...], outputs: int) -> nn.Module:
        """A freshly initialised network; raises ConfigError when the images are too small."""
        shape = image_shape(input_shape, "convnet2", self.smallest)
        return self.network(shape, outputs, PublishedNames("conv{}", "fc{}", "fc{}"))
