"""Second moments of what layers read, against sums over every vector."""

import copy

import pytest
import torch
from learning import assert_equal_states
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.learner.input_moments import BLOCK, InputMoments
from plastiscope.learner.unit_parameters import ResidualMode, unit_sets
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.describe import describe
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.stacked import stack
from plastiscope.net.vit import Vit

DECAY = 0.9


def make(
    config: NetConfig, shape: tuple[int, ...], mode: ResidualMode = ResidualMode.inner_only, diagonal: bool = False
) -> tuple[nn.Module, InputMoments]:
    torch.manual_seed(0)
    net = config.make(shape, 3)
    sets = unit_sets(net.double(), describe(net.float(), torch.zeros(2, *shape)), mode)
    parts = [part for units in sets for part in units.parts]
    return net.double(), InputMoments(net.double(), parts, DECAY, diagonal, lead=0)


def patches_by_loops(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Every patch of every image, [rows, C k k]."""
    padded = nn.functional.pad(x, (conv.padding[1], conv.padding[1], conv.padding[0], conv.padding[0]))
    (k, _), (s, _), (d, _) = conv.kernel_size, conv.stride, conv.dilation
    found = []
    for image in padded:
        for top in range(0, image.shape[1] - d * (k - 1), s):
            for left in range(0, image.shape[2] - d * (k - 1), s):
                patch = image[:, top : top + d * (k - 1) + 1 : d, left : left + d * (k - 1) + 1 : d]
                found.append(patch.reshape(-1))
    return torch.stack(found)


def heard_by_hand(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The vectors that each layer reads, by the name of its weight, from a copy of the network."""
    copied, found = copy.deepcopy(net), {}

    def keep(name: str, module: nn.Module):
        def hook(_, given):
            (h,) = given
            found[f"{name}.weight"] = (
                patches_by_loops(module, h) if isinstance(module, nn.Conv2d) else h.reshape(-1, h.shape[-1])
            )

        return hook

    for name, module in copied.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_pre_hook(keep(name, module))
    with torch.no_grad():
        copied(x)
    return found


NETS = {
    "mlp": (Mlp(widths=[7, 4]), (5,)),
    "convnet": (ConvNet(channels=[3, 4], kernel_sizes=[3, 2], widths=[6]), (2, 12, 12)),
    "resnet18": (ResNet18(width=2), (3, 8, 8)),
    "vit": (Vit(depth=1, width=4, heads=2, hidden=5, patch=4), (1, 8, 8)),
}
SIZES = [6, 6, 2, 70, 6, 6, 30, 30, 30, 1]


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("net", NETS)
def test_moments_are_exponential_means_over_steps_whatever_the_batches(net, diagonal):
    config, shape = NETS[net]
    module, moments = make(config, shape, diagonal=diagonal)
    generator, expected, correction = torch.Generator().manual_seed(1), {}, 0.0
    sizes = SIZES if net == "mlp" else SIZES[:3]
    for size in sizes:
        x = torch.randn(size, *shape, generator=generator, dtype=torch.float64)
        with moments:
            module(x)
        moments.update()
        heard, correction = heard_by_hand(module, x), DECAY * correction + 1 - DECAY
        for name in moments.state_dict():
            rows = heard[name]
            now = rows.mT @ rows / len(rows)
            now = torch.diag(now.diagonal()) if diagonal else now
            expected[name] = DECAY * expected.get(name, 0.0) + (1 - DECAY) * now
            torch.testing.assert_close(moments.mean(name), rows.mean(0), rtol=1e-12, atol=1e-13)
    for name, value in expected.items():
        torch.testing.assert_close(moments.corrected(name), value / correction, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("size", [1, 6, BLOCK, 3 * BLOCK])
def test_the_moment_of_constant_inputs_is_right_from_the_first_step(size):
    module, moments = make(*NETS["mlp"])
    x = torch.randn(size, 5, dtype=torch.float64)
    for step in range(1, 40):
        with moments:
            module(x)
        moments.update()
        if step in (1, 2, 9, 39):
            found = moments.corrected("linear_1.weight")
            torch.testing.assert_close(found, x.mT @ x / size, rtol=1e-12, atol=1e-14)


def test_before_any_step_it_is_zero():
    _, moments = make(*NETS["mlp"])
    assert not moments.corrected("linear_1.weight").any()


def test_many_patches_are_made_in_pieces(monkeypatch):
    found = []
    for chunk in (1 << 22, 500):
        monkeypatch.setattr("plastiscope.learner.input_moments.CHUNK", chunk)
        module, moments = make(*NETS["convnet"])
        with moments:
            module(torch.randn(5, 2, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))
        moments.update()
        assert len(list(moments.rows("conv_1.weight"))) == (1 if chunk > 500 else 5)
        found.append((moments.corrected("conv_1.weight"), moments.mean("conv_1.weight")))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_evaluations_and_copies_leave_no_trace():
    module, moments = make(*NETS["mlp"])
    with moments:
        module(torch.ones(3, 5, dtype=torch.float64))
        copied = copy.deepcopy(module)
        copied(torch.zeros(3, 5, dtype=torch.float64))
    module(torch.zeros(3, 5, dtype=torch.float64))
    assert moments.mean("linear_1.weight").tolist() == [1.0] * 5


def test_it_goes_on_from_its_state_bit_for_bit_with_rows_that_are_only_noted():
    given = torch.randn(9, 15, 5, dtype=torch.float64)
    (module, whole), (other, half), (third, again) = (make(*NETS["mlp"]) for _ in range(3))
    for net, moments, batches in ((module, whole, given), (other, half, given[:6])):
        for x in batches:
            with moments:
                net(x)
            moments.update()
    state = copy.deepcopy(half.state_dict())
    assert state["linear_1.weight"]["noted"]
    again.load_state_dict(state)
    for x in given[6:]:
        with again:
            third(x)
        again.update()
    assert_equal_states(whole.state_dict(), again.state_dict())


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("net", ["mlp", "convnet"])
def test_each_of_several_runs_is_as_alone(net, diagonal):
    config, shape = NETS[net]
    singles = [make(config, shape, diagonal=diagonal) for _ in range(3)]
    units = singles[0][0].unit_description()
    stacked = stack([module for module, _ in singles])
    parts = [part for one in unit_sets(stacked, units, ResidualMode.inner_only, lead=1) for part in one.parts]
    together = InputMoments(stacked, parts, DECAY, diagonal, lead=1)
    for size in (6, 70, 3):
        x = torch.randn(3, size, *shape, dtype=torch.float64)
        with together:
            stacked(x)
        together.update()
        for r, (module, moments) in enumerate(singles):
            with moments:
                module(x[r])
            moments.update()
    for r, (_, moments) in enumerate(singles):
        for name in moments.state_dict():
            torch.testing.assert_close(together.corrected(name)[r], moments.corrected(name), rtol=1e-11, atol=1e-13)
            torch.testing.assert_close(together.mean(name)[r], moments.mean(name), rtol=1e-11, atol=1e-13)
        torch.testing.assert_close(together.traces()[r], moments.traces(), rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize(
    ("net", "shape", "mode", "message"),
    [
        (
            Mlp(widths=[4], activation=Activation.maxout),
            (5,),
            ResidualMode.inner_only,
            "linear_1 .* several rows of weights",
        ),
        (
            Mlp(widths=[4], layers=Layers(kind=Kind.weight_normalised)),
            (5,),
            ResidualMode.inner_only,
            "linear_1 .* divided by their lengths",
        ),
        (ResNet18(width=2), (3, 8, 8), ResidualMode.group, "layer2.0.conv2 .* two layers of weights make its units"),
    ],
)
def test_layers_whose_units_have_no_vector_of_their_own_are_refused(net, shape, mode, message):
    with pytest.raises(ConfigError, match=message):
        make(net, shape, mode)


@pytest.mark.parametrize("wrong", [{"groups": 2}, {"padding": "same"}, {"padding": 1, "padding_mode": "circular"}])
def test_convolutions_of_another_kind_are_refused(wrong):
    net = nn.Sequential(nn.Conv2d(2, 4, 3, **wrong), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    net(torch.zeros(2, 2, 8, 8))
    sets = unit_sets(net, describe(net, torch.zeros(2, 2, 8, 8)), ResidualMode.inner_only)
    with pytest.raises(ConfigError, match="groups, or padding other than a number of zeros"):
        InputMoments(net, [part for units in sets for part in units.parts], DECAY, False, 0)


def test_a_layer_that_does_not_run_is_told():
    _, moments = make(*NETS["mlp"])
    with pytest.raises(ConfigError, match=r"linear_1\.weight did not run"):
        moments.update()
