"""Representation against brute force on tiny networks."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_context import make_context, move_to, same
from torch import nn

from plastiscope.analysis.features import collect
from plastiscope.analysis.representation import Representation, When
from plastiscope.analysis.sample import Subset, draw, draw_from
from plastiscope.error import ConfigError
from plastiscope.net.units import UnitDescription
from plastiscope.run.snapshots import Snapshots


def arrays(context, subset="current", analysis="representation"):
    return np.load(context.folder(analysis) / f"{subset}_epoch_{context.epochs_completed:06d}.npz")


def inputs_of(samples, ids):
    """Clean inputs of the ids, one by one, float64."""
    position = {int(i): p for p, i in enumerate(samples.ids)}
    batches = [samples.gather(torch.tensor([position[int(i)]])).inputs for i in ids]
    return torch.cat(batches).double()


def hidden(net, x):
    """Features of the two hidden layers of the MLP, by hand."""
    first = (x.flatten(1) @ net.linear_1.weight.double().T + net.linear_1.bias.double()).clamp(min=0)
    second = (first @ net.linear_2.weight.double().T + net.linear_2.bias.double()).clamp(min=0)
    return {"linear_1": first, "linear_2": second}


def switch_off(layer: nn.Linear, units: int) -> None:
    with torch.no_grad():
        layer.bias[:units] = -1e6


def test_units_that_are_off_are_counted_exactly(tmp_path):
    """3 of 12 and 4 of 8 units: shares by layer, 7/20 of all units, (1/4 + 1/2)/2 in the mean layer."""
    context = make_context(tmp_path)
    for layer, units in ((context.net.linear_1, 3), (context.net.linear_2, 4)):
        nn.init.uniform_(layer.bias, 5.0, 6.0)
        switch_off(layer, units)
    numbers = Representation(subsets=[Subset.current, Subset.next]).on_task_end(context)
    for subset in ("current", "next"):
        for rule in ("dormant_rate", "dormant_dead", "dormant_rl", "dormant_redo", "saturated", "dead_aj"):
            of = {part: numbers[f"representation/{subset}/{part}/{rule}"] for part in ("linear_1", "linear_2", "total")}
            assert of == {"linear_1": 3 / 12, "linear_2": 4 / 8, "total": pytest.approx(7 / 20)}, rule
            assert numbers[f"representation/{subset}/layer_mean/{rule}"] == pytest.approx(3 / 8)
    assert np.array_equal(arrays(context)["linear_1/non_zero_share"][:3], [0, 0, 0])


def test_ranks_equal_those_of_the_features_by_hand(tmp_path):
    context = make_context(tmp_path, task=1)
    numbers = Representation(samples=17, batch_size=5, subsets=[Subset.current]).on_task_end(context)
    stored = arrays(context)
    assert len(stored["ids"]) == 17
    features = hidden(context.net, inputs_of(context.task.train, stored["ids"]))
    effective = []
    for layer, matrix in features.items():
        s = np.linalg.svd(matrix.detach().numpy(), compute_uv=False)
        np.testing.assert_allclose(stored[f"{layer}/singular_values"], s, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(stored[f"{layer}/mean_absolute"], matrix.detach().abs().mean(0), rtol=1e-5)
        p = s / s.sum()
        p = p[p > 0]
        effective.append(math.exp(-(p * np.log(p)).sum()))
        key = f"representation/current/{layer}"
        assert numbers[f"{key}/effective_rank"] == pytest.approx(effective[-1], rel=1e-4)
        assert numbers[f"{key}/stable_rank"] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-4)
    assert numbers["representation/current/layer_mean/effective_rank"] == pytest.approx(sum(effective) / 2, rel=1e-4)
    aurc = sum(effective) / 2 / effective[0]
    assert numbers["representation/current/total/normalized_aurc"] == pytest.approx(aurc, rel=1e-4)


def test_centring_and_flattening_of_feature_maps(tmp_path):
    """A convolutional net: means over positions, or every unit at every position."""
    net = ("net=convnet", "net.channels=[3]", "net.kernel_sizes=[3]", "net.widths=[5]")
    context = make_context(tmp_path, "data.resize=8", net=net)
    layer = context.units.layers[0]
    sample = draw(context, Subset.current, 9)
    maps = []
    site = context.net.get_submodule(layer.site.module)
    handle = site.register_forward_hook(lambda _, __, output: maps.append(output.detach().clone().double()))
    with torch.no_grad():
        context.net(next(sample.batches(1000)).inputs)
    handle.remove()
    features = maps[layer.site.call]
    assert features.ndim == 4
    for flatten, matrix in ((False, features.mean((2, 3))), (True, features.flatten(1))):
        for centred in (False, True):
            look = Representation(samples=9, batch_size=4, subsets=[Subset.current], flatten=flatten, centred=centred)
            look.on_task_end(context)
            expected = np.linalg.svd((matrix - matrix.mean(0) * centred).numpy(), compute_uv=False)
            np.testing.assert_allclose(
                arrays(context)[f"{layer.name}/singular_values"], expected, atol=2e-6 * expected[0]
            )
            about = json.loads((context.folder("representation") / "summary.json").read_text())
            assert about["subsets"]["current"]["layers"][layer.name] == {"n": 9, "d": matrix.shape[1]}
            assert about["settings"]["flatten"] is flatten


def test_subsets_of_tasks_that_accumulate(tmp_path):
    """current: all classes so far; next: the unseen ones; previous: those of the tasks before."""
    context = make_context(tmp_path, task=1)
    shift, everything = context.shift, 10_000
    expected = {
        Subset.current: shift.task(1).train,
        Subset.next: shift.task(2).new_train,
        Subset.previous: shift.task(0).train,
    }
    for subset, samples in expected.items():
        sample = draw(context, subset, everything)
        assert sorted(sample.ids.tolist()) == sorted(samples.ids.tolist())
        assert len(sample) == len(samples)
        some = draw(context, subset, 7)
        assert len(some) == len(set(some.ids.tolist())) == 7
        assert set(some.ids.tolist()) < set(sample.ids.tolist())
        assert some.ids.tolist() == draw(context, subset, 7).ids.tolist()
    move_to(context, 0)
    assert draw(context, Subset.previous, 7) is None
    move_to(context, 2)
    assert draw(context, Subset.next, 7) is None
    seen = draw(context, Subset.previous, everything).ids.tolist()
    assert sorted(seen) == sorted(shift.task(1).train.ids.tolist())  # each once, though task 1 trained on all of task 0


def test_every_sample_is_as_likely(tmp_path):
    """Two of the 8 samples of two pools, under 2000 seeds: each 500 times, within 5 standard deviations."""
    train = make_context(tmp_path).task.train
    pools = {3: train.select(torch.arange(5)), 4: train.select(torch.arange(5, 8))}
    drawn = torch.cat([draw_from(pools, 2, seed).ids for seed in range(2000)])
    counts = torch.tensor([(drawn == i).sum() for i in train.ids[:8]])
    assert counts.sum() == 4000
    assert (counts - 500).abs().max() <= 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_samples_differ_by_seed_and_task(tmp_path):
    context = make_context(tmp_path, "task_shift_mode=permuted_input")
    first = draw(context, Subset.current, 20).ids.tolist()
    move_to(context, 1)
    assert draw(context, Subset.current, 20).ids.tolist() != first
    other = make_context(tmp_path / "other", "task_shift_mode=permuted_input", "seed=1")
    assert draw(other, Subset.current, 20).ids.tolist() != first


def test_previous_tasks_are_seen_as_each_was(tmp_path):
    """Permuted inputs: a sample of task j has the permutation of task j; batches join the tasks."""
    context = make_context(tmp_path, "task_shift_mode=permuted_input", "num_tasks=4", task=3)
    sample = draw(context, Subset.previous, 31)
    batches = list(sample.batches(8))
    assert torch.equal(torch.cat([b.ids for b in batches]), sample.ids)
    assert all(8 <= len(b.ids) < 16 for b in batches[:-1])
    assert set(sample.tasks.tolist()) == {0, 1, 2}
    inputs = torch.cat([b.inputs for b in batches])
    for i, (task, an_id) in enumerate(zip(sample.tasks.tolist(), sample.ids.tolist(), strict=True)):
        assert torch.equal(inputs[i].double(), inputs_of(context.shift.task(task).train, [an_id])[0])


def test_drift_and_magnitudes(tmp_path):
    """Every weight of the first layer moves by 1 in the task, and by 2 in all: distances 1, 2 times the root of n."""
    context = make_context(tmp_path)
    analysis = Representation(subsets=[], cka=False)
    weight = context.net.linear_1.weight
    norm_0 = torch.cat([weight.flatten(), context.net.linear_1.bias]).double().norm().item()
    with torch.no_grad():
        weight += 1.0
    analysis.on_task_begin(context)
    with torch.no_grad():
        weight += 1.0
    numbers = analysis.on_task_end(context)
    root = math.sqrt(weight.numel())
    for part in ("linear_1", "total"):
        assert numbers[f"representation/weights/{part}/dist_init"] == pytest.approx(2 * root, rel=1e-6)
        assert numbers[f"representation/weights/{part}/dist_task"] == pytest.approx(root, rel=1e-6)
    assert numbers["representation/weights/linear_1/dist_init_rel"] == pytest.approx(2 * root / norm_0, rel=1e-6)
    assert numbers["representation/weights/linear_2/dist_init"] == 0
    assert numbers["representation/weights/linear_1/weight_norm"] == pytest.approx(weight.double().norm().item())
    assert numbers["representation/weights/linear_1/weight_mag_layer"] == pytest.approx(weight.abs().mean().item())
    every = torch.cat([p.detach().flatten() for p in context.net.parameters()]).double()
    matrices = torch.cat([p.detach().flatten() for p in context.net.parameters() if p.ndim > 1]).double()
    assert numbers["representation/weights/total/weight_mag_all"] == pytest.approx(every.abs().mean().item())
    assert numbers["representation/weights/total/weight_mag_weights"] == pytest.approx(matrices.abs().mean().item())


@pytest.mark.parametrize(("optimizer", "power"), [("sgd", 2), ("adam", 1)])
def test_effective_rate_of_scale_invariant_layers_only(tmp_path, optimizer, power):
    """Before a batch norm: the weights, and each filter by itself; before a layer norm: weights and biases together."""
    rates = {}
    for norm in ("none", "batch", "layer"):
        context = make_context(tmp_path / norm, f"net.norm={norm}", f"learner.optimizer={optimizer}", "learner.lr=0.1")
        linear = context.net.linear_1
        for size in (1.0, 10.0):
            with torch.no_grad():
                linear.weight.fill_(size)
                linear.bias.fill_(size)
            numbers = Representation(subsets=[], cka=False).on_task_end(context)
            rates[norm, size] = numbers["representation/weights/linear_1/effective_lr"]
            assert numbers["representation/weights/linear_1/weight_norm"] == pytest.approx(
                size * math.sqrt(linear.weight.numel() + (linear.bias.numel() if norm == "layer" else 0))
            )
            if norm == "batch":
                by_unit = numbers["representation/weights/linear_1/effective_lr_unit"]
                assert by_unit == pytest.approx(0.1 / (size * math.sqrt(linear.in_features)) ** power)
        assert math.isnan(rates[norm, 1.0]) == (norm == "none")
    n, b = linear.weight.numel(), linear.bias.numel()
    assert rates["batch", 1.0] == pytest.approx(0.1 / math.sqrt(n) ** power)
    assert rates["layer", 1.0] == pytest.approx(0.1 / math.sqrt(n + b) ** power)
    assert rates["batch", 10.0] == pytest.approx(rates["batch", 1.0] / 10**power)


def test_likeness_to_initialisation_and_to_the_task_before(tmp_path):
    """Task 1 ends with the weights of task 0's end, scaled: cka_prev 1, cka_init as by hand, weights left alone."""
    context = make_context(tmp_path, task=1)
    initial = {name: tensor.clone() for name, tensor in context.net.state_dict().items()}
    with torch.no_grad():
        for parameter in context.net.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    snapshots = Snapshots(tmp_path / "other")
    snapshots.save(0, initial)
    snapshots.save(context.epochs, context.net.state_dict())
    context.snapshots = snapshots
    with torch.no_grad():
        context.net.linear_2.weight *= 2.0
        context.net.linear_2.bias *= 2.0
    before = {name: tensor.clone() for name, tensor in context.net.state_dict().items()}
    pointers = [p.data_ptr() for p in context.net.parameters()]
    numbers = Representation(subsets=[], samples=21).on_task_end(context)
    assert all(torch.equal(before[name], tensor) for name, tensor in context.net.state_dict().items())
    assert pointers == [p.data_ptr() for p in context.net.parameters()]
    ids = json.loads((context.folder("representation") / "summary.json").read_text())["fixed_sample"]
    inputs = inputs_of(context.shift.task(0).train, ids)
    now = hidden(context.net, inputs)
    context.net.load_state_dict(initial)
    then = hidden(context.net, inputs)
    for layer in ("linear_1", "linear_2"):
        x, y = ((f - f.mean(0)).detach().numpy() for f in (now[layer], then[layer]))
        cka = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
        assert numbers[f"representation/fixed/{layer}/cka_init"] == pytest.approx(cka, rel=1e-4)
        assert 0.01 < cka < 0.99
        assert numbers[f"representation/fixed/{layer}/cka_prev"] == pytest.approx(1.0, abs=1e-6)
    move_to(context, 0)
    assert not any("cka_prev" in key for key in Representation(subsets=[]).on_task_end(context))


