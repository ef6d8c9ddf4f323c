"""The presets against the published protocols of Dohare et al. (Nature 632, 2024), number by number."""

import numpy as np
import pytest
import torch

from plans import make_plan
from plastiscope.data.augmentation import make_augmentation
from plastiscope.data.partition import validation_mask
from plastiscope.learner.trainee import Trainee
from plastiscope.make import make_net
from plastiscope.net.describe import describe


def pick(settings, *names):
    return {name: settings[name] for name in names}


@pytest.fixture(scope="module")
def cifar():
    return make_plan("experiment=incremental_cifar")


@pytest.fixture(scope="module")
def imagenet():
    return make_plan("experiment=continual_imagenet")


@pytest.fixture(scope="module")
def mnist():
    return make_plan("experiment=permuted_mnist_epochs")


PLAIN = {"samples_per_class": None, "test_samples_per_class": None, "label_noise": 0.0, "resize": None}
PLAIN |= {"ids_file": None, "targets": "class_index", "mean": None, "std": None, "augment_test": False}
"""What no protocol changes: all samples, true labels, and, unlike in the published code, clean test images."""

NOTHING_RESET = {"reset": "nothing", "clip_norm": None, "keep_buffers": False}


def test_incremental_cifar_data(cifar):
    data = cifar.config["data"]
    assert data["_target_"] == "plastiscope.data.cifar100.Cifar100"
    assert pick(data, *PLAIN) == PLAIN
    assert pick(data, "normalisation", "augmentation") == {
        "normalisation": "published",
        "augmentation": "incremental_cifar",
    }
    assert cifar.data.PUBLISHED == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    augmentation = make_augmentation(cifar.data.augmentation, 0, "train", (3, 32, 32))
    assert (augmentation.max_angle, augmentation.padding) == (15.0, 4)
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(100), 500))
    held_out = validation_mask(labels, data["validation_share"], data["validation_per_class"])
    assert held_out.sum() == 5_000
    for k in (0, 42, 99):
        rows = np.flatnonzero(labels == k)
        assert np.flatnonzero(held_out & (labels == k)).tolist() == rows[:50].tolist()


