"""The trainability probe: curves against the loop written out, what is equal for all networks, and closed forms."""

import json
import math

import numpy as np
import pytest
import torch
from analysis_context import MLP, TINY, make_context, same, unchanged

from plans import make_plan
from plastiscope.analysis.held_out import HeldOutKind, held_out
from plastiscope.analyze import analyze
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.learner.continual_backprop import ContinualBackpropLearner
from plastiscope.learner.learner import Learner
from plastiscope.make import make_net
from plastiscope.measure.loss import Loss
from plastiscope.net.net import fresh_net
from plastiscope.run.log import read_rows
from plastiscope.task_shift_mode.task import NewHead

SHORT = ("analysis=[probe]", "probe.steps=6", "probe.batch_size=32", "probe.fresh_nets=2")
SGD = ("learner.lr=0.1", "learner.momentum=0.9", "learner.weight_decay=0.01")
KEY = "probe/held_out/total/"


def probe_of(*overrides, net=MLP):
    return make_plan(*TINY, *net, *SHORT, *SGD, *overrides).analyses[0]


def context_of(folder, *overrides, net=MLP, task=0):
    return make_context(folder, *SHORT, *SGD, *overrides, net=net, task=task)


def numbers_of(probe, context):
    return {key.removeprefix(KEY): value for key, value in probe.on_task_end(context).items()}


def curves_of(context):
    return dict(np.load(context.folder("probe") / "curves.npz"))


def by_hand(net, task, steps, momentum=0.9):
    """Loss and accuracy before each step and after the last, of SGD with a zero head."""
    inputs, targets = task.inputs, task.targets
    torch.nn.init.zeros_(net.head.weight)
    torch.nn.init.zeros_(net.head.bias)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum, weight_decay=0.01)
    losses, hits = [], []
    for step in range(steps + 1):
        with torch.no_grad():
            outputs = net(inputs)[:, :10]
            losses.append(torch.nn.functional.cross_entropy(outputs, targets).item())
            hits.append((outputs.argmax(1) == targets).double().mean().item())
        if step < steps:
            rows = task.order[step]
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs[rows])[:, :10], targets[rows]).backward()
            optimizer.step()
    return losses, hits


def test_curves_are_those_of_plain_training_written_out(tmp_path):
    """The head begins at zero, all else is the run's network or a fresh one; SGD with the run's settings."""
    probe, context = probe_of(), context_of(tmp_path / "run", task=1)
    numbers, task = numbers_of(probe, context), probe.held_out(context)
    plan = make_plan(*TINY, *MLP, *SGD)
    nets = [make_net(plan, (1, 8, 8), 10, k) for k in (0, -1, -2)]
    expected = [by_hand(net, task, 6) for net in nets]
    curves = curves_of(context)
    assert curves["steps"].tolist() == list(range(7))
    assert curves["loss"] == pytest.approx(expected[0][0], rel=1e-5)
    assert curves["accuracy"] == pytest.approx(expected[0][1], abs=1e-12)
    assert curves["fresh_loss"] == pytest.approx(np.array([e[0] for e in expected[1:]]), rel=1e-5)
    area = [sum((a + b) / 2 for a, b in zip(e[0], e[0][1:], strict=False)) / 6 for e in expected]
    assert numbers["probe_auc"] == pytest.approx(area[0], rel=1e-5)
    assert numbers["probe_ratio"] == pytest.approx(area[0] / ((area[1] + area[2]) / 2), rel=1e-5)
    assert curves["loss"][0] == pytest.approx(math.log(10), rel=1e-6)


def test_a_copy_of_the_fresh_network_has_the_ratio_one(tmp_path):
    probe, context = probe_of("probe.fresh_nets=1"), context_of(tmp_path / "run")
    context.net.load_state_dict(make_net(make_plan(*TINY, *MLP), (1, 8, 8), 10, -1).state_dict())
    numbers = numbers_of(probe, context)
    assert numbers["probe_ratio"] == 1.0 and numbers["probe_acc_ratio"] == 1.0
    assert numbers["probe_auc"] < math.log(10)


