"""The rules on label arrays against their plain definitions, and mean and std against numpy."""

import numpy as np
import pytest
import torch

from plastiscope.data.cifar10 import Cifar10
from plastiscope.data.cifar100 import Cifar100
from plastiscope.data.image_folder import ImageFolder
from plastiscope.data.imagenet32 import Imagenet32
from plastiscope.data.mnist import Mnist
from plastiscope.data.normalisation import automatic, constants, statistics
from plastiscope.data.partition import noisy_labels, rank_in_class, validation_mask
from plastiscope.data.samples import ArraySource
from plastiscope.error import ConfigError

labels_of_five = np.random.RandomState(0).randint(0, 5, 203)


def test_rank_in_class_counts_the_earlier_samples_of_the_class():
    expected = [(labels_of_five[:i] == labels_of_five[i]).sum() for i in range(len(labels_of_five))]
    assert rank_in_class(labels_of_five).tolist() == expected


@pytest.mark.parametrize(("per_class", "share"), [(7, 0.1), (0, 0.1), (None, 0.0), (None, 0.1), (None, 0.5)])
def test_validation_takes_the_first_of_each_class_in_file_order(per_class, share):
    mask = validation_mask(labels_of_five, share, per_class)
    for k in range(5):
        rows = np.flatnonzero(labels_of_five == k)
        count = int(share * len(rows) + 0.5) if per_class is None else per_class
        assert np.flatnonzero(mask & (labels_of_five == k)).tolist() == rows[:count].tolist()


def test_label_noise_follows_the_protocol_line_by_line():
    labels = np.random.RandomState(9).randint(0, 10, 1797)
    noisy = noisy_labels(labels, 0.1, 10, seed=3)
    random, expected = np.random.RandomState(3), labels.copy()
    ids = random.choice(1797, 180, replace=False)
    expected[ids] = (expected[ids] + random.randint(1, 10, size=180)) % 10
    assert noisy.tolist() == expected.tolist()
    assert (noisy != labels).sum() == 180
    assert (noisy_labels(labels, 0.02, 10, seed=0) != labels).sum() == 36


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("shape", [(7,), (3, 5, 4)])
def test_statistics_equal_numpy(shape, offset):
    x = np.random.RandomState(1).randn(50, *shape) + offset
    axes = (0, 2, 3) if len(shape) == 3 else 0
    mean, std = statistics(torch.from_numpy(x).split(8), scale=2.0)
    np.testing.assert_allclose(mean.flatten(), (x / 2).mean(axes), rtol=1e-12)
    np.testing.assert_allclose(std.flatten(), (x / 2).std(axes), rtol=1e-9)
    sample = statistics(torch.from_numpy(x).split(8), scale=2.0, correction=1)[1]
    np.testing.assert_allclose(sample.flatten(), (x / 2).std(axes, ddof=1), rtol=1e-9)


def test_automatic_leaves_what_never_varies_at_zero():
    x = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert automatic([x], 1.0)(x.clone()).tolist() == [[-1.0, 0.0], [1.0, 0.0]]


def test_constants_fit_channels_and_features_or_are_refused():
    cpu = torch.device("cpu")
    assert constants([1, 2, 3], [1, 1, 1], 255.0, (3, 4, 4), cpu).mean.shape == (3, 1, 1)
    assert constants([0.5], [2.0], 1.0, (64,), cpu)(torch.ones(1, 64)).unique().tolist() == [0.25]
    with pytest.raises(ConfigError, match=r"mean=\[0.1, 0.2\]: must be 1 number or 3"):
        constants([0.1, 0.2], [1.0], 255.0, (3, 4, 4), cpu)
    with pytest.raises(ConfigError, match=r"std=\[0.0\]: must be above 0"):
        constants([0.1], [0.0], 255.0, (3, 4, 4), cpu)


PUBLISHED = {
    Mnist: ([0.1307], [0.3081]),
    Cifar10: ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    Cifar100: ([0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    Imagenet32: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ImageFolder: ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
}
"""Mean and std per channel, of values in [0, 1]."""


@pytest.mark.parametrize(("data", "numbers"), PUBLISHED.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_published_constants(data, numbers):
    mean, std = numbers
    white = ArraySource(torch.full((1, len(mean), 2, 2), 255, dtype=torch.uint8), torch.arange(1))
    normalisation = data().published(white, torch.arange(1), 255.0)
    assert torch.equal(normalisation.mean.flatten(), torch.tensor(mean))
    assert torch.equal(normalisation.std.flatten(), torch.tensor(std))
    expected = [(1 - m) / s for m, s in zip(mean, std, strict=True)]
    assert normalisation(white.inputs)[0, :, 1, 1].tolist() == pytest.approx(expected, rel=1e-6)
