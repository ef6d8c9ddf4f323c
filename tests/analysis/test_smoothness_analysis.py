"""Smoothness in a run: the numbers are those of the measures on the task's frozen samples, on every network."""

import dataclasses

import numpy as np
import pytest
import torch
from analysis_context import make_context, move_to
from torch import Tensor, nn

from plans import make_plan
from plastiscope.analysis.frozen_set import frozen_set
from plastiscope.analysis.smoothness import BatchNorm, Outside, Precision, Smoothness, When
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.measure.jacobian_rank import patch_columns
from plastiscope.measure.loss import per_sample_loss
from plastiscope.run.log import read_rows
from plastiscope.run.storage import read_json

ETAS = [1e-4, 1e-3, 1e-2]
POST = "smoothness/post_training"
SHIFT = ("analysis=[]", "task_shift_mode=continuous_input_deformation")
FEW = {"num_samples": 40, "jacobian_samples": 3, "batch_size": 15}
NETS = {
    "mlp": ("net=mlp", "net.widths=[12,8]", "net.norm=layer"),
    "deep_linear": ("net=deep_linear", "net.widths=[12,8]", "net.batch_norm=true"),
    "convnet": ("net=convnet", "data.resize=32", "net.channels=[4,5,6]", "net.widths=[8]"),
    "resnet18": ("net=resnet18", "net.width=2", "data.resize=16"),
    "vit": ("net=vit", "net.depth=1", "net.width=8", "net.heads=2", "net.patch=4"),
    "foreign": ("net=foreign", "net._target_=test_smoothness_analysis.Functional"),
}


def randomise(net: nn.Module) -> nn.Module:
    """Running statistics away from their beginning, as after some training."""
    generator = torch.Generator().manual_seed(5)
    for name, buffer in net.named_buffers():
        if buffer.is_floating_point():
            shift = 0.5 if name.endswith("running_var") else 0.0
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + shift)
    return net


def by_hand(net: nn.Module, frozen, size: int):
    """Loss and gradient as functions of named parameters, in float64, batches of this size."""
    inputs, targets = frozen.inputs.double(), frozen.targets

    def loss(parameters):
        losses = []
        for x, y in zip(inputs.split(size), targets.split(size), strict=True):
            outputs = torch.func.functional_call(net, parameters, (x,))[:, : frozen.active_outputs]
            losses.append(per_sample_loss(frozen.loss, outputs, y))
        return torch.cat(losses).mean()

    def gradient(parameters):
        asking = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        return dict(zip(asking, torch.autograd.grad(loss(asking), list(asking.values())), strict=True))

    return loss, gradient


