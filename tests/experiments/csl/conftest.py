"""Images and results that the commands of experiments/csl are tried on."""

import pickle
import sys

import numpy as np
import pytest
import torch
from published_results import CLASSES, EPOCHS, FOLDER, ORDER, PER_CLASS, random_net

from plastiscope.data.restricted_pickle import load_restricted


@pytest.fixture(autouse=True, scope="session")
def commands_can_be_imported():
    sys.path.insert(0, str(FOLDER))
    yield
    sys.path.remove(str(FOLDER))


@pytest.fixture(scope="session")
def images(real_data, tmp_path_factory):
    """A folder in the layout of CIFAR-100 with two training images of each of ten classes, mixed."""
    source, folder = real_data / "cifar-100-python-mini", tmp_path_factory.mktemp("images")
    entry = load_restricted(source / "train", encoding="latin1")
    labels = np.array(entry["fine_labels"])
    rows = np.concatenate([np.flatnonzero(labels == c)[:PER_CLASS] for c in CLASSES])
    rows = np.random.default_rng(0).permutation(rows)
    for name in ("train", "test"):
        content = {"data": entry["data"][rows], "fine_labels": labels[rows].tolist()}
        (folder / name).write_bytes(pickle.dumps(content, protocol=2))
    (folder / "meta").write_bytes((source / "meta").read_bytes())
    return folder


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """Results of incremental CIFAR: four snapshots of narrow networks, and a class order."""
    folder = tmp_path_factory.mktemp("results")
    (folder / "model_parameters").mkdir()
    (folder / "class_order").mkdir()
    np.save(folder / "class_order" / "index-0.npy", np.array(ORDER))
    for epoch in EPOCHS:
        torch.save(random_net(epoch).state_dict(), folder / "model_parameters" / f"index-0_epoch-{epoch}.pt")
    return folder
