"""Features of a transformer: units lie on the last axis, tokens are their positions."""

import pytest
import torch
from analysis_context import make_context
from torch import nn

from plastiscope.analysis.features import collect
from plastiscope.analysis.representation import Representation
from plastiscope.analysis.sample import Subset, draw

VIT = ("net=vit", "net.depth=2", "net.width=8", "net.heads=2", "net.hidden=6", "net.patch=4")
"""On 8x8 images: 4 patches and a class token, 5 tokens."""


def features_by_hand(net, inputs, layers):
    """What the modules at the layers' sites give, [b, tokens, units] in float64."""
    seen, hooks = {}, []
    for layer in layers:

        def keep(module, arguments, output, name=layer.name):
            seen[name] = output.double()

        hooks.append(net.get_submodule(layer.site.module).register_forward_hook(keep))
    with torch.no_grad():
        net(inputs)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("flatten", [False, True])
def test_units_and_tokens_keep_their_places(tmp_path, flatten):
    context = make_context(tmp_path, net=VIT)
    units = context.units
    layers = (*units.layers, *units.attention_outputs, *units.norm_outputs)
    sample = draw(context, Subset.current, 7)
    inputs = torch.cat([batch.inputs for batch in sample.batches(100)])
    collected = collect(context.net, layers, sample, 3, flatten=flatten)
    by_hand = features_by_hand(context.net, inputs, layers)
    assert collected.keys() == by_hand.keys() and len(by_hand) == 2 + 2 + 5
    for layer in layers:
        h, found = by_hand[layer.name], collected[layer.name]
        assert h.shape == (7, 5, layer.width)
        if flatten:  # [n, units * tokens], the tokens of a unit side by side
            expected = torch.stack([h[:, t, u] for u in range(layer.width) for t in range(5)], dim=1)
        else:
            expected = torch.stack([sum(h[:, t, u] for t in range(5)) / 5 for u in range(layer.width)], dim=1)
        torch.testing.assert_close(found.matrix.double(), expected, rtol=1e-5, atol=1e-6)
        activity = found.activity
        assert (activity.samples, activity.values) == (7, 35)
        absolute = torch.stack([h[:, :, u].abs().sum() for u in range(layer.width)])
        torch.testing.assert_close(activity.absolute, absolute, rtol=1e-5, atol=1e-6)
        counted = [(h[:, :, u] > 0).any(dim=1).sum().item() for u in range(layer.width)]
        assert activity.active_samples.tolist() == counted


def test_hidden_units_that_are_off_are_counted_exactly(tmp_path):
    """2 of 6 and 3 of 6 hidden units; GELU of -1e6 is 0 for every token."""
    context = make_context(tmp_path, net=VIT)
    for block, off in ((0, 2), (1, 3)):
        linear = context.net.get_submodule(f"blocks.{block}.linear1")
        nn.init.uniform_(linear.bias, 5.0, 6.0)
        with torch.no_grad():
            linear.bias[:off] = -1e6
    numbers = Representation(subsets=[Subset.current], samples=8, cka=False).on_task_end(context)
    for rule in ("dormant_rate", "dormant_dead", "dormant_rl", "dormant_redo", "dead_aj"):
        found = [numbers[f"representation/current/{part}/{rule}"] for part in ("blocks.0.linear1", "blocks.1.linear1")]
        assert found == [2 / 6, 3 / 6], rule
        assert numbers[f"representation/current/total/{rule}"] == pytest.approx(5 / 12)
