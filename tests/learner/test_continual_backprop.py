"""Continual backprop against its rule written out unit by unit and step by step, in float64."""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from learning import assert_equal_states, batches, before_mechanism, start, state_of
from torch import Tensor

from plans import make_plan
from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError, RunError
from plastiscope.event import undisturbed
from plastiscope.experiment import run
from plastiscope.learner.budget import Count
from plastiscope.learner.continual_backprop import ContinualBackprop, ContinualBackpropLearner
from plastiscope.learner.learner import Reset
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.replacement import Init
from plastiscope.learner.unit_parameters import ByIndex, ResidualMode
from plastiscope.learner.unit_statistics import BLOCK, FeatureMagnitude, UtilityType
from plastiscope.net.activation import Activation
from plastiscope.net.capture import capture
from plastiscope.net.convnet import ConvNet
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.units import by_unit
from tasks import make_task


@dataclass
class Reference:
    """One unit's statistics, by the published formulas."""

    utility: float = 0.0
    mean: float = 0.0
    magnitude: float = 0.0
    age: int = 0


@dataclass
class ReferenceLayer:
    """Utilities of one layer from features [n, units, positions] and weights, unit by unit."""

    kind: UtilityType
    decay: float
    width: int
    magnitude: FeatureMagnitude = FeatureMagnitude.mean
    units: list[Reference] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.units = [Reference() for _ in range(self.width)]

    def update(self, feature: Tensor, incoming: list[Tensor], outgoing: list[Tensor]) -> None:
        for i, unit in enumerate(self.units):
            h = feature[:, i].flatten()
            unit.age += 1
            unit.mean = self.decay * unit.mean + (1 - self.decay) * h.mean().item()
            corrected = unit.mean / (1 - self.decay**unit.age)
            out = torch.cat([w[i].flatten() for w in outgoing]).abs().mean().item()
            into = torch.cat([w[i].flatten() for w in incoming]).abs()
            into = max(into.sum().item(), 1e-12) / into.numel()
            absolute, deviation = h.abs().mean().item(), (h - corrected).abs().mean().item()
            unit.magnitude += (1 - self.decay) * absolute
            if self.magnitude is FeatureMagnitude.cumulative:
                absolute = unit.magnitude
            y = {
                "weight": out,
                "contribution": out * absolute,
                "zero_contribution": out * deviation,
                "adaptation": 1 / into,
                "adaptable_contribution": out * deviation / into,
                "feature_by_input": deviation / into,
                "random": 0.0,
            }[self.kind.value]
            unit.utility = self.decay * unit.utility + (1 - self.decay) * y

    def corrected(self, what: str) -> Tensor:
        values = [getattr(unit, what) / (1 - self.decay**unit.age) for unit in self.units]
        return torch.tensor(values, dtype=torch.float64)


def features_of(learner: ContinualBackpropLearner, batch: Batch) -> list[Tensor]:
    """Features of the learner's layers before its step, [n, units, positions]."""
    copied = copy.deepcopy(learner.net)
    seen: dict[Any, Tensor] = {}
    layers = [part.layer for part in learner.parts]
    with (
        capture(copied, [layer.site for layer in layers], lambda site, h: seen.update({site: h.clone()})),
        torch.no_grad(),
    ):
        copied(batch.inputs)
    return [by_unit(seen[layer.site], layer.unit_axis) for layer in layers]


