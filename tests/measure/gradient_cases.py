"""Networks and batches over which the per-sample gradients are compared with brute force."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plastiscope.measure.loss import Loss
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.vit import Pooling, Vit

DOUBLE = torch.float64


@dataclass(frozen=True)
class GradientCase:
    """A network, the shape of one input and a loss; `make` gives the same network and batch each time."""

    net: Callable[[], nn.Module]
    input_shape: tuple[int, ...]
    outputs: int = 5
    active: int = 4
    loss: Loss = Loss.cross_entropy

    def make(self, n: int = 6, dtype: torch.dtype = DOUBLE) -> tuple[nn.Module, Tensor, Tensor]:
        """The network in evaluation mode with statistics and scales away from 0 and 1, inputs, targets."""
        torch.manual_seed(0)
        net = randomise(self.net().to(dtype))
        return net, torch.randn(n, *self.input_shape, dtype=dtype), self.targets(n, dtype)

    def targets(self, n: int, dtype: torch.dtype) -> Tensor:
        if self.loss is Loss.cross_entropy:
            return torch.randint(0, self.active, (n,))
        if self.loss is Loss.mse:
            return torch.randn(n, self.active, dtype=dtype)
        return torch.randint(0, 2, (n, self.active)).to(dtype)


def randomise(net: nn.Module) -> nn.Module:
    for name, tensor in net.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand_like(tensor) + 0.5)
        elif tensor.is_floating_point():
            tensor.add_(0.05 * torch.randn_like(tensor))
    return net.eval()


def packaged(config: Mlp | ConvNet | ResNet18 | Vit, shape: tuple[int, ...]) -> Callable[[], nn.Module]:
    return lambda: config.make(shape, 5)


PACKAGED: dict[str, GradientCase] = {
    "mlp": GradientCase(packaged(Mlp(widths=[12, 9]), (7,)), (7,)),
    "mlp_mse": GradientCase(packaged(Mlp(widths=[12, 9]), (7,)), (7,), loss=Loss.mse),
    "mlp_multi_hot": GradientCase(packaged(Mlp(widths=[8]), (7,)), (7,), loss=Loss.binary_cross_entropy),
    "mlp_batch": GradientCase(packaged(Mlp(widths=[12, 9], norm=Norm.batch, dropout=0.3), (2, 3)), (2, 3)),
    "mlp_layer": GradientCase(packaged(Mlp(widths=[9], norm=Norm.layer, activation=Activation.tanh), (7,)), (7,)),
    "convnet": GradientCase(packaged(ConvNet(channels=[4, 5, 6], widths=[8, 7]), (3, 32, 24)), (3, 32, 24)),
    "resnet18": GradientCase(packaged(ResNet18(width=4), (3, 16, 16)), (3, 16, 16)),
    "vit": GradientCase(packaged(Vit(depth=2, width=8, heads=2, hidden=12), (3, 8, 12)), (3, 8, 12)),
    "vit_mean": GradientCase(
        packaged(Vit(depth=1, width=8, heads=2, hidden=12, pooling=Pooling.mean), (1, 8, 8)), (1, 8, 8)
    ),
}
"""The networks of the package, small."""


class Sequence(nn.Module):
    """A linear layer on tokens, a layer norm over two axes, a class token, a group norm, a frozen-looking scale."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 5)
        self.token = nn.Parameter(torch.randn(1, 1, 5))
        self.norm = nn.LayerNorm((7, 5))
        self.groups = nn.GroupNorm(2, 7 + 1)
        self.wide = nn.Linear(5, 40, bias=False)
        self.head = nn.Linear(8 * 40, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(torch.tanh(self.embed(x)))
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], dim=1)
        return self.head(torch.tanh(self.wide(self.groups(tokens))).flatten(1))


class Reused(nn.Module):
    """A linear layer, a norm and a convolution called twice; two linear layers with one weight; an unused layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.first, self.second = nn.Linear(36, 36), nn.Linear(36, 36, bias=False)
        self.second.weight = self.first.weight
        self.middle = nn.Linear(36, 36)
        self.idle = nn.Linear(3, 3)
        self.head = nn.Linear(36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(torch.tanh(self.norm(self.conv(x)))))
        x = torch.tanh(self.first(x.flatten(1)))
        x = torch.tanh(self.second(x))
        return self.head(self.middle(torch.tanh(self.middle(x))))


def convolution(*modules: nn.Module, features: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        kept = nn.Sequential(*modules, nn.Tanh(), nn.Flatten(), nn.Linear(features, 5))
        for module in kept.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return kept

    return make


MODULES: dict[str, GradientCase] = {
    "stride": GradientCase(convolution(nn.Conv2d(3, 4, (3, 2), (2, 1), (1, 0)), features=4 * 4 * 4), (3, 7, 5)),
    "dilation": GradientCase(convolution(nn.Conv2d(2, 4, 3, dilation=(2, 1)), features=4 * 5 * 4), (2, 9, 6)),
    "groups": GradientCase(convolution(nn.Conv2d(4, 6, 3, groups=2), features=6 * 3 * 4), (4, 5, 6)),
    "depthwise": GradientCase(convolution(nn.Conv2d(4, 8, 3, groups=4, bias=False), features=8 * 9), (4, 5, 5)),
    "same": GradientCase(convolution(nn.Conv2d(2, 3, 4, padding="same", dilation=2), features=3 * 30), (2, 5, 6)),
    "circular": GradientCase(
        convolution(nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), features=90), (2, 5, 6)
    ),
    "few_positions": GradientCase(convolution(nn.Conv2d(8, 16, 3), features=16), (8, 3, 3)),
    "conv1d": GradientCase(convolution(nn.Conv1d(3, 4, 3, stride=2), nn.BatchNorm1d(4), features=16), (3, 9)),
    "conv3d": GradientCase(convolution(nn.Conv3d(2, 3, 2, padding=(0, 1, 0)), features=3 * 2 * 4 * 3), (2, 3, 3, 4)),
    "inplace": GradientCase(
        convolution(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), features=27), (2, 5, 5)
    ),
    "sequence": GradientCase(Sequence, (7, 6)),
    "reused": GradientCase(Reused, (4, 3, 3)),
}
"""What ghost norms must know of single modules."""
