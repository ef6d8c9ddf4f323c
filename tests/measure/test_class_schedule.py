"""Which classes are active when: published values, and the definitions against each other."""

import numpy as np
import pytest

from plastiscope.error import ConfigError
from plastiscope.measure.class_schedule import ClassSchedule


def test_classes_of_the_published_schedule():
    schedule = ClassSchedule()
    assert [schedule.classes_seen(e) for e in (0, 1, 200, 201, 400, 4000, 9000)] == [5, 5, 5, 10, 10, 100, 100]
    assert [schedule.classes_next(e) for e in (0, 199, 200, 3999, 4000)] == [5, 5, 10, 100, 100]
    np.testing.assert_array_equal(schedule.entry_epoch([0, 4, 5, 9, 99]), [0, 0, 200, 200, 3800])
    np.testing.assert_array_equal(schedule.age([4, 5, 10], 201), [201, 1, -199])


@pytest.mark.parametrize("schedule", [ClassSchedule(epochs_per_task=3, initial=4, more=2, maximum=9), ClassSchedule()])
def test_seen_classes_are_those_that_have_entered_and_been_trained_on(schedule):
    positions = np.arange(schedule.maximum)
    for epoch in range(1, 4 * schedule.epochs_per_task + 1):
        is_active = schedule.is_active(positions, epoch)
        assert is_active.sum() == schedule.classes_seen(epoch)
        np.testing.assert_array_equal(is_active, schedule.age(positions, epoch) > 0)
        entered = schedule.entry_epoch(positions) <= epoch
        assert schedule.classes_next(epoch) == entered.sum()


@pytest.mark.parametrize("wrong", [{"epochs_per_task": 0}, {"initial": 0}, {"more": 0}, {"maximum": 4}])
def test_a_schedule_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ClassSchedule(**wrong)