def follow(learner: ContinualBackpropLearner, given: list[Batch], asks: bool = True) -> Iterator[list[ReferenceLayer]]:
    """Step the learner beside the reference, which is told what was replaced; yields the reference before that.

    The learner is brought up to date after each step if `asks`.
    """
    config = learner.config
    layers = [
        ReferenceLayer(config.util_type, config.decay_rate, part.layer.width, config.feature_magnitude)
        for part in learner.parts
    ]
    for batch in given:
        features = features_of(learner, batch)
        seen: list[list[ReferenceLayer]] = []

        def look(features: list[Tensor] = features, seen: list = seen) -> None:
            for layer, part, feature in zip(layers, learner.parts, features, strict=True):
                outgoing = [c.weight.view(c.weight.effective()) for c in part.consumers]
                layer.update(feature, [w.view(w.effective()) for w in part.weights], outgoing)
            seen.append(copy.deepcopy(layers))

        generations = {name: value.clone() for name, value in learner.generations.items()}
        before_mechanism(learner, look)
        learner.step(batch)
        del learner.mechanism
        if asks:
            learner.statistics.work_off()
        for units in learner.sets:
            for i in (learner.generations[units.name] != generations[units.name]).nonzero().flatten().tolist():
                for part, layer in zip(learner.parts, layers, strict=True):
                    if part in units.parts:
                        layer.units[i] = Reference(magnitude=layer.units[i].magnitude)
        yield seen[0]


NETS = {
    "mlp": (Mlp(widths=[7, 6]), (5,)),
    "convnet": (ConvNet(channels=[4, 5], kernel_sizes=[3, 2], widths=[6]), (2, 13, 13)),
    "resnet18": (ResNet18(width=4), (3, 8, 8)),
    "tanh": (Mlp(widths=[7, 6], activation=Activation.tanh), (5,)),
    "normalised": (Mlp(widths=[7, 6], layers=Layers(kind=Kind.weight_normalised)), (5,)),
}
every_kind = pytest.mark.parametrize("kind", UtilityType)
QUICK = {"decay_rate": 0.9, "lr": 0.05}


def assert_statistics(learner: ContinualBackpropLearner, layers: list[ReferenceLayer]) -> None:
    for part, layer in zip(learner.parts, layers, strict=True):
        if learner.config.util_type is not UtilityType.random:
            torch.testing.assert_close(
                learner.statistics.corrected_utility(part), layer.corrected("utility"), rtol=1e-9, atol=1e-12
            )
        if learner.statistics.keeps_mean:
            torch.testing.assert_close(
                learner.statistics.corrected_mean(part), layer.corrected("mean"), rtol=1e-9, atol=1e-12
            )


@every_kind
@pytest.mark.parametrize("net", ["mlp", "convnet", "normalised", "tanh"])
def test_utilities_on_batches_the_last_one_ragged(net, kind):
    config, shape = NETS[net]
    learner = start(ContinualBackprop(util_type=kind, replacement_rate=0.0, **QUICK), config, shape)
    for layers in follow(learner, batches(shape, [6, 6, 6, 2, 6, 3])):
        assert_statistics(learner, layers)


@pytest.mark.parametrize("mode", ResidualMode)
def test_utilities_of_residual_layers(mode):
    config, shape = NETS["resnet18"]
    learner = start(ContinualBackprop(replacement_rate=0.0, residual_mode=mode, **QUICK), config, shape)
    for layers in follow(learner, batches(shape, [4, 4, 2])):
        assert_statistics(learner, layers)


@every_kind
def test_utilities_on_single_samples_are_those_of_each_step_though_blocks_are_worked_off_at_once(kind):
    learner = start(ContinualBackprop(util_type=kind, replacement_rate=0.0, **QUICK), *NETS["tanh"])
    given = batches((5,), [1] * (2 * BLOCK + 5) + [3] + [1] * 4)
    seen = [(learner.statistics.noted, layers) for layers in follow(learner, given, asks=False)]
    assert [noted for noted, _ in seen] == [*([*range(1, BLOCK), 0] * 2), 1, 2, 3, 4, 5, 0, 1, 2, 3, 4]
    learner.statistics.work_off()
    assert_statistics(learner, seen[-1][1])