def test_features_of_other_weights(tmp_path):
    context = make_context(tmp_path)
    sample = draw(context, Subset.current, 6)
    other = {name: tensor * 2.0 for name, tensor in context.net.state_dict().items()}
    mine = collect(context.net, context.units.layers, sample, 4)
    theirs = collect(context.net, context.units.layers, sample, 4, weights=other)
    context.net.load_state_dict(other)
    again = collect(context.net, context.units.layers, sample, 4)
    for name in mine:
        assert torch.equal(theirs[name].matrix, again[name].matrix)
        assert not torch.equal(theirs[name].matrix, mine[name].matrix)


@pytest.mark.parametrize(
    ("when", "every", "epochs", "tasks"),
    [("task_end", 1, [], [0, 1, 2]), ("task_end", 2, [], [1]), ("epoch", 3, [3, 6], []), ("both", 2, [2, 4, 6], [1])],
)
def test_when_it_looks(tmp_path, when, every, epochs, tasks):
    context = make_context(tmp_path)
    analysis = Representation(when=When(when), every=every, subsets=[Subset.current], samples=5, cka=False)
    looked: dict[str, list[int]] = {"epochs": [], "tasks": []}
    for task in range(3):
        context.task = context.shift.task(task)
        for epoch in range(2):
            context.epochs_completed = 2 * task + epoch + 1
            if analysis.on_epoch_end(context):
                looked["epochs"].append(context.epochs_completed)
        if analysis.on_task_end(context):
            looked["tasks"].append(task)
    assert looked == {"epochs": epochs, "tasks": tasks}


