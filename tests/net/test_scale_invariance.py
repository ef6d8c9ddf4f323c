"""Which weights are scale-invariant, against the network itself: scale them and compare the outputs."""

import pytest
import torch
from net_cases import CASES
from torch import Tensor, nn

from plastiscope.net.describe import describe
from plastiscope.net.layers import Kind
from plastiscope.net.scale_invariance import scale_invariant_parameters

SETS = {
    **{"mlp": 0, "mlp_batch": 2, "mlp_layer": 2, "deep_linear_batch": 2, "vit": 0, "vgg16": 13, "convnet_layer": 3},
    **{"mlp_weight_normalised": 3, "mlp_weight_normalised_batch": 2, "mlp_maxout_batch": 2, "convnet_batch_conv": 2},
    **{"resnet18": 20, "resnet18_weight_normalised": 21, "mlp_svd_inner": 0, "mlp_projection": 0},
}
"""How many; of a residual network 17 layers and 3 shortcuts, of weight-normalised ones the head too."""


def without_eps(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(getattr(module, "eps", None), float):
            module.eps = 1e-300
    return net


def outputs(net: nn.Module, x: Tensor) -> Tensor:
    """Of a training forward, with the same units dropped each time."""
    torch.manual_seed(0)
    with torch.no_grad():
        return net(x)


@pytest.mark.parametrize("name", CASES)
def test_scaling_them_changes_no_output_and_scaling_other_matrices_does(name):
    """Layers of factors and of projections have rows that are not the units' own, so nothing is said of them."""
    case = CASES[name]
    net = case.make().train()
    found = scale_invariant_parameters(net, describe(net, case.inputs(6)))
    assert len(found) == SETS.get(name, len(found))
    without_eps(net).double()
    x, inside = case.inputs(6, torch.float64), {id(parameter) for together in found for parameter in together}
    for together in found:
        before = outputs(net, x)
        for parameter in together:
            parameter.detach().mul_(3.0)
        torch.testing.assert_close(outputs(net, x), before, rtol=1e-8, atol=1e-9)
    kind = getattr(case.config, "layers", None)
    if kind is not None and kind.kind in (Kind.svd, Kind.projection):
        return
    before = outputs(net, x)
    for path, parameter in net.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in inside:
            parameter.detach().mul_(3.0)
            assert not torch.allclose(outputs(net, x), before, rtol=1e-6, atol=1e-9), path
            parameter.detach().div_(3.0)


def test_before_layer_norm_the_bias_belongs_to_them():
    case = CASES["mlp_layer"]
    net = case.make()
    (first, *_) = scale_invariant_parameters(net, describe(net, case.inputs(2)))
    assert [id(p) for p in first] == [id(net.linear_1.weight), id(net.linear_1.bias)]


def test_what_is_not_trained_is_left_out():
    case = CASES["mlp_batch"]
    net = case.make()
    units = describe(net, case.inputs(2))
    net.linear_1.requires_grad_(False)
    assert [id(p) for (p,) in scale_invariant_parameters(net, units)] == [id(net.linear_2.weight)]