@pytest.mark.parametrize("sizes", [[5] * 12, [1] * (BLOCK + 8)], ids=["batches", "single samples"])
def test_a_cumulative_magnitude_is_a_sum_that_nothing_resets(sizes):
    config = ContinualBackprop(
        feature_magnitude=FeatureMagnitude.cumulative, replacement_rate=0.05, maturity_threshold=3, **QUICK
    )
    learner = start(config, *NETS["mlp"])
    for layers in follow(learner, batches((5,), sizes)):
        magnitudes = torch.tensor([unit.magnitude for layer in layers for unit in layer.units], dtype=torch.float64)
        torch.testing.assert_close(learner.statistics.magnitude, magnitudes)
    assert sum(learner.replaced.values()) > 0


def test_the_published_sum_is_ten_times_the_mean_after_1000_steps():
    """|h| = 1 for 1000 steps at decay 0.99: the mean is 1.000, the published sum 10.0; a fresh unit starts from 0."""
    found = {}
    for magnitude in FeatureMagnitude:
        config = ContinualBackprop(feature_magnitude=magnitude, replacement_rate=0.0)
        learner = start(config, Mlp(widths=[2]), (3,))
        with torch.no_grad():
            learner.net.head.weight.fill_(1.0)
            for _ in range(1000):
                learner.statistics.update([torch.ones(1, 2, dtype=torch.float64)])
        learner.statistics.work_off()
        found[magnitude] = learner.statistics
    part = learner.parts[0]
    mean, cumulative = found[FeatureMagnitude.mean], found[FeatureMagnitude.cumulative]
    assert mean.corrected_utility(next(iter(mean.places))).tolist() == pytest.approx([1.0, 1.0], rel=1e-12)
    assert mean.utility.tolist() == pytest.approx([1.0, 1.0], abs=5e-5)
    assert cumulative.magnitude.tolist() == pytest.approx([10.0, 10.0])
    for statistics in (mean, cumulative):
        statistics.start_anew(next(iter(statistics.places)), ByIndex(torch.tensor([1])), 1000)
    assert mean.utility[1] == mean.mean[1] == mean.correction[1] == 0.0
    assert cumulative.magnitude.tolist() == pytest.approx([10.0, 10.0])
    assert part.layer.width == 2


def test_the_ranking_is_by_corrected_utility():
    """With y = 1 at all times u^ = 1 at every age: a unit of age 101 and one of age 10,000 tie."""
    learner = start(ContinualBackprop(util_type=UtilityType.weight, replacement_rate=0.0), Mlp(widths=[2]), (3,))
    statistics = learner.statistics
    with torch.no_grad():
        learner.net.head.weight.fill_(1.0)
        for step in range(1, 10_001):
            statistics.update([])
            if step == 9_899:
                statistics.work_off()
                statistics.start_anew(learner.parts[0], ByIndex(torch.tensor([1])), step)
    statistics.work_off()
    old, young = statistics.corrected_utility(learner.parts[0]).tolist()
    assert old == pytest.approx(1.0, abs=1e-12) and young == pytest.approx(1.0, abs=1e-12)
    assert statistics.utility[1].item() == pytest.approx(1 - 0.99**101)


@every_kind
@pytest.mark.parametrize("sizes", [[6] * 40, [1] * 80], ids=["batches", "single samples"])
def test_the_least_useful_mature_units_are_replaced_and_then_protected(kind, sizes):
    """The whole rule: count, choice among the mature, protection of fresh units, at every step."""
    config = ContinualBackprop(util_type=kind, replacement_rate=0.06, maturity_threshold=4, **QUICK)
    learner = start(config, *NETS["mlp"])
    carry = {units.name: 0.0 for units in learner.sets}
    before = {name: value.clone() for name, value in learner.generations.items()}
    replaced = 0
    for layers in follow(learner, batches((5,), sizes)):
        for units, layer in zip(learner.sets, layers, strict=True):
            mature = [i for i, unit in enumerate(layer.units) if unit.age > 4]
            carry[units.name] += 0.06 * len(mature)
            number = int(carry[units.name] + 1e-9)
            carry[units.name] -= number
            now = learner.generations[units.name]
            chosen = (now != before[units.name]).nonzero().flatten().tolist()
            before[units.name] = now.clone()
            assert len(chosen) == number
            assert set(chosen) <= set(mature)
            if kind is not UtilityType.random:
                ranked = sorted(mature, key=lambda i: layer.units[i].utility / (1 - 0.9 ** layer.units[i].age))
                assert set(chosen) == set(ranked[:number])
            replaced += number
    assert replaced > 10
    assert sum(learner.replaced.values()) == replaced
    assert learner.numbers()["total/replaced"] == replaced


