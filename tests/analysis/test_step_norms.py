"""Norms of gradients and updates, by hand."""

import math
from types import SimpleNamespace

import pytest
import torch
from analysis_context import make_context
from torch import nn

from plastiscope.analysis.steps import StepNorms, Steps
from plastiscope.net.units import Layer, Site, UnitDescription, Wire


def one_layer(weight=(3.0, 4.0)):
    """A linear layer without bias, w = (3, 4), as a hidden layer of two inputs and one unit."""
    net = nn.Sequential(nn.Linear(2, 1, bias=False))
    net[0].weight.data = torch.tensor([weight])
    units = UnitDescription((Layer("hidden", 1, Site("0"), (Wire("0.weight", 0),)),), head="")
    return SimpleNamespace(net=net, units=units, is_last_batch=True)


def step(context, norms, optimizer, gradient=(0.6, 0.8)):
    context.net[0].weight.grad = torch.tensor([gradient])
    norms.on_backward(context)
    optimizer.step()
    norms.on_update(context)


@pytest.mark.parametrize(("weight_decay", "update"), [(0.0, 0.1), (0.5, 0.35)])
def test_one_step_by_hand(weight_decay, update):
    """W = (3, 4), g = (.6, .8), lr .1: the weight decay is part of the update and not of the gradient."""
    context, norms = one_layer(), StepNorms(Steps.last)
    step(context, norms, torch.optim.SGD(context.net.parameters(), lr=0.1, weight_decay=weight_decay))
    taken = norms.take(context)
    for part in ("hidden", "total"):
        assert taken[part, "grad_norm"] == pytest.approx(1.0, rel=1e-6)
        assert taken[part, "update_norm"] == pytest.approx(update, rel=1e-5)
        assert taken[part, "update_ratio"] == pytest.approx(update / 5, rel=1e-5)
    assert norms.take(context) == {}


def test_the_last_step_or_the_mean_of_all():
    for steps, expected in ((Steps.last, 2.0), (Steps.all, 1.5), (Steps.none, None)):
        context, norms = one_layer(), StepNorms(steps)
        optimizer = torch.optim.SGD(context.net.parameters(), lr=0.0)
        for is_last, gradient in ((False, (0.6, 0.8)), (True, (1.2, 1.6))):
            context.is_last_batch = is_last
            step(context, norms, optimizer, gradient)
        taken = norms.take(context)
        if expected is None:
            assert taken == {}
        else:
            assert taken["hidden", "grad_norm"] == pytest.approx(expected, rel=1e-6)
            assert taken["hidden", "update_norm"] == 0


def test_parameters_without_gradient_count_as_zero():
    context, norms = one_layer(), StepNorms(Steps.last)
    context.net[0].weight.grad = None
    norms.on_backward(context)
    norms.on_update(context)
    assert norms.take(context) == {(part, q): 0 for part in ("hidden", "total") for q in ("grad_norm",)} | {
        (part, q): 0 for part in ("hidden", "total") for q in ("update_norm", "update_ratio")
    }


def test_layers_of_a_network(tmp_path):
    """Gradients of a real step: each layer has its weight and bias, the head its own, the total everything."""
    context = make_context(tmp_path)
    context.num_batches, context.batch_index = 1, 0
    batch = context.task.train.gather(torch.arange(10))
    nn.functional.cross_entropy(context.net(batch.inputs), batch.targets).backward()
    norms = StepNorms(Steps.last)
    norms.on_backward(context)
    before = {name: p.detach().clone() for name, p in context.net.named_parameters()}
    context.optimizer.step()
    norms.on_update(context)
    taken = norms.take(context)
    assert {layer for layer, _ in taken} == {"linear_1", "linear_2", "head", "total"}
    for layer in ("linear_1", "linear_2", "head", "total"):
        own = [(n, p) for n, p in context.net.named_parameters() if layer == "total" or n.startswith(f"{layer}.")]
        gradient = math.sqrt(sum(p.grad.double().square().sum().item() for _, p in own))
        update = math.sqrt(sum((p.detach().double() - before[n].double()).square().sum().item() for n, p in own))
        assert taken[layer, "grad_norm"] == pytest.approx(gradient, rel=1e-12)
        assert taken[layer, "update_norm"] == pytest.approx(update, rel=1e-12)
        assert gradient > 0
        assert update > 0
