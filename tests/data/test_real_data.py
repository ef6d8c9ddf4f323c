"""The real data sets: digits always, the others where PLASTISCOPE_TEST_DATA names a folder that holds them."""

import gzip

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from plastiscope.data.cifar100 import COARSE_CLASSES, Cifar100
from plastiscope.data.digits import Digits
from plastiscope.data.imagenet32 import Imagenet32
from plastiscope.data.mnist import Mnist
from plastiscope.data.normalisation import NormalisationKind
from plastiscope.data.restricted_pickle import load_restricted


def inputs_of(samples):
    return torch.cat([batch.inputs for batch in samples.batches(5000)])


def test_digits_are_normalised_as_in_the_protocol(cpu):
    pixels, labels = load_digits(return_X_y=True)
    data = Digits(validation_share=0.0).load(0, cpu)
    assert data.train.ids.tolist() == list(range(1437)) and data.test.labels.tolist() == labels[-360:].tolist()
    train = pixels[:1437] / 16
    mean, std = train.mean(0), train.std(0, ddof=1) + 0.01
    np.testing.assert_allclose(inputs_of(data.train).flatten(1), (train - mean) / std, atol=2e-6)
    np.testing.assert_allclose(inputs_of(data.test).flatten(1), (pixels[-360:] / 16 - mean) / std, atol=1e-4)
    assert data.num_classes == 10 and data.input_shape == (1, 8, 8)


@pytest.fixture(scope="module")
def cifar100(real_data):
    folder = str(real_data / "cifar-100-python-mini")
    return Cifar100(
        folder=folder, download=False, ids_file=f"{folder}/orig_train_index.npy", validation_share=0.1
    ).load(0, torch.device("cpu"))


def test_cifar100_subset(cifar100, real_data):
    entry = load_restricted(real_data / "cifar-100-python-mini" / "train", encoding="latin1")
    assert len(cifar100.train) == 9000 and len(cifar100.test) == 2000
    assert cifar100.validation.labels.bincount().tolist() == [10] * 100
    assert cifar100.test.labels.bincount().tolist() == [20] * 100
    assert cifar100.train.labels.tolist() == [entry["fine_labels"][row] for row in cifar100.train.rows.tolist()]
    assert torch.equal(cifar100.train.source.inputs.flatten(1), torch.from_numpy(entry["data"]))
    assert [COARSE_CLASSES[k] for k in entry["fine_labels"]] == entry["coarse_labels"]
    assert cifar100.class_names[:3] == ("apple", "aquarium_fish", "baby")


def test_cifar100_ids_join_with_the_official_order(cifar100, real_data):
    labels = np.load(real_data / "memorization" / "cifar100_fine_labels.npy")
    samples = cifar100.train.select(cifar100.train.ids >= 0)
    assert samples.labels.tolist() == labels[samples.ids.numpy()].tolist()
    assert cifar100.description["ids_known"] == 2500


def test_cifar100_automatic_normalisation_gives_the_known_numbers(real_data, cpu):
    folder = str(real_data / "cifar-100-python-mini")
    found = (
        Cifar100(folder=folder, normalisation=NormalisationKind.auto, validation_share=0.0).load(0, cpu).normalisation
    )
    assert [round(m, 4) for m in found.mean.flatten().tolist()] == [0.5085, 0.4884, 0.4422]
    assert [round(s, 4) for s in found.std.flatten().tolist()] == [0.2663, 0.2548, 0.2752]


def test_mnist(real_data, cpu):
    data = Mnist(
        folder=str(real_data), download=False, normalisation=NormalisationKind.auto, validation_share=0.0
    ).load(0, cpu)
    assert data.train.labels[:5].tolist() == [5, 0, 4, 1, 9] and data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert len(data.train) == 60_000 and len(data.test) == 10_000 and data.input_shape == (1, 28, 28)
    published = Mnist().PUBLISHED
    assert round(data.normalisation.mean.item(), 4) == published[0][0]
    assert round(data.normalisation.std.item(), 4) == published[1][0]


def test_mnist_unpacked_is_read_by_torchvision_alike(real_data, cpu, tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for path in (real_data / "MNIST" / "raw").glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    ours, theirs = (Mnist(folder=str(folder), download=False).load(0, cpu) for folder in (real_data, tmp_path))
    for split in ("train", "test"):
        a, b = getattr(ours, split), getattr(theirs, split)
        assert torch.equal(a.source.inputs, b.source.inputs) and torch.equal(a.labels, b.labels)


def test_imagenet32(real_data, cpu):
    folder = real_data / "imagenet32-mini"
    data = Imagenet32(folder=str(folder), validation_share=0.0).load(0, cpu)
    assert data.train.labels.bincount().tolist() == [450] * 24 and data.test.labels.bincount().tolist() == [100] * 24
    array = np.load(folder / "classes" / "17.npy")
    of_class = data.train.of_classes([17])
    np.testing.assert_array_equal(data.train.source.inputs[of_class.rows], array[:450])
    np.testing.assert_array_equal(data.test.source.inputs[data.test.of_classes([17]).rows], array[450:])
    assert of_class.ids.tolist() == list(range(17 * 450, 18 * 450))
    assert data.class_names[17] == (folder / "wnids.txt").read_text().split()[17]


def test_all_digits_can_be_for_training():
    data = Digits(test_samples=0, validation_share=0.0).load(0, torch.device("cpu"))
    assert (len(data.train), len(data.test)) == (1797, 0)
    assert data.train.ids.tolist() == list(range(1797))