class Functional(nn.Module):
    """A network from elsewhere: convolution, functional activations in place, no description of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.last = nn.Conv2d(1, 3, 3), nn.Linear(108, 7), nn.Linear(7, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        maps = nn.functional.relu(self.conv(inputs), inplace=True)
        return self.last(torch.tanh(self.hidden(maps.flatten(1))))


@pytest.mark.parametrize("policy", BatchNorm)
def test_the_numbers_are_those_of_the_definition(tmp_path, policy):
    """With batch statistics: those that the network in training mode has for batches of 14, 14 and 12."""
    context = make_context(tmp_path / "run", *SHIFT, net=("net=mlp", "net.widths=[12,8]", "net.norm=batch"), task=1)
    randomise(context.net)
    analysis = Smoothness(batch_norm=policy, enable_jacobian_rank=False, **FEW)
    numbers = analysis.on_task_end(context)
    frozen = frozen_set(context, num_samples=40, seed=42, split="train")
    net = context.net.double().train(policy is BatchNorm.batch)
    loss, gradient_at = by_hand(net, frozen, 14)
    theta = {name: p.detach().clone() for name, p in net.named_parameters()}
    gradient = gradient_at(theta)
    size = torch.cat([g.flatten() for g in gradient.values()]).norm().item()
    betas, changes, losses, heads = [], [], [loss(theta).item()], []
    for eta in ETAS:
        uphill = {name: p + eta * gradient[name] for name, p in theta.items()}
        downhill = {name: p - eta * gradient[name] for name, p in theta.items()}
        up, down = gradient_at(uphill), gradient_at(downhill)
        betas.append(sum((up[n] - gradient[n]).square().sum() for n in theta).sqrt().item() / (eta * size))
        changes.append(sum((down[n] - gradient[n]).square().sum() for n in theta).sqrt().item())
        heads.append(sum((down[n] - gradient[n]).square().sum() for n in theta if n.startswith("head")).sqrt().item())
        losses.append(loss(downhill).item())
    expected = {
        f"{POST}/total/loss": losses[0],
        f"{POST}/total/gradient_norm": size,
        f"{POST}/total/effective_beta": max(betas),
        f"{POST}/total/grad_predictiveness": max(changes),
        **{f"{POST}/total/grad_predictiveness_eta_{eta:g}": c for eta, c in zip(ETAS, changes, strict=True)},
        f"{POST}/total/loss_range": max(losses) - min(losses),
        f"{POST}/head/grad_predictiveness": max(heads),
    }
    assert {key: numbers[key] for key in expected} == pytest.approx(expected, rel=1e-6)
    layers = {f"{POST}/{layer}/grad_predictiveness" for layer in ("linear_1", "linear_2")}
    assert set(numbers) == set(expected) | layers


def test_small_steps_drown_in_single_precision(tmp_path):
    """The change over a step of 1e-5 gradients is eta ||H g|| to 1e-4, but in float32 not to 1e-3."""
    context = make_context(tmp_path / "run", *SHIFT)
    settings = {"eta_min": 1e-5, "eta_max": 1e-5, "eta_count": 1, "enable_jacobian_rank": False}
    changes = [
        Smoothness(precision=p, **settings, **FEW).on_task_end(context)[f"{POST}/total/grad_predictiveness"]
        for p in Precision
    ]
    frozen = frozen_set(context, num_samples=40, seed=42)
    loss, gradient_at = by_hand(context.net.double(), frozen, 40)
    theta = {name: p.detach().clone().requires_grad_() for name, p in context.net.named_parameters()}
    g = gradient_at(theta)
    slopes = torch.autograd.grad(loss(theta), list(theta.values()), create_graph=True)
    product = torch.autograd.grad(slopes, list(theta.values()), list(g.values()))
    expected = 1e-5 * torch.cat([part.flatten() for part in product]).norm().item()
    of = dict(zip(Precision, changes, strict=True))
    assert of[Precision.float64] == pytest.approx(expected, rel=1e-4)
    assert abs(of[Precision.float32] / expected - 1) > 1e-3
    assert Smoothness().precision is Precision.float64


def test_single_precision_agrees_where_steps_are_large(tmp_path):
    context = make_context(tmp_path / "run", *SHIFT)
    found = [
        Smoothness(precision=p, enable_jacobian_rank=False, eta_min=1e-2, eta_count=1, **FEW).on_task_end(context)
        for p in Precision
    ]
    assert found[0] == pytest.approx(found[1], rel=2e-2) and found[0] != found[1]


@pytest.mark.parametrize("net", NETS)
def test_it_looks_at_every_network(net, tmp_path):
    context = make_context(tmp_path / "run", "analysis=[]", net=NETS[net])
    settings = {"num_samples": 12, "jacobian_samples": 2, "patch": 3, "precision": Precision.float32}
    numbers = Smoothness(**settings).on_task_end(context)
    ranks = {key.split("/")[2]: value for key, value in numbers.items() if key.endswith("jacobian_rank")}
    assert list(ranks) == [layer.name for layer in context.units.layers] + ["outputs"]
    pixels = 9 * context.current_task.train.input_shape[0]
    assert all(1 <= rank <= pixels for rank in ranks.values())
    assert ranks["outputs"] <= context.current_task.active_outputs
    assert all(np.isfinite(value) for value in numbers.values())


def test_ranks_are_of_single_samples_with_their_standard_error(tmp_path):
    """The Jacobian of a ReLU layer by hand: masked rows of the weights, the columns of the patch."""
    context = make_context(tmp_path / "run", "analysis=[]", task=2)
    analysis = Smoothness(jacobian_samples=5, patch=2, patch_offset=[1, 4], rank_eps=0.2)
    numbers = analysis.on_task_end(context)
    frozen = frozen_set(context, num_samples=5, seed=42, split="train")
    columns = patch_columns((1, 8, 8), 2, [1, 4])
    weight, bias = (context.net.get_parameter(f"linear_1.{name}").detach().double() for name in ("weight", "bias"))
    ranks = []
    for sample in frozen.inputs.double():
        values = torch.linalg.svdvals(((weight @ sample.flatten() + bias) > 0).unsqueeze(1) * weight[:, columns])
        ranks.append(int((values >= 0.2 * values[0]).sum()))
    assert len(set(ranks)) > 1 or min(ranks) < 4
    assert numbers[f"{POST}/linear_1/partial_jacobian_rank"] == np.mean(ranks)
    assert numbers[f"{POST}/linear_1/partial_jacobian_rank_se"] == pytest.approx(np.std(ranks, ddof=1) / 5**0.5)
    with np.load(context.folder("smoothness") / "post_training.npz") as arrays:
        assert arrays["jacobian/ids"].tolist() == frozen.ids.tolist()
        assert arrays["jacobian/ranks/linear_1"].tolist() == ranks
        assert arrays["jacobian/singular_values/linear_1"].shape == (5, 4)
        assert arrays["jacobian/singular_values/outputs"].shape == (5, 4)


def test_around_the_patch_are_the_sample_or_zeros(tmp_path):
    """Which units are active depends on the pixels that are not moved."""
    context = make_context(tmp_path / "run", "analysis=[]")
    columns = patch_columns((1, 8, 8), 2)
    weight, bias = (context.net.get_parameter(f"linear_1.{name}").detach().double() for name in ("weight", "bias"))
    for outside in Outside:
        Smoothness(jacobian_samples=1, patch=2, patch_outside=outside, enable_beta=False).on_task_end(context)
        sample = frozen_set(context, num_samples=1, seed=42).inputs[0].double().flatten()
        if outside is Outside.zeros:
            sample = torch.zeros(64).double().index_copy(0, columns, sample[columns])
        jacobian = ((weight @ sample + bias) > 0).unsqueeze(1) * weight[:, columns]
        with np.load(context.folder("smoothness") / "post_training.npz") as arrays:
            found = arrays["jacobian/singular_values/linear_1"][0]
        np.testing.assert_allclose(found, torch.linalg.svdvals(jacobian), rtol=1e-5)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Two tasks of two epochs with a look before and after each, and in between."""
    folder = tmp_path_factory.mktemp("smoothness") / "run"
    looks = ("smoothness.when=both", "smoothness.epochs=2", "smoothness.num_samples=30")
    few = ("smoothness.jacobian_samples=2", "smoothness.patch=2", "data.samples_per_class=12", "selection=last")
    shift = ("task_shift_mode=continuous_input_deformation", "num_tasks=2", "epochs=2", "batch_size=16", "threads=1")
    run(make_plan("analysis=[smoothness]", "net.widths=[12,8]", *looks, *few, *shift), folder)
    return folder


