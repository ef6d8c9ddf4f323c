"""Gradient learners: the update, the schedule, and what is reset, each against its formula."""

import pytest
import torch
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.learner import Learner, Reset
from plastiscope.learner.optimizer import clip_norm
from plastiscope.learner.trainee import Trainee
from plastiscope.measure.loss import Loss
from plastiscope.net.describe import describe
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.task_shift_mode.task import NewHead
from tasks import make_task


def initial_net(k: int, norm: Norm = Norm.none) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(k)
        return Mlp(widths=[4], norm=norm).make((2,), 3)


def make_learner(config: Backprop, norm: Norm = Norm.none) -> Learner:
    net = initial_net(0, norm)
    return config.make(Trainee(net, describe(net, torch.zeros(2, 2)), lambda k: initial_net(k, norm), seed=0))


class One(nn.Module):
    """A network of one parameter; its output does not depend on the input."""

    def __init__(self, theta: float) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[theta]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.theta.expand(len(x), 1)


def learner_of(net: nn.Module, config: Backprop) -> Learner:
    learner = config.make(Trainee(net, describe(initial_net(0), torch.zeros(2, 2)), initial_net, seed=0))
    learner.take_up(make_task(1, loss=Loss.mse))
    learner.begin_epoch(0)
    return learner


def batch(target: float, n: int = 2) -> Batch:
    return Batch(torch.zeros(n, 2), torch.full((n, 1), target), torch.arange(n))


def test_weight_decay_is_half_lambda_theta_squared():
    net = One(2.0)
    learner_of(net, Backprop(lr=0.1, momentum=0.0, weight_decay=0.5)).step(batch(2.0))
    assert net.theta.item() == pytest.approx(1.9)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_steps_equal_the_formulas(optimizer):
    """Five steps on (theta - 1)^2 with weight decay, against the update written out in float64."""
    from plastiscope.learner.optimizer import Optimizer

    config = Backprop(optimizer=Optimizer(optimizer), lr=0.1, momentum=0.9, weight_decay=0.01)
    net = One(3.0)
    learner, theta, buffer, m, v = learner_of(net, config), 3.0, None, 0.0, 0.0
    for t in range(1, 6):
        learner.step(batch(1.0))
        g = 2 * (theta - 1)
        if optimizer == "adamw":
            theta *= 1 - 0.1 * 0.01
        else:
            g += 0.01 * theta
        if optimizer == "sgd":
            buffer = g if buffer is None else 0.9 * buffer + g
            theta -= 0.1 * buffer
        else:
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            theta -= 0.1 * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)) ** 0.5 + 1e-8)
        assert net.theta.item() == pytest.approx(theta, rel=1e-5)


def test_loss_is_the_mean_over_active_outputs():
    learner = make_learner(Backprop(lr=0.5, momentum=0.0))
    learner.take_up(make_task(2))
    learner.begin_epoch(0)
    x, y = torch.randn(5, 2), torch.tensor([0, 1, 1, 0, 1])
    reference = initial_net(0)
    expected = nn.functional.cross_entropy(reference(x)[:, :2], y)
    expected.backward()
    losses, outputs = learner.step(Batch(x, y, torch.arange(5)))
    assert outputs.shape == (5, 2)
    assert losses.mean().item() == pytest.approx(expected.item(), rel=1e-6)
    for p, q in zip(learner.net.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.5 * q.grad)
    head = learner.net.get_submodule(learner.units.head)
    torch.testing.assert_close(head.weight[2], reference.get_submodule(learner.units.head).weight[2])


def test_schedule_restarts_with_each_task():
    config = Backprop(lr=0.1, milestones=[60, 120, 160], decay=0.2)
    epochs = [0, 59, 60, 119, 120, 159, 160, 199]
    assert [config.lr_at(e) for e in epochs] == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])
    learner = make_learner(config)
    learner.begin_epoch(199)
    learner.begin_epoch(0)
    assert learner.optimizer.param_groups[0]["lr"] == 0.1


def test_clipping_bounds_the_gradient():
    net = One(11.0)
    learner_of(net, Backprop(lr=1.0, momentum=0.0, clip_norm=0.5)).step(batch(1.0))
    assert net.theta.item() == pytest.approx(10.5)


def test_a_step_shows_the_unclipped_gradient_then_the_new_weights_and_then_acts():
    seen = []

    class Acting(Learner):
        def mechanism(self):
            seen.append(("mechanism", net.theta.item()))
            net.theta.data.fill_(7.0)

    net, config = One(11.0), Backprop(lr=1.0, momentum=0.0, clip_norm=0.5)
    learner = Acting(config, Trainee(net, describe(initial_net(0), torch.zeros(2, 2)), initial_net, seed=0))
    learner.on_backward = lambda: seen.append(("backward", net.theta.item(), net.theta.grad.item()))
    learner.on_update = lambda: seen.append(("update", net.theta.item(), net.theta.grad.item()))
    learner.take_up(make_task(1, loss=Loss.mse))
    learner.begin_epoch(0)
    losses, _ = learner.step(batch(1.0))
    first, then, last = seen
    assert first == ("backward", 11.0, 20.0)
    assert then == ("update", 10.5, pytest.approx(0.5, rel=1e-5))
    assert last == ("mechanism", 10.5)
    assert net.theta.item() == 7.0
    assert losses.tolist() == [100.0, 100.0]


