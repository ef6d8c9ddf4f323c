"""PyHessian as a second engine: the same numbers as ours, and none of its traces left behind."""

import math
import random
import warnings

import numpy as np
import pytest
import torch
from landscape_cases import DOUBLE, NETS, TOP, TRACE, exact_hessian, fixture_f, frozen_loss, net_case, quadratic
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.eigenpairs import Order, extreme_eigenpairs
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.operator import HessianOperator
from plastiscope.measure.landscape.pyhessian_engine import cross_check, second_opinion
from plastiscope.measure.landscape.trace import Estimate, hutchinson, trace_of


@pytest.mark.parametrize("micro_batch", [64, 60])
def test_fixture_f(micro_batch: int) -> None:
    """In float32: the top two within 3e-6, the trace within four standard errors, whether batches are ragged or not."""
    frozen = fixture_f(torch.float32, micro_batch=micro_batch)
    found = second_opinion(frozen, top=2, probes=200, seed=0, power_iters=400)
    assert found.values.tolist() == pytest.approx(TOP[:2], abs=3e-6)
    assert found.trace.n == len(found.samples) == 200
    assert abs(found.trace.value - TRACE) <= 4 * found.trace.standard_error
    assert found.trace.value == pytest.approx(found.samples.mean().item(), rel=1e-12)
    assert found.trace.standard_error == pytest.approx(found.samples.std().item() / math.sqrt(200), rel=1e-12)
    hessian = exact_hessian(fixture_f())
    vectors = found.vectors.double()
    residuals = (vectors @ hessian - found.values.unsqueeze(1) * vectors).norm(dim=1)
    assert (found.residuals - residuals).abs().max() <= 2e-6
    assert vectors.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-6)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_negated_loss_has_as_many_probes(sign: int) -> None:
    whole = fixture_f()
    frozen = frozen_loss(
        whole.net,
        whole.inputs,
        whole.targets,
        3,
        loss=lambda outputs, targets: sign * nn.functional.cross_entropy(outputs, targets, reduction="none"),
    )
    found = second_opinion(frozen, top=1, probes=50, seed=3)
    assert len(found.samples) == 50
    assert found.values[0].item() == pytest.approx(sign * TOP[0], rel=1e-5)
    assert abs(found.trace.value - sign * TRACE) <= 4 * found.trace.standard_error


def test_little_is_asked_for() -> None:
    nothing = second_opinion(fixture_f(), top=0, probes=0, seed=0)
    assert len(nothing.values) == len(nothing.samples) == len(nothing.residuals) == 0
    assert math.isnan(nothing.trace.value) and nothing.vectors.shape == (0, 115)
    few = quadratic(
        torch.diag(torch.tensor([3.0, -2.0], dtype=DOUBLE)), torch.zeros(2).double(), torch.ones(2).double()
    )
    found = second_opinion(few, top=9, probes=1, seed=0)
    assert found.values.tolist() == pytest.approx([3, -2], rel=1e-5)
    assert found.samples.tolist() == pytest.approx([1.0], abs=1e-12)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_it_is_left(fails: bool, monkeypatch) -> None:
    """Gradients are the same objects, twice gives the same, generators and modes are as before; the density is not."""
    case = NETS["mlp_batch"]
    frozen = net_case(case, 7, micro_batch=3)
    net = frozen.net
    own = list(net.parameters())
    own[0].requires_grad_(False)
    for parameter in own[1:]:
        parameter.grad = torch.ones_like(parameter)
    grads, flags = [p.grad for p in own], [p.requires_grad for p in own]
    values = [p.detach().clone() for p in (*own, *net.buffers())]
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    hooks = sum(len(m._forward_hooks) for m in net.modules())
    if fails:
        import pyhessian

        def broken(self, *arguments, **options):
            torch.rand(1), np.random.rand(), random.random()
            raise KeyboardInterrupt

        monkeypatch.setattr(pyhessian.hessian, "trace", broken)
        with pytest.raises(KeyboardInterrupt):
            second_opinion(frozen, top=1, probes=3, seed=1)
    else:
        first, again = (second_opinion(frozen, top=1, probes=3, seed=1, power_iters=5) for _ in range(2))
        assert first.values.equal(again.values) and first.samples.equal(again.samples)
        assert not first.samples.equal(second_opinion(frozen, top=0, probes=3, seed=2).samples)
    assert all(p.grad is g for p, g in zip(own, grads, strict=True))
    assert all(g.eq(1).all() for g in grads if g is not None)
    assert [p.requires_grad for p in own] == flags
    assert all(a.equal(b) for a, b in zip((*own, *net.buffers()), values, strict=True))
    assert not any(module.training for module in net.modules())
    assert torch.get_rng_state().equal(generators[0]) and random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])
    assert torch.get_default_dtype() is torch.float32
    assert sum(len(m._forward_hooks) for m in net.modules()) == hooks


@pytest.mark.parametrize("name, micro_batch", [("convnet", 4), ("vit", 6), ("mlp_mse", 4)])
def test_networks_of_the_package(name: str, micro_batch: int) -> None:
    """Active outputs, attention, regression; one batch and ragged ones."""
    frozen = net_case(NETS[name], 6, micro_batch=micro_batch)
    found = second_opinion(frozen, top=1, probes=2, seed=0, power_iters=200, tol=1e-9)
    ours = extreme_eigenpairs(HessianOperator(frozen), 1, 0, seed=0, tol=1e-9, max_steps=60, order=Order.magnitude)
    assert found.values[0].item() == pytest.approx(ours.top[0].item(), rel=1e-4)
    assert found.residuals[0] <= 0.02 * abs(found.values[0])


