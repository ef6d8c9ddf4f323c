"""The networks: published sizes and names, initialisation, what they compute, what they refuse."""

import dataclasses
import importlib
from enum import Enum
from pathlib import Path

import pytest
import torch
import yaml
from net_cases import CASES
from torch import nn
from torch.nn import functional as F

from plastiscope.error import ConfigError
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.deep_linear import DeepLinear
from plastiscope.net.mlp import Init, Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.resnet18_shortcut import ResNet18Shortcut
from plastiscope.net.vit import Attention, Pooling, Vit

CONFIGS = Path(__file__).parents[2] / "configs" / "net"


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("config", "input_shape", "outputs", "parameters"),
    [
        (ConvNet(), (3, 32, 32), 2, 177_218),
        (ResNet18(), (3, 32, 32), 100, 11_224_932),
        (ResNet18Shortcut(), (3, 32, 32), 100, 11_220_132),
        (Mlp(widths=[2000, 2000, 2000], init=Init.kaiming_uniform), (784,), 10, 9_594_010),
        (Mlp(widths=[]), (3, 32, 32), 2, 3072 * 2 + 2),
        (DeepLinear(widths=[6, 5]), (7,), 3, 7 * 6 + 6 * 5 + 5 * 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_parameter_counts(config, input_shape, outputs, parameters):
    assert count(config.make(input_shape, outputs)) == parameters


def test_resnet_state_dict_has_the_published_names_and_shapes():
    state = ResNet18().make((3, 32, 32), 100).state_dict()
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    expected = {"conv1.weight", "conv1.bias", "fc.weight", "fc.bias", *(f"bn1.{name}" for name in norm)}
    for block in [f"layer{stage}.{i}" for stage in (1, 2, 3, 4) for i in (0, 1)]:
        expected |= {f"{block}.conv{i}.{name}" for i in (1, 2) for name in ("weight", "bias")}
        expected |= {f"{block}.bn{i}.{name}" for i in (1, 2) for name in norm}
    for stage in (2, 3, 4):
        expected |= {f"layer{stage}.0.downsample.0.{name}" for name in ("weight", "bias")}
        expected |= {f"layer{stage}.0.downsample.1.{name}" for name in norm}
    assert len(state) == 142
    assert set(state) == expected
    assert state["conv1.weight"].shape == (64, 3, 3, 3)
    assert state["layer4.0.downsample.0.weight"].shape == (512, 256, 1, 1)
    assert state["fc.weight"].shape == (100, 512)


def test_resnet_has_the_published_module_names_and_stage_shapes():
    net, shapes = ResNet18(width=8).make((3, 32, 32), 100).eval(), []
    for name in ("layer1", "layer2", "layer3", "layer4", "output_pool"):
        net.get_submodule(name).register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape[1:])))
    net(torch.zeros(1, 3, 32, 32))
    assert shapes == [(8, 32, 32), (16, 16, 16), (32, 8, 8), (64, 4, 4), (64, 1, 1)]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_every_net_trains_on_its_input_shape(case):
    net = case.make()
    outputs = net(case.inputs(3))
    assert outputs.shape == (3, case.outputs)
    outputs.square().sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_yaml_equals_the_dataclass(path):
    node = yaml.safe_load(path.read_text())
    target = node.pop("_target_")
    if path.stem == "foreign":
        assert target == "???"
        return
    module, _, name = target.rpartition(".")
    assert module == f"plastiscope.net.{path.stem}"
    defaults = dataclasses.asdict(getattr(importlib.import_module(module), name)())
    assert node == named(defaults)


def named(value):
    if isinstance(value, dict):
        return {key: named(entry) for key, entry in value.items()}
    return value.name if isinstance(value, Enum) else value


@pytest.mark.parametrize(
    ("config", "shape", "words"),
    [
        (ConvNet(), (3, 23, 40), ["24 x 24", "data.resize=24"]),
        (ConvNet(channels=[4], kernel_sizes=[3]), (3, 3, 3), ["data.resize=4"]),
        (ConvNet(), (64,), ["net=mlp"]),
        (ResNet18(), (3, 7, 7), ["data.resize=8"]),
        (Vit(), (1, 3, 3), ["data.resize=4"]),
        (Vit(), (1, 8, 10), ["data.resize", "multiple of 4", "net.patch"]),
    ],
)
def test_images_that_do_not_fit_are_refused_with_what_to_do(config, shape, words):
    with pytest.raises(ConfigError) as caught:
        config.make(shape, 10)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("config", [ConvNet(), ConvNet(channels=[3, 4], kernel_sizes=[2, 5]), ResNet18(width=2), Vit()])
