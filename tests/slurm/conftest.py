"""One SLURM for all tests of this folder."""

from collections.abc import Iterator

import pytest
from cluster import Cluster, slurm, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if reason := why_not():
        pytest.skip(f"no SLURM here: {reason}")
    with slurm(tmp_path_factory.mktemp("slurm"), cpus=4) as one:
        yield one
