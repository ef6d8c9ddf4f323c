"""Dormant units of each sample in a run: rows of the store, numbers, dead units, files, several processes."""

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread
from typing import Any

import numpy as np
import pytest
import torch
from analysis_context import make_context, move_to
from torch import nn

from plans import make_plan
from plastiscope.analysis.dormant import Dormant, Layers, Where
from plastiscope.error import ConfigError
from plastiscope.event import Context
from plastiscope.experiment import run
from plastiscope.load import load_run
from plastiscope.measure.sample_dormancy import Rule
from plastiscope.run.processes import Processes
from plastiscope.run.sample_store import Population, SampleSettings
from plastiscope.task_shift_mode.task import evaluate

Make = Callable[..., Context]

RULES = [Rule.persample_strict, Rule.persample_rate, Rule.persample_redo]
VIT = ("net=vit", "net.depth=2", "net.width=8", "net.heads=2", "net.hidden=6", "net.patch=4")


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes contexts, each in a folder of its own, and closes what they hold open."""
    made: list[Context] = []

    def make_one(*overrides: str, **named: Any) -> Context:
        made.append(make_context(tmp_path / str(len(made)), *overrides, **named))
        return made[-1]

    yield make_one
    for context in made:
        context.sample_store.close()


def rows(context: Context, metric: str) -> np.ndarray:
    """The row of the current moment."""
    context.sample_store.sync()
    return context.sample_store.block(context.task_idx).rows(metric)[context.epochs_completed]


def switch_off(net: nn.Module, off: dict[str, int]) -> None:
    """Force the first so many units of each layer off and all others on."""
    for layer, k in off.items():
        linear = net.get_submodule(layer)
        with torch.no_grad():
            linear.weight.mul_(0.01)
            linear.bias.fill_(5.0)
            linear.bias[:k] = -1e6


def activations(context: Context) -> dict[str, torch.Tensor]:
    """Hidden activations of the test network (12 and 8 units) on all training samples, float64, by hand."""
    net, samples = copy.deepcopy(context.net).double(), context.current_task.train
    h, found = torch.cat([batch.inputs for batch in samples.batches(1000)]).double().flatten(1), {}
    for name in ("linear_1", "linear_2"):
        h = found[name] = torch.relu(net.get_submodule(name)(h)).detach()
    return found


def test_units_that_are_off_are_counted_exactly_in_each_layer_and_sample(make):
    context = make()
    switch_off(context.net, {"linear_1": 9, "linear_2": 1})
    numbers = Dormant(rules=RULES).on_epoch_end(context)
    n = len(context.current_task.train)
    for rule in (rule.value for rule in RULES):
        for metric, share in {
            rule: 10 / 20,
            f"{rule}.linear_1": 9 / 12,
            f"{rule}.linear_2": 1 / 8,
            f"{rule}.layer_mean": (9 / 12 + 1 / 8) / 2,
            f"{rule}_specific": 0.0,
        }.items():
            assert rows(context, metric).tolist() == [np.float32(share)] * n, metric
        for part, share in {"total": 10 / 20, "linear_1": 9 / 12, "linear_2": 1 / 8, "layer_mean": 0.4375}.items():
            assert numbers[f"dormant/train/{part}/{rule}"] == numbers[f"dormant/train/{part}/{rule}_dead"] == share
        assert numbers[f"dormant/train/total/{rule}_specific"] == 0


def test_units_that_are_off_in_a_transformer_and_a_convolution(make):
    """2 of 6 and 3 of 6 hidden units of two blocks (GELU of -1e6 is 0); 4 of the 16 channels of the stem."""
    context = make(net=VIT)
    for block, off in ((0, 2), (1, 3)):
        switch_off(context.net, {f"blocks.{block}.linear1": off})
    numbers = Dormant(rules=RULES, sites=[Where.post_activation, Where.attention_output]).on_epoch_end(context)
    for rule in RULES:
        assert numbers[f"dormant/train/blocks.0.linear1/{rule.value}"] == pytest.approx(2 / 6, abs=1e-7)
        assert numbers[f"dormant/train/total/{rule.value}_dead"] == 5 / 12
        assert numbers[f"dormant/train/total/{rule.value}_attention_output"] < 0.1
    context = make(net=("net=resnet18", "net.width=4"))
    with torch.no_grad():
        context.net.bn1.bias.fill_(100.0)
        context.net.bn1.bias[:1] = -1e6
    numbers = Dormant().on_epoch_end(context)
    assert numbers["dormant/train/conv1/persample_strict_dead"] == 1 / 4
    assert set(rows(context, "persample_strict.conv1").tolist()) == {0.25}


@pytest.mark.parametrize("relative", [False, True])
def test_shares_are_those_of_activations_by_hand(make, relative):
    """Dead and specific apart; redo's and the relative eps' reference is the mean over the whole data set."""
    context = make()
    with torch.no_grad():
        context.net.linear_2.bias[:2] = -1e6
    analysis = Dormant(rules=RULES, eps=0.3, relative=relative, tau=0.4, batch_size=7)
    numbers = analysis.on_epoch_end(context)
    by_layer = activations(context)
    for rule in RULES:
        masks = {}
        for name, h in by_layer.items():
            scale = h.abs().mean()
            bound = 0.4 * scale if rule is Rule.persample_redo else (0.3 * scale if relative else 0.3)
            masks[name] = h.abs() <= bound
            share = masks[name].double().mean(1).numpy()
            assert rows(context, f"{rule.value}.{name}").tolist() == share.astype(np.float32).tolist()
            dead = masks[name].all(0).double().mean().item()
            assert numbers[f"dormant/train/{name}/{rule.value}_dead"] == dead
            specific = share.mean() - dead
            assert numbers[f"dormant/train/{name}/{rule.value}_specific"] == pytest.approx(specific, abs=1e-6)
        both = torch.cat(list(masks.values()), dim=1)
        dead = both.all(0)
        assert 0 < dead.sum() < 20 and 0 < both.double().mean() < 1
        assert rows(context, rule.value).tolist() == both.double().mean(1).numpy().astype(np.float32).tolist()
        specific = (both & ~dead).sum(1).double().numpy() / 20
        assert rows(context, f"{rule.value}_specific").tolist() == specific.astype(np.float32).tolist()
        saved = np.load(context.folder("dormant") / "silent_epoch_000002.npz")
        assert saved[f"{rule.value}/linear_1"].tolist() == masks["linear_1"].double().mean(0).tolist()


def test_published_rule_and_raw_outputs(make):
    """All outputs, the head's too, in the published rule; the head's on request in the others."""
    context = make()
    Dormant(rules=[Rule.persample_module]).on_epoch_end(context)
    net, samples = copy.deepcopy(context.net), context.current_task.train
    inputs = torch.cat([batch.inputs for batch in samples.batches(1000)])
    raw, h = [], inputs.flatten(1)
    for name in ("linear_1", "linear_2", "head"):
        raw.append(net.get_submodule(name)(h).detach())
        h = torch.relu(raw[-1])
    outputs = torch.cat(raw, dim=1)
    expected = (outputs <= 1e-6).double().mean(1).numpy().astype(np.float32)
    assert rows(context, "persample_module").tolist() == expected.tolist()
    for classifier, units in ((False, 20), (True, 20 + raw[-1].shape[1])):
        one = make()
        Dormant(sites=[Where.module_output], classifier=classifier, eps=0.2).on_epoch_end(one)
        expected = (outputs[:, :units].abs() <= 0.2).double().mean(1).numpy().astype(np.float32)
        assert rows(one, "persample_strict_module_output").tolist() == expected.tolist()


def test_what_became_of_dead_units(make):
    """Units 0-2 of 12 off, then 1-4 off: two kept, two new, one revived; of all 20 units."""
    context, analysis = make(), Dormant()
    switch_off(context.net, {"linear_1": 3, "linear_2": 0})
    first = analysis.on_epoch_end(context)
    assert not any("dead_" in key for key in first)
    switch_off(context.net, {"linear_1": 5, "linear_2": 0})
    with torch.no_grad():
        context.net.linear_1.bias[0] = 5.0
    move_to(context, 1)
    again = Dormant()
    again.load_state_dict(copy.deepcopy(analysis.state_dict()))
    for one in (analysis, again):
        numbers = one.on_epoch_end(context)
        shares = {which: numbers[f"dormant/train/total/persample_strict_dead_{which}"] for which in ("kept", "new")}
        assert shares == {"kept": 2 / 20, "new": 2 / 20}
        assert numbers["dormant/train/total/persample_strict_dead_revived"] == 1 / 20


def test_a_silent_network_is_dormant_and_a_broken_one_is_nan(make):
    context = make()
    switch_off(context.net, {"linear_1": 12, "linear_2": 8})
    numbers = Dormant(rules=RULES).on_epoch_end(context)
    assert all(numbers[f"dormant/train/total/{rule.value}"] == 1 for rule in RULES)
    nn.init.constant_(context.net.linear_1.bias, math.nan)
    move_to(context, 1)
    numbers = Dormant(rules=RULES).on_epoch_end(context)
    assert all(np.isnan(rows(context, rule.value)).all() for rule in RULES)
    assert "dormant/train/total/persample_strict" not in numbers
    assert numbers["dormant/train/total/persample_strict_dead"] == 0


@pytest.mark.parametrize(("layers", "kept"), [(Layers.none, []), (Layers.task_end, [2]), (Layers.all, [1, 2])])
def test_layers_are_kept_when_asked_for(make, layers, kept):
    """Their numbers are always in the log; shares of units at the task's end."""
    context, analysis = make(), Dormant(layers=layers)
    for epoch in (1, 2):
        context.epochs_completed = epoch
        assert "dormant/train/linear_1/persample_strict" in analysis.on_epoch_end(context)
        assert (context.folder("dormant") / "summary.json").exists() == (epoch == 2)
    context.sample_store.sync()
    block = context.sample_store.block(0)
    assert list(block.rows("persample_strict")) == [1, 2]
    assert [name for name in block.metrics() if "." in name] == (
        [f"persample_strict.{part}" for part in ("layer_mean", "linear_1", "linear_2")] if kept else []
    )
    if kept:
        assert list(block.rows("persample_strict.linear_1")) == kept
    summary = json.loads((context.folder("dormant") / "summary.json").read_text())
    assert summary["settings"]["layers"] == layers.value and summary["file"] == "silent_epoch_000002.npz"


