"""Shrink and perturb once per task."""

import pytest
import torch
from learning import batches, start, state_of

from plastiscope.error import ConfigError
from plastiscope.learner.learner import Reset
from plastiscope.learner.scope import Scope
from plastiscope.learner.shrink_and_perturb_task import ShrinkAndPerturbTask
from plastiscope.learner.trainee import Trainee
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.task_shift_mode.task import NewHead, Task
from tasks import make_task

WIDE = Mlp(widths=[300], norm=Norm.batch), (330,)
SMALL = Mlp(widths=[6, 4], norm=Norm.batch), (5,)


def begin(learner, k: int, new_head: NewHead = NewHead.keep) -> Task:
    task = make_task(3, index=k)
    object.__setattr__(task, "new_head", new_head)
    learner.take_up(task)
    learner.begin_task(task)
    return task


def test_weights_shrink_and_get_noise_of_the_given_size():
    learner = start(ShrinkAndPerturbTask(shrink=0.25, noise_std=0.01), *WIDE)
    before = state_of(learner.net)
    begin(learner, 1)
    added = torch.cat([(p - 0.25 * before[name]).flatten() for name, p in learner.net.named_parameters()])
    assert added.std().item() == pytest.approx(0.01, rel=0.01)
    assert abs(added.mean().item()) < 5 * 0.01 / len(added) ** 0.5
    after = state_of(learner.net)
    begin(learner, 2)
    again = torch.cat([(p - 0.25 * after[name]).flatten() for name, p in learner.net.named_parameters()])
    assert abs((added * again).mean().item()) < 5 * 1e-4 / len(added) ** 0.5


def test_without_noise_it_is_a_product():
    learner = start(ShrinkAndPerturbTask(shrink=0.5, noise_std=0.0), *SMALL)
    before = state_of(learner.net)
    begin(learner, 3)
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter, 0.5 * before[name])


def test_the_first_task_changes_nothing():
    learner = start(ShrinkAndPerturbTask(), *SMALL)
    before = state_of(learner.net)
    begin(learner, 0)
    for name, value in learner.net.state_dict().items():
        assert torch.equal(value, before[name])


def test_steps_are_those_of_backprop():
    learner = start(ShrinkAndPerturbTask(lr=0.0), *SMALL)
    before = state_of(learner.net)
    learner.step(batches((5,), [6])[0])
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter, before[name])


def test_noise_is_a_function_of_seed_and_task_and_training_does_not_change_it():
    learner, other = (start(ShrinkAndPerturbTask(shrink=0.0), *SMALL) for _ in range(2))
    for batch in batches((5,), [6] * 3):
        other.step(batch)
    for each in (learner, other):
        begin(each, 2)
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(other.net.get_parameter(name), parameter)
    config = learner.config
    third = config.make(Trainee(other.net, other.units, other.initial_net, seed=1))
    begin(third, 2)
    assert not any(torch.equal(p, q) for p, q in zip(learner.net.parameters(), third.net.parameters(), strict=True))


def test_norms_are_left_alone_on_request():
    learner = start(ShrinkAndPerturbTask(scope=Scope.weights_biases), *SMALL)
    before = state_of(learner.net)
    begin(learner, 1)
    for name, parameter in learner.net.named_parameters():
        assert torch.equal(parameter, before[name]) is name.startswith("norm")


@pytest.mark.parametrize("keep", [True, False])
def test_momentum_is_that_of_the_weights_before_so_it_goes(keep):
    learner = start(ShrinkAndPerturbTask(keep_optimizer_state=keep), *SMALL)
    learner.step(batches((5,), [6])[0])
    begin(learner, 1)
    assert all(state["momentum_buffer"].any().item() is keep for state in learner.optimizer.state.values())


def test_a_new_head_is_neither_shrunk_nor_perturbed():
    learner = start(ShrinkAndPerturbTask(reset=Reset.head), *SMALL)
    begin(learner, 1)
    assert torch.equal(learner.net.head.weight, learner.initial_net(1).head.weight.double())
    begin(learner, 2, NewHead.zeros)
    assert not learner.net.head.weight.any()


@pytest.mark.parametrize("wrong", [{"noise_std": -1.0}, {"shrink": 1.5}, {"shrink": -0.1}])
def test_ranges(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ShrinkAndPerturbTask(**wrong)