def test_random_choices_differ_from_step_to_step_and_are_uniform():
    config = ContinualBackprop(util_type=UtilityType.random, replacement_rate=0.25, maturity_threshold=0)
    learner = start(config, Mlp(widths=[4]), (3,))
    for batch in batches((3,), [2] * 400):
        learner.step(batch)
    counts = learner.generations["linear_1"].double()
    assert counts.sum() == 400
    assert (counts - 100).abs().max() < 4 * (400 * 0.25 * 0.75) ** 0.5


def test_units_of_a_group_are_ranked_by_the_mean_of_their_layers():
    config = ContinualBackprop(replacement_rate=0.02, maturity_threshold=2, residual_mode=ResidualMode.group, **QUICK)
    learner = start(config, ResNet18(width=4), (3, 8, 8))
    before = {name: value.clone() for name, value in learner.generations.items()}
    checked = 0
    for layers in follow(learner, batches((3, 8, 8), [4] * 20)):
        of_part = dict(zip(learner.parts, layers, strict=True))
        for units in learner.sets:
            chosen = (learner.generations[units.name] != before[units.name]).nonzero().flatten().tolist()
            before[units.name] = learner.generations[units.name].clone()
            score = torch.stack([of_part[part].corrected("utility") for part in units.parts]).mean(0)
            young = torch.tensor([unit.age <= 2 for unit in of_part[units.parts[0]].units])
            ranked = score.masked_fill(young, float("inf")).argsort().tolist()
            assert set(chosen) == set(ranked[: len(chosen)])
            checked += len(chosen) * (len(units.parts) > 1)
    assert checked > 3


# Around the optimiser's step.


@pytest.mark.parametrize("optimizer", Optimizer)
def test_after_a_step_outgoing_weights_are_exactly_0(optimizer):
    config = ContinualBackprop(optimizer=optimizer, replacement_rate=0.1, maturity_threshold=2, lr=0.05)
    learner = start(config, *NETS["mlp"])
    for batch in batches((5,), [6] * 10):
        before = {name: value.clone() for name, value in learner.generations.items()}
        learner.step(batch)
        for units in learner.sets:
            new = learner.generations[units.name] != before[units.name]
            assert not units.parts[0].consumers[0].weight.view()[new].any()
            assert not units.parts[0].incoming[1].view()[new].any()
    assert learner.numbers()["total/replaced"] > 5


def test_constant_units_are_replaced_in_a_step_without_a_change_of_the_output():
    """The learner's own f^ after several steps on one input at step size 0, corrected for its short history."""
    config = ContinualBackprop(replacement_rate=0.125, maturity_threshold=3, lr=0.0)
    learner = start(config, Mlp(widths=[8, 8]), (5,))
    x = torch.rand(1, 5, dtype=torch.float64).expand(4, 5)
    before = learner.net(x).detach()
    for _ in range(4):
        learner.step(Batch(x, torch.zeros(4, dtype=torch.int64), torch.arange(4)))
    assert learner.replaced == {"linear_1": 1, "linear_2": 1}
    assert not torch.equal(learner.net.linear_2.bias, start(config, Mlp(widths=[8, 8]), (5,)).net.linear_2.bias)
    torch.testing.assert_close(learner.net(x), before, rtol=0, atol=1e-10)


def sigmoid(norm: Norm) -> Mlp:
    return Mlp(widths=[8, 8], norm=norm, activation=Activation.sigmoid)