def test_before_and_after_see_the_same_samples_and_other_weights(finished):
    for task in (0, 1):
        folder = finished / f"task_{task:04d}_mlp" / "smoothness"
        looks = read_json(folder / "summary.json")["looks"]
        assert list(looks) == [f"epoch_{2 * task + 2:06d}", "post_training", "pre_training"]
        assert len({look["sha256"] for look in looks.values()}) == 1
        files = {name: dict(np.load(folder / look["file"])) for name, look in looks.items()}
        assert files["pre_training"]["epochs_completed"] == 2 * task
        assert files["post_training"]["epochs_completed"] == 2 * task + 2
        np.testing.assert_array_equal(files["pre_training"]["ids"], files["post_training"]["ids"])
        assert len(files["post_training"]["ids"]) == 30
        assert files["pre_training"]["losses"][0] != files["post_training"]["losses"][0]
        assert files[next(iter(looks))]["losses"].tolist() == files["post_training"]["losses"].tolist()


def test_the_look_before_is_of_the_new_data_and_the_old_weights(finished):
    """The frozen samples of task 1 are the same ids as of task 0, deformed otherwise."""
    sums = [read_json(finished / f"task_{k:04d}_mlp/smoothness/summary.json")["looks"] for k in (0, 1)]
    assert sums[0]["post_training"]["sha256"] != sums[1]["pre_training"]["sha256"]
    rows = read_rows(finished / "metrics.jsonl")
    ends = [row for row in rows if row["kind"] == "task_end"]
    assert len(ends) == 2 and all(f"smoothness/{p}_training/total/loss" in ends[1] for p in ("pre", "post"))
    epochs = [row for row in rows if "smoothness/epoch/total/effective_beta" in row]
    assert [row["global_epoch"] for row in epochs] == [1, 3]


@pytest.mark.parametrize("when", When)
def test_it_looks_when_it_is_told_to(tmp_path, when):
    context = make_context(tmp_path / "run", "analysis=[]")
    analysis = Smoothness(when=when, every=2, enable_jacobian_rank=False, **FEW)
    for task in range(3):
        move_to(context, task)
        is_due = task == 1
        assert bool(analysis.on_task_begin(context)) == (is_due and when is not When.post)
        assert bool(analysis.on_task_end(context)) == (is_due and when is not When.pre)
        assert not analysis.on_epoch_end(context)


def test_only_what_is_enabled_is_measured(tmp_path):
    context = make_context(tmp_path / "run", "analysis=[]")
    toggles = [field.name for field in dataclasses.fields(Smoothness) if field.name.startswith("enable_")]
    of = {
        "enable_beta": "effective_beta",
        "enable_predictiveness": "grad_predictiveness",
        "enable_loss_range": "loss_range",
        "enable_jacobian_rank": "partial_jacobian_rank",
    }
    assert set(toggles) == set(of)
    for only in toggles:
        settings = {name: name == only for name in toggles}
        numbers = Smoothness(**settings, **FEW).on_task_end(context)
        quantities = {key.split("/")[3] for key in numbers}
        assert {name for name in of.values() if name in quantities} == {of[only]}
    with pytest.raises(ConfigError, match="nothing to measure"):
        Smoothness(**dict.fromkeys(toggles, False)).on_run_begin(context)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"eta_min": 0.0}, "eta_min"),
        ({"eta_max": 1e-5}, "eta_max"),
        ({"eta_count": 0}, "eta_count"),
        ({"num_samples": 1}, "num_samples"),
        ({"patch": 0}, "patch"),
        ({"rank_eps": 1.0}, "rank_eps"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_settings_out_of_range_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        Smoothness(**settings)


def test_a_patch_that_does_not_lie_in_the_inputs_is_refused_at_the_start(tmp_path):
    context = make_context(tmp_path / "run", "analysis=[]")
    with pytest.raises(ConfigError, match="patch_offset"):
        Smoothness(patch=4, patch_offset=[0, 6]).on_run_begin(context)