def test_loss_of_the_same_forward(make):
    """As evaluated, at its own epochs; a row that is there stays."""
    context = make()
    Dormant(loss=True, every=2).on_epoch_end(context)
    task = context.current_task
    assert rows(context, "loss").tolist() == evaluate(context.net, task, task.train, 2).losses.tolist()
    block = context.sample_store.block(0)
    assert block.epochs("loss").tolist() == [2]
    other = make()
    there = np.arange(len(other.current_task.train), dtype=np.float32)
    analysis = Dormant(loss=True)
    analysis.block(other).write("loss", 2, there)
    numbers = analysis.on_epoch_end(other)
    assert rows(other, "loss").tolist() == there.tolist()
    assert numbers["dormant/train/total/loss"] == pytest.approx(rows(context, "loss").mean(), rel=1e-6)


def test_samples_of_later_tasks_and_of_validation_are_subsets_of_their_own(make):
    """Dead is then what is dormant on all of them; values wait for their class, so later samples have no means."""
    context = make("data.validation_share=0.25", "task_shift_mode=class_incremental")
    context = replace(context, sample_settings=SampleSettings(population=Population.run, validation=True))
    switch_off(context.net, {"linear_1": 3, "linear_2": 2})
    numbers = Dormant(loss=True).on_epoch_end(context)
    about = context.sample_store.block(0).about
    assert {key.split("/")[1] for key in numbers} == {"train", "validation", "all"}
    assert numbers["dormant/all/total/persample_strict_dead"] == 5 / 20
    assert 0 < (about.entry_task > 0).sum() < len(about.ids)
    names = ["", "_specific", ".linear_1", ".layer_mean"]
    for metric in ("loss", *(f"persample_strict{name}" for name in names)):
        assert np.array_equal(np.isnan(rows(context, metric)), about.entry_task > 0), metric
    train = rows(context, "persample_strict")[(about.entry_task == 0) & (about.split == 0)]
    assert numbers["dormant/train/total/persample_strict"] == pytest.approx(train.mean(dtype=np.float64))
    move_to(context, 2)
    last = Dormant().on_epoch_end(context)
    assert "dormant/all/total/persample_strict_dead" in last and "dormant/train/total/persample_strict_dead" not in last