@pytest.mark.parametrize("rows", [120, 40])
def test_a_silent_last_layer_learns_nothing(tmp_path, rows):
    """Zero head, full-batch steps, balanced classes: the gradient of the bias is 0, so the loss stays ln K."""
    settings = (f"probe.samples={rows}", f"probe.batch_size={rows}", "learner.weight_decay=0.0")
    probe, context = probe_of(*settings), context_of(tmp_path / "run", *settings)
    hidden = context.units.layers[-1].incoming
    for wire in hidden:
        context.net.get_parameter(wire.parameter).data.fill_(-1.0 if wire.parameter.endswith("bias") else 0.0)
    numbers_of(probe, context)
    assert curves_of(context)["loss"] == pytest.approx([math.log(10)] * 7, abs=1e-6)
    assert (curves_of(context)["fresh_loss"][:, -1] < math.log(10) - 1e-4).all()


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("net.norm=batch", "net.dropout=0.3", "probe.learner=own", "learner=continual_backprop"),
        ("probe.task=permuted_input", "probe.head=initial", "learner.optimizer=adam"),
    ],
)
def test_two_looks_give_equal_bits_and_touch_nothing(tmp_path, overrides):
    context = context_of(tmp_path / "run", *overrides)
    first, torch_state = probe_of(*overrides), torch.get_rng_state()
    with unchanged(context.net):
        one = numbers_of(first, context)
    torch.manual_seed(7)
    again = probe_of(*overrides)
    again.load_state_dict(first.state_dict())
    assert same(numbers_of(first, context), one) and same(numbers_of(again, context), one)
    assert same(numbers_of(probe_of(*overrides), context), one)
    torch.set_rng_state(torch_state)


def test_fresh_networks_are_trained_once(tmp_path, monkeypatch):
    made, learner = [], Learner.begin_task
    monkeypatch.setattr(Learner, "begin_task", lambda self, task: (made.append(1), learner(self, task)))
    probe, context = probe_of("probe.fresh_nets=3"), context_of(tmp_path / "run")
    numbers_of(probe, context)
    assert len(made) == 4
    numbers_of(probe, context)
    assert len(made) == 5


def test_weights_decide_and_the_head_does_not(tmp_path):
    probe, context = probe_of(), context_of(tmp_path / "run")
    before = numbers_of(probe, context)["probe_auc"]
    context.net.head.weight.data.mul_(100)
    assert numbers_of(probe, context)["probe_auc"] == before
    context.net.linear_1.weight.data.mul_(3)
    assert numbers_of(probe, context)["probe_auc"] != before


@pytest.mark.parametrize("kind", ["plain", "weight_normalised", "svd", "projection"])
@pytest.mark.parametrize("head", ["zeros", "initial"])
def test_every_network_begins_with_the_same_head(tmp_path, kind, head):
    signed = ("net.layers.singular_values=signed",) if kind == "svd" else ()
    settings = (f"net.layers.kind={kind}", f"probe.head={head}", *signed)
    probe, context = probe_of(*settings), context_of(tmp_path / "run", *settings)
    nets = [probe._make_learner(context, k, weights).net for k, weights in ((0, context.net.state_dict()), (-1, None))]
    heads = [net.head.state_dict() for net in nets]
    assert same(dict(heads[0]), dict(heads[1]))
    if head == "zeros":
        assert not nets[0](torch.randn(3, 1, 8, 8)).any()


def test_tasks_that_do_not_say_their_data_are_probed_on_the_first_ones_samples(tmp_path):
    context = context_of(tmp_path / "run", "task_shift_mode=permuted_input", task=1)
    with_data = held(context)
    first = context.shift.task(0)

    class OwnShift:
        outputs = 10

        def task(self, k):
            return first

    context.shift = OwnShift()
    assert same(held(context).inputs, with_data.inputs)


