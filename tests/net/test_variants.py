"""Networks of other layers and norms: published sizes, what they compute, how they are trained and looked at."""

import math

import pytest
import torch
from net_cases import CASES
from torch import nn
from torch.nn import functional as F

from plans import make_plan
from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.learner import Learner
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.trainee import Trainee
from plastiscope.net.activation import Activation, undecayed
from plastiscope.net.convnet import ConvNet, NormAt
from plastiscope.net.convnet2 import ConvNet2
from plastiscope.net.describe import describe
from plastiscope.net.layers import Init, Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.svd import Orthogonal, Sign
from plastiscope.net.vgg16 import Vgg16
from plastiscope.run.log import read_rows
from plastiscope.run.status import read_status
from plastiscope.task_shift_mode.task import NewHead
from tasks import make_task


def count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# vgg16, convnet2, norms


def test_vgg16_has_its_published_size_and_units():
    net = Vgg16().make((3, 32, 32), 10)
    assert count(net) == 14_728_266
    assert count(Vgg16(norm=Norm.none).make((3, 32, 32), 10)) == 14_728_266 - 2 * 4224
    units = net.unit_description()
    assert [layer.width for layer in units.layers] == [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6
    assert all(layer.replaceable for layer in units.layers)
    assert count(Vgg16(widths=[20]).make((3, 64, 64), 10)) == 14_728_266 - 5130 + (4 * 512 + 1 + 2) * 20 + 21 * 10


def test_vgg16_computes_convolution_norm_relu_and_pooling_five_times():
    net = CASES["vgg16"].make(torch.float64)
    x = CASES["vgg16"].inputs(4, torch.float64)
    net(x)  # running statistics of their own
    h, number = x, 0
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            number += 1
            conv, norm = net.get_submodule(f"conv_{number}"), net.get_submodule(f"conv_norm_{number}")
            z = F.conv2d(h, conv.weight, conv.bias, padding=1)
            mean, var = (s[:, None, None] for s in (norm.running_mean, norm.running_var))
            h = ((z - mean) / (var + 1e-5).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]).relu()
        h = F.max_pool2d(h, 2)
    expected = h.flatten(1) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net.eval()(x), expected, rtol=0, atol=1e-12)


def test_vgg16_without_a_norm_keeps_its_signal_when_drawn_for_it():
    x = torch.randn(16, 3, 32, 32)
    sizes = {
        init: Vgg16(width=8, norm=Norm.none, init=init).make((3, 32, 32), 10)(x).std(0).mean().item() for init in Init
    }
    assert sizes[Init.kaiming_uniform] > 0.1 > 1e-3 > sizes[Init.default]


def test_vgg16_refuses_images_that_are_too_small():
    with pytest.raises(ConfigError, match=r"data.resize=32"):
        Vgg16().make((3, 31, 31), 10)
    with pytest.raises(ConfigError, match=r"^width="):
        Vgg16(width=0)


def test_convnet2_is_the_convnet_with_the_published_names():
    net = ConvNet2().make((3, 32, 32), 10)
    names = [f"conv{i}" for i in (1, 2, 3)] + [f"fc{i}" for i in (1, 2, 3)]
    assert list(net.state_dict()) == [f"{name}.{part}" for name in names for part in ("weight", "bias")]
    assert count(net) == 178_250
    assert net.unit_description().head == "fc3"
    other = ConvNet().make((3, 32, 32), 10)
    other.load_state_dict(dict(zip(other.state_dict(), net.state_dict().values(), strict=True)))
    x = torch.randn(3, 3, 32, 32)
    assert torch.equal(net(x), other(x))
    with pytest.raises(ConfigError, match="net=convnet2"):
        ConvNet2().make((3, 20, 20), 10)


