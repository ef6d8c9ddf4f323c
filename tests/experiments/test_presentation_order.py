"""The study of presentation orders: its comparison by hand."""

import numpy as np
import pytest

from experiments.presentation_order.run import ARMS, differences


def test_differences_are_paired_by_seed_over_the_later_tasks():
    """Two seeds, four tasks; random order .9 and .8 late, another arm .7 and .5, its fresh network .85 and .75."""
    values = np.zeros((len(ARMS), 2, 2, 4))
    values[..., :2] = np.random.default_rng(0).random((len(ARMS), 2, 2, 2))
    values[:, 0, :, 2:] = values[:, 1, :, 2:] = np.array([0.9, 0.8])[:, None]
    values[3, 0, :, 2:] = np.array([0.7, 0.5])[:, None]
    values[3, 1, :, 2:] = np.array([[0.8, 0.9], [0.7, 0.8]])
    found = differences(values)
    assert list(found) == list(ARMS)[1:]
    parts = found[list(ARMS)[3]]
    assert parts["continual"] == pytest.approx((-25, 5))
    assert parts["fresh"] == pytest.approx((-5, 0), abs=1e-9)
    assert parts["plasticity"] == pytest.approx((-20, 5))
    assert all(part == (0, 0) for arm, parts in found.items() if arm != list(ARMS)[3] for part in parts.values())