def test_the_smallest_size_works_and_is_the_smallest(config):
    smallest = {"ResNet18": 8, "Vit": 4}.get(type(config).__name__) or config.smallest
    assert config.make((1, smallest, smallest), 3).eval()(torch.zeros(2, 1, smallest, smallest)).shape == (2, 3)
    with pytest.raises(ConfigError):
        config.make((1, smallest - 1, smallest), 3)


@pytest.mark.parametrize(
    ("kind", "settings", "field"),
    [
        (Mlp, {"widths": [3, 0]}, "widths"),
        (Mlp, {"dropout": 1.0}, "dropout"),
        (DeepLinear, {"widths": [-1]}, "widths"),
        (ConvNet, {"channels": []}, "channels"),
        (ConvNet, {"kernel_sizes": [5, 3]}, "kernel_sizes"),
        (ResNet18, {"width": 0}, "width"),
        (Vit, {"heads": 3}, "width"),
        (Vit, {"depth": 0}, "depth"),
    ],
)
def test_settings_out_of_range_are_refused(kind, settings, field):
    with pytest.raises(ConfigError, match=f"^{field}="):
        kind(**settings)


def test_default_initialisation_is_torchs_own():
    torch.manual_seed(3)
    net = Mlp(widths=[5]).make((4,), 2)
    torch.manual_seed(3)
    first, second = nn.Linear(4, 5), nn.Linear(5, 2)
    assert torch.equal(net.linear_1.weight, first.weight)
    assert torch.equal(net.head.bias, second.bias)


@pytest.mark.parametrize("activation", [Activation.relu, Activation.tanh, Activation.selu])
def test_kaiming_uniform_bounds(activation):
    torch.manual_seed(0)
    net = Mlp(widths=[400], init=Init.kaiming_uniform, activation=activation).make((300,), 100)
    for linear, gain in ((net.linear_1, activation.gain), (net.head, 1.0)):
        bound = gain * (3 / linear.in_features) ** 0.5
        assert linear.weight.abs().max() <= bound
        assert linear.weight.abs().max() > 0.99 * bound
        assert not linear.bias.any()


@pytest.mark.parametrize("name", ["relu", "tanh", "sigmoid", "leaky_relu"])
def test_gains_are_torchs(name):
    assert Activation[name].gain == pytest.approx(nn.init.calculate_gain(name, 0.01 if name == "leaky_relu" else None))


@pytest.mark.parametrize("activation", [a for a in Activation if hasattr(F, a.value) and a is not Activation.prelu])
def test_activation_modules_compute_the_function_of_their_name(activation):
    z = torch.linspace(-3, 3, 31)
    assert torch.equal(activation.module()(z), getattr(F, activation.value)(z))


def test_resnet_initialisation():
    torch.manual_seed(0)
    net = ResNet18(width=32).make((3, 32, 32), 100)
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            gain2 = 2.0 if isinstance(module, nn.Conv2d) else 1.0
            fan_in = module.weight[0].numel()
            # the deviation of n normal numbers is within 5/sqrt(2n) of its expectation
            tolerance = 5 / (2 * module.weight.numel()) ** 0.5
            assert module.weight.std().item() == pytest.approx((gain2 / fan_in) ** 0.5, rel=tolerance)
            assert not module.bias.any()
        elif isinstance(module, nn.BatchNorm2d):
            assert bool((module.weight == 1).all()) and not module.bias.any()


