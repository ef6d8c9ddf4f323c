"""Features of the training forward: those of the step itself, wherever activations are, and of no other forward."""

import copy
import gc
import weakref

import pytest
import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.learner.features import TrainingFeatures
from plastiscope.net.capture import features
from plastiscope.net.convnet import ConvNet
from plastiscope.net.describe import describe
from plastiscope.net.mlp import Mlp
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.units import Layer, Site, by_unit


class Functional(nn.Module):
    """Functional activations, one of them in place."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.a(x))
        return self.head(nn.functional.relu(self.b(x), inplace=True))


class Overwriting(nn.Module):
    """Overwrites the output of its first activation later in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = nn.Linear(4, 5), nn.LeakyReLU(), nn.Linear(5, 5)
        self.tanh, self.head = nn.Tanh(), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.a(x))
        y = self.tanh(self.b(h.clone()))
        h += 100.0
        return self.head(y) + 0.0 * h.sum()


NETS = {
    "mlp": (lambda: Mlp(widths=[5, 4]).make((4,), 3), (4,)),
    "convnet": (lambda: ConvNet(channels=[4, 5], kernel_sizes=[3, 3], widths=[6]).make((1, 10, 10), 3), (1, 10, 10)),
    "resnet18": (lambda: ResNet18(width=4).make((3, 8, 8), 3), (3, 8, 8)),
    "functional": (Functional, (4,)),
    "overwriting": (Overwriting, (4,)),
}


def prepared(name: str) -> tuple[nn.Module, tuple[Layer, ...], Tensor]:
    make, shape = NETS[name]
    net = make()
    return net, describe(net, torch.zeros(2, *shape)).layers, torch.randn(6, *shape)


@pytest.mark.parametrize("name", NETS)
def test_they_are_what_a_capture_sees(name):
    net, layers, x = prepared(name)
    kept = TrainingFeatures(net, layers)
    for scale in (1.0, 2.0, 3.0):
        with kept.listen(True):
            net(scale * x).sum().backward()
        found = kept.take()
        copied = copy.deepcopy(net)
        expected = features(copied, layers, scale * x, torch.clone)
        for layer, feature in zip(layers, found, strict=True):
            assert not feature.requires_grad
            torch.testing.assert_close(by_unit(feature, layer.unit_axis), expected[layer.name])


@pytest.mark.parametrize("name", ["mlp", "resnet18", "functional"])
def test_only_forwards_that_are_listened_to_count_and_of_several_the_last(name):
    net, layers, x = prepared(name)
    kept = TrainingFeatures(net, layers)
    with kept.listen(True):
        net(x)
    expected = [feature.clone() for feature in kept.take()]
    with kept.listen(True):
        net(x + 4.0)
        net(x)
    net(x + 1.0)
    with kept.listen(False):
        net(x + 2.0)
    torch.testing.assert_close(kept.take(), expected)


@pytest.mark.parametrize("name", ["mlp", "resnet18", "functional"])
def test_other_forwards_leave_nothing(name):
    net, layers, x = prepared(name)
    kept = TrainingFeatures(net, layers)
    net(x)
    with kept.listen(False):
        net(x)
    if name != "functional":
        copied = copy.deepcopy(net)
        with kept.listen(True):
            copied(x)
    with pytest.raises(ConfigError, match="did not run in the forward"):
        kept.take()


def test_they_are_references_but_for_those_that_are_overwritten():
    net, layers, x = prepared("overwriting")
    outputs: list[Tensor] = []
    for module in (net.act, net.tanh):
        module.register_forward_hook(lambda _, __, output: outputs.append(output))
    kept = TrainingFeatures(net, layers)
    for _ in range(2):
        outputs.clear()
        with kept.listen(True):
            net(x)
        found = kept.take()
    assert found[0].data_ptr() != outputs[0].data_ptr()
    assert found[1].data_ptr() == outputs[1].data_ptr()


def test_nothing_is_held_once_they_are_taken():
    net, layers, x = prepared("mlp")
    kept = TrainingFeatures(net, layers)
    for _ in range(2):
        with kept.listen(True):
            net(x)
        alive = [weakref.ref(feature) for feature in kept.take()]
    gc.collect()
    assert [ref() for ref in alive] == [None, None]


def test_features_of_a_forward_without_the_modules_can_be_given():
    net, layers, _ = prepared("mlp")
    kept = TrainingFeatures(net, layers)
    given = [torch.randn(1, 5), torch.randn(1, 4)]
    with kept.listen(True):
        kept.give(given)
    assert kept.take() is given


def test_an_activation_that_does_not_run_is_told():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    layer = Layer("hidden", 5, Site("1", call=1), ())
    kept = TrainingFeatures(net, [layer])
    with kept.listen(True):
        net(torch.randn(2, 4))
    with pytest.raises(ConfigError, match="did not run in the forward"):
        kept.take()
