"""Stacked networks: outputs, gradients, running statistics and state are those of each network alone."""

import copy

import pytest
import torch
from net_cases import CASES, shared_relu
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.net.capture import capture
from plastiscope.net.describe import describe
from plastiscope.net.stacked import is_whole, loses_on_cpu, put_back, stack, unstack, unstacked_state
from plastiscope.net.stacked_layers import Vmapped

SEEDS = (0, 1, 2)
STACKABLE = [name for name in CASES if name not in ("mlp_batch", "vit")]
MAPPED = ("svd", "projection", "coordinates", "mapped", "variance", "vit")
"""What in the name of a case says that some layer has no batched form."""


def make(name: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return CASES[name].config.make(CASES[name].input_shape, CASES[name].outputs).double()


def inputs_of(name: str, n: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(len(SEEDS), n, *CASES[name].input_shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("name", STACKABLE)
def test_outputs_gradients_and_statistics_are_those_of_each_network_alone(name):
    nets, x = [make(name, seed) for seed in SEEDS], inputs_of(name)
    stacked = stack(nets, x[0])
    assert list(stacked.state_dict()) == list(nets[0].state_dict())
    for is_training in (True, False):
        outputs = stacked.train(is_training)(x)
        cotangent = torch.randn(outputs.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
        stacked.zero_grad()
        outputs.backward(cotangent)
        for r, net in enumerate(nets):
            net.train(is_training).zero_grad()
            alone = net(x[r])
            alone.backward(cotangent[r])
            torch.testing.assert_close(outputs[r], alone, rtol=1e-11, atol=1e-12)
            for path, parameter in net.named_parameters():
                torch.testing.assert_close(stacked.get_parameter(path).grad[r], parameter.grad, rtol=1e-9, atol=1e-11)
    for r, net in enumerate(nets):
        own = unstacked_state(stacked, r)
        for key, value in net.state_dict().items():
            torch.testing.assert_close(own[key], value, rtol=1e-12, atol=1e-13)
    has_mapped = any(isinstance(module, Vmapped) for module in stacked.modules())
    assert has_mapped == any(word in name for word in MAPPED)


@pytest.mark.parametrize("name", ["mlp_crelu", "convnet_maxout", "convnet_batch", "resnet18", "convnet_projection"])
def test_hooks_at_the_same_paths_see_the_features_of_each_network(name):
    nets, x = [make(name, seed) for seed in SEEDS], inputs_of(name)
    layers = describe(nets[0].float(), x[0].float()).layers
    nets[0].double()
    heard: dict[object, list[Tensor]] = {layer.site: [] for layer in layers}
    for net, inputs in [(stack(nets), x), *zip(nets, x, strict=True)]:
        with capture(net, heard, lambda site, feature: heard[site].append(feature.clone())):
            net(inputs)
    for layer in layers:
        together, *alone = heard[layer.site]
        assert together.shape[1 + layer.unit_axis] == layer.width
        torch.testing.assert_close(together, torch.stack(alone), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "convnet_batch", "vit_mean"])
def test_a_network_leaves_and_comes_back(name):
    nets = [make(name, seed) for seed in SEEDS]
    for r, net in enumerate(nets):
        for tensor in net.buffers():
            tensor.add_(r)
    stacked, other = stack(nets), make(name, 9)
    unstack(stacked, 1, other)
    assert all(torch.equal(value, nets[1].state_dict()[key]) for key, value in other.state_dict().items())
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1.0)
    put_back(stacked, 1, other.state_dict())
    for r, net in enumerate([nets[0], other, nets[2]]):
        assert all(torch.equal(unstacked_state(stacked, r)[key], value) for key, value in net.state_dict().items())
    with pytest.raises(ConfigError, match="another form"):
        put_back(stacked, 0, make("linear", 0).state_dict())


def test_gradients_in_mixed_precision_are_those_of_each_network_alone():
    nets = [make("mlp", seed).float() for seed in SEEDS]
    stacked, x = stack(nets), inputs_of("mlp").float()
    with torch.autocast("cpu", torch.bfloat16):
        outputs = stacked(x)
    outputs.float().square().sum().backward()
    for r, net in enumerate(nets):
        with torch.autocast("cpu", torch.bfloat16):
            alone = net(x[r])
        assert alone.dtype == outputs.dtype == torch.bfloat16
        alone.float().square().sum().backward()
        for path, parameter in net.named_parameters():
            own = stacked.get_parameter(path).grad[r]
            assert (own - parameter.grad).norm() < 0.03 * parameter.grad.norm()  # bfloat16 has 8 bits


def test_a_copy_of_a_stacked_network_is_one():
    nets, x = [make("mlp_svd", seed) for seed in SEEDS], inputs_of("mlp_svd")
    stacked = stack(nets)
    again = copy.deepcopy(stacked)
    with torch.no_grad():
        for parameter in stacked.parameters():
            parameter.zero_()
    torch.testing.assert_close(again(x)[2], nets[2](x[2]), rtol=1e-11, atol=1e-12)


def test_what_is_frozen_or_shared_stays_so():
    nets = [nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)) for _ in SEEDS]
    for net in nets:
        net[2].weight = net[0].weight
        net[0].bias.requires_grad_(False)
    stacked = stack(nets)
    assert stacked[2].weight is stacked[0].weight
    assert not stacked[0].bias.requires_grad
    assert len(list(stacked.parameters())) == 3


def test_what_draws_from_the_common_generator_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"layer dropout_1 \(Dropout\): it draws"):
        stack([make("mlp_batch", seed) for seed in SEEDS])
    with pytest.raises(ConfigError, match=r"layer blocks\.0\.dropout \(Dropout\): it draws"):
        stack([make("vit", seed) for seed in SEEDS])


def test_networks_that_cannot_be_mapped_are_refused():
    net = shared_relu()
    with pytest.raises(ConfigError, match=r"SharedRelu: vmap fails on it .*randomness"):
        stack([net, net], torch.randn(2, 3, 8, 8))
    with pytest.raises(ConfigError, match="no fixed momentum"):
        stack([nn.Sequential(nn.BatchNorm1d(3, momentum=None))] * 2)


def test_networks_of_different_forms_are_refused():
    with pytest.raises(ConfigError, match=r"differ in linear_1\.weight"):
        stack([make("mlp", 0), CASES["mlp"].config.make((5,), 4).double()])
    with pytest.raises(ConfigError, match="differ in module 'activation_1'"):
        stack([make("mlp", 0), make("mlp_prelu", 0)])


def test_only_a_whole_network_that_is_mapped_cannot_be_heard():
    assert is_whole(stack([make("vit_mean", 0)]))
    assert not is_whole(stack([make("mlp_svd", 0)]))


@pytest.mark.parametrize(
    ("name", "loses"), [("mlp", False), ("deep_linear", False), ("convnet", True), ("resnet18_svd", True)]
)
def test_convolutions_lose_on_a_cpu(name, loses):
    assert loses_on_cpu(make(name, 0)) is loses
    assert loses_on_cpu(stack([make(name, 0)])) is loses