def test_transformers_show_attention_and_norm_outputs_beside_the_totals(tmp_path):
    net = ("net=vit", "net.depth=1", "net.width=8", "net.heads=2", "net.hidden=6", "net.patch=4")
    context = make_context(tmp_path, net=net)
    looks = [
        Representation(subsets=[Subset.current], samples=8, attention_outputs=a, norm_outputs=n, cka=False)
        for a, n in ((False, False), (True, True))
    ]
    without, with_them = (look.on_task_end(context) for look in looks)
    more = {key.split("/")[2] for key in with_them.keys() - without.keys()}
    assert more == {layer.name for layer in (*context.units.attention_outputs, *context.units.norm_outputs)}
    assert same(without, {key: with_them[key] for key in without})


def test_the_initialisation_is_looked_at_on_the_first_task(tmp_path):
    """As at any task's end, on what comes next; nothing has moved and nothing was learnt."""
    context = make_context(tmp_path)
    context.task, context.epochs_completed = None, 0
    numbers = Representation(samples=10_000).on_run_begin(context)
    parts = {tuple(key.split("/")[1:3]) for key in numbers}
    assert {subset for subset, _ in parts} == {"next", "weights"}
    assert not [key for key in numbers if "dist_" in key]
    x = inputs_of(context.shift.task(0).train, context.shift.task(0).train.ids)
    for layer, features in hidden(context.net, x).items():
        dormant = ((features != 0).double().mean(0) < 0.01).double().mean().item()
        assert numbers[f"representation/next/{layer}/dormant_rate"] == pytest.approx(dormant)
        values = torch.linalg.svdvals(features)
        expected = int((values.cumsum(0) / values.sum() < 0.99).sum()) + 1
        assert numbers[f"representation/next/{layer}/srank_99_l1"] == expected
    kept = arrays(context, "next")
    assert set(kept["tasks"].tolist()) == {0} and sorted(kept["ids"]) == sorted(context.shift.task(0).train.ids)
    weights = torch.cat([p.detach().flatten() for p in context.net.parameters()])
    assert numbers["representation/weights/total/weight_mag_all"] == pytest.approx(weights.abs().mean().item())


