"""ReDo: scores, whom they choose, and what is left of the chosen."""

import copy

import pytest
import torch
from learning import assert_equal_states, batches, before_mechanism, start, state_of
from torch import Tensor

from plans import make_plan
from plastiscope.error import ConfigError
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.redo import Redo, RedoLearner, dormancy_scores
from plastiscope.learner.unit_parameters import ByMask, ResidualMode
from plastiscope.net.activation import Activation
from plastiscope.net.capture import capture
from plastiscope.net.convnet import ConvNet
from plastiscope.net.mlp import Mlp
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.units import by_unit

NETS = {
    "mlp": (Mlp(widths=[20, 10]), (5,)),
    "convnet": (ConvNet(channels=[6, 8], kernel_sizes=[3, 3], widths=[9]), (2, 14, 14)),
    "resnet18": (ResNet18(width=4), (3, 8, 8)),
}


def test_scores_are_shares_of_the_layers_mean():
    h = torch.tensor([[1.0, 0.0, -3.0, 0.5], [3.0, 0.0, 3.0, -0.5]])
    assert dormancy_scores(h, 1).tolist() == pytest.approx([2 / 1.375, 0.0, 3 / 1.375, 0.5 / 1.375])
    positions = torch.stack([h, 0.0 * h], 2)
    torch.testing.assert_close(dormancy_scores(positions, 1), dormancy_scores(h, 1))
    torch.testing.assert_close(dormancy_scores(positions.transpose(1, 2), 2), dormancy_scores(h, 1))
    torch.testing.assert_close(dormancy_scores(torch.stack([h, 2 * h]), 1, lead=1)[1], dormancy_scores(h, 1))


def test_all_units_of_a_silent_layer_are_dormant():
    scores = dormancy_scores(torch.zeros(3, 4), 1)
    assert scores.tolist() == [0.0] * 4
    learner = start(Redo(reset_period=1, tau=0.0, lr=0.0), Mlp(widths=[4]), (5,))
    with torch.no_grad():
        learner.net.linear_1.weight.zero_()
        learner.net.linear_1.bias.fill_(-1.0)
    learner.step(batches((5,), [6])[0])
    assert learner.numbers() == {"total/replaced": 4.0, "linear_1/replaced": 4.0}
    assert all(torch.isfinite(p).all() for p in learner.net.parameters())


def test_what_is_not_a_number_is_not_dormant():
    scores = dormancy_scores(torch.tensor([[float("nan"), 1.0]]), 1)
    assert not (scores <= 0.1).any()


def test_a_saturated_unit_is_not_dormant():
    """A tanh unit constantly at -1 has the largest E|h| of all."""
    learner = start(Redo(reset_period=1, tau=0.3), Mlp(widths=[3], activation=Activation.tanh), (5,))
    with torch.no_grad():
        learner.net.linear_1.weight[0] = 0.0
        learner.net.linear_1.bias[0] = -50.0
        learner.net.linear_1.weight[1] = 1e-6
        learner.net.linear_1.bias[1] = 0.0
    learner.step(batches((5,), [6])[0])
    assert learner.generations["linear_1"].tolist() == [0, 1, 0]


def magnitudes(learner: RedoLearner, inputs: Tensor) -> dict[str, Tensor]:
    """E|h| of each layer of the learner in a forward of a copy of its network."""
    copied, found = copy.deepcopy(learner.net), {}
    by_site = {part.layer.site: part.layer for part in learner.parts}

    def receive(site, h):
        layer = by_site[site]
        found[layer.name] = by_unit(h, layer.unit_axis).abs().mean((0, 2))

    with torch.no_grad(), capture(copied, by_site, receive):
        copied(inputs)
    return found


