"""Partial Jacobians against products of weights, finite patches and brute force, and their ranks."""

import pytest
import torch

from net.net_cases import CASES, randomise, shared_relu
from plastiscope.error import ConfigError
from plastiscope.measure import jacobian_rank
from plastiscope.measure.jacobian_rank import (
    Mode,
    jacobian_spectra,
    jacobians,
    partial_jacobian_ranks,
    patch_columns,
)
from plastiscope.net.capture import differentiable_features
from plastiscope.net.describe import describe

DOUBLE = torch.float64


def features_of(net, example):
    return differentiable_features(net, describe(net, example[:2]).layers, "outputs")


def drawn(*shape):
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))


def linear(matrix):
    return lambda inputs: {"outputs": inputs.flatten(1) @ matrix.T}


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("shape", [(20, 12), (7, 12)])
def test_a_linear_map_of_rank_three_has_rank_three(shape, mode):
    matrix = drawn(shape[0], 3) @ drawn(3, shape[1])
    sample = drawn(3, 2, 2)
    found = jacobians(linear(matrix), sample, torch.arange(12), ["outputs"], mode)["outputs"]
    torch.testing.assert_close(found, matrix, rtol=1e-12, atol=1e-12)
    spectra = jacobian_spectra(linear(matrix), sample, torch.arange(12))
    assert partial_jacobian_ranks(spectra, 1e-10) == {"outputs": 3}
    torch.testing.assert_close(spectra["outputs"], torch.linalg.svdvals(matrix), rtol=1e-10, atol=1e-12)


def test_the_rank_is_relative_to_the_largest_value_of_the_jacobian_itself():
    """Values 1, .02, .005: two are above .01; squared they would be 1, .0004, .000025."""
    spectra = jacobian_spectra(linear(7 * torch.diag(torch.tensor([1, 0.02, 0.005], dtype=DOUBLE))), drawn(3),
                               torch.arange(3))  # fmt: skip
    assert partial_jacobian_ranks(spectra) == {"outputs": 2}
    assert partial_jacobian_ranks(spectra, 0.001) == {"outputs": 3}


def test_a_relu_net_is_the_product_of_its_masked_weights():
    net = randomise(CASES["mlp"].make(DOUBLE))
    sample = CASES["mlp"].inputs(1, DOUBLE)[0]
    expected, rows, hidden = {}, torch.eye(sample.numel(), dtype=DOUBLE), sample.flatten()
    for i in (1, 2):
        layer = net.get_submodule(f"linear_{i}")
        before = layer(hidden)
        rows, hidden = (before > 0).double().unsqueeze(1) * (layer.weight.detach() @ rows), before.relu()
        expected[f"linear_{i}"] = rows
    expected["outputs"] = net.get_submodule("head").weight.detach() @ rows
    for mode in Mode:
        found = jacobians(features_of(net, sample.unsqueeze(0)), sample, torch.arange(18), list(expected), mode)
        assert list(found) == list(expected)
        for name, jacobian in found.items():
            torch.testing.assert_close(jacobian, expected[name], rtol=1e-12, atol=1e-12)


def test_the_rank_of_a_deep_linear_net_never_rises_with_depth():
    net = CASES["deep_linear"].make(DOUBLE)
    with torch.no_grad():
        net.get_submodule("linear_2").weight[3:] = net.get_submodule("linear_2").weight[:2]
    sample = CASES["deep_linear"].inputs(1, DOUBLE)[0]
    spectra = jacobian_spectra(features_of(net, sample.unsqueeze(0)), sample, torch.arange(7))
    assert partial_jacobian_ranks(spectra, 1e-10) == {"linear_1": 6, "linear_2": 3, "outputs": 3}


@pytest.mark.parametrize("name", CASES)
def test_both_modes_agree_with_differences_on_every_net(name):
    """A directional derivative by central differences, in float64."""
    net = randomise(CASES[name].make(DOUBLE))
    sample = CASES[name].inputs(3, DOUBLE)[2]
    columns = patch_columns(sample.shape, 2)
    features = features_of(net, sample.unsqueeze(0))
    names = list(features(sample.unsqueeze(0)))
    assert len(names) == len(describe(net, sample.unsqueeze(0)).layers) + 1
    forward = jacobians(features, sample, columns, names, Mode.forward)
    reverse = jacobians(features, sample, columns, names[-2:], Mode.reverse)
    direction = drawn(len(columns))
    step = torch.zeros(sample.numel(), dtype=DOUBLE).scatter(0, columns, 1e-6 * direction).view(sample.shape)
    with torch.no_grad():
        ahead, behind = features((sample + step).unsqueeze(0)), features((sample - step).unsqueeze(0))
    for layer, jacobian in reverse.items():
        torch.testing.assert_close(forward[layer], jacobian, rtol=1e-9, atol=1e-12)
    for layer in names:
        numeric = (ahead[layer] - behind[layer]).flatten() / 2e-6
        torch.testing.assert_close(forward[layer] @ direction, numeric, rtol=1e-5, atol=1e-7)


