"""One pass over batches against forwards of one sample at a time, whose activations are compared number by number."""

import math
from collections import Counter

import pytest
import torch
from torch import nn

from net.net_cases import CASES, randomise, shared_relu
from plastiscope.analysis.dormancy_pass import (
    DormancyPass,
    Question,
    dormant_of_all,
    module_dormancy,
    sums_of_absolute,
)
from plastiscope.data.samples import Batch
from plastiscope.measure.sample_dormancy import Rule, Thresholds
from plastiscope.net.describe import describe
from plastiscope.net.module_outputs import module_outputs
from plastiscope.net.units import Layer

THRESHOLDS = Thresholds(eps=0.05, theta=0.6, tau=0.3)


def one_by_one(net: nn.Module, layers: tuple[Layer, ...], inputs: torch.Tensor) -> dict[str, list[list[list[float]]]]:
    """Values at positions of [sample][unit] of each layer, from forwards of one sample, by hooks of our own."""
    found: dict[str, list[list[list[float]]]] = {layer.name: [] for layer in layers}
    by_call = {(layer.site.module, layer.site.call): layer for layer in layers}
    calls: Counter[str] = Counter()
    hooks = []
    for path in {layer.site.module for layer in layers}:

        def keep(module, arguments, output, path=path):
            layer = by_call.get((path, calls[path]))
            calls[path] += 1
            if layer is not None:
                values = output[0].clone().movedim(layer.unit_axis - 1, 0).reshape(layer.width, -1)
                found[layer.name].append(values.tolist())

        hooks.append(net.get_submodule(path).register_forward_hook(keep))
    with torch.no_grad():
        for x in inputs:
            calls.clear()
            net(x[None])
    for hook in hooks:
        hook.remove()
    return found


def is_dormant(rule: Rule, unit: list[float], scale: float) -> bool:
    t, sizes = THRESHOLDS, [abs(value) for value in unit]
    return {
        Rule.persample_strict: max(sizes) <= t.eps,
        Rule.persample_rate: sum(size > t.eps for size in sizes) / len(sizes) < t.theta,
        Rule.persample_redo: math.fsum(sizes) / len(sizes) <= t.tau * scale,
        Rule.persample_module: max(unit) <= t.eps,
    }[rule]


def mean_absolute(layer: list[list[list[float]]]) -> float:
    sizes = [abs(value) for sample in layer for unit in sample for value in unit]
    return math.fsum(sizes) / len(sizes)


def in_batches(inputs: torch.Tensor, size: int) -> list[Batch]:
    return [Batch(x, i, i) for x, i in zip(inputs.split(size), torch.arange(len(inputs)).split(size), strict=True)]


@pytest.mark.parametrize("name", [name for name in CASES if name != "linear"])
def test_counts_are_those_of_one_sample_at_a_time(name):
    case = CASES[name]
    net, inputs = randomise(case.make(torch.float64)), case.inputs(7, torch.float64)
    units = describe(net, inputs[:2])
    groups = {
        "hidden": units.layers,
        "raw": module_outputs(net, inputs[:2]),
        "attention": units.attention_outputs,
        "norm": units.norm_outputs,
    }
    questions = [
        Question(f"{rule.value}_{at}", rule, layers) for rule in Rule for at, layers in groups.items() if layers
    ]
    layers = {layer.site: layer for question in questions for layer in question.layers}
    sums = sums_of_absolute(net, layers.values(), in_batches(inputs, 3))
    scales = {site: (total / n).item() for site, (total, n) in sums.items()}
    counted = DormancyPass(net=net, questions=questions, thresholds=THRESHOLDS, scales=scales).count(
        in_batches(inputs, 3)
    )
    assert counted["ids"].tolist() == list(range(7))
    seen = set()
    for question in questions:
        values = one_by_one(net, question.layers, inputs)
        dormant_per_sample = [0] * 7
        for layer, label in zip(question.layers, question.names, strict=True):
            scale = mean_absolute(values[layer.name])
            assert scales[layer.site] == pytest.approx(scale, rel=1e-12)
            expected = [[is_dormant(question.rule, unit, scale) for unit in sample] for sample in values[layer.name]]
            assert counted[label].tolist() == [sum(sample) for sample in expected], label
            assert counted[f"silent/{label}"].tolist() == [sum(unit) for unit in zip(*expected, strict=True)], label
            dormant_per_sample = [n + sum(sample) for n, sample in zip(dormant_per_sample, expected, strict=True)]
            seen |= {value for sample in expected for value in sample}
        assert dormant_of_all(counted, question).tolist() == dormant_per_sample
        assert question.num_units == sum(len(values[layer.name][0]) for layer in question.layers)
    assert seen == {True, False}


