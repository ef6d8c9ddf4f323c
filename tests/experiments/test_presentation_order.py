"""The study of presentation orders: its comparison by hand."""

import json

import numpy as np
import pytest

from experiments.presentation_order.run import ARMS, HERE, differences


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


def test_the_table_is_that_of_the_results():
    """Every number of the README rounded once, from results.json."""
    found = json.loads((HERE / "results.json").read_text())["against_random"]
    rows = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in (HERE / "README.md").read_text().splitlines()
        if line.startswith("|")
    ]
    checked = 0
    for name, *cells in rows:
        arm = "alternating" if name.startswith("alternating") else name
        if arm not in ARMS:
            continue
        shifts = ["permuted pixels"] if len(cells) == 3 else ["permuted pixels, smaller steps", "new classes"]
        parts = [found[shift][arm][kind] for shift in shifts for kind in ("continual", "fresh", "plasticity")]
        texts = [f"{part['mean']:+.1f} ({part['error']:.1f})" for part in parts]
        assert cells == ["0.0" + text[4:] if text[1:4] == "0.0" else text for text in texts]
        checked += len(cells)
    assert checked == 9 * (len(ARMS) - 1)
