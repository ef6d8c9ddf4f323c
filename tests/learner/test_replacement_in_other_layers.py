"""Unit replacement where layers are weight-normalised, or units own several rows or columns; refusals of the others."""

import copy

import pytest
import torch
from torch import Tensor, nn

from plans import make_plan
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.learner.replacement import FreshWeights, Init, compensate, replace_units
from plastiscope.learner.unit_parameters import ByIndex, ResidualMode, UnitSet, unit_sets
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.net import NetConfig

WEIGHT_NORMALISED = Layers(kind=Kind.weight_normalised)


def make(config: NetConfig, *shape: int) -> tuple[nn.Module, tuple[UnitSet, ...], Tensor]:
    """A network in evaluation mode with weights away from their start, its units, and inputs."""
    torch.manual_seed(0)
    net = config.make(shape, 3).double().eval()
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.rand(tensor.shape, dtype=tensor.dtype) * 0.3)
    return net, unit_sets(net, net.unit_description(), ResidualMode.inner_only), torch.randn(20, *shape).double()


def replace(net: nn.Module, units: UnitSet, *ids: int) -> None:
    fresh = FreshWeights(0, Init.kaiming, lambda k: net, units.parts)
    generations = {units.name: torch.zeros(units.width, dtype=torch.int64)}
    with torch.no_grad():
        replace_units([(units, ByIndex(torch.tensor(ids)))], fresh, generations, None)


NETS = {
    "mlp": (Mlp(widths=[6, 5], layers=WEIGHT_NORMALISED), (4,)),
    "convnet": (ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[6], layers=WEIGHT_NORMALISED), (2, 13, 13)),
    "crelu": (Mlp(widths=[6, 5], activation=Activation.crelu, layers=WEIGHT_NORMALISED), (4,)),
}


@pytest.mark.parametrize(("config", "shape"), NETS.values(), ids=NETS)
def test_a_weight_normalised_reader_keeps_its_other_weights(config, shape):
    net, sets, _ = make(config, *shape)
    for units in sets:
        (part,) = units.parts
        changed = copy.deepcopy(net)
        (of_copy,) = [
            s for s in unit_sets(changed, net.unit_description(), ResidualMode.inner_only) if s.name == units.name
        ]
        replace(changed, of_copy, 1, 3)
        reader = part.consumers[0].weight.name.rpartition(".")[0]
        before, after = (n.get_submodule(reader).effective_weight().detach() for n in (net, changed))
        own = torch.zeros(before.shape[1], dtype=torch.bool)
        for consumer in part.consumers:
            block, offset = consumer.weight.block, consumer.weight.offset
            for unit in (1, 3):
                own[offset + unit * block : offset + (unit + 1) * block] = True
        assert not after[:, own].any() and own.any()
        torch.testing.assert_close(after[:, ~own], before[:, ~own], rtol=0, atol=1e-12)


def test_a_fresh_weight_normalised_unit_has_a_fresh_row_and_scale_1():
    net, sets, _ = make(NETS["mlp"][0], 4)
    before = copy.deepcopy(net)
    replace(net, sets[0], 2)
    assert net.linear_1.scale[2] == 1.0 and net.linear_1.bias[2] == 0.0
    assert not torch.equal(net.linear_1.weight[2], before.linear_1.weight[2])
    others = [0, 1, 3, 4, 5]
    for name in ("weight", "scale", "bias"):
        assert torch.equal(getattr(net.linear_1, name)[others], getattr(before.linear_1, name)[others])


def test_constant_units_of_a_weight_normalised_net_are_compensated_exactly():
    net, sets, x = make(NETS["mlp"][0], 4)
    x = x[:1].expand(20, -1)  # all units are constant
    expected = net(x).detach()
    mean = net.get_submodule("activation_1")(net.linear_1(x)).mean(0).detach()
    with torch.no_grad():
        compensate(sets[0].parts[0], ByIndex(torch.tensor([0, 4])), mean, at_norms=True)
    replace(net, sets[0], 0, 4)
    torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-10)


def test_all_rows_of_a_maxout_unit_and_of_its_norm_are_fresh():
    config = Mlp(widths=[4], activation=Activation.maxout, norm=Norm.batch, layers=Layers(maxout_pieces=3))
    net, sets, _ = make(config, 5)
    before = copy.deepcopy(net)
    replace(net, sets[0], 2)
    rows = torch.zeros(12, dtype=torch.bool)
    rows[6:9] = True
    for name, fresh in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
        found, old = getattr(net.norm_1, name), getattr(before.norm_1, name)
        assert (found[rows] == fresh).all() and torch.equal(found[~rows], old[~rows])
    changed = (net.linear_1.weight != before.linear_1.weight).all(1)
    assert torch.equal(changed, rows)
    assert not net.linear_1.bias[rows].any() and not net.head.weight[:, 2].any()


def test_both_columns_of_a_crelu_unit_are_zeroed_and_nothing_is_compensated():
    net, sets, x = make(Mlp(widths=[6], activation=Activation.crelu), 4)
    bias = net.head.bias.detach().clone()
    with torch.no_grad():
        compensate(sets[0].parts[0], ByIndex(torch.tensor([1])), torch.ones(6).double(), at_norms=True)
    assert torch.equal(net.head.bias, bias)
    replace(net, sets[0], 1)
    assert not net.head.weight[:, [1, 7]].any()
    others = [i for i in range(12) if i not in (1, 7)]
    assert net.head.weight[:, others].all()
    expected = net(x).detach()
    with torch.no_grad():
        net.linear_1.weight[1] += 1.0
    assert torch.equal(net(x), expected)


@pytest.mark.parametrize("learner", ["redo", "continual_backprop"])
@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("net.layers.kind=svd",), "linear_1 of this network cannot be replaced: linear_1 holds factors"),
        (("net.layers.kind=projection",), "the fixed projection in linear_1 mixes the rows"),
        (("net.layers.kind=projection", "net.layers.phi_at=map"), "its units are read by 'FixedProjection'"),
    ],
    ids=["svd", "projection", "mapped"],
)
def test_layers_whose_units_cannot_be_reset_are_refused(learner, layers, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        run(make_plan(f"learner={learner}", "num_tasks=1", "epochs=1", "net=mlp", *layers), tmp_path / "run")


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("net", ["net.layers.kind=weight_normalised", "net.activation=maxout", "net.activation=prelu"])
def test_continual_backprop_runs_on_them(net, optimizer, tmp_path):
    plan = make_plan(
        *("learner=continual_backprop", f"learner.optimizer={optimizer}", "learner.replacement_rate=0.1"),
        *("learner.maturity_threshold=2", "learner.lr=0.01", "learner.weight_decay=0.1", "net=mlp", "net.widths=[8,6]"),
        *(net, "num_tasks=2", "epochs=1", "data.samples_per_class=8", "batch_size=8", "threads=1", "analysis=[]"),
    )
    run(plan, tmp_path / "run")
    assert '"learner/' in (tmp_path / "run" / "metrics.jsonl").read_text()
