"""Folders of images: order, ids, workers, and the command that makes class arrays of them."""

import signal
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from plastiscope.data import imagenet32
from plastiscope.data.image_folder import ImageFolder, _leave_preemption_to_the_parent
from plastiscope.data.imagenet32 import Imagenet32
from plastiscope.data.normalisation import NormalisationKind
from plastiscope.error import ConfigError, DataError

PIXELS = {}


@pytest.fixture
def folder(tmp_path):
    """Two classes; 5 training and 3 test images of 12x8 each, lossless."""
    random = np.random.RandomState(0)
    for split, count in (("train", 5), ("test", 3)):
        for name in ("cat", "dog"):
            place = tmp_path / split / name
            place.mkdir(parents=True)
            for k in range(count):
                PIXELS[split, name, k] = random.randint(0, 256, (8, 12, 3), dtype=np.uint8)
                Image.fromarray(PIXELS[split, name, k]).save(place / f"{k}.png")
    return tmp_path


def load(folder, cpu, **settings):
    return ImageFolder(folder=str(folder), size=8, **{"validation_share": 0.0, **settings}).load(0, cpu)


def inputs_of(samples, order=None):
    return torch.cat([batch.inputs for batch in samples.batches(3, order=order)])


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_the_order_asked_for_whatever_the_workers(folder, cpu, workers):
    data = load(folder, cpu, workers=workers, normalisation=NormalisationKind.none)
    assert data.class_names == ("cat", "dog") and data.train.labels.tolist() == [0] * 5 + [1] * 5
    names = [(name, k) for name in ("cat", "dog") for k in range(5)]
    # an image of height 8 keeps its pixels; the centre crop leaves columns 2 to 9
    expected = np.stack([PIXELS["train", name, k][:, 2:10].transpose(2, 0, 1) / np.float32(255) for name, k in names])
    order = torch.tensor([7, 0, 9, 1, 1, 8, 2])
    before = torch.get_rng_state()
    np.testing.assert_array_equal(inputs_of(data.train, order), expected[order])
    assert torch.equal(torch.get_rng_state(), before)
    assert next(data.train.batches(3, order=order)).ids.tolist() == [7, 0, 9]


def test_the_settings_of_all_data_sets_hold_here_too(folder, cpu):
    data = load(folder, cpu, workers=0, validation_per_class=1, normalisation=NormalisationKind.auto)
    assert data.validation.ids.tolist() == [0, 5] and data.train.ids.tolist() == [1, 2, 3, 4, 6, 7, 8, 9]
    x = inputs_of(data.train)
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3), correction=0), torch.ones(3))


def test_val_serves_as_test(folder, cpu):
    (folder / "test").rename(folder / "val")
    assert len(load(folder, cpu, workers=0).test) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_image_is_named(folder, cpu, workers):
    path = folder / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match=r"^[^\n]*dog/3\.png cannot be read as an image"):
        inputs_of(load(folder, cpu, workers=workers).train)


def test_folders_that_cannot_be(folder, cpu, tmp_path_factory):
    with pytest.raises(DataError, match=r"train must hold one folder of images per class"):
        load(tmp_path_factory.mktemp("empty"), cpu)
    (folder / "test" / "dog").rename(folder / "test" / "wolf")
    with pytest.raises(DataError, match=r"class folders of train and test in .* differ"):
        load(folder, cpu)
    with pytest.raises(ConfigError, match="resize=32: must be null; set size"):
        ImageFolder(resize=32)


def test_workers_ignore_the_preemption_signal():
    before = signal.getsignal(signal.SIGUSR2)
    try:
        _leave_preemption_to_the_parent(0)
        assert signal.getsignal(signal.SIGUSR2) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR2, before)


def test_the_command_makes_class_arrays(folder, cpu, tmp_path_factory, monkeypatch, capsys):
    out = tmp_path_factory.mktemp("out")
    arguments = ["imagenet32", str(folder / "train"), str(out), "--size", "4", "--rows", "4"]
    monkeypatch.setattr(sys, "argv", arguments)
    imagenet32.main()
    assert capsys.readouterr().out == f"2 classes in {out / 'classes'}\n"
    array = np.load(out / "classes" / "1.npy")
    assert array.shape == (4, 3, 4, 4) and array.dtype == np.uint8
    pairs = PIXELS["train", "dog", 2][:, 2:10].astype(int).reshape(8, 4, 2, 3).sum(2)  # centre square, columns in pairs
    rounded = (pairs + 1) // 2
    blocks = (rounded.reshape(4, 2, 4, 3).sum(1) + 1) // 2
    np.testing.assert_array_equal(array[2].transpose(1, 2, 0), blocks)
    data = Imagenet32(folder=str(out), test_rows=1).load(0, cpu)
    assert data.class_names == ("cat", "dog") and len(data.train) == 6


def test_the_command_says_what_is_wrong(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["imagenet32", str(tmp_path), str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        imagenet32.main()
    assert stop.value.code == 1 and "must hold one folder of images per class" in capsys.readouterr().err
