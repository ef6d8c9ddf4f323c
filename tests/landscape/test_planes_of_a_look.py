"""Planes of a look: what the files and numbers say, against closed forms."""

import math

import numpy as np
import pytest
import torch

from landscape.look_cases import DOUBLE, bowl, looked, normed, of_weights, settings_of, stored
from plastiscope.error import DataError
from plastiscope.landscape.look import Here, SavedPoint
from plastiscope.landscape.settings import BatchNormPolicy, BatchNormSettings, DirectionSettings, Scale
from plastiscope.measure.keyed import keyed_uniform
from plastiscope.measure.landscape.connectivity import fresh_statistics
from plastiscope.measure.landscape.direction import random_direction
from plastiscope.measure.landscape.plane import offsets
from plastiscope.measure.landscape.space import choose
from plastiscope.run.storage import read_json


def values_at(matrix, slope, points):
    return 0.5 * ((points @ matrix) * points).sum(-1) + points @ slope


def grid_of(theta, first, second, a, b):
    return theta + torch.as_tensor(a).view(-1, 1, 1) * first + torch.as_tensor(b).view(-1, 1) * second


@pytest.fixture(scope="module")
def quadratic(tmp_path_factory):
    """Every kind of plane of a quadratic, and what was written."""
    folder = tmp_path_factory.mktemp("quadratic")
    kinds = {"include_hessian": True, "include_hessian_signed": True, "include_random": True, "num_random": 3}
    landscape, matrix, slope = bowl(folder, settings=settings_of({**kinds, "hessian_scale": Scale.curvature}), seed=4)
    return looked(landscape), landscape, matrix, slope, folder


def test_hessian_plane(quadratic):
    numbers, landscape, matrix, slope, folder = quadratic
    arrays, record = stored(folder, "planes/hessian")
    _, vectors = torch.linalg.eigh(matrix)
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    first, second = (vectors * signs).T.flip(0)[:2]
    second = second * math.sqrt(5 / 4)  # equal rise on both axes
    expected = values_at(matrix, slope, grid_of(landscape.net.theta.detach(), first, second, arrays["a"], arrays["b"]))
    assert np.abs(arrays["losses"] - expected.numpy()).max() <= 1e-8
    assert arrays["norms"] == pytest.approx([1, math.sqrt(5 / 4)], rel=1e-9)
    assert record["eigenvalues"] == pytest.approx([5, 4], rel=1e-9) and record["is_unique"]
    assert record["curvatures"] == pytest.approx([5, 5], rel=1e-6) == record["expected_curvatures"]
    assert numbers["plane_hessian_quad_ratio"] == pytest.approx(1, rel=1e-6)
    assert abs(record["quad_r2"] - 1) <= 1e-9
    assert numbers["plane_hessian_center_loss"] == arrays["losses"][2, 2]
    assert numbers["plane_hessian_min_loss"] == arrays["losses"].min() == arrays["losses"][tuple(record["min_cell"])]
    assert numbers["plane_hessian_center_is_min"] == 0 and numbers["plane_hessian_nonfinite_fraction"] == 0
    assert numbers["plane_hessian_cos"] <= 1e-9


def test_centre_and_its_standard_error(quadratic):
    """Two samples of losses L/2 and 3L/2: their standard error is |L| / 2."""
    numbers, landscape, matrix, slope, _ = quadratic
    centre = values_at(matrix, slope, landscape.net.theta.detach()).item()
    assert numbers["plane_hessian_center_loss"] == pytest.approx(centre, rel=1e-12)
    assert numbers["plane_hessian_center_stderr"] == pytest.approx(abs(centre) / 2, rel=1e-12)


def test_signed_plane_saddles(quadratic):
    _, _, _, _, folder = quadratic
    _, record = stored(folder, "planes/hessian_signed")
    assert record["eigenvalues"] == pytest.approx([5, -2], rel=1e-8)
    assert record["curvatures"] == pytest.approx([5, -5], rel=1e-6)  # scaled to equal size