def test_features_that_are_overwritten_later_are_seen_as_they_were():
    sample = drawn(3, 8, 8)
    found = []
    for inplace in (True, False):
        features = features_of(randomise(shared_relu(inplace).double()), sample.unsqueeze(0))
        names = list(features(sample.unsqueeze(0)))
        found.append(jacobians(features, sample, patch_columns(sample.shape, 2), names))
    assert len(found[0]) == 5
    for one, other in zip(found[0].values(), found[1].values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_layers_that_do_not_fit_together_take_more_passes(monkeypatch):
    net = randomise(CASES["convnet"].make(DOUBLE))
    sample = CASES["convnet"].inputs(1, DOUBLE)[0]
    columns = patch_columns(sample.shape, 4)
    features = features_of(net, sample.unsqueeze(0))
    at_once = jacobian_spectra(features, sample, columns)
    monkeypatch.setattr(jacobian_rank, "MEMORY", 8 * 48 * 600)
    monkeypatch.setattr(jacobian_rank, "TANGENTS", 3000)
    assert len(list(jacobian_rank._groups(jacobian_rank._sizes(features, sample), 48 * 8))) > 1
    by_parts = jacobian_spectra(features, sample, columns)
    assert list(by_parts) == list(at_once)
    for name, spectrum in at_once.items():
        torch.testing.assert_close(by_parts[name], spectrum, rtol=1e-10, atol=1e-12)


class NoForwardDerivative(torch.autograd.Function):
    @staticmethod
    def forward(inputs):
        return inputs.square()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, grad):
        return 2 * ctx.saved_tensors[0] * grad

    generate_vmap_rule = True


def test_an_operation_without_forward_derivative_is_taken_in_reverse():
    sample = drawn(4)

    def features(inputs):
        return {"outputs": NoForwardDerivative.apply(inputs).repeat(1, 2)}

    found = jacobians(features, sample, torch.arange(4), ["outputs"])["outputs"]
    torch.testing.assert_close(found, torch.cat([(2 * sample).diag()] * 2))


def test_a_jacobian_that_is_not_finite_has_rank_nan():
    spectra = jacobian_spectra(lambda inputs: {"outputs": inputs.sqrt()}, torch.zeros(2), torch.arange(2))
    rank = partial_jacobian_ranks(spectra)["outputs"]
    assert rank != rank
    assert partial_jacobian_ranks(jacobian_spectra(linear(torch.zeros(2, 2)), torch.ones(2), torch.arange(2))) == {
        "outputs": 0
    }


@pytest.mark.parametrize(
    ("shape", "side", "offset", "expected"),
    [
        ((1, 4, 5), 2, None, [6, 7, 11, 12]),
        ((2, 3, 3), 1, None, [4, 13]),
        ((2, 3, 3), 2, [0, 1], [1, 2, 4, 5, 10, 11, 13, 14]),
        ((1, 2, 6), 4, None, [1, 2, 3, 4, 7, 8, 9, 10]),
        ((1, 2, 2), 16, None, [0, 1, 2, 3]),
        ((9,), 2, None, [2, 3, 4, 5]),
        ((9,), 2, [5], [5, 6, 7, 8]),
        ((3,), 2, None, [0, 1, 2]),
    ],
)
def test_patches(shape, side, offset, expected):
    assert patch_columns(shape, side, offset).tolist() == expected


@pytest.mark.parametrize("offset", [[3, 0], [0, -1], [1]])
def test_a_patch_that_sticks_out_is_refused(offset):
    with pytest.raises(ConfigError, match=r"must lie within \[4, 4\]"):
        patch_columns((1, 4, 4), 2, offset)


def test_only_the_patch_is_moved():
    """The rank of a patch bounds that of all pixels from below: a submatrix of columns."""
    net = randomise(CASES["convnet"].make(DOUBLE))
    sample = CASES["convnet"].inputs(1, DOUBLE)[0]
    features, columns = features_of(net, sample.unsqueeze(0)), patch_columns(sample.shape, 3)
    part = jacobians(features, sample, columns, ["linear_1"])["linear_1"]
    whole = jacobians(features, sample, torch.arange(sample.numel()), ["linear_1"])["linear_1"]
    torch.testing.assert_close(part, whole[:, columns], rtol=1e-10, atol=1e-14)