def test_layer_norm_of_convolutions_is_over_channels_and_positions():
    net = CASES["convnet_layer"].make(torch.float64)
    x = CASES["convnet_layer"].inputs(5, torch.float64)
    z = net.conv_1(x)
    mean, var = z.mean((1, 2, 3), keepdim=True), z.var((1, 2, 3), correction=0, keepdim=True)
    assert net.conv_norm_1.weight.shape == (4,)
    with torch.no_grad():
        net.conv_norm_1.weight.copy_(torch.arange(4.0))
    expected = (z - mean) / (var + 1e-5).sqrt() * torch.arange(4.0)[:, None, None]
    torch.testing.assert_close(net.conv_norm_1(z), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("norm_at", "expected"), [(NormAt.all, [1, 1, 1]), (NormAt.conv, [1, 1, 0]), (NormAt.linear, [0, 0, 1])]
)
def test_norms_stand_where_they_are_asked_for(norm_at, expected):
    net = ConvNet(channels=[2, 3], kernel_sizes=[3, 2], widths=[4], norm=Norm.batch, norm_at=norm_at).make(
        (1, 13, 13), 2
    )
    assert [int(layer.norm is not None) for layer in net.unit_description().layers] == expected
    assert sum(isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d) for m in net.modules()) == sum(expected)


def test_convnet_draws_kaiming_uniform_weights():
    net = ConvNet(init=Init.kaiming_uniform).make((3, 32, 32), 2)
    for name, module in net.named_children():
        if hasattr(module, "weight"):
            bound = (1.0 if name == "head" else math.sqrt(2)) * math.sqrt(3 / module.weight[0].numel())
            assert 0.97 * bound < module.weight.abs().max().item() <= bound
            assert not module.bias.any()


# training


def learner_of(config: Mlp, settings: Backprop, new_head: NewHead = NewHead.keep) -> Learner:
    net = config.make((5,), 3)
    learner = settings.make(Trainee(net, describe(net, torch.zeros(2, 5)), lambda k: config.make((5,), 3), seed=0))
    learner.take_up(make_task(3, index=1, new_head=new_head))
    return learner


def batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(torch.randn(6, 5, generator=generator), torch.tensor([0, 1, 2, 0, 1, 2]), torch.arange(6))


ZERO_HEADS = {
    "plain": Layers(),
    "weight_normalised": Layers(kind=Kind.weight_normalised),
    "svd_signed": Layers(kind=Kind.svd, singular_values=Sign.signed),
    "projection": Layers(kind=Kind.projection),
}


@pytest.mark.parametrize("layers", ZERO_HEADS.values(), ids=ZERO_HEADS)
def test_a_head_that_starts_at_zero_learns(layers):
    learner = learner_of(Mlp(widths=[8], layers=layers), Backprop(lr=0.1), NewHead.zeros)
    assert learner.task is not None
    learner.begin_task(learner.task)
    assert not learner.net(batch().inputs).any()
    before = learner.net.linear_1(batch().inputs).detach().clone()
    for _ in range(3):
        learner.step(batch())
    outputs = learner.net(batch().inputs)
    assert outputs.isfinite().all()
    assert (outputs - outputs.mean(0)).abs().max() > 1e-3  # not the biases alone
    assert not torch.equal(learner.net.linear_1(batch().inputs), before)


@pytest.mark.parametrize("sign", [Sign.abs, Sign.softplus])
def test_a_head_of_factors_that_could_not_leave_zero_is_refused(sign):
    learner = learner_of(Mlp(widths=[8], layers=Layers(kind=Kind.svd, singular_values=sign)), Backprop(), NewHead.zeros)
    assert learner.task is not None
    with pytest.raises(ConfigError, match=rf"singular_values={sign.value}.*net\.layers\.head=plain"):
        learner.begin_task(learner.task)