@pytest.mark.parametrize(
    ("net", "compensate", "mode", "changed"),
    [
        (sigmoid(Norm.none), None, ResidualMode.inner_only, {"linear_2", "head"}),
        (sigmoid(Norm.none), False, ResidualMode.inner_only, set()),
        (sigmoid(Norm.none), None, ResidualMode.legacy, set()),
        (sigmoid(Norm.batch), None, ResidualMode.inner_only, {"head"}),
        (sigmoid(Norm.layer), None, ResidualMode.inner_only, {"linear_2", "head"}),
        (sigmoid(Norm.batch), True, ResidualMode.inner_only, {"linear_2", "head"}),
    ],
)
def test_which_biases_take_over(net, compensate, mode, changed):
    config = ContinualBackprop(
        replacement_rate=0.125, maturity_threshold=1, lr=0.0, compensate=compensate, residual_mode=mode
    )
    learner = start(config, net, (5,))
    before = state_of(learner.net)
    for batch in batches((5,), [6, 6]):
        learner.step(batch)
    after = state_of(learner.net)
    found = set()
    for units in learner.sets:
        new = learner.generations[units.name] > 0
        assert new.sum() == 1
        bias = units.parts[0].consumers[0].weight.name.replace("weight", "bias")
        own = learner.generations.get(bias.removesuffix(".bias"))
        kept = torch.ones(len(after[bias]), dtype=torch.bool) if own is None else own == 0
        if (after[bias] != before[bias])[kept].any():
            found.add(bias.removesuffix(".bias"))
    assert found == changed


def test_evaluation_leaves_no_trace():
    config = ContinualBackprop(replacement_rate=0.05, maturity_threshold=2)
    one, other = (start(config, *NETS["convnet"]) for _ in range(2))
    for batch in batches((2, 13, 13), [6] * 8):
        one.step(batch)
        other.step(batch)
        before = copy.deepcopy(other.state_dict())
        with undisturbed(other.net), torch.no_grad():
            other.net(batch.inputs + 1.0)
        other.net(batch.inputs - 1.0)
        assert_equal_states(before, other.state_dict())
    assert_equal_states(one.state_dict(), other.state_dict())


def test_utilities_do_not_depend_on_the_order_of_samples():
    learners = [start(ContinualBackprop(replacement_rate=0.0, lr=0.0), *NETS["convnet"]) for _ in range(2)]
    for batch in batches((2, 13, 13), [6] * 3):
        turned = Batch(batch.inputs.flip(0), batch.targets.flip(0), batch.ids.flip(0))
        learners[0].step(batch)
        learners[1].step(turned)
    one, other = (learner.statistics.utility for learner in learners)
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_fresh_weights_do_not_depend_on_the_data():
    config = ContinualBackprop(replacement_rate=0.2, maturity_threshold=2, lr=0.0, util_type=UtilityType.random)
    learners = [start(config, *NETS["mlp"]) for _ in range(2)]
    for seed, learner in enumerate(learners):
        for batch in batches((5,), [6] * 12, seed=seed):
            learner.step(batch)
    one, other = (state_of(learner.net) for learner in learners)
    assert (learners[0].generations["linear_1"] > 0).any()
    assert torch.equal(one["linear_1.weight"], other["linear_1.weight"])


# State.


@pytest.mark.parametrize("optimizer", [Optimizer.sgd, Optimizer.adam])
@pytest.mark.parametrize(("net", "size"), [("mlp", 1), ("mlp", 6), ("convnet", 6)])
def test_it_goes_on_from_its_state_bit_for_bit(net, size, optimizer):
    """Saved in the middle of a block of steps, loaded into a fresh learner, which acts on its own network."""
    config = ContinualBackprop(optimizer=optimizer, replacement_rate=0.03, maturity_threshold=5, lr=0.01)
    given = batches(NETS[net][1], [size] * 50, dtype=torch.float32)
    whole, half, again = (start(config, *NETS[net], dtype=torch.float32) for _ in range(3))
    for batch in given:
        whole.step(batch)
    for batch in given[:23]:
        half.step(batch)
    again.net.load_state_dict(copy.deepcopy(half.net.state_dict()))
    again.load_state_dict(copy.deepcopy(half.state_dict()))
    count = sum(again.replaced.values())
    loaded = state_of(again.net)
    for batch in given[23:]:
        again.step(batch)
    assert sum(again.replaced.values()) > count > 0
    assert not torch.equal(loaded["head.weight"], again.net.head.weight)
    assert_equal_states(whole.state_dict(), again.state_dict())
    assert_equal_states(dict(whole.net.state_dict()), dict(again.net.state_dict()))