class Together(Processes):
    """A process among threads, so that several share one look."""

    def barrier(self) -> None:
        """Wait for the other threads."""
        if self.world > 1:
            self.meet.wait()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return replayed(tmp_path_factory.mktemp("alone"), 1)


def replayed(folder: Path, world: int) -> dict[str, bytes]:
    """What so many processes write that look at saved weights."""
    contexts, meet = [], Barrier(world)
    for rank in range(world):
        context = make_context(folder / f"own_{rank}")
        processes = Together(rank, world)
        object.__setattr__(processes, "meet", meet)
        store = make_context(folder / "shared").sample_store if rank == 0 else context.sample_store
        shared = folder / "shared"
        contexts.append(replace(context, processes=processes, checkpoints=(2,), run_folder=shared, sample_store=store))
    analyses = [Dormant(rules=list(Rule), sites=list(Where)[:2], batch_size=9, tau=0.3) for _ in contexts]
    numbers: list[dict[str, float]] = [{} for _ in contexts]

    def look(i: int) -> None:
        numbers[i] = analyses[i].on_epoch_end(contexts[i])

    threads = [Thread(target=look, args=(i,)) for i in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(some == numbers[0] for some in numbers) and numbers[0]
    contexts[0].sample_store.close()
    assert not list((folder / "shared" / "parts").iterdir())
    files = [*(folder / "shared/samples").rglob("*.*"), *(folder / "shared").glob("task_*/**/*.*")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("world", [2, 5])
def test_several_processes_write_the_same_bytes(tmp_path, alone, world):
    assert replayed(tmp_path, world) == alone


def test_a_replay_gives_the_rows_of_the_training(make, alone):
    context = make()
    Dormant(rules=list(Rule), sites=list(Where)[:2], batch_size=9, tau=0.3).on_epoch_end(context)
    context.sample_store.sync()
    for path in context.sample_store.block(0).folder.glob("persample_redo*.npy"):
        if "epochs" not in path.name and "." in path.stem:
            assert path.read_bytes() == alone[f"shared/samples/task_0000/{path.name}"], path.name


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("dormant.rules=[]", "at least one rule"),
        ("dormant.sites=[]", "at least one site"),
        ("dormant.eps=-1", "0 or more"),
        ("dormant.rules=[strict]", "strict"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, says):
    with pytest.raises(ConfigError, match=says):
        make_plan("analysis=[dormant]", overrides)


def test_a_network_without_the_site_is_refused_at_the_start(make):
    context = make(net=("net=mlp", "net.widths=[]"))
    with pytest.raises(ConfigError, match="nothing at the site post_activation"):
        Dormant().on_run_begin(context)
    Dormant(rules=[Rule.persample_module]).on_run_begin(context)
    with pytest.raises(ConfigError, match="attention_output"):
        Dormant(sites=[Where.attention_output]).on_run_begin(make())


def test_values_of_a_run_are_read_by_id(tmp_path):
    overrides = ("data.samples_per_class=6", "epochs=2", "num_tasks=2", "threads=1", "net=mlp", "net.widths=[12,8]")
    run(make_plan(*overrides, "analysis=[dormant]", "dormant.initial=true"), tmp_path / "run")
    found = load_run(tmp_path / "run")
    view = found.samples("persample_strict")
    assert view.epochs_completed.tolist() == [0, 1, 2, 3, 4]
    known = ~np.isnan(view.values)
    assert known.any(1).all() and (view.values[known] >= 0).all() and (view.values[known] <= 1).all()
    layer = found.samples("persample_strict.linear_1")
    assert (~np.isnan(layer.values)).any(1).tolist() == [
        layer_epoch in (2, 4) for layer_epoch in layer.epochs_completed
    ]
