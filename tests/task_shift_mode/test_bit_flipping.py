"""The bit-flipping stream: which bits change and when, ids, targets, the exact test, and who refuses it."""

import numpy as np
import pytest
import torch

from plans import make_plan
from plastiscope.data.bit_flipping import BitFlipping
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.run.log import read_rows
from plastiscope.run.status import read_status
from plastiscope.task_shift_mode.bit_flipping import BitFlippingShift, Flip

CPU = torch.device("cpu")
T = 50
DATA = BitFlipping(samples=10, test_samples=2).load(0, CPU)


def tasks(seed: int = 0, **settings):
    return BitFlippingShift(examples_per_task=T, **settings).make(DATA, seed)


def inputs_of(samples) -> torch.Tensor:
    return torch.cat([batch.inputs for batch in samples.batches(7)])


@pytest.mark.parametrize("flip", list(Flip))
def test_slow_bits_are_constant_within_a_task_and_the_others_are_drawn(flip):
    shift = tasks(flip=flip)
    for k in (0, 1, 7):
        inputs = inputs_of(shift.task(k).train)
        assert inputs.shape == (T, 20) and set(inputs.unique().tolist()) == {0.0, 1.0}
        assert torch.equal(inputs[:, :15], torch.from_numpy(shift.slow_bits(k)).float().expand(T, -1))
        assert (inputs[:, 15:].std(0) > 0.3).all()


def test_one_flips_exactly_one_bit_and_every_bit_in_its_turn():
    shift = tasks(flip=Flip.one)
    states = np.stack([shift.slow_bits(k) for k in range(200)])
    changes = states[1:] != states[:-1]
    assert (changes.sum(1) == 1).all() and changes.any(0).all()
    assert [shift.task(k).numbers for k in (0, 1)] == [{"bits_flipped": 0.0}, {"bits_flipped": 1.0}]


def test_all_draws_every_bit_anew():
    shift = tasks(flip=Flip.all)
    states = np.stack([shift.slow_bits(k) for k in range(2000)])
    changes = states[1:] != states[:-1]
    assert abs(changes.mean() - 0.5) < 4 * 0.5 / np.sqrt(changes.size)
    assert abs(states.mean() - 0.5) < 4 * 0.5 / np.sqrt(states.size)
    assert shift.task(3).numbers == {"bits_flipped": float(changes[2].sum())}


def test_an_id_is_k_t_plus_position_and_order_is_that_of_the_stream():
    train = tasks().task(3).train
    assert train.ids.tolist() == list(range(3 * T, 4 * T))
    assert train.fixed_order().tolist() == list(range(T))
    assert train.source.is_stream


def test_the_random_bits_do_not_depend_on_where_tasks_are_cut():
    """The first 100 samples, as two tasks of 50 or four of 25: the same five bits each."""
    long, short = tasks(), BitFlippingShift(examples_per_task=25).make(DATA, 0)
    one = torch.cat([inputs_of(long.task(k).train) for k in range(2)])[:, 15:]
    other = torch.cat([inputs_of(short.task(k).train) for k in range(4)])[:, 15:]
    assert torch.equal(one, other)


def test_a_task_is_a_pure_function_of_settings_seed_and_k():
    shift, again = tasks(), tasks()
    first = {k: (inputs_of(shift.task(k).train), shift.task(k).train.targets) for k in (0, 1, 2, 3)}
    for k in (3, 0, 2):
        inputs, targets = first[k]
        assert torch.equal(inputs_of(again.task(k).train), inputs) and torch.equal(again.task(k).train.targets, targets)
    assert not np.array_equal([tasks(seed=1).slow_bits(k) for k in range(3)], [shift.slow_bits(k) for k in range(3)])


def test_targets_are_those_of_the_target_network():
    task = tasks().task(2)
    for samples in (task.train, task.test):
        assert torch.equal(samples.targets, DATA.target(inputs_of(samples)))


@pytest.mark.parametrize("slow", [5, 12, 20])
def test_targets_are_right_however_many_bits_are_random(slow):
    """More patterns than samples, fewer, and one."""
    task = tasks(slow_bits=slow, exact_test=False).task(3)
    inputs = inputs_of(task.train)
    assert torch.equal(task.train.targets, DATA.target(inputs))
    assert (len(inputs.unique(dim=0)) == 1) == (slow == 20)


def test_the_exact_test_shows_each_input_of_the_task_once():
    shift = tasks()
    test = shift.task(4).test
    inputs = inputs_of(test)
    assert len(test) == 32 and len(inputs.unique(dim=0)) == 32 and len(test.ids.unique()) == 32
    assert torch.equal(inputs[:, :15], torch.from_numpy(shift.slow_bits(4)).float().expand(32, -1))
    shown = {tuple(x) for x in inputs_of(shift.task(4).train).tolist()}
    assert shown <= {tuple(x) for x in inputs.tolist()}
    assert not set(test.ids.tolist()) & set(shift.task(5).test.ids.tolist())
    assert len(tasks(exact_test=False).task(0).test) == 0


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"slow_bits": 21}, "slow_bits=21: an input has 20 bits"),
        ({"slow_bits": 5}, "exact_test=true tests on all patterns of the 15 random bits"),
    ],
)
def test_what_does_not_fit_is_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        tasks(**settings)


def test_other_data_are_refused(make_data):
    with pytest.raises(ConfigError, match="data=bit_flipping"):
        BitFlippingShift().make(make_data(), 0)
    with pytest.raises(ConfigError, match="examples_per_task=0"):
        BitFlippingShift(examples_per_task=0)


STREAM = (
    "experiment=slowly_changing_regression",
    "num_tasks=2",
    "task_shift_mode.examples_per_task=60",
    "batch_size=20",
)


@pytest.mark.parametrize("name", ["csl", "curvature", "dormant"])
def test_analyses_of_single_samples_refuse_a_stream_by_name(name, tmp_path):
    with pytest.raises(ConfigError, match=f"{name}: needs a finite set of samples"):
        run(make_plan(*STREAM, f"analysis=[{name}]"), tmp_path / "run")
    assert not list((tmp_path / "run").glob("metrics.jsonl")) or not read_rows(tmp_path / "run" / "metrics.jsonl")


def test_the_others_work_on_a_stream(tmp_path):
    folder = tmp_path / "run"
    few = ("smoothness.num_samples=20", "smoothness.batch_size=20", "smoothness.jacobian_samples=2")
    look = ("lla.profile=smoke", "lla.planes.grid_resolution=3", "representation.samples=30")
    names = "analysis=[representation,continual,tracking,smoothness,lla,online]"
    run(make_plan(*STREAM, names, *few, *look), folder)
    assert read_status(folder)["state"] == "done"
    (_, task_end) = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "task_end"]
    assert {"task_test_loss", "bits_flipped", "online/train/total/loss"} <= task_end.keys()
    assert {key.split("/")[0] for key in task_end if "/" in key} >= {"representation", "continual", "smoothness"}