def test_the_rate_is_that_of_a_tasks_start(tmp_path):
    """Milestones that the run has passed do not slow the probe; the optimiser's settings count."""
    falling = ("learner.milestones=[1]", "learner.decay=0.001")
    context = context_of(tmp_path / "run")
    for group in context.optimizer.param_groups:
        group["lr"] = 1e-6
    assert numbers_of(probe_of(*falling), context) == numbers_of(probe_of(), context)
    assert numbers_of(probe_of("learner.lr=0.01"), context) != numbers_of(probe_of(), context)


def test_the_runs_own_learner_acts_when_it_is_asked_to(tmp_path, monkeypatch):
    acted, mechanism = [], ContinualBackpropLearner.mechanism
    monkeypatch.setattr(ContinualBackpropLearner, "mechanism", lambda self: (acted.append(1), mechanism(self)))
    cbp = ("learner=continual_backprop", "learner.replacement_rate=0.5", "learner.maturity_threshold=1")
    context = context_of(tmp_path / "run", *cbp)
    plain = numbers_of(probe_of(*cbp), context)
    assert not acted
    own = numbers_of(probe_of(*cbp, "probe.learner=own"), context)
    assert len(acted) == 6 * 3
    assert own["probe_auc"] != plain["probe_auc"]


def test_a_look_at_every_second_step_takes_the_same_values_at_these(tmp_path):
    contexts = [context_of(tmp_path / name) for name in ("all", "some")]
    numbers_of(probe_of(), contexts[0])
    numbers_of(probe_of("probe.eval_every=4"), contexts[1])
    every, some = map(curves_of, contexts)
    assert some["steps"].tolist() == [0, 4, 6]
    assert np.array_equal(some["loss"], every["loss"][[0, 4, 6]])
    assert np.array_equal(some["fresh_accuracy"], every["fresh_accuracy"][:, [0, 4, 6]])


def held(context, **settings):
    defaults = {"kind": HeldOutKind.random_labels, "samples": 60, "classes": 10, "steps": 7, "batch_size": 16}
    return held_out(context, new_head=NewHead.zeros, **(defaults | settings))


def test_random_labels_are_balanced_and_have_nothing_to_do_with_the_classes(tmp_path):
    context = context_of(tmp_path / "run", "data.samples_per_class=100")
    task = held(context, samples=1000)
    assert task.targets.bincount().tolist() == [100] * 10
    table = torch.zeros(10, 10).index_put_((task.task.train.labels, task.targets), torch.ones(1000), accumulate=True)
    assert ((table - 10) ** 2 / 10).sum() < 81 + 4 * math.sqrt(2 * 81)
    assert task.task.loss is Loss.cross_entropy and task.task.active_outputs == 10
    assert held(context, samples=7, classes=3, batch_size=7).targets.bincount().sort().values.tolist() == [2, 2, 3]
    assert len(task.task.train.labels.unique()) == 10  # of all classes, though task 0 has two


def test_inputs_are_those_of_the_training_split_without_the_tasks_transforms(tmp_path):
    shift = ("task_shift_mode=permuted_input",)
    contexts = [context_of(tmp_path / str(k), *shift, task=k) for k in (0, 2)]
    tasks = [held(context) for context in contexts]
    assert tasks[0].digest() == tasks[1].digest()
    train = contexts[0].shift.data.train
    positions = torch.cat([(train.ids == i).nonzero()[0] for i in tasks[0].ids])
    assert torch.equal(tasks[0].inputs, train.gather(positions).inputs)
    assert len(tasks[0].ids.unique()) == 60


def test_permuted_inputs_keep_the_targets_and_no_task_has_the_permutation(tmp_path):
    context = context_of(tmp_path / "run", "task_shift_mode=permuted_input")
    task, plain = held(context, kind=HeldOutKind.permuted_input), held(context)
    assert torch.equal(task.inputs.flatten(1), plain.inputs.flatten(1)[:, task.permutation])
    assert torch.equal(task.targets, plain.task.train.labels)
    assert sorted(task.permutation.tolist()) == list(range(64))
    theirs = [context.shift.permutation(k).tolist() for k in range(50)]
    assert task.permutation.tolist() not in theirs


