"""What all tests share: the folder of real data, and the code that is tested, here and in processes of their own."""

import os
from pathlib import Path

import pytest
import torch

import plastiscope

torch.set_num_threads(1)
os.fsync = os.fstat  # tests end processes, not the machine: what was handed to the system survives; still a descriptor
TESTED = str(Path(plastiscope.__file__).parents[1])
os.environ["PYTHONPATH"] = os.pathsep.join([TESTED, *filter(None, [os.environ.get("PYTHONPATH")])])
"""A process that a test starts imports the code under test, also where another one is installed."""


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets: MNIST, cifar-100-python-mini, imagenet32-mini, memorization."""
    folder = os.environ.get("PLASTISCOPE_TEST_DATA")
    if not folder:
        pytest.skip("PLASTISCOPE_TEST_DATA does not name the folder of real data sets")
    return Path(folder)
