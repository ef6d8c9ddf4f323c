"""Whatever is done, and wherever it stops: network, gradients and generators are as before."""

import copy
import random

import numpy as np
import pytest
import torch
from landscape_cases import NETS, state_of

from measure.gradient_cases import GradientCase
from plastiscope.measure.landscape.connectivity import Curve, first_bend, fresh_statistics, train_bend
from plastiscope.measure.landscape.eigenpairs import extreme_eigenpairs
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.operator import Backend, HessianOperator
from plastiscope.measure.landscape.plane import Plane, offsets, robust_surface
from plastiscope.measure.landscape.preserved import landscape_of
from plastiscope.measure.landscape.trace import hutchinson


def every_look(frozen: FrozenLoss) -> None:
    first, second = (frozen.space.normals(0, "plane", k).to(frozen.inputs.dtype) for k in (0, 1))
    for backend in (Backend.retained, Backend.rebuilt, Backend.jvp, Backend.vmap_jvp):
        HessianOperator(frozen, backend).products(torch.stack([first, second]))
    extreme_eigenpairs(HessianOperator(frozen), 1, 1, seed=0, max_steps=3)
    hutchinson(HessianOperator(frozen), 2, seed=0)
    robust_surface(Plane(frozen, first, second, offsets(0.1, 3), offsets(0.1, 3)), 0.05)
    weights = frozen.space.values(frozen.net)
    line = Curve.line(weights, weights + first)
    curve = Curve(line.start, line.end, first_bend(line, frozen.space, 0))
    train_bend(frozen, curve, steps=1, lr=0.1, seed=0)
    with fresh_statistics(frozen.net, frozen.inputs.split(3)):
        frozen.measure()
    frozen.without_influence()


def options(case: GradientCase) -> dict:
    return {"loss": case.loss, "active_outputs": case.active, "micro_batch": 4}


@pytest.mark.parametrize("name", ["mlp_batch", "vit"])
@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_as_before(name: str, fails: bool) -> None:
    case = NETS[name]
    net, inputs, targets = case.make()
    net.train()
    next(net.children()).eval()
    own = list(net.parameters())
    own[0].requires_grad_(False)
    for parameter in own[1:]:
        parameter.grad = torch.ones_like(parameter)
    grads, flags = [p.grad for p in own], [p.requires_grad for p in own]
    modes, state = [m.training for m in net.modules()], state_of(net)
    precision = torch.get_float32_matmul_precision(), torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic
    generators = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    looks = copy.deepcopy(inputs)

    def look() -> None:
        with landscape_of(net, inputs, targets, **options(case)) as frozen:
            before = state_of(net)
            every_look(frozen)
            after = state_of(net)
            assert all(after[key].equal(before[key]) for key in before)
            assert not any(p.requires_grad for p in own) and [p.grad is g for p, g in zip(own, grads, strict=True)]
            torch.rand(3), random.random(), np.random.rand()
            if fails:
                with torch.no_grad():
                    own[1].zero_()
                net.train()(inputs)
                raise KeyboardInterrupt

    if fails:
        with pytest.raises(KeyboardInterrupt):
            look()
    else:
        look()
    after = state_of(net)
    assert all(after[key].equal(state[key]) for key in state)
    assert all(p.grad is g for p, g in zip(own, grads, strict=True))
    assert all(g.eq(1).all() for g in grads if g is not None)
    assert [p.requires_grad for p in own] == flags
    assert [m.training for m in net.modules()] == modes
    assert precision == (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    )
    assert torch.get_rng_state().equal(generators[0]) and random.getstate() == generators[1]
    assert np.array_equal(np.random.get_state()[1], generators[2])
    assert inputs.equal(looks)


def test_an_exception_inside_a_plane_or_a_curve_puts_the_weights_back() -> None:
    case = NETS["mlp_batch"]
    net, inputs, targets = case.make()
    state = state_of(net)
    with landscape_of(net, inputs, targets, **options(case)) as frozen:
        direction = frozen.space.normals(0, "plane", 0).double()

        def at() -> torch.Tensor:
            raise RuntimeError("planted")

        with pytest.raises(RuntimeError, match="planted"):
            Plane(frozen, direction, direction, offsets(0.1, 3), offsets(0.1, 3)).row(0, at)
        with pytest.raises(RuntimeError, match="planted"), fresh_statistics(net, frozen.inputs.split(3)):
            at()
        assert all(tensor.equal(state[name]) for name, tensor in state_of(net).items())
        assert not any(module.training for module in net.modules())


def test_two_operators_on_one_network_agree() -> None:
    net, inputs, targets = NETS["mlp"].make()
    with landscape_of(net, inputs, targets, **options(NETS["mlp"])) as frozen:
        vector = frozen.space.normals(0, "v", 0).double()
        first, second = HessianOperator(frozen, Backend.retained), HessianOperator(frozen, Backend.retained)
        assert first(vector).equal(second(vector)) and first(vector).equal(
            HessianOperator(frozen, Backend.retained)(vector)
        )