def test_state_is_tensors_by_layer_name():
    learner = start(ContinualBackprop(), *NETS["mlp"])
    state = learner.state_dict()
    assert list(state["units"]) == ["linear_1", "linear_2"]
    assert {name: tuple(value.shape) for name, value in state["units"]["linear_1"].items()} == {
        **dict.fromkeys(("utility", "correction", "mean_activation", "magnitude", "born"), (7,)),
        **dict.fromkeys(("noted_activations", "noted_outgoing", "noted_incoming"), (0, 7)),
    }


def test_a_network_that_is_reset_has_fresh_units_alone():
    config = ContinualBackprop(reset=Reset.network, replacement_rate=0.1, maturity_threshold=3)
    learner = start(config, *NETS["mlp"])
    for batch in batches((5,), [6] * 8):
        learner.step(batch)
    assert learner.numbers()["total/replaced"] > 0
    learner.end_task()
    learner.begin_task(make_task(3, index=1))
    assert not learner.statistics.utility.any() and not learner.statistics.correction.any()
    for batch in batches((5,), [6] * 3):
        learner.step(batch)
    assert learner.numbers()["total/replaced"] == 0
    for batch in batches((5,), [6] * 3):
        learner.step(batch)
    assert learner.numbers()["total/replaced"] > 0


def test_nan_is_never_chosen_before_a_number_and_is_told():
    learner = start(ContinualBackprop(replacement_rate=0.5, maturity_threshold=0), Mlp(widths=[4]), (5,))
    with torch.no_grad():
        learner.net.head.weight[0, 2] = float("inf")
        learner.statistics.update([torch.tensor([[1.0, 2.0, 0.0, 3.0]], dtype=torch.float64)])
        learner.statistics.work_off()
        assert learner.statistics.utility.isnan().tolist() == [False, False, True, False]
        learner.steps = 1
        assert sorted(learner._least_useful(learner.sets[0], 3).ids.tolist()) == [0, 1, 3]
        assert not all(torch.isfinite(value).all() for value in learner.must_be_finite().values())
        assert torch.isfinite(learner.largest_chosen)
        assert 2 in learner._least_useful(learner.sets[0], 4).ids.tolist()
        assert not torch.isfinite(learner.largest_chosen)


# Settings and whole runs.


@pytest.mark.parametrize(
    "wrong",
    [
        {"replacement_rate": 1.5},
        {"replacement_rate": -0.1},
        {"decay_rate": 1.0},
        {"maturity_threshold": -1},
        {"feature_magnitude": FeatureMagnitude.cumulative, "util_type": UtilityType.weight},
    ],
)
def test_ranges(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ContinualBackprop(**wrong)


@pytest.mark.parametrize("setting", ["mt=5", "maturity=5", "util_type=usefulness", "count=some", "replacement_rate=2"])
def test_unknown_settings_and_values_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"learner\.{setting.split('=')[0]}"):
        make_plan("learner=continual_backprop", f"+learner.{setting}" if setting[0] == "m" else f"learner.{setting}")


def test_a_reader_without_bias_cannot_take_over():
    from plastiscope.net.deep_linear import DeepLinear

    with pytest.raises(ConfigError, match=r"compensate=true: linear_2\.weight, which reads the units of linear_1"):
        start(ContinualBackprop(compensate=True), DeepLinear(widths=[4, 4]), (3,))
    start(ContinualBackprop(), DeepLinear(widths=[4, 4]), (3,))


