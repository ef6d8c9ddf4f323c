"""Input curvature against exact Hessians, and what its directions depend on."""

import copy
import itertools
import math
from functools import cache, partial

import pytest
import torch
from gradient_cases import DOUBLE, PACKAGED
from torch import Tensor, nn

from plastiscope.measure import input_curvature as measured
from plastiscope.measure.input_curvature import (
    PURPOSE,
    Difference,
    Probe,
    in_double,
    input_curvature,
    legacy_divisors,
    sign_bits,
    signs,
)
from plastiscope.measure.keyed import keyed_bits
from plastiscope.measure.loss import Loss, per_sample_loss
from plastiscope.measure.sample_gradient import loss_and_input_gradient

FORWARD, CENTRAL = Difference.forward, Difference.central
METRICS = ("norm", "fro2", "trace", "rayleigh_mean")


class Quadratic(nn.Module):
    """sqrt(c + x^T A x / 2): its square, the squared error for targets 0, has the Hessian A."""

    def __init__(self, a: Tensor) -> None:
        super().__init__()
        self.register_buffer("a", a)

    def forward(self, x: Tensor) -> Tensor:
        return (100 + 0.5 * ((x @ self.a) * x).sum(1, keepdim=True)).sqrt()


def symmetric(d: int) -> Tensor:
    m = torch.randn(d, d, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    return (m + m.T) / 2


def of_quadratic(a: Tensor, b: int, n: int, difference: Difference = FORWARD) -> measured.InputCurvature:
    x = torch.randn(1, len(a), dtype=DOUBLE, generator=torch.Generator().manual_seed(1)).expand(b, -1)
    probe = Probe(seed=5, directions=n, difference=difference)
    return input_curvature(Quadratic(a), Loss.mse, x, torch.zeros(b, 1, dtype=DOUBLE), torch.arange(b), 1, probe)


@pytest.mark.parametrize("difference", Difference)
def test_quadratic_gives_the_product_with_its_matrix(difference: Difference) -> None:
    a = symmetric(20)
    found = of_quadratic(a, 50, 3, difference)
    v = signs(sign_bits(5, torch.arange(50), torch.arange(3), 20), torch.empty(50, 20, dtype=DOUBLE))
    products = v @ a
    assert found.norm.tolist() == pytest.approx(products.norm(dim=2).mean(0).tolist(), rel=1e-9)
    assert found.fro2.tolist() == pytest.approx(products.square().sum(2).mean(0).tolist(), rel=1e-9)
    trace = (products * v).sum(2).mean(0)
    assert found.trace.tolist() == pytest.approx(trace.tolist(), abs=1e-9 * a.norm().item())
    assert found.rayleigh_mean.tolist() == pytest.approx((trace / 20).tolist(), abs=1e-9)


def test_means_over_directions_are_those_of_the_matrix() -> None:
    """Fro2 and trace are unbiased; norm has the mean over all 2^20 directions, which is below the Frobenius norm."""
    a, draws = symmetric(20), 20_000
    found = of_quadratic(a, draws, 1)
    every = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=10)), dtype=DOUBLE)
    left, right = every @ a[:10], every @ a[10:]
    mean_norm = torch.stack([(row + right).norm(dim=1).mean() for row in left]).mean().item()
    for values, expected in (
        (found.fro2, a.square().sum().item()),
        (found.trace, a.trace().item()),
        (found.norm, mean_norm),
    ):
        error = values.std().item() / draws**0.5
        assert abs(values.mean().item() - expected) < 4 * error
    assert mean_norm < a.norm().item()
    assert mean_norm == pytest.approx(a.norm().item(), rel=0.03)


def test_linear_softmax_with_two_classes() -> None:
    """W = I, x = 0: H = [[1, -1], [-1, 1]] / 4, trace .5, Frobenius norm .5."""
    net = nn.Linear(2, 2, bias=False).double()
    nn.init.eye_(net.weight)
    b, h = 4000, 1e-3
    arguments = torch.zeros(b, 2, dtype=DOUBLE), torch.zeros(b, dtype=torch.int64), torch.arange(b), 2
    found = input_curvature(net, Loss.cross_entropy, *arguments, Probe(seed=0, directions=1, step=h))
    equal = found.norm < 0.1  # both signs equal: the softmax does not see it
    assert found.norm[equal].abs().max() < 1e-9
    assert found.norm[~equal].tolist() == pytest.approx([0.5**0.5] * int((~equal).sum()), rel=h)
    assert found.trace[~equal].tolist() == pytest.approx([1.0] * int((~equal).sum()), rel=h)
    assert found.trace.mean().item() == pytest.approx(0.5, abs=4 * 0.5 / b**0.5)
    assert found.fro2.mean().item() == pytest.approx(0.25, abs=4 * 0.25 / b**0.5)