@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
@pytest.mark.parametrize("net", NETS)
def test_at_the_end_of_each_period_the_dormant_units_are_replaced_completely(net, optimizer):
    config = Redo(reset_period=3, tau=0.9, lr=0.01, optimizer=optimizer)
    learner = start(config, *NETS[net])
    replaced = 0
    for step, batch in enumerate(batches(NETS[net][1], [6] * 9), start=1):
        seen = magnitudes(learner, batch.inputs)
        before = {name: value.clone() for name, value in learner.generations.items()}
        updated: dict[str, Tensor] = {}
        before_mechanism(learner, lambda updated=updated: updated.update(state_of(learner.net)))
        learner.step(batch)
        del learner.mechanism
        for units in learner.sets:
            (part,) = units.parts
            e = seen[part.layer.name]
            dormant = e <= 0.9 * e.mean() if step % 3 == 0 else torch.zeros_like(e, dtype=torch.bool)
            assert torch.equal(learner.generations[units.name] - before[units.name], dormant.long())
            outgoing, (weight, *_) = part.consumers[0].weight, part.weights
            assert not outgoing.view()[dormant].any()
            own = weight.view()[dormant]
            assert not own.numel() or (own != weight.view(updated[weight.name])[dormant]).any()
            kept, old = weight.view()[~dormant], weight.view(updated[weight.name])[~dormant]
            assert torch.equal(kept[kept != 0], old[kept != 0])  # 0 in the columns of replaced units before it
            replaced += int(dormant.sum())
    assert replaced > 3
    assert learner.numbers()["total/replaced"] == replaced


def test_momentum_of_the_replaced_is_cleared_in_blocks_where_channels_meet_a_linear_layer():
    """Two by two pixels: channel c owns columns 4c .. 4c + 3 of the weights that read it, and of their momentum."""
    learner = start(Redo(reset_period=100), *NETS["convnet"])
    for batch in batches((2, 14, 14), [6] * 3):
        learner.step(batch)
    momentum = learner.optimizer.state[learner.net.linear_1.weight]["momentum_buffer"]
    momentum.fill_(1.0)
    with torch.no_grad():
        learner.replace([(learner.sets[1], ByMask(torch.arange(8) == 5))])
    assert momentum.eq(0).all(0).nonzero().flatten().tolist() == [20, 21, 22, 23]
    assert momentum.eq(1).sum() == 9 * 28


def test_the_head_is_neither_scored_nor_reset():
    learner = start(Redo(reset_period=1, tau=1e9, lr=0.0), Mlp(widths=[4, 3]), (5,))
    bias = learner.net.head.bias.detach().clone()
    learner.step(batches((5,), [6])[0])
    assert set(learner.generations) == {"linear_1", "linear_2"}
    assert learner.numbers()["total/replaced"] == 7
    assert torch.equal(learner.net.head.bias, bias)


def test_tied_units_are_scored_by_the_mean_of_their_layers():
    learner = start(Redo(reset_period=1, tau=0.8, residual_mode=ResidualMode.group), *NETS["resnet18"])
    (batch,) = batches((3, 8, 8), [6])
    seen = magnitudes(learner, batch.inputs)
    learner.step(batch)
    for units in learner.sets:
        scores = [seen[part.layer.name] / seen[part.layer.name].mean() for part in units.parts]
        dormant = torch.stack(scores).mean(0) <= 0.8
        assert torch.equal(learner.generations[units.name] == 1, dormant)


@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
def test_it_goes_on_from_its_state_bit_for_bit(optimizer):
    config = Redo(reset_period=4, tau=0.7, lr=0.01, optimizer=optimizer)
    given = batches((5,), [6] * 18, dtype=torch.float32)
    whole, half, again = (start(config, *NETS["mlp"], dtype=torch.float32) for _ in range(3))
    for batch in given:
        whole.step(batch)
    for batch in given[:10]:
        half.step(batch)
    again.net.load_state_dict(copy.deepcopy(half.net.state_dict()))
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    for batch in given[10:]:
        again.step(batch)
    assert_equal_states(whole.state_dict(), again.state_dict())
    assert_equal_states(dict(whole.net.state_dict()), dict(again.net.state_dict()))
    assert whole.numbers()["total/replaced"] > half.numbers()["total/replaced"] > 0


def test_counts_start_anew_with_each_task():
    learner = start(Redo(reset_period=1, tau=1e9), Mlp(widths=[4]), (5,))
    learner.step(batches((5,), [6])[0])
    learner.end_task()
    assert learner.numbers() == {"total/replaced": 0.0, "linear_1/replaced": 0.0}


@pytest.mark.parametrize("wrong", [{"reset_period": 0}, {"tau": -0.1}])
def test_ranges(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Redo(**wrong)


def test_unknown_settings_are_refused():
    with pytest.raises(ConfigError, match=r"learner\.period: there is no such setting"):
        make_plan("learner=redo", "+learner.period=5")