def test_random_planes_and_their_spread(quadratic):
    numbers, landscape, matrix, slope, folder = quadratic
    theta, space = landscape.net.theta.detach(), choose(landscape.net)
    surfaces, cosines, minima = [], [], []
    for k in range(3):
        arrays, record = stored(folder, f"planes/random_{k}")
        first, second = (random_direction(space, theta, seed=4, k=2 * k + i, exclude_vectors=False) for i in (0, 1))
        assert arrays["a"].tolist() == arrays["b"].tolist() == offsets(0.5, 5).tolist()
        expected = values_at(matrix, slope, grid_of(theta, first, second, arrays["a"], arrays["b"])).numpy()
        assert np.abs(arrays["losses"] - expected).max() <= 1e-12 * np.abs(expected).max()
        cosines.append(torch.dot(first, second).item() / (first.norm() * second.norm()).item())
        assert record["cos"] == pytest.approx(cosines[-1], rel=1e-9)
        assert record["drawn_orthonormal"] == (abs(cosines[-1]) > 0.05)
        assert record["expected_curvatures"] == pytest.approx([(d @ matrix @ d).item() for d in (first, second)])
        assert record["quad_ratio"] == pytest.approx(1, rel=1e-9)
        surfaces.append(expected)
        minima.append(expected.min())
    assert numbers["plane_random_cos"] == pytest.approx(np.mean(np.abs(cosines)))
    assert numbers["plane_random_min_loss"] == pytest.approx(np.mean(minima))
    assert numbers["plane_random_min_loss_spread"] == pytest.approx(np.std(minima, ddof=1))
    assert numbers["plane_random_loss_spread"] == pytest.approx(np.std(surfaces, axis=0, ddof=1).mean())
    spread, _ = stored(folder, "planes/random_spread")
    assert spread["mean"] == pytest.approx(np.mean(surfaces, axis=0))


def test_quad_ratio_is_the_slope_over_both_axes(tmp_path):
    """A term of fourth order along one axis: the steep axis counts by the square of its curvature, as in a fit."""

    def loss(t):
        return 2 * t[0] ** 2 + 0.5 * t[1] ** 2 + t[1] ** 4

    theta = torch.zeros(2, dtype=DOUBLE)
    looked_at = of_weights(loss, theta, tmp_path, settings=settings_of({"include_hessian": True, "span": 1.0}))
    numbers = looked(looked_at)
    _, record = stored(tmp_path, "planes/hessian")
    assert record["expected_curvatures"] == pytest.approx([4, 1], rel=1e-9)
    step = 0.5  # of five cells from -1 to 1; through -h, 0, h the curvature of t^4 is 2 h^2
    bent = 1 + 2 * step**2
    assert record["quad_ratios"] == pytest.approx([1, bent], rel=1e-6)
    assert numbers["plane_hessian_quad_ratio"] == pytest.approx((4 * 4 + bent * 1) / (4**2 + 1), rel=1e-6)


def saved(*vectors):
    return [SavedPoint(f"epoch {i}", lambda v=v: {"theta": v.clone()}) for i, v in enumerate(vectors)]


def test_a_path_in_a_known_plane(tmp_path):
    landscape, matrix, slope = bowl(tmp_path)
    theta = landscape.net.theta.detach()
    axes = torch.linalg.qr(torch.randn(10, 2, dtype=DOUBLE, generator=torch.Generator().manual_seed(2)))[0].T
    points = theta + torch.tensor([[3, 1], [2, -1], [0.5, 0.4]], dtype=DOUBLE) @ axes
    landscape, *_ = bowl(tmp_path, settings=settings_of({"include_trajectory": True}), path=saved(*points))
    numbers = looked(landscape)
    arrays, record = stored(tmp_path, "planes/trajectory")
    assert numbers["plane_trajectory_explained_variance"] == pytest.approx(1, abs=1e-12)
    assert arrays["residuals"].max() <= 1e-12 and arrays["path"][-1].tolist() == [0, 0]
    expected = [*values_at(matrix, slope, points).tolist(), values_at(matrix, slope, theta).item()]
    assert arrays["true_losses"] == pytest.approx(expected, rel=1e-12)
    assert arrays["plane_losses"] == pytest.approx(expected, rel=1e-10)
    assert np.linalg.norm(arrays["path"], axis=1)[:3] == pytest.approx((points - theta).norm(dim=1).numpy(), rel=1e-12)
    assert arrays["a"][-1] == pytest.approx(1.2 * np.abs(arrays["path"][:, 0]).max(), rel=1e-12)
    assert arrays["b"][-1] == pytest.approx(1.2 * np.abs(arrays["path"][:, 1]).max(), rel=1e-12)
    assert record["points"] == ["epoch 0", "epoch 1", "epoch 2", "the weights"] and record["second_axis"] == "PCA"
    assert numbers["plane_trajectory_quad_ratio"] == pytest.approx(1, rel=1e-8)


