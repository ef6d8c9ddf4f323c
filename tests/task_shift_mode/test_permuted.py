"""Permuted inputs and permuted outputs."""

import numpy as np
import pytest
import torch

from plastiscope.error import ConfigError
from plastiscope.task_shift_mode.permuted_input import Permuted, PermutedInput
from plastiscope.task_shift_mode.permuted_output import PermutedOutput


def inputs_of(samples):
    return torch.cat([batch.inputs for batch in samples.batches(5)])


@pytest.mark.parametrize("compose", [False, True])
def test_permutations_are_bijections_and_differ_between_tasks(make_data, compose):
    shift = PermutedInput(compose=compose).make(make_data(), seed=0)
    permutations = [tuple(shift.permutation(k)) for k in range(20)]
    assert all(sorted(p) == list(range(40)) for p in permutations)
    assert len({*permutations, tuple(range(40))}) == 21


def test_entries_are_permuted_by_hand(make_data):
    data = make_data()
    shift = PermutedInput().make(data, seed=0)
    order, raw = shift.permutation(1), data.train.source.inputs.numpy()
    expected = np.empty_like(raw)
    for n in range(len(raw)):
        for i in range(40):
            expected[n].reshape(-1)[i] = raw[n].reshape(-1)[order[i]]
    assert np.array_equal(inputs_of(shift.task(1).train).numpy(), expected)


def test_positions_are_permuted_alike_in_all_channels_by_hand(make_data):
    data = make_data()
    shift = PermutedInput(permuted=Permuted.spatial).make(data, seed=0)
    order, raw = shift.permutation(1), data.test.source.inputs.numpy()
    assert sorted(order) == list(range(20))
    expected = np.empty_like(raw)
    for n, c in np.ndindex(len(raw), 2):
        for i in range(20):
            expected[n, c, i // 5, i % 5] = raw[n, c, order[i] // 5, order[i] % 5]
    assert np.array_equal(inputs_of(shift.task(1).test).numpy(), expected)


@pytest.mark.parametrize("first_task_identity", [False, True])
def test_composed_permutations_permute_the_inputs_of_the_task_before(make_data, first_task_identity):
    data = make_data()
    composed = PermutedInput(compose=True, first_task_identity=first_task_identity).make(data, seed=0)
    drawn = PermutedInput(first_task_identity=first_task_identity).make(data, seed=0)
    x = data.train.source.inputs.flatten(1)
    for k in range(4):
        x = x[:, drawn.permutation(k)]
        assert torch.equal(inputs_of(composed.task(k).train).flatten(1), x)
    assert torch.equal(inputs_of(composed.task(0).train), data.train.source.inputs) == first_task_identity


def test_the_first_task_can_be_left_as_it_is(make_data):
    data = make_data()
    shift = PermutedInput(first_task_identity=True).make(data, seed=0)
    assert shift.task(0).train is data.train
    assert torch.equal(inputs_of(shift.task(1).train), inputs_of(PermutedInput().make(data, seed=0).task(1).train))


def test_flat_inputs_have_entries_and_no_positions(make_data):
    data = make_data(shape=(7,))
    shift = PermutedInput().make(data, seed=0)
    assert torch.equal(inputs_of(shift.task(2).train), data.train.source.inputs[:, shift.permutation(2)])
    with pytest.raises(ConfigError, match=r"needs images \[c, h, w\], these data are flat vectors"):
        PermutedInput(permuted=Permuted.spatial).make(data, seed=0)


def test_labels_are_permuted_by_a_bijection_that_differs_between_tasks(make_data):
    data = make_data(num_classes=10)
    shift = PermutedOutput().make(data, seed=0)
    assert shift.outputs == 10 and shift.num_tasks_possible is None
    seen = set()
    for k in range(10):
        task = shift.task(k)
        assert sorted(task.classes) == list(range(10)) and task.active_outputs == 10
        inverse = {label: output for output, label in enumerate(task.classes)}
        assert task.train.targets.tolist() == [inverse[label] for label in data.train.labels.tolist()]
        assert torch.equal(task.train.rows, data.train.rows)
        seen.add(task.classes)
    assert len(seen) == 10


def test_inputs_and_labels_are_permuted_by_streams_of_their_own(make_data):
    data = make_data(num_classes=10, train=1, test=1, shape=(10,))
    inputs, outputs = PermutedInput().make(data, seed=0), PermutedOutput().make(data, seed=0)
    labels = [outputs.task(k).classes for k in range(10)]
    assert {tuple(inputs.permutation(k).tolist()) for k in range(10)}.isdisjoint(labels)


def examples(make_data, n, **settings):
    return PermutedInput(examples_per_task=n, **settings).make(make_data(), seed=0)


def test_fewer_presentations_are_distinct_samples_drawn_anew_for_each_task(make_data):
    data, shift = make_data(), examples(make_data, 10)
    drawn = [shift.task(k).train for k in range(200)]
    assert all(len(train) == len(train.ids.unique()) == 10 for train in drawn)
    assert len({tuple(train.ids.tolist()) for train in drawn[:20]}) == 20
    assert {i for train in drawn for i in train.ids.tolist()} == set(data.train.ids.tolist())
    whole = PermutedInput().make(data, seed=0)
    positions = torch.searchsorted(data.train.ids, drawn[3].ids)
    assert torch.equal(inputs_of(drawn[3]), inputs_of(whole.task(3).train)[positions])
    assert torch.equal(drawn[3].targets, data.train.targets[positions])
    assert drawn[3].fixed_order() is None and not getattr(drawn[3].source, "is_stream", False)
    assert len(shift.task(0).test) == len(data.test)


def test_more_presentations_come_in_passes_of_new_order_as_a_stream(make_data):
    data, shift = make_data(), examples(make_data, 60)
    n, train = len(data.train), shift.task(1).train
    assert n == 24 and len(train) == 60
    passes = train.ids.split(n)
    assert [sorted(some.tolist()) for some in passes[:2]] == [sorted(data.train.ids.tolist())] * 2
    assert len(passes[2].unique()) == 12
    assert len({tuple(some[:12].tolist()) for some in passes}) == 3
    assert train.fixed_order().tolist() == list(range(60)) and train.source.is_stream
    assert torch.equal(shift.task(1).train.ids, train.ids) and not torch.equal(shift.task(2).train.ids, train.ids)
    whole = PermutedInput().make(data, seed=0).task(1).train
    positions = torch.searchsorted(data.train.ids, train.ids)
    assert torch.equal(inputs_of(train), inputs_of(whole)[positions])


def test_as_many_presentations_as_samples_are_one_pass(make_data):
    train = examples(make_data, 24).task(2).train
    assert train.fixed_order() is None and sorted(train.ids.tolist()) == sorted(make_data().train.ids.tolist())


def test_a_first_task_left_as_it_is_has_as_many_presentations(make_data):
    assert len(examples(make_data, 10, first_task_identity=True).task(0).train) == 10


def test_no_presentations_are_refused():
    with pytest.raises(ConfigError, match="examples_per_task=0: must be null, or 1 or more"):
        PermutedInput(examples_per_task=0)