def softplus_net() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(12, 16), nn.Softplus(), nn.Linear(16, 16), nn.Softplus(), nn.Linear(16, 5)).double()
    return net.eval(), torch.randn(33, 12, dtype=DOUBLE), torch.randint(0, 4, (33,)), torch.arange(100, 133)


def exact(
    net: nn.Module, inputs: Tensor, labels: Tensor, ids: Tensor, n: int, temperature: float = 1.0
) -> dict[str, Tensor]:
    """The same means with the exact Hessian of each sample."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return per_sample_loss(Loss.cross_entropy, net(x[None])[:, :4] / temperature, y[None])[0]

    pairs = zip(inputs, labels, strict=True)
    hessians = torch.stack([torch.autograd.functional.hessian(partial(loss, y=y), x) for x, y in pairs]).detach()
    v = signs(sign_bits(9, ids, torch.arange(n), inputs.shape[1]), inputs)
    products = torch.einsum("bij,kbj->kbi", hessians, v)
    trace = (products * v).sum(2).mean(0)
    return {
        "norm": products.norm(dim=2).mean(0),
        "fro2": products.square().sum(2).mean(0),
        "trace": trace,
        "rayleigh_mean": trace / inputs.shape[1],
    }


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize(("difference", "tolerance"), [(FORWARD, 1e-3), (CENTRAL, 1e-6)])
def test_softplus_network_against_exact_hessians(difference: Difference, tolerance: float, temperature: float) -> None:
    net, *batch = softplus_net()
    probe = Probe(seed=9, directions=4, difference=difference, step=1e-3, temperature=temperature)
    found, expected = input_curvature(net, Loss.cross_entropy, *batch, 4, probe), exact(net, *batch, 4, temperature)
    for metric in METRICS:
        errors = (getattr(found, metric) - expected[metric]).abs() / expected[metric].abs().mean()
        assert errors.max() < tolerance, metric


@pytest.mark.parametrize(("difference", "ratio"), [(FORWARD, 2), (CENTRAL, 4)])
def test_error_falls_with_the_step(difference: Difference, ratio: float) -> None:
    net, *batch = softplus_net()
    expected = exact(net, *batch, 4)["norm"]

    def error(h: float) -> float:
        probe = Probe(seed=9, directions=4, difference=difference, step=h)
        found = input_curvature(net, Loss.cross_entropy, *batch, 4, probe)
        return (found.norm - expected).norm().item()

    assert error(0.02) / error(0.01) == pytest.approx(ratio, rel=0.05)


def test_default_steps() -> None:
    assert Probe(seed=0).h == 1e-3
    assert Probe(seed=0, difference=CENTRAL).h == 1e-2
    assert Probe(seed=0, difference=CENTRAL, step=0.5).h == 0.5


def test_bits_of_the_directions() -> None:
    """Pixel j of direction k: bit j mod 64 of the keyed bits with counter k 2^32 + j div 64; a 1 is -1."""
    ids, ks, like = torch.tensor([0, 7, 10**12]), torch.tensor([0, 3]), torch.empty(3, 5, 5, 6)
    found = signs(sign_bits(11, ids, ks, 150), like)
    assert found.shape == (2, 3, 5, 5, 6)
    for (a, k), (i, identity) in itertools.product(enumerate(ks.tolist()), enumerate(ids)):
        words = [keyed_bits(11, PURPOSE, identity, (k << 32) + w).item() for w in range(3)]
        expected = [-1.0 if words[j // 64] >> (j % 64) & 1 else 1.0 for j in range(150)]
        assert found[a, i].flatten().tolist() == expected
    assert signs(sign_bits(11, ids, ks, 150), like.double()).equal(found.double())


@pytest.mark.parametrize("size", [1, 7, 32, 33])
def test_directions_do_not_depend_on_the_batch(size: int) -> None:
    ids, ks, like = torch.randperm(33) + 10**9, torch.arange(10), torch.empty(33, 3, 5, 5)
    whole = signs(sign_bits(0, ids, ks, 75), like)
    pieces = [signs(sign_bits(0, some, ks, 75), like[: len(some)]) for some in ids.split(size)]
    assert torch.cat(pieces, dim=1).equal(whole)
    one_by_one = torch.cat([signs(sign_bits(0, ids, k, 75), like) for k in ks.split(1)])
    assert one_by_one.equal(whole)


def test_directions_are_balanced_and_uncorrelated() -> None:
    n, d = 500, 200
    ids, like = torch.arange(n), torch.empty(n, d)
    v = signs(sign_bits(0, ids, torch.arange(2), d), like)
    others = [
        v[1],
        v[0].roll(1, 0),
        v[0].roll(1, 1),
        v[0].roll(64, 1),
        signs(sign_bits(1, ids, torch.arange(1), d), like)[0],
    ]
    limit = 4 / (n * d) ** 0.5
    assert v.unique().tolist() == [-1, 1]
    assert all(abs((v[0] * other).mean().item()) < limit for other in [torch.ones(n, d), *others])


@pytest.mark.parametrize("size", [1, 7, 32, 33])
def test_values_depend_on_the_batch_by_rounding_only(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Matrix products sum in an order that depends on their shape, so values are not equal bit for bit."""
    net, *batch = softplus_net()
    probe = Probe(seed=9, directions=5)
    whole = input_curvature(net, Loss.cross_entropy, *batch, 4, probe)
    monkeypatch.setattr(measured, "ROWS_AT_ONCE", 3 * size)
    parts = [
        input_curvature(net, Loss.cross_entropy, *b, 4, probe)
        for b in zip(*(t.split(size) for t in batch), strict=True)
    ]
    for metric in METRICS:
        joined = torch.cat([getattr(part, metric) for part in parts])
        assert joined.tolist() == pytest.approx(getattr(whole, metric).tolist(), rel=1e-6), metric