def test_later_weights_are_not_taken_for_the_initialisation(tmp_path):
    context = make_context(tmp_path)
    context.task, context.epochs_completed = None, 2
    assert Representation().on_run_begin(context) == {}
    assert not list(tmp_path.glob("task_*/representation/*"))


def test_a_network_without_hidden_layers_is_refused(tmp_path):
    context = make_context(tmp_path)
    context.units = UnitDescription((), head="head")
    with pytest.raises(ConfigError, match="representation: no hidden layer"):
        Representation().on_run_begin(context)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("every", 0), ("samples", 1), ("batch_size", 0), ("numerical_eps", 1.0), ("theta", -0.1), ("tau", -1.0)],
)
def test_settings_out_of_range(setting, value):
    with pytest.raises(ConfigError, match=f"{setting}={value}"):
        Representation(**{setting: value})


def test_artifacts_are_equal_bytes(tmp_path):
    written = []
    for name in ("a", "b"):
        context = make_context(tmp_path / name, task=1)
        Representation(samples=11).on_task_end(context)
        files = sorted(Path(context.folder("representation")).iterdir())
        written.append([(path.name, path.read_bytes()) for path in files])
    assert written[0] == written[1]
    names = [f"{subset}_epoch_000004.npz" for subset in ("current", "next", "previous")]
    assert [name for name, _ in written[0]] == [*names, "summary.json"]
