import os
from pathlib import Path

import pytest
import torch

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with small copies of the public data sets."""
    if "PLASTISCOPE_TEST_DATA" not in os.environ:
        pytest.skip("PLASTISCOPE_TEST_DATA names no folder with the data sets")
    return Path(os.environ["PLASTISCOPE_TEST_DATA"])


@pytest.fixture
def cpu() -> torch.device:
    return CPU