def test_parameters_without_influence_and_a_penalty() -> None:
    torch.manual_seed(0)
    net = nn.ModuleDict({"idle": nn.Linear(2, 2), "used": nn.Linear(3, 2)}).double()
    net.forward = lambda inputs: net["used"](inputs)
    inputs, targets = torch.randn(5, 3, dtype=DOUBLE), torch.randint(0, 2, (5,))
    frozen = frozen_loss(net, inputs, targets, 2)
    exact = torch.linalg.eigvalsh(exact_hessian_of_used(frozen))
    found = second_opinion(frozen, top=1, probes=2, seed=0)
    assert found.values[0].item() == pytest.approx(exact[-1].item(), rel=1e-5)
    assert found.vectors.shape == (1, 14) and found.vectors[0, :6].count_nonzero() == 0
    assert all(p.requires_grad for p in net.parameters())
    decayed = frozen_loss(net, inputs, targets, 2, weight_decay=0.3, micro_batch=2)
    found = second_opinion(decayed, top=1, probes=2, seed=0)
    assert found.values[0].item() == pytest.approx(exact[-1].item() + 0.3, rel=1e-5)
    idle = frozen_loss(nn.ModuleList([net["idle"], net["used"]]), inputs, targets, 2)
    idle.net.forward = lambda inputs: inputs[:, :2]
    with pytest.raises(ConfigError, match="does not depend"):
        second_opinion(idle, top=1, probes=1, seed=0)


def exact_hessian_of_used(frozen: FrozenLoss) -> torch.Tensor:
    return exact_hessian(frozen)[6:, 6:]


def test_what_it_cannot_do_is_said() -> None:
    frozen = fixture_f()
    with pytest.raises(ConfigError, match="one process"):
        second_opinion(frozen.sharded(lambda tensor: 2 * tensor), top=1, probes=1, seed=0)
    linear = frozen_loss(
        frozen.net[2], torch.randn(4, 8).double(), torch.zeros(4, dtype=torch.long), 3, loss=lambda o, _: o.sum(1)
    )
    with pytest.raises(ConfigError, match=r"second derivative.*engine=native"):
        second_opinion(linear, top=1, probes=1, seed=0)


def test_its_density_fails_so_ours_is_the_only_one() -> None:
    """The day this passes there is a second density to compare with."""
    import pyhessian

    frozen = fixture_f(torch.float32)
    frozen.net.requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engine = pyhessian.hessian(frozen.net, nn.CrossEntropyLoss(), data=(frozen.inputs, frozen.targets), cuda=False)
    with pytest.raises(RuntimeError, match="eig"):
        engine.density(iter=3)
    frozen.net.zero_grad()


def test_the_gates() -> None:
    frozen = fixture_f()
    operator = HessianOperator(frozen)
    pairs = extreme_eigenpairs(operator, 5, 2, seed=0, tol=1e-9, max_steps=115)
    trace = trace_of(hutchinson(operator, 32, seed=0), None).trace
    found = second_opinion(frozen, top=3, probes=32, seed=0, power_iters=2000, tol=1e-10)
    check = cross_check(pairs, trace, found)
    assert check.agrees and check.compared == 3 and check.eigenvalue < 1e-4 and abs(check.trace_z) < 4
    by_hand = [abs(a - b) / a for a, b in zip(TOP[:3], found.values.tolist(), strict=True)]
    assert check.eigenvalue == pytest.approx(max(by_hand), abs=1e-7)
    error = math.hypot(trace.standard_error, found.trace.standard_error)
    assert check.trace_z == pytest.approx((trace.value - found.trace.value) / error, rel=1e-12)

    def shifted(**changes):
        return type(found)(**{**vars(found), **changes})

    assert not cross_check(pairs, trace, shifted(values=found.values * 1.002)).agrees
    off = Estimate(trace.value + 4.1 * error, found.trace.standard_error, 32)
    assert not cross_check(pairs, trace, shifted(trace=off)).agrees
    assert cross_check(pairs, trace, shifted(values=found.values[:0])).agrees


def test_only_what_power_iteration_can_tell_apart_is_compared() -> None:
    """-3 and 3 have one magnitude; below the last one of each end something may be missing."""

    def pairs_of(values: list[float], top: int, bottom: int, **options):
        matrix = torch.diag(torch.tensor(values, dtype=DOUBLE))
        frozen = quadratic(matrix, torch.zeros(len(values)).double(), torch.ones(len(values)).double())
        return extreme_eigenpairs(HessianOperator(frozen), top, bottom, seed=0, tol=1e-12, **options)

    trace, opinion = Estimate(1.0, 0.1, 9), second_opinion(fixture_f(), top=0, probes=0, seed=0)

    def compared(pairs, theirs: list[float]) -> tuple[int, bool]:
        check = cross_check(
            pairs, trace, type(opinion)(**{**vars(opinion), "values": torch.tensor(theirs), "trace": trace})
        )
        return check.compared, check.agrees

    values = [5.0, 3.0, 2.0, 1.0, -1.5, -3.0, -4.0]
    assert compared(pairs_of(values, 2, 2), [5, -4, 0.1, 0.2]) == (2, True)
    assert compared(pairs_of(values, 2, 2), [5, 4]) == (2, False)
    assert compared(pairs_of(values, 2, 0), [5, -4]) == (0, True)
    assert compared(pairs_of(values, 3, 0, order=Order.magnitude), [5, -4, 3]) == (2, True)
    assert compared(pairs_of(values, 1, 1), [5, -4]) == (2, True)
    assert compared(pairs_of(values, 1, 1), [5, -4.1]) == (2, False)
