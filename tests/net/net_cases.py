"""The networks every test of tests/net runs over, small."""

from dataclasses import dataclass

import torch
from torch import nn

from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet, NormAt
from plastiscope.net.convnet2 import ConvNet2
from plastiscope.net.deep_linear import DeepLinear
from plastiscope.net.layers import Head, Kind, Layers
from plastiscope.net.mlp import Init, Mlp, Norm
from plastiscope.net.net import NetConfig
from plastiscope.net.projection import PhiAt, Projection
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.resnet18_shortcut import ResNet18Shortcut
from plastiscope.net.svd import Inner, Orthogonal, Sign
from plastiscope.net.vgg16 import Vgg16
from plastiscope.net.vit import Pooling, Vit
from plastiscope.net.weight_normalised import InputStatistic


@dataclass(frozen=True)
class Case:
    config: NetConfig
    input_shape: tuple[int, ...]
    outputs: int

    def make(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        torch.manual_seed(0)
        return self.config.make(self.input_shape, self.outputs).to(dtype)

    def inputs(self, n: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(n, *self.input_shape, dtype=dtype, generator=torch.Generator().manual_seed(1))


CASES: dict[str, Case] = {
    "mlp": Case(Mlp(widths=[12, 9]), (2, 3, 3), 4),
    "mlp_batch": Case(Mlp(widths=[12, 9], norm=Norm.batch, dropout=0.2), (5,), 4),
    "mlp_layer": Case(Mlp(widths=[12, 9], norm=Norm.layer, activation=Activation.tanh), (5,), 4),
    "mlp_kaiming": Case(Mlp(widths=[12], init=Init.kaiming_uniform, activation=Activation.leaky_relu), (5,), 4),
    "linear": Case(Mlp(widths=[]), (3, 4, 4), 2),
    "deep_linear": Case(DeepLinear(widths=[6, 5]), (7,), 3),
    "deep_linear_batch": Case(DeepLinear(widths=[6, 5], bias=True, batch_norm=True), (7,), 3),
    "convnet": Case(ConvNet(channels=[4, 5, 6], widths=[8, 7]), (3, 32, 24), 2),
    "convnet_conv_to_head": Case(ConvNet(channels=[4, 5], kernel_sizes=[3, 3], widths=[]), (1, 14, 14), 3),
    "resnet18": Case(ResNet18(width=4), (3, 16, 16), 5),
    "resnet18_shortcut": Case(ResNet18Shortcut(width=4), (3, 16, 16), 5),
    "vit": Case(Vit(depth=2, width=8, heads=2, hidden=12, patch=4, dropout=0.1), (3, 8, 12), 5),
    "vit_mean": Case(Vit(depth=1, width=8, heads=2, hidden=12, patch=4, pooling=Pooling.mean), (1, 8, 8), 5),
}

WEIGHT_NORMALISED = Layers(kind=Kind.weight_normalised)
SVD = Layers(kind=Kind.svd)
PROJECTION = Layers(kind=Kind.projection)
MAPPED = Layers(kind=Kind.projection, phi_at=PhiAt.map)


def _mlp(activation: Activation = Activation.relu, norm: Norm = Norm.none, **layers: object) -> Case:
    return Case(Mlp(widths=[12, 9], activation=activation, norm=norm, layers=Layers(**layers)), (2, 3, 3), 4)  # type: ignore[arg-type]


def _convnet(**settings: object) -> Case:
    return Case(ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[7], **settings), (3, 13, 18), 2)  # type: ignore[arg-type]


def _resnet(layers: Layers) -> Case:
    return Case(ResNet18(width=4, layers=layers), (3, 16, 16), 5)


VARIANTS: dict[str, Case] = {
    "mlp_weight_normalised": _mlp(kind=Kind.weight_normalised),
    "mlp_weight_normalised_batch": _mlp(norm=Norm.batch, kind=Kind.weight_normalised, head=Head.plain),
    "mlp_variance": _mlp(kind=Kind.weight_normalised, input_statistic=InputStatistic.variance),
    "mlp_svd": _mlp(kind=Kind.svd),
    "mlp_svd_inner": _mlp(
        norm=Norm.layer, kind=Kind.svd, rank=5, inner=Inner.relu, singular_values=Sign.softplus, head=Head.plain
    ),
    "mlp_svd_penalty": _mlp(kind=Kind.svd, orthogonal=Orthogonal.penalty, singular_values=Sign.signed),
    "mlp_projection": _mlp(kind=Kind.projection),
    "mlp_coordinates": _mlp(norm=Norm.batch, kind=Kind.projection, projection=Projection.coordinates, head=Head.plain),
    "mlp_mapped": _mlp(norm=Norm.layer, kind=Kind.projection, phi_at=PhiAt.map),
    "mlp_prelu": _mlp(Activation.prelu),
    "mlp_prelu_shared": _mlp(Activation.prelu_shared, Norm.batch),
    "mlp_maxout": _mlp(Activation.maxout),
    "mlp_maxout_batch": _mlp(Activation.maxout, Norm.batch, maxout_pieces=3),
    "mlp_maxout_weight_normalised": _mlp(Activation.maxout, kind=Kind.weight_normalised),
    "mlp_crelu": _mlp(Activation.crelu),
    "mlp_crelu_weight_normalised": _mlp(Activation.crelu, Norm.batch, kind=Kind.weight_normalised),
    "convnet_batch": _convnet(norm=Norm.batch),
    "convnet_layer": _convnet(norm=Norm.layer),
    "convnet_layer_linear": _convnet(norm=Norm.layer, norm_at=NormAt.linear),
    "convnet_batch_conv": _convnet(norm=Norm.batch, norm_at=NormAt.conv),
    "convnet_weight_normalised": _convnet(layers=WEIGHT_NORMALISED),
    "convnet_svd": _convnet(layers=SVD),
    "convnet_projection": _convnet(layers=PROJECTION),
    "convnet_mapped": _convnet(layers=MAPPED, activation=Activation.leaky_relu),
    "convnet_prelu": _convnet(activation=Activation.prelu),
    "convnet_maxout": _convnet(activation=Activation.maxout, norm=Norm.batch),
    "convnet_crelu": _convnet(activation=Activation.crelu, norm=Norm.layer),
    "convnet2": Case(ConvNet2(channels=[4, 5], kernel_sizes=[3, 2], widths=[7], norm=Norm.batch), (3, 13, 18), 2),
    "vgg16": Case(Vgg16(width=2), (3, 32, 64), 4),
    "vgg16_plain": Case(Vgg16(width=2, norm=Norm.none, init=Init.kaiming_uniform, widths=[5]), (3, 32, 32), 4),
    "resnet18_weight_normalised": _resnet(WEIGHT_NORMALISED),
    "resnet18_svd": _resnet(SVD),
    "resnet18_projection": _resnet(PROJECTION),
}
"""Networks of other layers and activations, one for each setting that changes their modules."""
CASES |= VARIANTS


def randomise(net: nn.Module) -> nn.Module:
    """Every parameter and running statistic away from its special initial value; evaluation mode."""
    generator = torch.Generator().manual_seed(2)
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
        elif tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return net.eval()


class SharedRelu(nn.Module):
    """A shared nn.ReLU called twice, functional ReLUs, pooling, flattening, a residual sum; in place or not."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        self.conv3 = nn.Conv2d(6, 5, 3, padding=1)
        self.relu = nn.ReLU(inplace)
        self.fc = nn.Linear(5 * 16, 7)
        self.classify = nn.Linear(7, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.norm1(self.conv1(x)))
        if self.inplace:
            x += self.conv2(x)
        else:
            x = x + self.conv2(x)
        x = self.relu(x)
        x = nn.functional.max_pool2d(torch.relu(self.conv3(x)), 2)
        x = nn.functional.relu(self.fc(x.view(x.size(0), -1)), inplace=self.inplace)
        return self.classify(nn.functional.dropout(x, 0.5, self.training))


def shared_relu(inplace: bool = False) -> nn.Module:
    torch.manual_seed(0)
    return SharedRelu(inplace)