@pytest.mark.parametrize(("before", "is_known"), [(1, True), (None, False)])
def test_weights_within_their_path(tmp_path, before, is_known):
    """The path goes on beyond them, or their place is not known: the same points in their order."""
    landscape, matrix, slope = bowl(tmp_path)
    theta, eye = landscape.net.theta.detach(), torch.eye(10, dtype=DOUBLE)
    points = theta + torch.stack([3 * eye[0], -2 * eye[1], -eye[0] - 3 * eye[1]])
    here = Here("epoch 7, selected", before, is_known)
    settings = settings_of({"include_trajectory": True})
    looked(bowl(tmp_path, settings=settings, path=saved(*points), here=here)[0])
    arrays, record = stored(tmp_path, "planes/trajectory")
    order = [0, 3, 1, 2] if is_known else [0, 1, 2, 3]
    every = torch.cat([points, theta[None]])[order]
    names = ["epoch 0", "epoch 1", "epoch 2", "epoch 7, selected"]
    assert record["points"] == [names[i] for i in order] and record["here"] == (1 if is_known else None)
    expected = values_at(matrix, slope, every).numpy()
    assert arrays["true_losses"] == pytest.approx(expected, rel=1e-12)
    assert arrays["plane_losses"] == pytest.approx(expected, rel=1e-10)
    gaps = np.linalg.norm(arrays["path"][:, None] - arrays["path"], axis=-1)
    assert gaps == pytest.approx(torch.cdist(every, every).numpy(), abs=1e-7)


def test_off_the_plane_the_true_loss_differs(tmp_path):
    landscape, matrix, slope = bowl(tmp_path)
    theta, eye = landscape.net.theta.detach(), torch.eye(10, dtype=DOUBLE)
    points = theta + torch.stack([3 * eye[0], 2 * eye[1], 0.5 * eye[2]])
    landscape, *_ = bowl(tmp_path, settings=settings_of({"include_trajectory": True}), path=saved(*points))
    looked(landscape)
    arrays, _ = stored(tmp_path, "planes/trajectory")
    assert arrays["residuals"] == pytest.approx([0, 0, 0.5, 0], abs=1e-7)
    assert arrays["true_losses"][2] == pytest.approx(values_at(matrix, slope, points[2]).item(), rel=1e-12)
    assert arrays["plane_losses"][2] == pytest.approx(values_at(matrix, slope, theta).item(), rel=1e-6)
    assert abs(arrays["true_losses"][2] - arrays["plane_losses"][2]) > 1e-3


def test_one_point_spans_a_line_and_equal_points_nothing(tmp_path):
    plane = {"include_trajectory": True}
    landscape, *_ = bowl(tmp_path, settings=settings_of(plane))
    theta = landscape.net.theta.detach()
    one, *_ = bowl(tmp_path / "one", settings=settings_of(plane), path=saved(theta + 2), seed=1)
    looked(one)
    arrays, record = stored(tmp_path / "one", "planes/trajectory")
    assert record["second_axis"].startswith("random") and abs(record["cos"]) <= 1e-12
    assert record["norms"] == pytest.approx([1, 1], rel=1e-12)
    assert arrays["a"].tolist() == arrays["b"].tolist() and arrays["path"][0, 1] == 0
    assert abs(arrays["path"][0, 0]) == pytest.approx(2 * math.sqrt(10))
    for path, reason in ((saved(theta, theta), "span nothing"), ([], "no saved weights")):
        none, *_ = bowl(tmp_path / reason, settings=settings_of(plane), path=path)
        assert looked(none) == {}
        assert reason in read_json(tmp_path / reason / "summary.json")["absent"]["planes/trajectory"]
        assert not (tmp_path / reason / "planes").exists()


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"theta": torch.zeros(9)}, r"epoch 3 .*: theta has the shape \(9,\) there and \(10,\)"),
        ({"weight": torch.zeros(10)}, r"only the network has it: theta"),
        ({"theta": torch.zeros(10), "head": torch.zeros(1)}, r"only epoch 3 has it: head"),
    ],
)
def test_another_architecture_is_refused(tmp_path, state, said):
    path = [SavedPoint("epoch 3", lambda: state)]
    landscape, *_ = bowl(tmp_path, settings=settings_of({"include_trajectory": True}), path=path)
    with pytest.raises(DataError, match=said):
        looked(landscape)


