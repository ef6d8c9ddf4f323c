"""The frozen samples of a task: each class by its share, the same set wherever and whenever it is drawn."""

import dataclasses

import numpy as np
import pytest
import torch
from analysis_context import make_context, move_to

from plastiscope.analysis.frozen_set import frozen_set, stratified
from plastiscope.data.samples import ArraySource, Samples
from plastiscope.error import ConfigError
from plastiscope.landscape.settings import Split
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.space import choose
from plastiscope.measure.loss import Loss

SHIFTED = ("analysis=[]", "task_shift_mode=continuous_input_deformation", "data.augmentation=crop_flip")
REGRESSION = ("analysis=[]", "data=arrays", "task_shift_mode=none", "num_tasks=1", "data.targets=real")


def samples_of(labels: list[int] | None, n: int, ids: torch.Tensor | None = None) -> Samples:
    """Samples whose inputs are their ids."""
    ids = torch.arange(n) * 7 + 3 if ids is None else ids
    classes = torch.empty(n, 0, dtype=torch.int64) if labels is None else torch.tensor(labels)
    return Samples(
        source=ArraySource(ids.float().unsqueeze(1), ids),
        split="train",
        rows=torch.arange(n),
        labels=classes,
        clean_labels=classes,
        targets=torch.zeros(n) if labels is None else classes,
    )


@pytest.mark.parametrize("n", [20, 23, 27])
def test_equal_classes_have_equal_counts_up_to_rounding(n):
    samples = samples_of(np.random.default_rng(0).permutation(np.arange(120) % 10).tolist(), 120)
    counts = samples.labels[stratified(samples, n, 0)].bincount(minlength=10)
    assert counts.sum() == n
    assert counts.max() - counts.min() == (n % 10 > 0)


def test_classes_have_their_share_by_largest_remainders():
    """7, 2, 1 of 10: five samples are 3.5, 1, .5; the half that comes first is rounded up."""
    samples = samples_of([0] * 7 + [1] * 2 + [2], 10)
    assert samples.labels[stratified(samples, 5, 0)].bincount(minlength=3).tolist() == [4, 1, 0]
    assert samples.labels[stratified(samples, 9, 0)].bincount(minlength=3).tolist() == [6, 2, 1]


def test_samples_without_classes_are_drawn_alike():
    samples = samples_of(None, 50)
    drawn = [tuple(stratified(samples, 12, seed).tolist()) for seed in range(40)]
    assert all(len(set(positions)) == 12 and list(positions) == sorted(positions) for positions in drawn)
    times = np.bincount(np.concatenate(drawn), minlength=50)
    assert times.min() > 0 and times.max() <= 20  # binomial of 40 and .24: 9.6 +- 2.7


def test_the_seed_decides_and_the_order_of_the_samples_does_not():
    labels = torch.arange(90) % 3
    samples = samples_of(labels.tolist(), 90)
    mixed = torch.randperm(90, generator=torch.Generator().manual_seed(1))
    other = samples_of(labels[mixed].tolist(), 90, samples.ids[mixed])
    ids = set(samples.ids[stratified(samples, 30, 4)].tolist())
    assert set(other.ids[stratified(other, 30, 4)].tolist()) == ids
    assert set(samples.ids[stratified(samples, 30, 5)].tolist()) != ids
    test = dataclasses.replace(samples, split="test")
    assert set(test.ids[stratified(test, 30, 4)].tolist()) != ids


def test_a_larger_set_holds_the_smaller_one_of_each_class():
    samples = samples_of((np.arange(100) % 4).tolist(), 100)
    assert set(stratified(samples, 20, 0).tolist()) < set(stratified(samples, 40, 0).tolist())


def test_inputs_and_targets_are_those_of_the_task_without_augmentation(tmp_path):
    context = make_context(tmp_path / "run", *SHIFTED, task=1)
    task = context.current_task
    found = frozen_set(context, num_samples=30, seed=42, split="train")
    batch = task.train.gather((task.train.ids.unsqueeze(1) == found.ids).any(1).nonzero().squeeze(1))
    assert found.ids.tolist() == batch.ids.tolist()
    assert torch.equal(found.inputs, batch.inputs) and torch.equal(found.targets, batch.targets)
    assert (found.loss, found.active_outputs, found.classes) == (task.loss, task.active_outputs, task.classes)
    raw = task.train.source.stream(task.train.rows[: len(task.train)], len(task.train))
    assert not torch.equal(found.inputs, next(iter(raw))[:30])
    assert found.note == ""


def test_it_is_the_same_set_each_time_and_its_inputs_move_with_the_task(tmp_path):
    context = make_context(tmp_path / "run", *SHIFTED)
    first, again = (frozen_set(context, num_samples=20, seed=0) for _ in range(2))
    assert torch.equal(first.inputs, again.inputs) and first.sha256 == again.sha256
    move_to(context, 1)
    later = frozen_set(context, num_samples=20, seed=0)
    assert torch.equal(first.ids, later.ids) and first.sha256 != later.sha256
    assert torch.equal(first.inputs, again.inputs)


def test_its_digest_is_that_of_its_frozen_loss(tmp_path):
    context = make_context(tmp_path / "run", "analysis=[]", "task_shift_mode=drifting_values")
    found = frozen_set(context, num_samples=16, seed=0, split=Split.test)
    assert found.loss is Loss.mse and found.targets.is_floating_point()
    net = context.net
    frozen = FrozenLoss(
        net=net,
        inputs=found.inputs,
        targets=found.targets,
        loss=found.loss,
        active_outputs=found.active_outputs,
        space=choose(net),
    )
    assert found.sha256 == frozen.fingerprint


def test_fewer_samples_than_asked_for_are_all_and_it_says_so(tmp_path):
    context = make_context(tmp_path / "run", "analysis=[]")
    n = len(context.current_task.train)
    found = frozen_set(context, num_samples=5000, seed=0)
    assert found.ids.tolist() == context.current_task.train.ids.tolist()
    assert found.note == f"5000 samples were asked for, the task has {n}: all"


def test_samples_of_a_regression(tmp_path):
    values = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    arrays = {"x_train": values, "y_train": values[:, 0], "x_test": values[:10], "y_test": values[:10, 0]}
    np.savez(tmp_path / "numbers.npz", **arrays)
    context = make_context(tmp_path / "run", *REGRESSION, f"data.file={tmp_path / 'numbers.npz'}")
    found = frozen_set(context, num_samples=12, seed=0)
    assert len(found) == len(set(found.ids.tolist())) == 12 and found.classes == ()
    assert found.targets.is_floating_point() and found.loss is Loss.mse


def test_a_split_without_samples_is_refused_with_the_remedy(tmp_path):
    context = make_context(tmp_path / "run", "analysis=[]", "data.validation_share=0", "selection=last")
    with pytest.raises(ConfigError, match=r"split=val: task 0 has no such samples; set data.validation_share above 0"):
        frozen_set(context, num_samples=12, seed=0, split="val")