def test_legacy_quantities_scale_with_the_step() -> None:
    net, *batch = softplus_net()
    at = {
        h: input_curvature(net, Loss.cross_entropy, *batch, 4, Probe(seed=9, directions=4, step=h))
        for h in (1e-4, 1e-3)
    }
    v = signs(sign_bits(9, batch[2], torch.arange(4), 12), batch[0])
    base = gradient(net, batch[0], batch[1])
    for h, found in at.items():
        dg = torch.stack([gradient(net, batch[0] + h * one, batch[1]) for one in v]) - base
        assert found.legacy_curv.tolist() == pytest.approx(dg.norm(dim=2).mean(0).tolist(), rel=1e-9)
        eig = (h * v * dg).sum(2).mean(0)
        assert found.legacy_directional_eig.tolist() == pytest.approx(eig.tolist(), rel=1e-6, abs=1e-12)
    assert (at[1e-3].legacy_curv / at[1e-4].legacy_curv).tolist() == pytest.approx([10] * 33, rel=1e-2)


def gradient(net: nn.Module, inputs: Tensor, labels: Tensor, mean: bool = False) -> Tensor:
    x = inputs.clone().requires_grad_()
    loss = nn.functional.cross_entropy(net(x)[:, :4], labels, reduction="mean" if mean else "sum")
    return torch.autograd.grad(loss, x)[0]


def test_published_scale_of_a_mean_loss() -> None:
    """32 samples in batches of 20: what the mean loss gives is divided by 20 for the first ones, by 12 for the rest."""
    divisors = legacy_divisors(32, 20)
    assert divisors.tolist() == [20.0] * 20 + [12.0] * 12
    assert legacy_divisors(40, 20).tolist() == [20.0] * 40
    assert legacy_divisors(3, 20).tolist() == [3.0] * 3
    net, inputs, labels, ids = (value if isinstance(value, nn.Module) else value[:32] for value in softplus_net())
    found = input_curvature(net, Loss.cross_entropy, inputs, labels, ids, 4, Probe(seed=9, directions=1))
    v = signs(sign_bits(9, ids, torch.arange(1), 12), inputs)[0]
    published = torch.cat(
        [
            (gradient(net, x + 1e-3 * s, y, mean=True) - gradient(net, x, y, mean=True)).norm(dim=1)
            for x, s, y in zip(inputs.split(20), v.split(20), labels.split(20), strict=True)
        ]
    )
    assert (found.legacy_curv / divisors).tolist() == pytest.approx(published.tolist(), rel=1e-9)