def test_why_a_plane_is_absent(tmp_path):
    kinds = {"include_hessian_signed": True, "include_random": True, "bn": DirectionSettings(exclude_bn_and_bias=True)}
    convex = of_weights(lambda t: t.square().sum(), torch.ones(3, dtype=DOUBLE), tmp_path, settings=settings_of(kinds))
    assert not [key for key in looked(convex) if key.startswith("plane_")]
    absent = read_json(tmp_path / "summary.json")["absent"]
    assert "no eigenvalue is surely negative" in absent["planes/hessian_signed"]
    assert "exclude_bn_and_bias" in absent["planes/random_0"]
    single = of_weights(
        lambda t: t.square().sum(), torch.ones(1, dtype=DOUBLE), tmp_path / "one",
        settings=settings_of({"include_hessian": True}),
    )  # fmt: skip
    assert not [key for key in looked(single) if key.startswith("plane_")]
    assert "there is one weight" in read_json(tmp_path / "one" / "summary.json")["absent"]["planes/hessian"]


def test_a_plane_that_is_one_of_many_says_so(tmp_path):
    landscape = of_weights(
        lambda t: (torch.arange(1, 5, dtype=DOUBLE).clamp(max=3) * t.square()).sum(), torch.ones(4, dtype=DOUBLE),
        tmp_path, settings=settings_of({"include_hessian": True}),
    )  # fmt: skip
    looked(landscape)
    _, record = stored(tmp_path, "planes/hessian")
    assert record["eigenvalues"] == pytest.approx([6, 6]) and not record["is_unique"]
    assert "one of many" in record["warning"]


def test_what_is_not_finite_stays_in_the_file(tmp_path):
    """Half the cells are not finite; numbers that are none have no key, and the pictures mask them."""

    def cliff(t):
        return torch.where(t[0] > 1.3, torch.nan, torch.where(t[0] < 0.6, torch.inf, t.square().sum()))

    theta = torch.ones(2, dtype=DOUBLE)
    planes = {"include_random": True, "num_random": 1, "span": 1.0, "plot_3d": True}
    numbers = looked(of_weights(cliff, theta, tmp_path, settings=settings_of(planes)))
    losses = stored(tmp_path, "planes/random_0")[0]["losses"]
    assert np.isnan(losses).any() and np.isposinf(losses).any() and losses[2, 2] == 2
    share = (~np.isfinite(losses)).mean()
    assert numbers["plane_random_nonfinite_fraction"] == pytest.approx(share)
    assert "plane_random_quad_ratio" not in numbers
    assert all(math.isfinite(value) for value in numbers.values())
    nowhere = of_weights(
        lambda t: t.square().sum() * torch.nan,
        theta,
        tmp_path / "nan",
        settings=settings_of({"include_random": True, "include_hessian": True, "num_random": 1, "plot_3d": True}),
    )
    assert looked(nowhere)["plane_random_nonfinite_fraction"] == 1
    assert "not finite" in read_json(tmp_path / "nan" / "summary.json")["absent"]["planes/hessian"]
    assert np.isnan(stored(tmp_path / "nan", "planes/random_0")[0]["losses"]).all()


def test_statistics_anew_in_every_cell(tmp_path):
    planes = {"include_random": True, "num_random": 1}
    plain = looked(normed(tmp_path / "stored", settings=settings_of(planes)))
    recompute = BatchNormSettings(policy=BatchNormPolicy.recompute)
    landscape = normed(tmp_path / "anew", settings=settings_of(planes, bn=recompute), seed=5)
    before = {name: value.clone() for name, value in landscape.net.state_dict().items()}
    numbers = looked(landscape)
    assert all(value.equal(before[name]) for name, value in landscape.net.state_dict().items())
    order = keyed_uniform(5, "statistics", torch.arange(45)).argsort()
    batches = landscape.inputs[order].split(11)  # 11, 11, 11, and 12: a batch of one has no variance
    batches = [*batches[:3], landscape.inputs[order][33:]]
    with fresh_statistics(landscape.net, batches), torch.no_grad():
        expected = torch.nn.functional.cross_entropy(landscape.net(landscape.inputs), landscape.targets).item()
    assert numbers["plane_random_center_loss"] == pytest.approx(expected, rel=1e-12)
    assert abs(expected - plain["plane_random_center_loss"]) > 1e-3
    assert "plane_random_quad_ratio" not in numbers and "plane_random_quad_ratio" in plain
    assert stored(tmp_path / "anew", "planes/random_0")[1]["statistics_anew"]
