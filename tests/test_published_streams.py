"""The streams of Dohare et al. (Nature 632, 2024): protocols number by number, and errors at the published level."""

import numpy as np
import pytest
import torch

from plans import make_plan
from plastiscope.data.bit_flipping import BitFlipping, ThresholdForm
from plastiscope.make import load_tasks, make_net
from plastiscope.task_shift_mode.bit_flipping import BitFlippingShift, Flip


def pick(settings, *names):
    return {name: settings[name] for name in names}


PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "milestones": [], "reset": "nothing"}


@pytest.fixture(scope="module")
def bits():
    return make_plan("experiment=slowly_changing_regression")


def test_bit_flipping_data_and_tasks(bits):
    data, shift, settings = bits.config["data"], bits.config["task_shift_mode"], bits.settings
    published = {"inputs": 20, "target_units": 100, "beta": 0.7, "threshold_form": "counted"}
    assert pick(data, *published) == published
    assert pick(shift, "flip", "slow_bits", "examples_per_task") == {
        "flip": "one",
        "slow_bits": 15,
        "examples_per_task": 10_000,
    }
    assert (settings.num_tasks, settings.epochs, settings.batch_size) == (100, 1, 1)
    assert settings.num_tasks * shift["examples_per_task"] == 1_000_000
    assert bits.config["online"]["bin_size"] == 20_000


def test_bit_flipping_network_and_optimiser(bits):
    net = make_net(bits, (20,), 1)
    assert sum(p.numel() for p in net.parameters()) == 111
    assert [tuple(p.shape) for p in net.parameters()] == [(5, 20), (5,), (1, 5), (1,)]
    published = {"widths": [5], "activation": "relu", "norm": "none", "init": "kaiming_uniform"}
    assert pick(bits.config["net"], *published) == published
    assert pick(bits.config["learner"], "lr", *PLAIN_SGD) == {"lr": 0.01, **PLAIN_SGD}


def test_regression_as_published_differs_only_as_it_says(bits):
    other = make_plan("experiment=slowly_changing_regression_as_published")
    changed = {key for key in bits.config if other.config[key] != bits.config[key]}
    assert changed == {"name", "data", "task_shift_mode"}
    assert pick(other.config["data"], "threshold_form") == {"threshold_form": "as_published"}
    assert pick(other.config["task_shift_mode"], "flip", "exact_test") == {"flip": "all", "exact_test": False}


def test_permuted_mnist_stream():
    plan = make_plan("experiment=permuted_mnist")
    data, settings = plan.config["data"], plan.settings
    published = {"normalisation": "none", "validation_share": 0.0, "test_samples_per_class": 0, "order": "random"}
    assert pick(data, *published) == published
    assert plan.config["task_shift_mode"]["compose"] is False
    assert (settings.num_tasks, settings.epochs, settings.batch_size) == (800, 1, 1)
    assert pick(plan.config["learner"], "lr", *PLAIN_SGD) == {"lr": 0.003, **PLAIN_SGD}
    assert sum(p.numel() for p in make_net(plan, (1, 28, 28), 10).parameters()) == 9_594_010
    assert plan.config["online"]["bin_size"] == 60_000
    other = make_plan("experiment=permuted_mnist_as_published")
    assert {key for key in plan.config if other.config[key] != plan.config[key]} == {"name", "task_shift_mode"}
    assert other.config["task_shift_mode"]["compose"] is True


@pytest.mark.parametrize(("examples", "tasks"), [(10_000, 4_800), (100_000, 480), (1_000_000, 48)])
def test_rates_of_change_are_48_million_presentations(real_data, examples, tasks):
    plan = make_plan(
        *("experiment=permuted_mnist", f"data.folder={real_data}", f"num_tasks={tasks}"),
        f"task_shift_mode.examples_per_task={examples}",
    )
    data, shift = load_tasks(plan, torch.device("cpu"))
    available, task = len(data.train), shift.task(0)
    assert len(task.train) == examples and examples * tasks == 48_000_000 and len(task.test) == 0
    counts = task.train.ids.bincount(minlength=available)
    assert counts.max() - counts.min() <= 1  # no image comes twice before all have come


def online_errors(form: ThresholdForm, seeds: int, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean squared error [seeds] before each update of a 20-5-1 ReLU network and of a linear one; SGD, step 0.01."""
    tasks = []
    for seed in range(seeds):
        data = BitFlipping(threshold_form=form, samples=1, test_samples=0).load(seed, torch.device("cpu"))
        shift = BitFlippingShift(flip=Flip.all, exact_test=False).make(data, seed)
        tasks.append([shift.task(k).train for k in range(-(-steps // 10_000))])
    x = np.array([np.concatenate([t.source.inputs.numpy() for t in ts])[:steps] for ts in tasks], dtype=float)
    y = np.array([np.concatenate([t.targets.numpy() for t in ts])[:steps] for ts in tasks], dtype=float)
    rng = np.random.default_rng(0)
    w, v = rng.uniform(-1, 1, (seeds, 5, 20)) * np.sqrt(6 / 20), rng.uniform(-1, 1, (seeds, 5)) * np.sqrt(3 / 5)
    b, c, line = np.zeros((seeds, 5)), np.zeros(seeds), np.zeros((seeds, 21))
    squares, of_line = np.zeros(seeds), np.zeros(seeds)
    ones = np.ones((seeds, 1))
    for i in range(steps):
        hidden = (w @ x[:, i, :, None])[:, :, 0] + b
        h = np.maximum(hidden, 0)
        error, bits = (h * v).sum(1) + c - y[:, i], np.concatenate([x[:, i], ones], 1)
        linear = (line * bits).sum(1) - y[:, i]
        squares, of_line = squares + error**2, of_line + linear**2
        back = 0.02 * error[:, None] * v * (hidden > 0)
        v, c, line = v - 0.02 * error[:, None] * h, c - 0.02 * error, line - 0.02 * linear[:, None] * bits
        w, b = w - back[:, :, None] * x[:, i, None, :], b - back
    return squares / steps, of_line / steps


def test_errors_of_the_first_bin_are_at_the_published_level():
    """Published (read off figures): ReLU at 0.01 begins at 0.62, the linear learner stays at 0.88.

    Both belong to the published form of the thresholds. The tolerance is three standard errors over seeds and 0.03 for
    the reading; means of 30 seeds and 20,000 steps here are 0.65 and 0.86, with counted thresholds 0.91 and 1.18.
    """
    found = online_errors(ThresholdForm.as_published, seeds=20, steps=20_000)
    for errors, published in zip(found, (0.62, 0.88), strict=True):
        assert abs(errors.mean() - published) < 3 * errors.std(ddof=1) / np.sqrt(len(errors)) + 0.03