def test_incremental_cifar_tasks(cifar):
    shift, settings = cifar.config["task_shift_mode"], cifar.settings
    assert shift == {
        "_target_": "plastiscope.task_shift_mode.class_incremental.ClassIncremental",
        "classes_per_task": 5,
        "initial_classes": None,
        "cumulative": True,
        "class_order": None,
    }
    assert (settings.num_tasks, settings.epochs, settings.batch_size) == (20, 200, 90)
    assert settings.num_tasks * shift["classes_per_task"] == 100
    assert settings.num_tasks * settings.epochs == 4_000
    images = [450 * 5 * t for t in range(1, 21)]
    assert sum(200 * -(-n // settings.batch_size) for n in images) == 1_050_000
    assert sum(200 * n for n in images) == 94_500_000
    assert (settings.selection.value, settings.eval_every) == ("val_best", 1)


def test_incremental_cifar_network(cifar):
    net = make_net(cifar, (3, 32, 32), 100)
    state, parameters = net.state_dict(), list(net.parameters())
    assert (sum(p.numel() for p in parameters), len(parameters), len(state)) == (11_224_932, 82, 142)
    layers = describe(net, torch.zeros(2, 3, 32, 32)).layers
    assert [layer.width for layer in layers] == [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4
    assert sum(layer.width for layer in layers) == 3_904


def test_incremental_cifar_optimiser(cifar):
    learner = cifar.config["learner"]
    assert learner["_target_"] == "plastiscope.learner.backprop.Backprop"
    published = {"optimizer": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "decay": 0.2}
    published |= {"milestones": [60, 120, 160]}
    assert pick(learner, *published) == published
    assert pick(learner, *NOTHING_RESET) == NOTHING_RESET
    steps = [cifar.learner.lr_at(epoch) for epoch in (0, 59, 60, 119, 120, 159, 160, 199)]
    assert steps == pytest.approx([0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008], rel=1e-12)
    net = make_net(cifar, (3, 32, 32), 100)
    optimizer = cifar.learner.make(Trainee(net, describe(net, torch.zeros(2, 3, 32, 32)), None, seed=0)).optimizer
    groups = optimizer.param_groups
    assert [len(group["params"]) for group in groups] == [82]  # decay on all, batch norm and biases included
    assert [(group["weight_decay"], group["nesterov"], group["dampening"]) for group in groups] == [(5e-4, False, 0)]


def test_continual_imagenet_data_and_tasks(imagenet):
    config, settings = imagenet.config, imagenet.settings
    assert config["data"]["_target_"] == "plastiscope.data.imagenet32.Imagenet32"
    published = {"normalisation": "none", "augmentation": "none", "validation_share": 0.0, "validation_per_class": None}
    published |= {"train_rows": None, "test_rows": 100}  # 700 of each class: the first 600 train, the last 100 test
    assert pick(config["data"], *PLAIN) == PLAIN
    assert pick(config["data"], *published) == published
    assert config["task_shift_mode"] == {
        "_target_": "plastiscope.task_shift_mode.binary_pairs.BinaryPairs",
        "pairs": "fresh",
        "new_heads": True,
        "class_order": None,
    }
    assert (settings.num_tasks, settings.epochs, settings.batch_size) == (2000, 250, 100)
    assert settings.epochs * -(-1200 // settings.batch_size) == 3_000
    assert (settings.selection.value, settings.eval_every) == ("last", 1)


def test_continual_imagenet_network_and_optimiser(imagenet):
    config = imagenet.config
    published = {
        "_target_": "plastiscope.net.convnet.ConvNet",
        "channels": [32, 64, 128],
        "kernel_sizes": [5, 3, 3],
        "widths": [128, 128],
        "activation": "relu",
        "norm": "none",
        "init": "default",
    }
    assert pick(config["net"], *published) == published
    assert config["net"]["layers"]["kind"] == "plain"
    net = make_net(imagenet, (3, 32, 32), 2)
    assert sum(p.numel() for p in net.parameters()) == 177_218
    published = {"optimizer": "sgd", "lr": 0.01, "momentum": 0.9, "weight_decay": 0.0, "milestones": []}
    assert pick(config["learner"], *published) == published
    assert pick(config["learner"], *NOTHING_RESET) == NOTHING_RESET
    assert config["learner"]["keep_optimizer_state"] is True


def test_permuted_mnist_data_and_tasks(mnist):
    config, settings = mnist.config, mnist.settings
    assert config["data"]["_target_"] == "plastiscope.data.mnist.Mnist"
    published = {"normalisation": "none", "augmentation": "none", "validation_share": 0.0, "validation_per_class": None}
    assert pick(config["data"], *PLAIN) == PLAIN
    assert pick(config["data"], *published) == published
    assert config["task_shift_mode"] == {
        "_target_": "plastiscope.task_shift_mode.permuted_input.PermutedInput",
        "permuted": "entries",
        "compose": False,  # the same distribution as the published composition
        "first_task_identity": False,
        "examples_per_task": None,
    }
    assert (settings.num_tasks, settings.epochs, settings.batch_size) == (800, 1, 1)
    assert settings.num_tasks * settings.epochs * 60_000 // settings.batch_size == 48_000_000
    assert settings.selection.value == "last"
    assert config["representation"]["samples"] == 2000


def test_permuted_mnist_network_and_optimiser(mnist):
    config = mnist.config
    published = {
        "_target_": "plastiscope.net.mlp.Mlp",
        "widths": [2000, 2000, 2000],
        "activation": "relu",
        "norm": "none",
        "dropout": 0.0,
        "init": "kaiming_uniform",
    }
    assert pick(config["net"], *published) == published
    assert config["net"]["layers"]["kind"] == "plain"
    net = make_net(mnist, (1, 28, 28), 10)
    assert sum(p.numel() for p in net.parameters()) == 9_594_010
    assert sum(p.numel() for p in net.parameters() if p.ndim == 2) == 9_588_000
    assert not any(p.any() for p in net.parameters() if p.ndim == 1)
    published = {"optimizer": "sgd", "lr": 0.003, "momentum": 0.0, "weight_decay": 0.0, "milestones": []}
    assert pick(config["learner"], *published) == published
    assert pick(config["learner"], *NOTHING_RESET) == NOTHING_RESET
