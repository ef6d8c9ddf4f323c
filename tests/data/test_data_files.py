"""MNIST, CIFAR and ImageNet files made here: layouts, and every kind of damage. No network is used."""

import gzip
import hashlib
import os
import pickle
import struct
import urllib.error

import numpy as np
import pytest

from plastiscope.data.cifar10 import Cifar10
from plastiscope.data.cifar100 import Cifar100
from plastiscope.data.imagenet32 import Imagenet32
from plastiscope.data.mnist import Mnist
from plastiscope.data.vision import vision
from plastiscope.error import ConfigError, DataError

RANDOM = np.random.RandomState(0)


@pytest.fixture
def no_network(monkeypatch):
    """Every download fails as it does without a network."""

    def fail(*_, **__):
        raise urllib.error.URLError("Name or service not known")

    for module in ("cifar", "mnist"):
        monkeypatch.setattr(f"torchvision.datasets.{module}.download_and_extract_archive", fail)


def idx(values, magic):
    return struct.pack(f">{1 + values.ndim}I", magic, *values.shape) + values.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """A folder with a small MNIST in .gz files."""
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", 30), ("t10k", 10)):
        images = RANDOM.randint(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images, 2051), 1))
        (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels, 2049), 1))
    return raw


def unpack(raw):
    for path in raw.glob("*.gz"):
        (raw / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()


def test_mnist_packed_is_read_in_place_and_equals_unpacked_read_by_torchvision(mnist, cpu):
    before = sorted(mnist.iterdir())
    packed = Mnist(folder=str(mnist.parents[1]), download=False).load(0, cpu)
    assert sorted(mnist.iterdir()) == before
    assert packed.input_shape == (1, 28, 28) and packed.train.labels.tolist() == [k % 10 for k in range(30)]
    unpack(mnist)
    unpacked = Mnist(folder=str(mnist.parents[1]), download=False).load(0, cpu)
    for split in ("train", "test"):
        a, b = getattr(packed, split), getattr(unpacked, split)
        assert a.source.inputs.equal(b.source.inputs) and a.labels.equal(b.labels)


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"no gzip", lambda b: b[:40] + b"xxxx" + b[44:],
     lambda b: gzip.compress(gzip.decompress(b)[:-1]), lambda b: gzip.compress(b"\0\0"),
     lambda b: gzip.compress(b"\0\0\x08\x07" + gzip.decompress(b)[4:])],
)  # fmt: skip
@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_damaged_mnist_names_the_file(mnist, cpu, damage, name):
    (mnist / name).write_bytes(damage((mnist / name).read_bytes()))
    with pytest.raises(DataError, match=f"{name} is (damaged|not an idx file)"):
        Mnist(folder=str(mnist)).load(0, cpu)


def test_mnist_files_that_do_not_belong_together(mnist, cpu):
    (mnist / "train-labels-idx1-ubyte.gz").write_bytes((mnist / "t10k-labels-idx1-ubyte.gz").read_bytes())
    with pytest.raises(DataError, match="do not belong together"):
        Mnist(folder=str(mnist)).load(0, cpu)


def test_damaged_unpacked_mnist(mnist, cpu):
    unpack(mnist)
    path = mnist / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match=r"MNIST in .* is damaged"):
        Mnist(folder=str(mnist.parents[1])).load(0, cpu)


@pytest.mark.parametrize("download", [True, False])
@pytest.mark.parametrize(("kind", "files"), [(Mnist, "train-images-idx3-ubyte.gz, .* into .*MNIST/raw"),
    (Cifar10, "data_batch_1, .*batches.meta .*cifar-10-python.tar.gz.* into .*cifar-10-batches-py"),
    (Cifar100, "train, test, meta .*cifar-100-python.tar.gz.* into .*cifar-100-python")])  # fmt: skip
def test_missing_files_without_network(tmp_path, cpu, no_network, kind, files, download):
    what = "could not be downloaded" if download else "No (MNIST|CIFAR10|CIFAR100) in"
    with pytest.raises(DataError, match=f"{what}.*Put {files}"):
        kind(folder=str(tmp_path / "none"), download=download).load(0, cpu)


