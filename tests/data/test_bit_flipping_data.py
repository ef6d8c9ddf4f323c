"""The target network of the bit-flipping problem, and the samples of random bits."""

import numpy as np
import pytest
import torch

from plans import make_plan
from plastiscope.data.bit_flipping import BitFlipping, TargetNetwork, ThresholdForm, random_bits
from plastiscope.data.stream import AsTheyCome
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.measure.loss import Loss
from plastiscope.run.status import read_status

CPU = torch.device("cpu")


def target(weights, biases, outgoing, bias, beta, form=ThresholdForm.counted):
    tensors = (torch.tensor(values, dtype=torch.float64) for values in (weights, biases, outgoing))
    return TargetNetwork(*tensors, bias, beta, form)


def every_input(m: int) -> torch.Tensor:
    return (torch.arange(2**m).unsqueeze(1) >> torch.arange(m) & 1).float()


def test_a_unit_by_hand():
    """Three bits, w = (1, -1, 1), b = 1: one -1 among four, so tau = 0.7 * 4 - 1 = 1.8, and 2 or more is on."""
    net = target([[1, -1, 1]], [1], [-1], 1.0, 0.7)
    assert net.thresholds.tolist() == pytest.approx([1.8])
    on = {tuple(x.int().tolist()) for x, unit in zip(every_input(3), net.units(every_input(3)), strict=True) if unit}
    assert on == {(1, 0, 0), (0, 0, 1), (1, 0, 1), (1, 1, 1)}
    assert net(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.7])
def test_a_unit_is_on_where_more_than_the_share_beta_of_its_inputs_agrees_with_their_weights(beta):
    """An input agrees: it is on and its weight +1, or off and its weight -1; the bias is an input that is always on."""
    net, x = TargetNetwork.drawn(6, 40, beta, ThresholdForm.counted, seed=3), every_input(6)
    on = torch.cat([x, torch.ones(len(x), 1)], 1).unsqueeze(1) > 0
    weights = torch.cat([net.weights, net.biases.unsqueeze(1)], 1) > 0
    agreeing = (on == weights).sum(-1)
    assert torch.equal(net.units(x).bool(), agreeing > beta * 7)
    assert 0 < net.units(x).mean() < 1


def test_the_published_form_differs_by_the_bias_less_one_half():
    counted = TargetNetwork.drawn(20, 100, 0.7, ThresholdForm.counted, seed=0)
    published = TargetNetwork.drawn(20, 100, 0.7, ThresholdForm.as_published, seed=0)
    assert torch.equal(counted.weights, published.weights)
    lowered = [0.7 * 21 - net.thresholds for net in (published, counted)]
    assert torch.allclose(lowered[0] - lowered[1], counted.biases - 0.5, rtol=0, atol=1e-12)
    minus_ones = (counted.weights < 0).sum(1) + (counted.biases < 0)
    assert torch.allclose(lowered[1], minus_ones.double(), rtol=0, atol=1e-12)
    m, w, b = 20, published.weights.sum(1), published.biases
    assert torch.allclose(lowered[0], (m - w + b) / 2, rtol=0, atol=1e-12)


def test_the_target_is_a_sum_of_units_by_brute_force():
    net, x = TargetNetwork.drawn(5, 7, 0.6, ThresholdForm.as_published, seed=1), every_input(5)
    w, b, v, tau = (t.numpy() for t in (net.weights, net.biases, net.outgoing, net.thresholds))
    assert {*np.unique(w), *np.unique(b), *np.unique(v), net.outgoing_bias} <= {-1.0, 1.0}
    for row, found in zip(x.numpy(), net(x), strict=True):
        units = [1.0 if sum(w[i, j] * row[j] for j in range(5)) + b[i] > tau[i] else 0.0 for i in range(7)]
        assert found.item() == sum(v[i] * units[i] for i in range(7)) + net.outgoing_bias


def test_bits_are_fair_independent_and_belong_to_their_ids():
    ids = torch.arange(40_000)
    bits = random_bits(5, "test", ids, 20)
    assert set(bits.unique().tolist()) == {0.0, 1.0}
    assert ((bits.mean(0) - 0.5).abs() < 4 * 0.5 / 200).all()
    correlation = torch.corrcoef(bits.T) - torch.eye(20)
    assert correlation.abs().max() < 5 / 200
    some = torch.tensor([39_999, 3, 17])
    assert torch.equal(random_bits(5, "test", some, 20), bits[some])
    assert torch.equal(random_bits(5, "test", some, 7), bits[some, :7])
    assert not torch.equal(random_bits(6, "test", ids, 20), bits)
    assert not torch.equal(random_bits(5, "other", ids, 20), bits)


def test_the_finite_set_is_a_function_of_the_seed():
    config = BitFlipping(samples=300, test_samples=40)
    data, again, other = (config.load(seed, CPU) for seed in (0, 0, 1))
    assert (len(data.train), len(data.test), data.validation, data.outputs, data.loss) == (300, 40, None, 1, Loss.mse)
    assert data.input_shape == (20,) and data.train.ids.tolist() == list(range(300))
    assert torch.equal(data.train.targets, again.train.targets) and data.description == again.description
    assert data.description["target_hash"] != other.description["target_hash"]
    assert not torch.equal(data.train.source.inputs, other.train.source.inputs)
    assert not torch.equal(data.train.source.inputs[:40], data.test.source.inputs)
    assert torch.equal(data.train.targets, data.target(data.train.source.inputs))
    assert data.train.targets.dtype == torch.float32 and data.train.targets.unique().numel() > 5


@pytest.mark.parametrize(
    ("field", "value"), [("inputs", 65), ("inputs", 0), ("target_units", 0), ("beta", 1.5), ("samples", 0)]
)
def test_ranges(field, value):
    with pytest.raises(ConfigError, match=field):
        BitFlipping(**{field: value})


def test_as_they_come_is_the_order_of_the_view():
    rows = torch.tensor([5, 2, 9])
    order = AsTheyCome(torch.tensor([1.0, 2.0]))
    assert order.positions(rows, rows).tolist() == [0, 1, 2]
    assert order.weights_of(torch.tensor([1, 0])).tolist() == [2.0, 1.0] and AsTheyCome().weights_of(rows) is None
    assert order.name == "as they come"


def test_other_shifts_make_tasks_of_the_finite_set(tmp_path):
    """Per-sample analyses work on it, as it is no stream."""
    few = ("data=bit_flipping", "data.samples=40", "data.test_samples=8", "num_tasks=2", "epochs=1", "batch_size=20")
    plan = make_plan(*few, "task_shift_mode=permuted_input", "analysis=[csl]", "selection=last", "threads=1")
    run(plan, tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "done"