def test_two_questions_about_one_site_have_both_answers():
    """A network without activations has its hidden layers at the raw outputs."""
    case = CASES["deep_linear"]
    net, inputs = case.make(), case.inputs(5)
    raw, hidden = module_outputs(net, inputs), describe(net, inputs).layers
    rule = Rule.persample_strict
    questions = [Question("hidden", rule, hidden), Question("raw", rule, raw)]
    thresholds = Thresholds(eps=0.1)
    counted = DormancyPass(net=net, questions=questions, thresholds=thresholds, scales={}).count(in_batches(inputs, 2))
    assert all((counted[f"hidden.{layer.name}"] == counted[f"raw.{layer.name}"]).all() for layer in hidden)
    assert any(counted[f"raw.{layer.name}"].any() for layer in hidden)


def test_in_place_equals_out_of_place_and_a_shared_relu_is_two_layers():
    inputs = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    found = []
    for inplace in (False, True):
        net = randomise(shared_relu(inplace))
        layers = describe(net, inputs[:2]).layers
        assert [layer.site.call for layer in layers if layer.site.module == "relu"] == [0, 1]
        questions = [Question(rule.value, rule, layers) for rule in Rule]
        questions += [Question(f"{rule.value}_raw", rule, module_outputs(net, inputs[:2])) for rule in Rule]
        scales = {layer.site: 1.0 for question in questions for layer in question.layers}
        asked = DormancyPass(net=net, questions=questions, thresholds=Thresholds(theta=0.4), scales=scales)
        found.append(asked.count(in_batches(inputs, 4)))
    one, other = found
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    assert any(0 < value < 6 for value in one["silent/persample_rate.conv1"])


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_published_definition_by_hand(form):
    """Share of channels and outputs whose raw outputs are nowhere above eps; sign and all."""
    case = CASES["resnet18"]
    net, inputs = randomise(case.make()).to(memory_format=form), case.inputs(5)
    raw = module_outputs(net, inputs)
    values = one_by_one(net, raw, inputs)
    shares = [
        sum(max(unit) <= 1e-6 for layer in raw for unit in values[layer.name][i]) / sum(layer.width for layer in raw)
        for i in range(5)
    ]
    found = module_dormancy(net, inputs.split(2))
    assert found.dtype == torch.float32 and found.tolist() == torch.tensor(shares).tolist()
    assert len(set(shares)) > 1 and min(shares) > 0


def test_published_definition_leaves_the_network_as_it_is():
    """Scored in evaluation mode, one sample like many; statistics, modes and hooks as before."""
    case = CASES["resnet18"]
    net, inputs = randomise(case.make()).train(), case.inputs(4)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    found = module_dormancy(net, iter(inputs.split(3)))
    assert found.tolist() == torch.cat([module_dormancy(net, [x[None]]) for x in inputs]).tolist()
    assert all(tensor.equal(before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in net.modules())
    assert module_dormancy(net, []).shape == (0,)


def test_a_sample_that_is_not_finite_is_nan():
    case = CASES["mlp"]
    inputs = case.inputs(3)
    inputs[1] = math.nan
    assert module_dormancy(case.make(), [inputs]).isnan().tolist() == [False, True, False]