def cifar100_split(count, **changes):
    entry = {
        "data": RANDOM.randint(0, 256, (count, 3072), dtype=np.uint8),
        "fine_labels": [k % 100 for k in range(count)],
        "coarse_labels": [0] * count,
        "filenames": ["x"] * count,
    }
    return {key: value for key, value in (entry | changes).items() if value is not None}


@pytest.fixture
def cifar100(tmp_path):
    """A folder with a small CIFAR-100 in the official layout."""
    names = {"fine_label_names": [f"class {k}" for k in range(100)], "coarse_label_names": ["y"]}
    contents = {"train": cifar100_split(200), "test": cifar100_split(100), "meta": names}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    return tmp_path


def replace_split(folder, name, content):
    (folder / name).write_bytes(pickle.dumps(content, 2))


def test_cifar100_subset_in_either_folder(cifar100, cpu):
    data = Cifar100(folder=str(cifar100), download=False).load(0, cpu)
    assert len(data.train) == 200 and len(data.test) == 100 and data.class_names[7] == "class 7"
    content = pickle.loads((cifar100 / "train").read_bytes())
    assert data.train.source.inputs.flatten(1).numpy().tolist() == content["data"].tolist()
    inner = cifar100 / "cifar-100-python"
    inner.mkdir()
    for name in ("train", "test", "meta"):
        (cifar100 / name).rename(inner / name)
    assert len(Cifar100(folder=str(cifar100), download=False).load(0, cpu).train) == 200


def test_files_with_official_checksums_are_read_by_torchvision_alike(cifar100, cpu, monkeypatch):
    restricted = Cifar100(folder=str(cifar100)).load(0, cpu)
    official = vision().datasets.CIFAR100
    sums = {name: hashlib.md5((cifar100 / name).read_bytes()).hexdigest() for name in ("train", "test", "meta")}
    monkeypatch.setattr(official, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(official, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(official, "meta", official.meta | {"md5": sums["meta"]})
    monkeypatch.setattr("plastiscope.data.cifar_files._restricted", None)
    through_torchvision = Cifar100(folder=str(cifar100)).load(0, cpu)
    for split in ("train", "test"):
        a, b = getattr(restricted, split), getattr(through_torchvision, split)
        assert a.source.inputs.equal(b.source.inputs) and a.labels.equal(b.labels)
    assert restricted.class_names == through_torchvision.class_names


class Executes:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_cifar_pickle_that_holds_code_is_named_and_nothing_runs(cifar100, cpu):
    replace_split(cifar100, "test", cifar100_split(10, extra=Executes(cifar100 / "executed")))
    with pytest.raises(DataError, match=r"test is a pickle that holds posix\.system.*nothing was executed"):
        Cifar100(folder=str(cifar100)).load(0, cpu)
    assert not (cifar100 / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": None}, "holds no key `data`"),
        ({"data": np.zeros((10, 3071), np.uint8)}, r"must be uint8 \[n, 3072\].*it is uint8 \[10, 3071\]"),
        ({"data": np.zeros((10, 3072), np.float32)}, r"it is float32 \[10, 3072\]"),
        ({"data": "text"}, "it is str"),
        ({"fine_labels": None}, "must hold `labels` or `fine_labels`, one integer for each of its 10 images"),
        ({"fine_labels": [1] * 9}, "must hold `labels` or `fine_labels`"),
        ({"fine_labels": ["a"] * 10}, "labels in .* must be integers"),
        ({"fine_labels": [100] * 10}, "Labels of the test split go from 100 to 100, and with 100 classes"),
        ({"fine_labels": [-1] * 10}, "Labels of the test split go from -1"),
    ],
)
def test_cifar_files_of_the_wrong_form(cifar100, cpu, changes, message):
    replace_split(cifar100, "test", cifar100_split(10, **changes))
    with pytest.raises(DataError, match=message):
        Cifar100(folder=str(cifar100)).load(0, cpu)


def test_damaged_cifar_files(cifar100, cpu):
    whole = (cifar100 / "train").read_bytes()
    (cifar100 / "train").write_bytes(whole[:1000])
    with pytest.raises(DataError, match="train is damaged"):
        Cifar100(folder=str(cifar100)).load(0, cpu)
    (cifar100 / "train").write_bytes(whole)
    replace_split(cifar100, "meta", {"label_names": []})
    with pytest.raises(DataError, match="meta holds no list fine_label_names"):
        Cifar100(folder=str(cifar100)).load(0, cpu)


def test_cifar10_joins_its_training_files_in_order(tmp_path, cpu):
    for k, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        content = {"data": np.full((4, 3072), k, np.uint8), "labels": [k] * 4}
        (tmp_path / name).write_bytes(pickle.dumps(content, 2))
    (tmp_path / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(k) for k in range(10)]}, 2))
    data = Cifar10(folder=str(tmp_path)).load(0, cpu)
    assert data.train.labels.tolist() == np.repeat(range(5), 4).tolist() and data.test.labels.unique().tolist() == [5]
    assert data.train.source.inputs[:, 0, 0, 0].tolist() == data.train.labels.tolist()
    assert data.num_classes == 10 and data.coarse_classes is None