def train_a_little(learner: Learner) -> None:
    learner.take_up(make_task(3))
    learner.begin_epoch(0)
    learner.net.train()
    for _ in range(3):
        learner.step(Batch(torch.randn(6, 2), torch.randint(3, (6,)), torch.arange(6)))


def test_network_reset_equals_a_fresh_network():
    learner = make_learner(Backprop(reset=Reset.network), Norm.batch)
    train_a_little(learner)
    learner.begin_task(make_task(3, index=2))
    fresh = initial_net(2, Norm.batch).state_dict()
    assert all(torch.equal(value, fresh[name]) for name, value in learner.net.state_dict().items())
    assert not any(value.any() for state in learner.optimizer.state.values() for value in state.values())


def test_network_reset_as_published_keeps_buffers_and_momentum():
    learner = make_learner(Backprop(reset=Reset.network, keep_buffers=True, keep_optimizer_state=True), Norm.batch)
    train_a_little(learner)
    before = {name: value.clone() for name, value in learner.net.named_buffers()}
    learner.begin_task(make_task(3, index=1))
    assert all(torch.equal(value, before[name]) for name, value in learner.net.named_buffers())
    fresh = dict(initial_net(1, Norm.batch).named_parameters())
    assert all(torch.equal(value, fresh[name]) for name, value in learner.net.named_parameters())
    assert len(learner.optimizer.state) == len(fresh)


@pytest.mark.parametrize("zeros", [False, True])
def test_head_reset_touches_the_head_alone(zeros):
    learner = make_learner(Backprop(reset=Reset.nothing if zeros else Reset.head))
    train_a_little(learner)
    before = {name: value.clone() for name, value in learner.net.named_parameters()}
    learner.begin_task(make_task(3, index=1, new_head=NewHead.zeros if zeros else NewHead.keep))
    fresh = dict(initial_net(1).named_parameters())
    for name, value in learner.net.named_parameters():
        if name.startswith(learner.units.head):
            assert torch.equal(value, torch.zeros_like(value) if zeros else fresh[name])
            assert not learner.optimizer.state[value]["momentum_buffer"].any()
        else:
            assert torch.equal(value, before[name])
            assert learner.optimizer.state[value]["momentum_buffer"].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_after_a_network_reset_training_is_that_of_a_fresh_learner(optimizer):
    from plastiscope.learner.optimizer import Optimizer

    learner = make_learner(Backprop(reset=Reset.network, optimizer=Optimizer(optimizer)))
    train_a_little(learner)
    learner.begin_task(make_task(3, index=1))
    net = initial_net(1)
    fresh = learner.config.make(Trainee(net, learner.units, initial_net, seed=0))
    for each in (learner, fresh):
        torch.manual_seed(0)
        train_a_little(each)
    for value, other in zip(learner.net.parameters(), net.parameters(), strict=True):
        assert torch.equal(value, other)


def test_first_task_resets_nothing():
    learner = make_learner(Backprop(reset=Reset.network))
    before = {name: value.clone() for name, value in learner.net.state_dict().items()}
    learner.begin_task(make_task(3, index=0))
    assert all(torch.equal(value, before[name]) for name, value in learner.net.state_dict().items())


@pytest.mark.parametrize(
    "wrong",
    [{"lr": -1.0}, {"momentum": 1.0}, {"betas": [0.9]}, {"milestones": [3, 1]}, {"clip_norm": 0.0}, {"decay": 0.0}],
)
def test_ranges(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Backprop(**wrong)


@pytest.mark.parametrize("reset", list(Reset))
def test_a_task_that_wants_a_zero_head_has_one_whatever_is_reset(reset):
    learner = make_learner(Backprop(reset=reset))
    train_a_little(learner)
    learner.begin_task(make_task(3, index=1, new_head=NewHead.zeros))
    assert not any(value.any() for value in learner.net.get_submodule(learner.units.head).parameters())
    hidden = learner.net.get_parameter(learner.units.layers[0].incoming[0].parameter)
    fresh = initial_net(1).get_parameter(learner.units.layers[0].incoming[0].parameter)
    assert torch.equal(hidden, fresh) is (reset is Reset.network)


def test_of_several_runs_each_is_clipped_by_its_own_norm():
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4]], dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    stacked = [nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(stacked, gradients, strict=True):
        parameter.grad = gradient.clone()
    clip_norm(stacked, 1.0, lead=1)
    for r in range(2):
        alone = [nn.Parameter(torch.zeros_like(gradient[r])) for gradient in gradients]
        for parameter, gradient in zip(alone, gradients, strict=True):
            parameter.grad = gradient[r].clone()
        nn.utils.clip_grad_norm_(alone, 1.0)
        for parameter, one in zip(stacked, alone, strict=True):
            torch.testing.assert_close(parameter.grad[r], one.grad, rtol=1e-12, atol=0)
    assert stacked[0].grad[0].norm().item() == pytest.approx(1.0, rel=1e-5)
