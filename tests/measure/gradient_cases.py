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