@pytest.fixture
def imagenet(tmp_path):
    """Three class arrays of 12, 10 and 9 rows."""
    (tmp_path / "classes").mkdir()
    for k, rows in zip((0, 2, 10), (12, 10, 9), strict=True):
        np.save(tmp_path / "classes" / f"{k}.npy", np.full((rows, 3, 32, 32), 10 * k, np.uint8))
    return tmp_path


def test_class_arrays_are_split_by_rows_and_ids_run_through_the_classes(imagenet, cpu):
    data = Imagenet32(folder=str(imagenet), test_rows=4, validation_share=0.0).load(0, cpu)
    assert data.train.labels.tolist() == [0] * 8 + [1] * 6 + [2] * 5 and data.test.labels.bincount().tolist() == [4] * 3
    assert data.train.ids.tolist() == list(range(19)) and data.num_classes == 3
    assert data.train.source.inputs[:, 0, 0, 0].tolist() == [0] * 8 + [20] * 6 + [100] * 5
    assert data.class_names == ("0", "2", "10")
    given = Imagenet32(folder=str(imagenet), train_rows=5, test_rows=4, validation_share=0.0).load(0, cpu)
    assert given.train.labels.bincount().tolist() == [5, 5, 5]


def test_class_arrays_that_cannot_be(imagenet, cpu, tmp_path_factory):
    with pytest.raises(DataError, match=r"10\.npy has 9 rows and 10 are asked for"):
        Imagenet32(folder=str(imagenet), train_rows=6, test_rows=4).load(0, cpu)
    for array, message in (
        (np.zeros((9, 32, 32, 3), np.uint8), r"10\.npy must hold images \[rows, 3, h, w\]; it holds uint8"),
        (np.zeros((9, 3, 16, 16), np.uint8), "differ in image shape or type"),
        (np.array([{}] * 9, dtype=object), r"10\.npy is damaged or no plain \.npy"),
    ):
        np.save(imagenet / "classes" / "10.npy", array)
        with pytest.raises(DataError, match=message):
            Imagenet32(folder=str(imagenet), test_rows=4, validation_share=0.0).load(0, cpu)
    (imagenet / "classes" / "10.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"10\.npy is damaged"):
        Imagenet32(folder=str(imagenet), test_rows=4, validation_share=0.0).load(0, cpu)
    with pytest.raises(DataError, match=r"No class arrays in .* Put 0\.npy, 1\.npy"):
        Imagenet32(folder=str(tmp_path_factory.mktemp("empty"))).load(0, cpu)
    with pytest.raises(ConfigError, match="test_rows=0: must be 1 or more"):
        Imagenet32(test_rows=0)


def test_class_array_ids_do_not_depend_on_the_rows_that_are_used(imagenet, cpu):
    part = Imagenet32(folder=str(imagenet), test_rows=4, train_rows=2, validation_share=0.0).load(0, cpu).train
    assert part.ids.tolist() == [0, 1, 8, 9, 14, 15]  # of 8, 6 and 5 training rows
