import dataclasses

import pytest
import torch

from plastiscope.data.samples import ArraySource, DataSet, Samples
from plastiscope.error import ConfigError
from plastiscope.task_shift_mode.class_incremental import ClassIncremental


def by_hand(samples: Samples, selected: list[int], order: list[int]) -> list[tuple[int, int]]:
    """(id, target) of the samples of the selected classes, in the order of the data."""
    pairs = zip(samples.ids.tolist(), samples.labels.tolist(), strict=True)
    return [(i, order.index(label)) for i, label in pairs if label in selected]


def told(samples: Samples) -> list[tuple[int, int]]:
    return list(zip(samples.ids.tolist(), samples.targets.tolist(), strict=True))


ORDER = [4, 0, 5, 2, 1, 3]


@pytest.mark.parametrize("cumulative", [True, False])
def test_targets_are_positions_in_the_order_of_presentation(make_data, cumulative):
    data = make_data()
    config = ClassIncremental(class_order=ORDER, initial_classes=3, classes_per_task=1, cumulative=cumulative)
    shift = config.make(data, seed=0)
    task = shift.task(2)
    assert shift.outputs == 6 and task.active_outputs == 5 and task.classes == (4, 0, 5, 2, 1)
    active, new = [4, 0, 5, 2, 1], [1]
    assert told(task.train) == by_hand(data.train, active if cumulative else new, ORDER)
    assert told(task.new_train) == by_hand(data.train, new, ORDER)
    assert told(task.test) == by_hand(data.test, active, ORDER)
    assert told(task.new_test) == by_hand(data.test, new, ORDER)
    assert told(task.validation) == by_hand(data.validation, active, ORDER)
    first = shift.task(0)
    assert told(first.new_train) == told(first.train) == by_hand(data.train, ORDER[:3], ORDER)


@pytest.mark.parametrize(
    ("config", "possible", "reason"),
    [
        (ClassIncremental(), 3, "6 classes, 2 new ones a task"),
        (ClassIncremental(initial_classes=3), 2, "6 classes, 3 at first, then 2 new ones a task"),
        (ClassIncremental(initial_classes=6), 1, "6 classes, 6 at first, then 2 new ones a task"),
        (ClassIncremental(initial_classes=2, classes_per_task=1), 5, "6 classes, 2 at first, then 1 new ones a task"),
        (ClassIncremental(class_order=[5, 1, 0, 2]), 2, "4 classes, 2 new ones a task"),
    ],
)
def test_the_classes_limit_the_tasks(make_data, config, possible, reason):
    shift = config.make(make_data(), seed=0)
    assert shift.num_tasks_possible == possible and shift.limit_reason == reason and shift.outputs == 6
    shift.task(possible - 1)
    with pytest.raises(ConfigError, match=f"no task {possible}, only {possible} tasks"):
        shift.task(possible)


def test_the_published_schedule_of_incremental_cifar(make_data):
    data = make_data(num_classes=100, train=450, test=100, validation=50, shape=(1,))
    shift = ClassIncremental(classes_per_task=5).make(data, seed=1)
    assert shift.num_tasks_possible == 20 and shift.outputs == 100
    presentations = 0
    for t in range(1, 21):
        task = shift.task(t - 1)
        assert (len(task.train), len(task.validation), len(task.test)) == (2250 * t, 250 * t, 500 * t)
        assert (len(task.new_train), len(task.new_test)) == (2250, 500)
        assert torch.equal(torch.bincount(task.train.targets), torch.full((5 * t,), 450))
        presentations += 200 * len(task.train)
    assert sorted(task.classes) == list(range(100)) and list(task.classes) != list(range(100))
    assert presentations == 94_500_000


def test_digits_in_pairs_of_classes():
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = torch.from_numpy(digits.target).long()
    samples = Samples(
        source=ArraySource(torch.from_numpy(digits.data).float(), torch.arange(1797)),
        split="train",
        rows=torch.arange(1797),
        labels=labels,
        clean_labels=labels,
        targets=labels,
    )
    data = DataSet(train=samples, validation=None, test=samples, num_classes=10, description={})
    shift = ClassIncremental(class_order=[2, 8, 4, 9, 1, 6, 7, 3, 0, 5]).make(data, seed=0)
    # sklearn's documentation: 178, 182, 177, 183, 181, 182, 181, 179, 174, 180 samples of 0..9
    assert [len(shift.task(k).train) for k in range(5)] == [351, 712, 1075, 1437, 1797]


def test_noisy_labels_decide_where_a_sample_goes(make_data):
    data = make_data()
    noisy = data.train.labels.clone()
    noisy[0] = (noisy[0] + 1) % 6
    train = dataclasses.replace(data.train, labels=noisy, targets=noisy)
    last = ClassIncremental(class_order=ORDER).make(dataclasses.replace(data, train=train), seed=0).task(2).train
    assert last.targets[0] == ORDER.index(int(noisy[0])) and last.clean_labels[0] == data.train.labels[0]


@pytest.mark.parametrize("order", [[0, 1, 1], [0, 6], [-1, 2]])
def test_an_order_of_other_classes_is_refused(make_data, order):
    with pytest.raises(ConfigError, match=r"class_order=.* distinct classes of the data, 0 to 5"):
        ClassIncremental(class_order=order).make(make_data(), seed=0)


def test_settings_out_of_range_are_refused(make_data):
    with pytest.raises(ConfigError, match="classes_per_task=0"):
        ClassIncremental(classes_per_task=0)
    with pytest.raises(ConfigError, match="initial_classes=0"):
        ClassIncremental(initial_classes=0)
    with pytest.raises(ConfigError, match="first task needs 7 classes, there are 6"):
        ClassIncremental(initial_classes=7).make(make_data(), seed=0)
