import pytest
import torch

from plastiscope.error import ConfigError
from plastiscope.task_shift_mode.binary_pairs import BinaryPairs, Pairs
from plastiscope.task_shift_mode.task import NewHead


def test_fresh_pairs_use_every_class_once_and_are_then_shuffled_again(make_data):
    shift = BinaryPairs().make(make_data(num_classes=24, train=1, test=1), seed=0)
    assert shift.outputs == 2 and shift.num_tasks_possible is None
    passes = [tuple(shift.task(12 * r + i).classes for i in range(12)) for r in range(4)]
    for pairs in passes:
        assert sorted(c for pair in pairs for c in pair) == list(range(24))
    assert len(set(passes)) == 4


def test_fresh_pairs_of_an_odd_number_of_classes(make_data):
    shift = BinaryPairs().make(make_data(num_classes=5), seed=0)
    left_out = set()
    for r in range(30):
        used = {c for i in range(2) for c in shift.task(2 * r + i).classes}
        assert len(used) == 4
        left_out |= set(range(5)) - used
    assert left_out == set(range(5))


@pytest.mark.parametrize("order", [[3, 1, 0, 5, 4, 2], [3, 1, 0, 5, 4]])
def test_tiled_pairs_follow_the_order_repeated_end_to_end(make_data, order):
    shift = BinaryPairs(pairs=Pairs.tiled, class_order=order).make(make_data(), seed=0)
    tiled = order * 5
    assert [shift.task(k).classes for k in range(12)] == [(tiled[2 * k], tiled[2 * k + 1]) for k in range(12)]


def test_a_given_order_is_the_first_pass_of_fresh_pairs(make_data):
    shift = BinaryPairs(class_order=[5, 0, 4, 2]).make(make_data(), seed=0)
    assert [shift.task(k).classes for k in range(2)] == [(5, 0), (4, 2)]
    assert {c for k in range(2, 4) for c in shift.task(k).classes} == {5, 0, 4, 2}


def test_labels_are_zero_and_one_by_hand(make_data):
    data = make_data()
    task = BinaryPairs(class_order=[4, 1]).make(data, seed=0).task(0)
    for samples, origin in ((task.train, data.train), (task.validation, data.validation), (task.test, data.test)):
        expected = [
            (i, int(label == 1))
            for i, label in zip(origin.ids.tolist(), origin.labels.tolist(), strict=True)
            if label in (4, 1)
        ]
        assert list(zip(samples.ids.tolist(), samples.targets.tolist(), strict=True)) == expected
    assert torch.equal(task.new_train.rows, task.train.rows) and torch.equal(task.new_test.rows, task.test.rows)


def test_the_head_is_zeroed_unless_it_is_to_be_kept(make_data):
    assert BinaryPairs().make(make_data(), seed=0).task(0).new_head is NewHead.zeros
    assert BinaryPairs(new_heads=False).make(make_data(), seed=0).task(1).new_head is NewHead.keep


def test_one_class_makes_no_pair(make_data):
    with pytest.raises(ConfigError, match="two classes or more"):
        BinaryPairs(class_order=[2]).make(make_data(), seed=0)
