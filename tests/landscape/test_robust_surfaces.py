"""Robust surfaces of a look against the closed form of a quadratic."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from landscape.look_cases import DOUBLE, bowl, looked, of_weights, settings_of, stored
from plastiscope.error import ConfigError
from plastiscope.landscape.settings import RobustSettings
from plastiscope.measure.landscape.direction import random_direction
from plastiscope.measure.landscape.space import choose
from plastiscope.run.storage import read_json

PLANES = {"include_random": True, "num_random": 2}


def test_every_plane_of_a_quadratic(tmp_path):
    rho = 0.3
    settings = settings_of(PLANES, enable_sam=True, sam=RobustSettings(rho=rho))
    landscape, matrix, slope = bowl(tmp_path, settings=settings)
    numbers = looked(landscape)
    theta, space = landscape.net.theta.detach(), choose(landscape.net)
    gaps = []
    for k in range(2):
        plane, _ = stored(tmp_path, f"planes/random_{k}")
        arrays, record = stored(tmp_path, f"sam/random_{k}")
        assert np.array_equal(arrays["losses"], plane["losses"][::2, ::2])  # the very bits
        assert arrays["a"].tolist() == plane["a"][::2].tolist() and arrays["a"][1] == 0
        first, second = (random_direction(space, theta, seed=0, k=2 * k + i, exclude_vectors=False) for i in (0, 1))
        points = (
            theta + torch.tensor(arrays["a"]).view(-1, 1, 1) * first + torch.tensor(arrays["b"]).view(-1, 1) * second
        )
        g = points @ matrix + slope
        bends = ((g @ matrix) * g).sum(-1) / g.square().sum(-1)
        expected = (rho * g.norm(dim=-1) + rho**2 / 2 * bends).numpy()
        assert arrays["gap"] == pytest.approx(expected, rel=1e-10)
        assert arrays["worst"] == pytest.approx(arrays["losses"] + expected, rel=1e-11)
        assert arrays["gradient_norms"] == pytest.approx(g.norm(dim=-1).numpy(), rel=1e-12)
        assert not arrays["stationary"].any() and record["stationary_cells"] == 0
        assert record["grid"] == [3, 3] and record["cost"] == {"gradients": 9, "forwards": 9}
        gaps.append(expected)
    assert numbers["sam_center_gap"] == pytest.approx(gaps[0][1, 1], rel=1e-10)
    assert numbers["sam_center_grad_norm"] == pytest.approx((theta @ matrix + slope).norm().item(), rel=1e-12)
    assert numbers["sam_mean_gap"] == pytest.approx(np.mean(gaps), rel=1e-10) == numbers["sam_random_mean_gap"]
    assert numbers["sam_max_gap"] == pytest.approx(np.max(gaps), rel=1e-10) == numbers["sam_random_max_gap"]


def test_a_cell_costs_a_gradient_and_a_forward(tmp_path):
    """The plain loss is the plane's; nothing is computed twice."""
    calls = []
    for enabled in (False, True):
        landscape, *_ = bowl(
            tmp_path / str(enabled), settings=settings_of({"include_random": True}, enable_sam=enabled)
        )
        own, count = landscape.loss, iter(range(10**6))
        looked(replace(landscape, loss=lambda *given, own=own, count=count: (next(count), own(*given))[1]))
        calls.append(next(count))
    assert calls[1] - calls[0] == 2 * 9


@pytest.mark.parametrize("options", [{"adaptive": True}, {"steps": 2}, {"subsample_stride": 1}, {"rho": 0.1}])
def test_every_setting_counts(tmp_path, options):
    def gaps(folder, **changed):
        settings = settings_of({"include_random": True}, enable_sam=True, sam=RobustSettings(**changed))
        looked(bowl(folder, settings=settings)[0])
        return stored(folder, "sam/random_0")

    (before, said), (after, says) = gaps(tmp_path / "a"), gaps(tmp_path / "b", **options)
    assert before["gap"].shape != after["gap"].shape or not np.allclose(before["gap"], after["gap"], rtol=1e-6)
    assert all(said[key] != says[key] == value for key, value in options.items())


def test_a_radius_of_zero_and_a_stationary_point(tmp_path):
    flat = settings_of(PLANES, enable_sam=True, sam=RobustSettings(rho=0.0, subsample_stride=1))
    looked(bowl(tmp_path, settings=flat)[0])
    arrays, _ = stored(tmp_path, "sam/random_1")
    assert np.array_equal(arrays["worst"], stored(tmp_path, "planes/random_1")[0]["losses"])
    here = torch.full((3,), 2.0, dtype=DOUBLE)
    numbers = looked(
        of_weights(lambda t: (t - 2).square().sum(), here, tmp_path / "still", settings=settings_of(
            {"include_random": True}, enable_sam=True))
    )  # fmt: skip
    arrays, record = stored(tmp_path / "still", "sam/random_0")
    assert arrays["stationary"].nonzero()[0].tolist() == [1] and record["stationary_cells"] == 1
    assert numbers["sam_center_gap"] == 0 == numbers["sam_center_grad_norm"] and (arrays["gap"] >= 0).all()
    assert numbers["sam_max_gap"] > 0


def test_the_largest_gap_is_no_size(tmp_path):
    """On L = -||theta||^2 with a ball far larger than the way to its top, a step leads down on the other side."""
    rho = 5.0
    settings = settings_of({"include_random": True}, enable_sam=True, sam=RobustSettings(rho=rho))
    hill = of_weights(lambda t: -t.square().sum(), torch.full((3,), 0.5, dtype=DOUBLE), tmp_path, settings=settings)
    numbers = looked(hill)
    gaps = stored(tmp_path, "sam/random_0")[0]["gap"]
    distances = np.sqrt(-stored(tmp_path, "sam/random_0")[0]["losses"])
    assert gaps == pytest.approx(2 * rho * distances - rho**2, rel=1e-9)
    assert (gaps < 0).all()
    assert numbers["sam_max_gap"] == gaps.max() == numbers["sam_random_max_gap"]
    assert numbers["sam_mean_gap"] == pytest.approx(gaps.mean())


def test_without_planes_there_is_none(tmp_path):
    landscape, *_ = bowl(tmp_path, settings=settings_of(None, enable_sam=True, enable_spectrum=True))
    assert not [key for key in looked(landscape) if key.startswith("sam")]
    assert "enable_planes" in read_json(tmp_path / "summary.json")["absent"]["sam"]
    assert not (tmp_path / "sam").exists()
    with pytest.raises(ConfigError, match="enable_sam=true: works on planes; set enable_planes=true too, or"):
        settings_of(None, enable_sam=True)  # alone it would do nothing


def test_what_is_not_finite_leaves_the_finite_cells(tmp_path):
    def cliff(t):
        return torch.where(t[0] > 1.2, torch.inf, t.square().sum())

    settings = settings_of({"include_random": True, "span": 1.0}, enable_sam=True)
    numbers = looked(of_weights(cliff, torch.ones(2, dtype=DOUBLE), tmp_path, settings=settings))
    arrays, record = stored(tmp_path, "sam/random_0")
    finite = np.isfinite(arrays["gap"])
    assert 0 < finite.sum() < 9 and record["nonfinite_fraction"] == pytest.approx(
        (~np.isfinite(arrays["worst"])).mean()
    )
    assert numbers["sam_mean_gap"] == pytest.approx(arrays["gap"][finite].mean())