SMALL = (
    *("learner=continual_backprop", "learner.replacement_rate=0.02", "learner.maturity_threshold=4"),
    *("data.samples_per_class=20", "data.test_samples_per_class=5", "batch_size=8", "selection=last", "analysis=[]"),
    *("learner.util_type=adaptable_contribution", "net.widths=[16,12]", "num_tasks=2", "epochs=2", "threads=1"),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(make_plan(*SMALL), folder)
    return folder


def test_replaced_units_are_logged_by_task_and_layer(finished):
    rows = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    ends = [row for row in rows if row["kind"] == "task_end"]
    for row in ends:
        assert row["learner/total/replaced"] == row["learner/linear_1/replaced"] + row["learner/linear_2/replaced"]
    assert ends[1]["learner/linear_1/replaced"] >= 3
    assert not [key for row in rows if row["kind"] == "epoch" for key in row if key.startswith("learner/")]


def test_a_unit_without_incoming_weights_has_a_finite_utility():
    """Nothing of 0/0: it varies with nothing, so by the utilities of what it contributes it is the first to go."""
    for kind in UtilityType:
        learner = start(ContinualBackprop(util_type=kind, replacement_rate=0.0), Mlp(widths=[4]), (5,))
        with torch.no_grad():
            learner.net.linear_1.weight[2] = 0.0
            learner.statistics.update([torch.tensor([[1.0, 2.0, 0.0, 3.0]], dtype=torch.float64)])
            learner.statistics.work_off()
        assert torch.isfinite(learner.statistics.utility).all()


def test_a_utility_that_is_not_finite_stops_the_run_before_anything_is_saved(tmp_path, monkeypatch):
    step = ContinualBackpropLearner.step

    def spoiled(self, batch):
        result = step(self, batch)
        self.statistics.utility[3] = float("inf")
        return result

    monkeypatch.setattr(ContinualBackpropLearner, "step", spoiled)
    with pytest.raises(RunError, match="the utility of a unit became NaN or infinite"):
        run(make_plan(*SMALL), tmp_path / "run")
    assert not list((tmp_path / "run" / "checkpoint").glob("*.pt"))


@pytest.mark.parametrize("learner", ["continual_backprop", "redo"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize(
    "net",
    [
        ("net=convnet", "data.resize=32", "net.channels=[4,4,4]", "net.widths=[6]"),
        ("net=resnet18", "net.width=4"),
        ("net=resnet18", "net.width=4", "learner.residual_mode=group"),
        ("net=resnet18", "net.width=4", "learner.residual_mode=legacy"),
        ("net=vit", "net.depth=1", "net.width=8", "net.heads=2", "net.hidden=6", "net.patch=4"),
    ],
    ids=["convnet", "inner_only", "group", "legacy", "vit"],
)
def test_whole_runs(learner, optimizer, net, tmp_path):
    own = {
        "continual_backprop": ("learner.replacement_rate=0.1", "learner.maturity_threshold=2", "learner.init=normal"),
        "redo": ("learner.reset_period=2", "learner.tau=0.9"),
    }[learner]
    plan = make_plan(
        *(f"learner={learner}", f"learner.optimizer={optimizer}", "learner.lr=0.001", *own, *net),
        *("num_tasks=1", "epochs=1", "data.samples_per_class=16", "data.test_samples_per_class=5", "batch_size=8"),
        *("threads=1", "analysis=[]"),
    )
    run(plan, tmp_path / "run")
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert row["learner/total/replaced"] > 0
    assert row["task_test_loss"] < 10


def test_counts_and_draws_as_published():
    config = ContinualBackprop(replacement_rate=0.3, maturity_threshold=2, count=Count.all, accumulate=False)
    learner = start(config, Mlp(widths=[5]), (3,))
    for batch in batches((3,), [4] * 6):
        learner.step(batch)
    assert learner.replaced == {"linear_1": 1 + 1 + 1 + 1}
    assert isinstance(learner, ContinualBackpropLearner) and config.init is Init.kaiming