def test_every_sample_comes_once_in_a_pass(tmp_path):
    order = held(context_of(tmp_path / "run")).order
    assert order.shape == (7, 16)
    flat = order.flatten()
    assert sorted(flat[:60].tolist()) == list(range(60)) and len(flat[60:].unique()) == 52
    assert not torch.equal(flat[:52], flat[60:])


def test_what_was_learnt_is_recorded(tmp_path):
    probe, context = probe_of("probe.samples=40"), context_of(tmp_path / "run")
    numbers = numbers_of(probe, context)
    task, folder = probe.held_out(context), context.folder("probe")
    stored = dict(np.load(folder / "held_out.npz"))
    assert stored["ids"].tolist() == task.ids.tolist() and np.array_equal(stored["order"], task.order)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["numbers"] == pytest.approx(numbers, nan_ok=True)
    facts = {"samples": 40, "asked": 40, "outputs": 10, "loss": "cross_entropy", "sha256": task.digest()}
    assert summary["held_out"] == facts


def test_fewer_samples_than_asked_for_are_said(tmp_path, capsys):
    numbers_of(probe_of(), context_of(tmp_path / "run"))
    assert "evaluates 120 samples (512 were asked for, the data have no more) 7 times" in capsys.readouterr().out


def test_a_network_that_learns_values_is_probed_with_them_or_with_labels(tmp_path):
    bits = (
        "experiment=slowly_changing_regression",
        "analysis=[probe]",
        "task_shift_mode.examples_per_task=30",
        "num_tasks=2",
    )
    for task, has_accuracy in (("random_labels", True), ("permuted_input", False)):
        folder = tmp_path / task
        run(make_plan(*bits, f"probe.task={task}", "probe.steps=5", "probe.samples=50"), folder)
        (_, row) = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "task_end"]
        assert (f"{KEY}probe_acc_ratio" in row) == has_accuracy and math.isfinite(row[f"{KEY}probe_ratio"])


def test_a_loss_that_is_not_finite_is_counted(tmp_path):
    context = context_of(tmp_path / "run")
    context.net.linear_1.weight.data.fill_(float("inf"))
    numbers = numbers_of(probe_of(), context)
    assert numbers["probe_not_finite"] == 1.0 and math.isnan(numbers["probe_ratio"])
    assert math.isfinite(numbers["probe_auc_fresh"])


def test_saved_weights_give_the_numbers_of_the_run(tmp_path):
    plan = make_plan(*TINY, *MLP, *SHORT, *SGD, "probe.every=2")
    run(plan, tmp_path / "run")
    out = analyze(
        tmp_path / "run",
        ["analysis=[probe]", "probe.every=2", "probe.steps=6", "probe.batch_size=32", "probe.fresh_nets=2"],
    )
    rows = [
        [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "task_end"]
        for folder in (tmp_path / "run", out)
    ]
    found = [[{key: value for key, value in row.items() if key.startswith("probe")} for row in some] for some in rows]
    assert [bool(numbers) for numbers in found[0]] == [False, True, False]
    assert same(found[0], found[1])


def test_what_cannot_be_probed_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"probe\.classes=200: there are 120 samples"):
        probe_of("probe.classes=200").on_run_begin(context_of(tmp_path / "run"))
    svd = ("net.layers.kind=svd",)
    with pytest.raises(ConfigError, match=r"probe\.head=zeros: .* or probe\.head=initial"):
        probe_of(*svd).on_run_begin(context_of(tmp_path / "svd", *svd))
    with pytest.raises(ConfigError, match=r"probe\.steps=0: must be 1 or more"):
        probe_of("probe.steps=0")
    with pytest.raises(ConfigError, match=r"probe\.classes=1: must be 2 or more"):
        probe_of("probe.classes=1")


def test_fresh_networks_are_the_runs_by_number():
    plan = make_plan(*TINY, *MLP)
    for k in (0, 3, -1):
        one, other = make_net(plan, (1, 8, 8), 10, k), fresh_net(plan.net, (1, 8, 8), 10, plan.settings.seed, k)
        assert same(dict(one.state_dict()), dict(other.state_dict()))