def test_mlp_computes_its_formula():
    net = Mlp(widths=[6, 5], norm=Norm.layer, activation=Activation.tanh).make((2, 3), 4).double().eval()
    x = torch.randn(7, 2, 3, dtype=torch.float64)
    h = x.reshape(7, 6)
    for i in (1, 2):
        linear = net.get_submodule(f"linear_{i}")
        z = h @ linear.weight.T + linear.bias
        h = torch.tanh((z - z.mean(1, keepdim=True)) / (z.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt())
    torch.testing.assert_close(net(x), h @ net.head.weight.T + net.head.bias, rtol=0, atol=1e-12)


def test_deep_linear_is_the_product_of_its_matrices():
    net = DeepLinear(widths=[6, 5]).make((7,), 3).double()
    product = net.head.weight @ net.linear_2.weight @ net.linear_1.weight
    x = torch.randn(4, 7, dtype=torch.float64)
    torch.testing.assert_close(net(x), x @ product.T, rtol=0, atol=1e-12)


def test_deep_linear_step_of_the_two_scalar_net():
    """Scalars (2, 3), x = 1, target 0, loss y^2/2, lr .01: gradients 18 and 12, product 5.2416 after a step."""
    net = DeepLinear(widths=[1]).make((1,), 1).double()
    with torch.no_grad():
        net.linear_1.weight.fill_(2.0)
        net.head.weight.fill_(3.0)
    (net(torch.ones(1, 1, dtype=torch.float64)).square() / 2).sum().backward()
    assert (net.linear_1.weight.grad.item(), net.head.weight.grad.item()) == (18.0, 12.0)
    torch.optim.SGD(net.parameters(), lr=0.01).step()
    first, last = net.linear_1.weight.item(), net.head.weight.item()
    assert (first, last) == pytest.approx((1.82, 2.88), abs=1e-12)
    assert first * last == pytest.approx(5.2416, abs=1e-12)
    assert last**2 - first**2 == pytest.approx(4.982, abs=1e-12)  # 5 before: lr^2 (12^2 - 18^2) less


def test_convnet_equals_the_published_order_of_relu_then_pooling():
    """Pooling first is the same function with the same gradient, bit for bit."""
    net = CASES["convnet"].make()
    x = CASES["convnet"].inputs(5)
    net(x).square().sum().backward()
    gradients = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    h = x
    for i in (1, 2, 3):
        h = F.max_pool2d(torch.relu(net.get_submodule(f"conv_{i}")(h)), 2)
    h = h.flatten(1)
    for i in (1, 2):
        h = torch.relu(net.get_submodule(f"linear_{i}")(h))
    assert torch.equal(net.head(h), net(x))
    net.head(h).square().sum().backward()
    assert all(torch.equal(g, parameter.grad) for g, parameter in zip(gradients, net.parameters(), strict=True))


def test_attention_equals_torchs():
    torch.manual_seed(0)
    own, theirs = Attention(8, 2).double(), nn.MultiheadAttention(8, 2, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(own.qkv.weight)
        theirs.in_proj_bias.copy_(own.qkv.bias)
        theirs.out_proj.load_state_dict(own.proj.state_dict())
    x = torch.randn(3, 5, 8, dtype=torch.float64)
    torch.testing.assert_close(own(x), theirs(x, x, x, need_weights=False)[0], rtol=0, atol=1e-12)


def test_vit_can_be_differentiated_twice():
    case = CASES["vit_mean"]
    net = case.make(torch.float64)
    parameter = net.blocks[0].attention.qkv.weight
    (gradient,) = torch.autograd.grad(net(case.inputs(2, torch.float64)).square().sum(), parameter, create_graph=True)
    (second,) = torch.autograd.grad(gradient.square().sum(), parameter)
    assert second.abs().max() > 0


def test_vit_reads_the_class_token_or_the_mean():
    for pooling, tokens in ((Pooling.token, 7), (Pooling.mean, 6)):
        net = Vit(depth=1, width=8, heads=2, hidden=4, pooling=pooling).make((3, 8, 12), 5)
        assert net.positions.shape == (1, tokens, 8)
        assert ("token" in net.state_dict()) is (pooling is Pooling.token)


def test_narrow_resnet_keeps_the_default_memory_format():
    """In channels_last, torch's 1x1 convolution of stride 2 writes past its memory below 16 channels."""
    assert not ResNet18(width=15).make((3, 64, 64), 2).prefers_channels_last
    assert ResNet18(width=16).make((3, 64, 64), 2).prefers_channels_last
