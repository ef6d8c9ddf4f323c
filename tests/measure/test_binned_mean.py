"""Means over bins of what arrives in pieces."""

import numpy as np
import pytest

from plastiscope.measure.binned_mean import OpenBin


def test_by_hand():
    means, rest = OpenBin().filled(np.array([1.0, 2.0, 3.0]), 2)
    assert means.tolist() == [1.5] and rest == OpenBin(3.0, 1)
    means, rest = rest.filled(np.array([5.0, 1.0, 1.0, 4.0]), 2)
    assert means.tolist() == [4.0, 1.0] and rest == OpenBin(4.0, 1)
    assert rest.filled(np.empty(0), 2)[1] == rest


@pytest.mark.parametrize("size", [1, 3, 7, 100])
@pytest.mark.parametrize("cuts", [[], [5], [1, 2, 3, 40, 41, 80]])
def test_bins_do_not_depend_on_the_pieces(size, cuts):
    values = np.random.default_rng(0).integers(0, 1000, 95).astype(float)
    expected = [values[i : i + size].sum() / size for i in range(0, 95 - size + 1, size)]
    found, still_open = [], OpenBin()
    for piece in np.split(values, cuts):
        means, still_open = still_open.filled(piece, size)
        found += means.tolist()
    assert found == expected
    assert still_open == OpenBin(values[len(expected) * size :].sum(), 95 % size)
