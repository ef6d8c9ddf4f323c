"""What holds for every mode: one table of cases, one suite."""

import dataclasses
import importlib
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from plastiscope.data.samples import DataSet, Samples
from plastiscope.error import ConfigError
from plastiscope.measure.loss import Loss
from plastiscope.task_shift_mode.binary_pairs import BinaryPairs, Pairs
from plastiscope.task_shift_mode.class_incremental import ClassIncremental
from plastiscope.task_shift_mode.continuous_input_deformation import (
    AtBounds,
    ContinuousInputDeformation,
    Drift,
    Sinusoid,
)
from plastiscope.task_shift_mode.drifting_values import DriftingValues
from plastiscope.task_shift_mode.none import NoShift
from plastiscope.task_shift_mode.permuted_input import Permuted, PermutedInput
from plastiscope.task_shift_mode.permuted_output import PermutedOutput
from plastiscope.task_shift_mode.task import Task

CASES = {
    "none": NoShift(),
    "cumulative": ClassIncremental(),
    "only new classes": ClassIncremental(cumulative=False, classes_per_task=1, initial_classes=2),
    "fresh pairs": BinaryPairs(),
    "tiled pairs": BinaryPairs(pairs=Pairs.tiled, new_heads=False),
    "permuted entries": PermutedInput(),
    "permuted positions": PermutedInput(permuted=Permuted.spatial),
    "composed permutations": PermutedInput(compose=True),
    "first as it is": PermutedInput(compose=True, first_task_identity=True),
    "permuted output": PermutedOutput(),
    "linear": ContinuousInputDeformation(),
    "random walk": ContinuousInputDeformation(drift=Drift.random_walk),
    "clamped walk": ContinuousInputDeformation(drift=Drift.random_walk, at_bounds=AtBounds.clamp, std=0.5),
    "sinusoid": ContinuousInputDeformation(drift=Drift.sinusoidal),
    "shared sinusoid": ContinuousInputDeformation(drift=Drift.sinusoidal, sinusoid=Sinusoid.shared, bounds=None),
    "drifting values": DriftingValues(),
}
CONFIGS = Path(__file__).parents[2] / "configs" / "task_shift_mode"
every_case = pytest.mark.parametrize("config", CASES.values(), ids=CASES.keys())


def views(task: Task) -> dict[str, Samples]:
    names = ("train", "validation", "test", "new_train", "new_test")
    return {name: getattr(task, name) for name in names if getattr(task, name) is not None}


def contents(task: Task) -> dict[str, object]:
    """All that a task says, as bytes."""
    said: dict[str, object] = {
        "plain": (task.index, task.classes, task.active_outputs, task.loss, task.new_head, tuple(task.numbers.items()))
    }
    for name, samples in views(task).items():
        for batch in samples.batches(5):
            for part in (batch.inputs, batch.targets, batch.ids):
                said[f"{name} {len(said)}"] = (part.dtype, part.shape, part.numpy().tobytes())
        said[f"{name} labels"] = samples.labels.tolist()
    return said


@every_case
def test_a_task_is_a_pure_function_of_config_seed_and_k(config, make_data):
    data = make_data()
    shift = config.make(data, seed=3)
    ascending = [contents(shift.task(k)) for k in range(3)]
    assert [contents(shift.task(k)) for k in (2, 0, 1, 1)] == [ascending[k] for k in (2, 0, 1, 1)]
    assert contents(config.make(data, seed=3).task(2)) == ascending[2]


@every_case
def test_the_global_generators_are_neither_read_nor_advanced(config, make_data):
    data = make_data()
    torch.manual_seed(1)
    np.random.seed(1)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    first = contents(config.make(data, seed=3).task(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    torch.manual_seed(2)
    np.random.seed(2)
    assert contents(config.make(data, seed=3).task(2)) == first


@every_case
def test_no_input_is_copied_and_the_data_set_is_left_alone(config, make_data):
    data = make_data()
    before = data.train.source.inputs.clone()
    task = config.make(data, seed=3).task(1)
    for name, samples in views(task).items():
        origin = getattr(data, name.removeprefix("new_"))
        assert samples.source.inputs.data_ptr() == origin.source.inputs.data_ptr()
        assert samples.split == origin.split
    contents(task)
    assert torch.equal(data.train.source.inputs, before)
    assert torch.equal(data.train.targets, data.train.labels) and data.train.transforms == ()


@every_case
def test_targets_and_outputs_fit_each_other(config, make_data):
    shift = config.make(make_data(), seed=3)
    for k in range(3):
        task = shift.task(k)
        assert task.index == k and 1 <= task.active_outputs <= shift.outputs
        if task.classes:
            assert len(task.classes) == task.active_outputs
            for samples in views(task).values():
                assert samples.targets.dtype == torch.int64 and len(samples) > 0
                assert [task.classes[t] for t in samples.targets] == samples.labels.tolist()


@every_case
def test_data_without_validation_samples_give_tasks_without(config, make_data):
    assert config.make(make_data(validation=0), seed=3).task(1).validation is None
    assert config.make(make_data(), seed=3).task(1).validation is not None


SHIFTING = {name: config for name, config in CASES.items() if name not in ("none", "shared sinusoid")}


@pytest.mark.parametrize("config", SHIFTING.values(), ids=SHIFTING.keys())
def test_tasks_differ_and_seeds_differ(config, make_data):
    data = make_data()
    first, other = config.make(data, seed=3), config.make(data, seed=4)
    without_index = [{**contents(t), "plain": None} for t in (first.task(1), first.task(2), other.task(1))]
    assert without_index[0] != without_index[1] and without_index[0] != without_index[2]


def test_no_shift_repeats_one_task_of_all_samples(make_data):
    data = make_data()
    shift = NoShift().make(data, seed=0)
    assert shift.num_tasks_possible is None and shift.outputs == 6
    task = shift.task(1000)
    assert {**contents(task), "plain": None} == {**contents(shift.task(0)), "plain": None}
    assert task.train is data.train and task.test is data.test and task.validation is data.validation
    assert task.classes == (0, 1, 2, 3, 4, 5) and task.active_outputs == 6


def regression(data: DataSet) -> DataSet:
    """The same inputs with two real targets each."""
    train, test = (s.with_targets(torch.randn(len(s), 2)) for s in (data.train, data.test))
    return dataclasses.replace(data, num_classes=0, loss=Loss.mse, train=train, test=test, validation=None)


ANY_TARGETS = (NoShift, PermutedInput, ContinuousInputDeformation)


@every_case
def test_a_regression_is_learnt_or_refused(config, make_data):
    data = regression(make_data())
    if isinstance(config, ANY_TARGETS):
        shift = config.make(data, seed=0)
        task = shift.task(1)
        assert (shift.outputs, task.active_outputs, task.loss, task.classes) == (2, 2, Loss.mse, ())
        assert torch.equal(task.train.targets, data.train.targets)
        return
    with pytest.raises(ConfigError, match="two classes or more"):
        config.make(data, seed=0)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_yaml_lists_every_field_with_its_default(path):
    written = OmegaConf.load(path)
    target = written.pop("_target_")
    module, name = target.rsplit(".", 1)
    assert module == f"plastiscope.task_shift_mode.{path.stem}"
    kind = getattr(importlib.import_module(module), name)
    assert list(written) == [field.name for field in dataclasses.fields(kind)]
    schema = OmegaConf.structured(kind)
    assert OmegaConf.to_object(OmegaConf.merge(schema, written)) == kind()
