"""What `representation` says of layers of other kinds: rates of weight-normalised rows, singular values, maxout."""

import math

import pytest
import torch
from analysis_context import make_context, unchanged

from plastiscope.analysis.representation import Representation


@pytest.mark.parametrize(("optimizer", "power"), [("sgd", 2), ("adam", 1)])
def test_weight_normalised_rows_are_scale_invariant_one_by_one(tmp_path, optimizer, power):
    layers = "net.layers.kind=weight_normalised"
    context = make_context(tmp_path / "run", layers, f"learner.optimizer={optimizer}", "learner.lr=0.1")
    linear = context.net.linear_1
    with torch.no_grad():
        linear.weight.copy_(torch.arange(1.0, 13.0)[:, None].expand_as(linear.weight))
    numbers = Representation(subsets=[], cka=False).on_task_end(context)
    norms = linear.weight.detach().double().norm(dim=1)
    found = {name: numbers[f"representation/weights/linear_1/{name}"] for name in ("effective_lr", "effective_lr_unit")}
    assert found["effective_lr_unit"] == pytest.approx((0.1 / norms**power).mean().item(), rel=1e-6)
    assert found["effective_lr"] == pytest.approx(0.1 / norms.square().sum().sqrt().item() ** power, rel=1e-6)
    assert numbers["representation/weights/linear_1/weight_norm"] == pytest.approx(norms.norm().item(), rel=1e-6)


@pytest.mark.parametrize(("optimizer", "power"), [("sgd", 2), ("adam", 1)])
def test_a_rate_that_is_held_constant_is_told_as_it_is(tmp_path, optimizer, power):
    """By filter it is that of the layer times ||w||^2/||w_i||^2, or ||w||/||w_i||."""
    settings = (f"learner.optimizer={optimizer}", "learner.lr=0.1", "learner.effective_lr=0.03", "net.norm=batch")
    context = make_context(tmp_path / "run", *settings)
    numbers = Representation(subsets=[], cka=False).on_task_end(context)
    rows = context.net.linear_1.weight.detach().double().norm(dim=1)
    found = {name: numbers[f"representation/weights/linear_1/{name}"] for name in ("effective_lr", "effective_lr_unit")}
    assert found["effective_lr"] == pytest.approx(0.03, rel=1e-6)
    assert found["effective_lr_unit"] == pytest.approx((0.03 * (rows.norm() / rows) ** power).mean().item(), rel=1e-6)


def test_singular_values_of_projected_layers_and_of_factors(tmp_path):
    context = make_context(tmp_path / "projection", "net.layers.kind=projection")
    numbers = Representation(subsets=[], cka=False).on_task_end(context)
    for name in ("linear_1", "linear_2", "head"):
        expected = torch.linalg.svdvals(context.net.get_submodule(name).weight.double())[-1].item()
        found = numbers[f"representation/weights/{name}/smallest_singular_value"]
        assert found == pytest.approx(expected, rel=1e-6)
    context = make_context(tmp_path / "svd", "net.layers.kind=svd")
    numbers = Representation(subsets=[], cka=False).on_task_end(context)
    values = torch.linalg.svdvals(context.net.linear_2.product().detach().double())
    for quantity, expected in (("largest", values[0]), ("smallest", values[-1])):
        found = numbers[f"representation/weights/linear_2/{quantity}_singular_value"]
        assert found == pytest.approx(expected.item(), rel=1e-4)
    plain = Representation(subsets=[], cka=False).on_task_end(make_context(tmp_path / "plain"))
    assert not any("singular_value" in key for key in plain)


def test_ginis_of_weights_are_those_of_their_singular_values(tmp_path):
    """(n + 1 - 2 sum(cumsum s) / sum s) / n over ascending s, of matrices and flattened kernels; off by default."""
    context = make_context(tmp_path / "run", "net=convnet", "net.channels=[4, 4, 4]", "data.resize=24")
    numbers = Representation(subsets=[], cka=False, weight_ginis=True).on_task_end(context)
    weights = {name: p for name, p in context.net.named_parameters() if p.ndim >= 2}
    found = {key.split("/")[2]: value for key, value in numbers.items() if key.endswith("/weight_sv_gini")}
    assert found.keys() == {name.removesuffix(".weight") for name in weights}
    for name, weight in weights.items():
        s = torch.linalg.svdvals(weight.detach().flatten(1).double()).sort().values
        expected = (len(s) + 1 - 2 * (s.cumsum(0).sum() / s.sum()).item()) / len(s)
        assert found[name.removesuffix(".weight")] == pytest.approx(expected, rel=1e-9)
    without = Representation(subsets=[], cka=False).on_task_end(make_context(tmp_path / "without"))
    assert not any("gini" in key for key in without)


def test_pieces_that_never_win_are_counted(tmp_path):
    context = make_context(tmp_path / "run", "net.activation=maxout", "net.layers.maxout_pieces=3")
    with torch.no_grad():
        bias = context.net.linear_1.bias.view(12, 3)
        bias.zero_()
        bias[:, 2] = -1e4  # every third piece loses
        bias[0, 1] = 1e4  # of unit 0 only one wins
    analysis = Representation(cka=False, batch_size=7)
    with unchanged(context.net):
        numbers = analysis.on_task_end(context)
    assert numbers["representation/current/linear_1/maxout_unused"] == pytest.approx(13 / 36)
    assert 0 <= numbers["representation/current/linear_2/maxout_unused"] < 1
    assert not math.isnan(numbers["representation/current/linear_1/effective_rank"])