@pytest.mark.parametrize("difference", Difference)
def test_pixel_units_follow_the_chain_rule(difference: Difference) -> None:
    """The curvature in pixel units is that of a network that takes pixels and normalises them itself."""
    case = PACKAGED["vit"]
    net, inputs, labels = case.make()
    mean, unit = torch.randn(3, 1, 1, dtype=DOUBLE), torch.tensor([2.0, 4.0, 0.5], dtype=DOUBLE)[:, None, None]

    class Normalising(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return net((pixels - mean) * unit)

    ids, pixels = torch.arange(len(inputs)), inputs / unit + mean
    probe = {"seed": 0, "directions": 3, "difference": difference}
    found = input_curvature(net, case.loss, inputs, labels, ids, 4, Probe(**probe, unit=unit))
    expected = input_curvature(Normalising(), case.loss, pixels, labels, ids, 4, Probe(**probe))
    for metric in (*METRICS, "noise"):
        assert getattr(found, metric).tolist() == pytest.approx(getattr(expected, metric).tolist(), rel=1e-6), metric
    norms = loss_and_input_gradient(net, case.loss, inputs, labels, 4)[1]
    assert found.gradient_norms.equal(norms)


@pytest.mark.parametrize(("difference", "passes"), [(FORWARD, 11), (CENTRAL, 21)])
@pytest.mark.parametrize("rows", [1, 21, 10**6])
def test_the_gradient_at_the_sample_is_taken_once(
    difference: Difference, passes: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "ROWS_AT_ONCE", rows)
    net, inputs, labels = PACKAGED["mlp"].make(7)
    seen: list[int] = []
    net.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    probe = Probe(seed=0, difference=difference)
    found = input_curvature(net, Loss.cross_entropy, inputs, labels, torch.arange(7), 4, probe)
    assert sum(seen) == 7 * passes
    losses, norms, _ = loss_and_input_gradient(net, Loss.cross_entropy, inputs, labels, 4)
    assert found.losses.equal(losses)
    assert found.gradient_norms.equal(norms)


@cache
def trained(loss: Loss) -> tuple[nn.Module, Tensor, Tensor]:
    """A small network, trained until many samples have next to no gradient, in float32."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 32), nn.Softplus(), nn.Linear(32, 4))
    inputs = 3 * torch.randn(200, 10)
    targets = {
        Loss.cross_entropy: inputs[:, :4].argmax(1),
        Loss.binary_cross_entropy: (inputs[:, :4] > 0).float(),
        Loss.mse: inputs[:, :4] + 5,
    }[loss]
    for _ in range(300):
        total = per_sample_loss(loss, net(inputs), targets).mean()
        for parameter, gradient_of_it in zip(
            net.parameters(), torch.autograd.grad(total, list(net.parameters())), strict=True
        ):
            parameter.data -= 0.02 * gradient_of_it
    return net.requires_grad_(False), inputs, targets


@pytest.mark.parametrize("difference", Difference)
@pytest.mark.parametrize("loss", Loss)
def test_noise_tells_what_rounding_makes(loss: Loss, difference: Difference) -> None:
    """The difference of float32 from float64 is of the order of the noise stated."""
    net, inputs, wanted = trained(loss)
    probe = Probe(seed=0, difference=difference, step=1e-3, directions=3)
    ids = torch.arange(200)
    found = input_curvature(net, loss, inputs, wanted, ids, 4, probe)
    double = wanted.double() if wanted.is_floating_point() else wanted
    expected = input_curvature(in_double(net), loss, inputs.double(), double, ids, 4, probe)
    ratios = (found.norm - expected.norm).abs() / found.noise
    assert 0.01 < ratios.median() < 10
    assert (ratios < 30).double().mean() > 0.9
    assert expected.noise.max() < 1e-7 * found.noise.max()


@pytest.mark.parametrize(("difference", "gradients"), [(FORWARD, 1.0), (CENTRAL, 0.5)])
def test_noise_of_a_learned_sample_does_not_vanish_with_its_gradient(difference: Difference, gradients: float) -> None:
    """W = I: g = p - y, known to a unit in the last place of itself and of the probabilities, 1 / temperature."""
    net = nn.Linear(2, 2, bias=False).double()
    nn.init.eye_(net.weight)
    inputs, labels = torch.tensor([[0.0, 0.0], [30.0, 0.0]], dtype=DOUBLE), torch.zeros(2, dtype=torch.int64)
    probe = Probe(seed=0, difference=difference, step=1e-3, temperature=2.0)
    noise = input_curvature(net, Loss.cross_entropy, inputs, labels, torch.arange(2), 2, probe).noise
    sizes = [(0.5**0.5) / 2 + 0.5, math.exp(-15) / 2**0.5 + 0.5]  # ||p - y|| / T + 1 / T
    assert noise.tolist() == pytest.approx(
        [2**0.5 * gradients * 2**-52 * size / 1e-3 for size in sizes], rel=1e-5, abs=0
    )


def test_nothing_is_touched() -> None:
    net, inputs, labels = PACKAGED["mlp_batch"].make()
    state, generator = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    before = inputs.clone()
    found = input_curvature(net, Loss.cross_entropy, inputs, labels, torch.arange(6), 4, Probe(seed=0))
    assert in_double(net) is not net
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert all(value.equal(state[name]) for name, value in net.state_dict().items())
    assert torch.get_rng_state().equal(generator)
    assert inputs.equal(before)
    assert not any(getattr(found, metric).requires_grad for metric in METRICS)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_directions_are_the_same_on_a_gpu() -> None:
    ids, ks, like = torch.arange(100), torch.arange(10), torch.empty(100, 3, 7, 7)
    here = signs(sign_bits(0, ids, ks, 147), like)
    assert signs(sign_bits(0, ids.cuda(), ks, 147), like.cuda()).cpu().equal(here)
