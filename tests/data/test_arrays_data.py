"""A user's .npz, and with it every setting that all data sets share."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from plastiscope.data.arrays import Arrays
from plastiscope.data.augmentation import AugmentationKind, CropFlipRotate, augment
from plastiscope.data.finite_data import TargetKind
from plastiscope.data.normalisation import NormalisationKind
from plastiscope.error import ConfigError, DataError

RANDOM = np.random.RandomState(0)
X, X_TEST = (RANDOM.randint(0, 256, (n, 3, 8, 8), dtype=np.uint8) for n in (60, 20))
Y, Y_TEST = np.arange(60) % 4, np.arange(20) % 4


@pytest.fixture
def npz(tmp_path):
    """A maker of .npz files; what is given replaces the default arrays, None leaves one out."""

    def make(**changes):
        arrays = {"x_train": X, "y_train": Y, "x_test": X_TEST, "y_test": Y_TEST} | changes
        path = tmp_path / "arrays.npz"
        np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
        return str(path)

    return make


def load(path, cpu, seed=0, **settings):
    return Arrays(file=path, **{"validation_share": 0.0, **settings}).load(seed, cpu)


def inputs_of(samples, **how):
    return torch.cat([batch.inputs for batch in samples.batches(16, **how)])


def test_bytes_are_normalised_by_the_training_split_alone(npz, cpu):
    data = load(npz(), cpu, validation_per_class=5)
    kept = X[20:].astype(np.float64) / 255
    mean, std = kept.mean((0, 2, 3)), kept.std((0, 2, 3))
    np.testing.assert_allclose(data.normalisation.mean.flatten(), mean, rtol=1e-6)
    np.testing.assert_allclose(data.normalisation.std.flatten(), std, rtol=1e-6)
    for samples, raw in ((data.train, X[20:]), (data.validation, X[:20]), (data.test, X_TEST)):
        expected = (raw / 255 - mean[:, None, None]) / std[:, None, None]
        np.testing.assert_allclose(inputs_of(samples), expected, atol=2e-6)
    assert data.description["mean"] == data.normalisation.mean.flatten().tolist()


def test_bytes_stay_bytes_on_the_device(npz, cpu):
    assert load(npz(), cpu).train.source.inputs.dtype == torch.uint8


@pytest.mark.parametrize("kind", ["none", "given", "published"])
def test_other_normalisations(npz, cpu, kind):
    if kind == "none":
        data = load(npz(), cpu, normalisation=NormalisationKind.none)
        np.testing.assert_array_equal(inputs_of(data.train), X.astype(np.float32) / 255)
    elif kind == "given":
        data = load(npz(), cpu, mean=[0.5, 0.25, 0.0], std=[0.5, 1.0, 2.0])
        expected = (X / 255 - np.array([0.5, 0.25, 0.0])[:, None, None]) / np.array([0.5, 1, 2])[:, None, None]
        np.testing.assert_allclose(inputs_of(data.train), expected, atol=1e-6)
    else:
        with pytest.raises(ConfigError, match="normalisation=published: these data have none"):
            load(npz(), cpu, normalisation=NormalisationKind.published)


def test_float_features_are_normalised_once_and_the_file_stays_as_it_was(npz, cpu):
    x = RANDOM.randn(60, 5)
    data = load(npz(x_train=x, x_test=x[:20]), cpu)
    expected = (x - x.mean(0)) / x.std(0)
    np.testing.assert_allclose(inputs_of(data.train), expected, atol=1e-5)
    np.testing.assert_allclose(inputs_of(data.train), expected, atol=1e-5)
    np.testing.assert_allclose(inputs_of(data.test), expected[:20], atol=1e-5)


def test_validation_and_subset_keep_the_ids_of_the_file(npz, cpu):
    data = load(npz(), cpu, validation_per_class=2, samples_per_class=3, test_samples_per_class=1)
    assert data.validation.ids.tolist() == list(range(8))
    assert data.train.ids.tolist() == list(range(8, 20))
    assert data.test.ids.tolist() == [0, 1, 2, 3]
    assert (data.train.split, data.validation.split, data.test.split) == ("train", "validation", "test")
    assert (data.description["train"], data.description["validation"], data.description["test"]) == (12, 8, 4)
    assert load(npz(), cpu).validation is None


def test_label_noise_keeps_both_labels_and_touches_the_training_split_only(npz, cpu):
    data = load(npz(), cpu, seed=4, validation_share=0.2, label_noise=0.25)
    rows = data.train.ids.numpy()
    random, expected = np.random.RandomState(4), Y[rows].copy()
    chosen = random.choice(48, 12, replace=False)
    expected[chosen] = (expected[chosen] + random.randint(1, 4, size=12)) % 4
    assert data.train.labels.tolist() == expected.tolist() == data.train.targets.tolist()
    assert data.train.clean_labels.tolist() == Y[rows].tolist()
    assert data.description["noisy_labels"] == 12
    for clean in (data.validation, data.test):
        assert torch.equal(clean.labels, clean.clean_labels)


def test_one_hot_targets_are_of_the_labels_the_network_is_told(npz, cpu):
    data = load(npz(), cpu, targets=TargetKind.one_hot, label_noise=0.5)
    assert torch.equal(data.train.targets, F.one_hot(data.train.labels, 4).float())


def test_multi_hot_and_real_targets(npz, cpu):
    y = RANDOM.randint(0, 2, (80, 6))
    data = load(npz(y_train=y[:60], y_test=y[60:]), cpu, targets=TargetKind.multi_hot, validation_share=0.1)
    assert data.num_classes == 0 and data.outputs == 6 and data.train.targets.dtype == torch.float32
    assert data.train.targets.tolist() == y[6:60].tolist() and data.validation.targets.tolist() == y[:6].tolist()
    real = RANDOM.randn(80)
    data = load(npz(y_train=real[:60], y_test=real[60:]), cpu, targets=TargetKind.real, samples_per_class=10)
    np.testing.assert_array_equal(data.train.select(torch.tensor([3, 1])).targets, real[[3, 1]].astype(np.float32))
    assert len(data.train) == 10 and data.train.labels.numel() == 0 and data.num_classes == 0
    with pytest.raises(ConfigError, match=r"label_noise=0\.1: needs class labels"):
        load(npz(y_train=real[:60], y_test=real[60:]), cpu, targets=TargetKind.real, label_noise=0.1)


def test_augmentation_is_for_training_only_unless_the_test_is_asked_for(npz, cpu):
    settings = {"augmentation": AugmentationKind.crop_flip, "validation_per_class": 1}
    data = load(npz(), cpu, **settings)
    assert not torch.equal(inputs_of(data.train, epoch=0), inputs_of(data.train))
    for samples in (data.test, data.validation):
        assert torch.equal(inputs_of(samples, epoch=0), inputs_of(samples))
    published = load(npz(), cpu, augment_test=True, **settings)
    assert torch.equal(inputs_of(published.test), inputs_of(data.test))
    assert not torch.equal(inputs_of(published.test, epoch=0), inputs_of(data.test))
    assert torch.equal(inputs_of(published.validation, epoch=0), inputs_of(data.validation))
    assert torch.equal(inputs_of(published.train, epoch=3), inputs_of(data.train, epoch=3))


def test_resize_interpolates_what_is_normalised(npz, cpu):
    plain, large = load(npz(), cpu), load(npz(), cpu, resize=12)
    assert large.input_shape == (3, 12, 12) and torch.equal(large.train.ids, plain.train.ids)
    expected = F.interpolate(inputs_of(plain.train), size=(12, 12), mode="bilinear")
    torch.testing.assert_close(inputs_of(large.train), expected)
    with pytest.raises(ConfigError, match="resize=12: needs images"):
        load(npz(x_train=np.zeros((60, 5)), x_test=np.zeros((20, 5))), cpu, resize=12)


def test_ids_file_gives_official_ids_and_unknown_ones_stay_apart(npz, cpu, tmp_path):
    ids = np.where(np.arange(60) % 3 == 0, 1000 + np.arange(60), -1).astype(np.int32)
    np.save(tmp_path / "ids.npy", ids)
    data = load(npz(), cpu, ids_file=str(tmp_path / "ids.npy"), augmentation=AugmentationKind.crop_flip)
    known = ids >= 0
    assert data.train.ids[torch.from_numpy(known)].tolist() == ids[known].tolist()
    assert data.train.ids[torch.from_numpy(~known)].tolist() == [-1 - row for row in range(60) if row % 3]
    assert data.description["id_kind"] == "ids_file" and data.description["ids_known"] == 20
    assert data.test.ids.tolist() == list(range(20))


@pytest.mark.parametrize(
    ("ids", "message"),
    [(np.arange(59), "must hold 60 integers"), (np.zeros(60), "must hold 60 integers"),
     (np.full(60, 7), "gives one id to several rows"), (np.array(["x"] * 60, dtype=object), "cannot be read")],
)  # fmt: skip
def test_bad_ids_files(npz, cpu, tmp_path, ids, message):
    np.save(tmp_path / "ids.npy", ids)
    with pytest.raises(DataError, match=message):
        load(npz(), cpu, ids_file=str(tmp_path / "ids.npy"))


def test_coarse_classes_and_class_count(npz, cpu):
    data = load(npz(coarse_classes=np.array([0, 0, 1, 1, 1])), cpu, num_classes=5)
    assert data.num_classes == 5 and data.coarse_classes.tolist() == [0, 0, 1, 1, 1]
    assert load(npz(), cpu).num_classes == 4 and load(npz(), cpu).coarse_classes is None


@pytest.mark.parametrize(
    ("changes", "settings", "message"),
    [
        ({"y_test": None}, {}, r"lacks y_test; it needs x_train"),
        ({"x_train": X[:59]}, {}, r"x_train in .* one row for each of 60 targets"),
        ({"x_train": np.arange(60)}, {}, r"x_train in .* must be numbers \[n, ...\]"),
        ({"x_test": X_TEST[:, :1]}, {}, r"differ in the shape of a sample"),
        ({"y_train": Y + 0.5}, {}, r"y_train in .* must be int \[n\] for targets=class_index, not float64 \[60\]"),
        ({"y_train": Y[:, None]}, {"targets": TargetKind.multi_hot}, "must be 0 and 1"),
        ({"y_train": Y - 1}, {}, "Labels of the training split go from -1 to 2"),
        ({}, {"num_classes": 3}, "Labels of the training split go from 0 to 3, and with 3 classes they must be 0 to 2"),
        ({"y_test": Y_TEST + 4}, {"num_classes": 4}, "Labels of the test split go from 4 to 7"),
        ({"x_train": np.array([{}] * 60)}, {}, "is damaged, or no .npz of plain arrays"),
        ({"x_train": X[:0], "y_train": Y[:0]}, {}, "The training split has no samples"),
        ({"coarse_classes": np.zeros(3, int)}, {}, r"coarse_classes in .* must be int \[4\]"),
    ],
)
def test_what_is_wrong_with_the_arrays_is_said(npz, cpu, changes, settings, message):
    with pytest.raises(DataError, match=message):
        load(npz(**changes), cpu, **settings)


def test_missing_and_damaged_files(npz, cpu, tmp_path):
    with pytest.raises(DataError, match=r"No file .*none\.npz\. Make it with numpy\.savez"):
        load(str(tmp_path / "none.npz"), cpu)
    path = tmp_path / "arrays.npz"
    npz()
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"hello", b"", whole[:3000] + b"x" + whole[3001:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"is damaged, or no \.npz"):
            load(str(path), cpu)
    with open(path, "wb") as file:
        np.save(file, X)
    with pytest.raises(DataError, match=r"is damaged, or no \.npz"):
        load(str(path), cpu)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"validation_per_class": -1}, "validation_per_class=-1: must be null, or 0 or more"),
        ({"validation_share": 1.0}, r"validation_share=1.0: must be in \[0, 1\)"),
        ({"samples_per_class": 0}, "samples_per_class=0: must be null, or 1 or more"),
        ({"mean": [0.5]}, "must be given together with std"),
        ({"label_noise": 1.5}, "label_noise=1.5"),
        ({"num_classes": 0}, "num_classes=0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        Arrays(**settings)


def test_a_validation_rule_that_leaves_nothing_to_train_on(npz, cpu):
    with pytest.raises(
        ConfigError, match="no training samples of class 0 are left beside those for validation; it has 15"
    ):
        load(npz(), cpu, validation_per_class=15)


def test_test_samples_have_draws_of_their_own(npz, cpu):
    """Training and test sample 3 are different images; the same id gives them different draws."""
    data = load(npz(), cpu, seed=4, augmentation=AugmentationKind.crop_flip, augment_test=True)
    for split, samples in (("train", data.train), ("test", data.test)):
        clean, draws = inputs_of(samples), CropFlipRotate(seed=4, split=split).draw(samples.ids, 6)
        assert torch.equal(inputs_of(samples, epoch=6), augment(clean, draws, 4))
    train, test = (samples.augmentation.draw(torch.arange(500), 6) for samples in (data.train, data.test))
    assert (train.top == test.top).float().mean() < 0.2  # 1/9 by chance
    assert load(npz(), cpu, augmentation=AugmentationKind.crop_flip).test.augmentation is None


def test_samples_of_classes_are_those_of_the_labels_that_are_told(npz, cpu):
    data = load(npz(), cpu, label_noise=0.5)
    train = data.train
    assert not torch.equal(train.labels, train.clean_labels)
    some = train.of_classes([2, 0])
    rows = [row for row, label in zip(train.rows.tolist(), train.labels.tolist(), strict=True) if label in (0, 2)]
    assert some.rows.tolist() == rows
    assert set(some.labels.tolist()) == {0, 2} and set(some.clean_labels.tolist()) == {0, 1, 2, 3}
    assert torch.equal(train.of_classes(torch.tensor([0, 2])).rows, some.rows)