def test_a_step_descends_on_loss_and_penalty():
    layers = Layers(kind=Kind.svd, orthogonal=Orthogonal.penalty, orthogonal_penalty=0.7)
    learner = learner_of(Mlp(widths=[4], layers=layers), Backprop(lr=0.1, momentum=0.0))
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    before = [parameter.detach().clone() for parameter in learner.parameters]
    loss = F.cross_entropy(learner.net(batch().inputs), batch().targets)
    factors = [a for name in ("linear_1", "head") for a in learner.net.get_submodule(name).factors()[::2]]
    penalty = 0.7 * sum(((a.T @ a - torch.eye(a.shape[1])) ** 2).sum() for a in factors)
    gradients = torch.autograd.grad(loss + penalty, learner.parameters)
    learner.step(batch())
    for parameter, start, gradient in zip(learner.parameters, before, gradients, strict=True):
        torch.testing.assert_close(parameter.detach(), start - 0.1 * gradient, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("optimizer", Optimizer)
def test_slopes_of_prelu_take_no_weight_decay(optimizer):
    def trained(weight_decay: float) -> Learner:
        torch.manual_seed(0)
        config = Mlp(widths=[4], activation=Activation.prelu)
        settings = Backprop(optimizer=optimizer, lr=0.1, weight_decay=weight_decay)
        learner = learner_of(config, settings)
        for parameter in learner.parameters:
            parameter.grad = torch.zeros_like(parameter)
        learner.optimizer.step()
        return learner

    learner, plain = trained(0.5), trained(0.0)
    slopes = undecayed(learner.net)
    assert all(bool((slope == 0.25).all()) for slope in slopes)
    for decayed, same in zip(learner.parameters, plain.parameters, strict=True):
        assert torch.equal(decayed, same) is (decayed in slopes)
    learner.begin_epoch(0)
    assert [group["lr"] for group in learner.optimizer.param_groups] == [0.1, 0.1]


def test_nets_without_prelu_have_one_group_of_parameters():
    learner = learner_of(Mlp(widths=[4]), Backprop(weight_decay=0.5))
    (group,) = learner.optimizer.param_groups
    assert all(a is b for a, b in zip(group["params"], learner.parameters, strict=True))


# through the trainer, with analyses that read the description

TINY = (
    *("data.samples_per_class=8", "num_tasks=2", "epochs=1", "batch_size=16", "threads=1"),
    *("analysis=[representation,dormant]", "representation.samples=20"),
)
SMALL_CONVNET = ("net=convnet", "net.channels=[4,5]", "net.kernel_sizes=[3,2]", "net.widths=[6]")
RUNS = {
    "weight_normalised": ("net=mlp", "net.layers.kind=weight_normalised", "net.layers.input_statistic=second_moment"),
    "svd": ("net=mlp", "net.layers.kind=svd", "net.layers.inner=tanh"),
    "projection": (
        "net=mlp",
        "net.layers.kind=projection",
        "net.layers.projection=coordinates",
        "net.layers.head=plain",
    ),
    "maxout": ("net=mlp", "net.activation=maxout", "net.norm=batch"),
    "prelu": ("net=mlp", "net.activation=prelu", "learner.weight_decay=0.01"),
    "conv_crelu": (*SMALL_CONVNET, "net.activation=crelu", "net.norm=layer"),
    "conv_svd": (*SMALL_CONVNET, "net.layers.kind=svd", "net.layers.orthogonal=penalty"),
    "conv_mapped": (*SMALL_CONVNET, "net.layers.kind=projection", "net.layers.phi_at=map", "net.norm=batch"),
    "conv_weight_normalised": (*SMALL_CONVNET, "net.layers.kind=weight_normalised", "net.layers.head=plain"),
    "resnet_weight_normalised": ("net=resnet18", "net.width=2", "net.layers.kind=weight_normalised"),
}


@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_every_variant_trains_and_is_looked_at(overrides, tmp_path):
    widths = ("net.widths=[8,6]",) if "net=mlp" in overrides else ()
    run(make_plan(*TINY, *widths, *overrides), tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "done"
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert [row["kind"] for row in rows] == ["run_begin", *["epoch", "task_end"] * 2]
    assert any(key.startswith("dormant/train/") for key in rows[1])
    assert any(key.startswith("representation/current/") for key in rows[2])
