"""Curvature along a line by central differences of the loss: what products with a Hessian are held against.

Only where the loss is smooth: at a kink (ReLU, max pooling) the difference sees slopes on its two sides, which are no
curvature at the point.
"""

import copy
from dataclasses import replace

import torch
from torch import Tensor

from plastiscope.measure.landscape.frozen import FrozenLoss, asking_for_gradients
from plastiscope.measure.landscape.memory import Adaptation
from plastiscope.measure.landscape.preserved import put

STEP = 1e-3
"""Length of a step, relative to that of the weights."""
SMOOTH = frozenset(
    {
        *("AccumulateGrad", "Addmm", "Addbmm", "Baddbmm", "Mm", "Bmm", "Mv", "Dot", "Convolution", "Embedding"),
        *("Add", "Sub", "Mul", "Div", "Neg", "Pow", "Exp", "Log", "Sqrt", "Rsqrt", "Sum", "Mean", "Logsumexp", "Var"),
        *("Tanh", "Sigmoid", "Gelu", "Silu", "Mish", "Softplus", "LogSigmoidForward", "Sin", "Cos", "Erf"),
        *("Softmax", "LogSoftmax", "NllLoss", "NllLoss2D", "MseLoss", "BinaryCrossEntropyWithLogits"),
        *("NativeBatchNorm", "CudnnBatchNorm", "NativeLayerNorm", "NativeGroupNorm", "FusedRmsNorm"),
        *("AvgPool1D", "AvgPool2D", "AvgPool3D", "AdaptiveAvgPool2D", "MeanPool"),
        *("T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand", "Squeeze", "Unsqueeze", "Clone"),
        *("Slice", "Select", "Split", "SplitWithSizes", "Unbind", "Cat", "Stack", "Index", "ToCopy", "Repeat", "Alias"),
    }
)
"""Nodes of a graph whose second derivatives are continuous, without "Backward" and a number; another one may have none.
"""


def is_smooth(frozen: FrozenLoss) -> bool:
    """Whether all that a few samples' loss is made of is known to be smooth."""
    with asking_for_gradients(frozen.parameters):
        waiting = [frozen.sum_of(frozen.inputs[:2], frozen.targets[:2]).grad_fn]
    seen = set(waiting)
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        if node.name().split("::")[-1].partition("Backward")[0] not in SMOOTH:
            return False
        fresh = {following for following, _ in node.next_functions} - seen
        seen |= fresh
        waiting += fresh
    return True


@torch.no_grad()
def curvature_along(frozen: FrozenLoss, direction: Tensor) -> float:
    """d^2 L / dt^2 along a unit direction [D], in float64 whatever the network's type.

    Richardson's (4 c(h/2) - c(h)) / 3 of c(h) = (L(h) - 2 L(0) + L(-h)) / h^2, h = `STEP` ||theta||.
    """
    net = copy.deepcopy(frozen.net).double()
    wide = replace(frozen, net=net, inputs=_wide(frozen.inputs), targets=_wide(frozen.targets), adaptation=Adaptation())
    weights, unit = wide.space.values(net), direction.double()
    h = STEP * (weights.norm().item() or 1.0)

    def loss(t: float) -> float:
        put(wide.parameters, wide.space.parts(weights + t * unit))
        return wide.value().item()

    middle = loss(0.0)
    whole, half = ((loss(step) - 2 * middle + loss(-step)) / step**2 for step in (h, h / 2))
    return (4 * half - whole) / 3


def _wide(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor
