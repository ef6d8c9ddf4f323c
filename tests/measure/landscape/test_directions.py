"""Random directions and the plane of checkpoints."""

import math

import pytest
import torch
from landscape_cases import DOUBLE
from torch import nn

from plastiscope.measure.landscape.direction import Normalise, cosine, orthogonal, random_direction, trajectory
from plastiscope.measure.landscape.space import choose


def layered(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, groups=2),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Linear(50, 9),
    )
    with torch.no_grad():
        net[0].weight[2] = 0
    return net.to(dtype)


def slices(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double().flatten(1).norm(dim=1)


def test_filters_have_the_norms_of_the_weights() -> None:
    net = layered()
    space = choose(net)
    found = random_direction(space, space.values(net), seed=0, k=0)
    assert found.isfinite().all()
    for name, part in space.named(found).items():
        own = dict(net.named_parameters())[name]
        if own.ndim < 2:
            assert part.count_nonzero() == 0
        else:
            assert (slices(part) - slices(own)).abs().max() <= 1e-6
    assert space.named(found)["0.weight"][2].count_nonzero() == 0


@pytest.mark.parametrize("normalise", [Normalise.layer, Normalise.model, Normalise.none])
def test_other_lengths(normalise: Normalise) -> None:
    net = layered(DOUBLE)
    space = choose(net)
    weights = space.values(net)
    found = random_direction(space, weights, seed=0, k=0, normalise=normalise, exclude_vectors=False)
    parts, own = space.named(found), space.named(weights)
    if normalise is Normalise.layer:
        assert all(parts[n].norm().item() == pytest.approx(own[n].norm().item(), rel=1e-12) for n in parts)
    if normalise is Normalise.model:
        assert found.norm().item() == pytest.approx(weights.norm().item(), rel=1e-12)
    if normalise is Normalise.none:
        assert found.equal(space.normals(0, "direction", 0).double())
    filtered = random_direction(space, weights, seed=0, k=0, exclude_vectors=False)
    assert space.named(filtered)["4.bias"].norm().item() == pytest.approx(own["4.bias"].norm().item(), rel=1e-12)


def test_entries_have_mean_zero() -> None:
    net = nn.Linear(100, 100)
    space = choose(net)
    found = random_direction(space, space.values(net), seed=0, k=0, normalise=Normalise.none)
    found = space.named(found)["weight"]
    assert abs(found.mean().item()) <= 4 * found.std().item() / 100
    assert found.std().item() == pytest.approx(1, abs=0.05)


def test_the_key_of_a_direction() -> None:
    net = layered()
    space = choose(net)
    weights = space.values(net)
    first = random_direction(space, weights, seed=3, k=1)
    assert first.equal(random_direction(space, weights, seed=3, k=1))
    assert not first.equal(random_direction(space, weights, seed=4, k=1))
    assert not first.equal(random_direction(space, weights, seed=3, k=0))
    part = choose(net, "4")
    alone = random_direction(part, part.values(net), seed=3, k=1)
    assert part.named(alone)["4.weight"].equal(space.named(first)["4.weight"])


def test_orthogonal() -> None:
    one, two = torch.randn(2, 50, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    for second in (two, one + 1e-7 * two):
        found = orthogonal(second, 3 * one)
        assert abs(cosine(found, one)) <= 1e-12
        assert found.norm().item() == pytest.approx(second.norm().item(), rel=1e-12)
    assert orthogonal(2 * one, one).count_nonzero() == 0
    assert orthogonal(two, torch.zeros_like(one)).equal(two)
    assert abs(cosine(one, two)) > 1e-3 and math.isnan(cosine(one, 0 * two))


def test_a_path_in_a_known_plane() -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(40, 2, dtype=DOUBLE, generator=generator))[0].T
    places = torch.tensor([[3.0, -1.0], [2.0, 1.5], [0.5, 1.0], [1.0, 0.2], [0.0, 0.0]], dtype=DOUBLE)
    points = torch.randn(40, dtype=DOUBLE, generator=generator) + places @ axes
    found = trajectory(lambda i: points[i], 5)
    assert found.explained.sum().item() == pytest.approx(1, abs=1e-12)
    assert found.residuals.max() <= 1e-12
    assert (torch.linalg.svdvals(found.directions @ axes.T) - 1).abs().max() <= 1e-14
    assert (found.directions @ found.directions.T - torch.eye(2, dtype=DOUBLE)).abs().max() <= 1e-14
    assert found.path[-1].tolist() == [0, 0]
    assert (found.path @ found.directions - places @ axes).abs().max() <= 1e-12


def test_gram_matrix_is_singular_value_decomposition() -> None:
    points = torch.randn(7, 60, dtype=DOUBLE, generator=torch.Generator().manual_seed(1)).cumsum(0)
    offsets = points - points[-1]
    _, sigma, v = torch.linalg.svd(offsets, full_matrices=False)
    found = trajectory(lambda i: points[i], 7)
    assert (found.explained - sigma[:2].square() / sigma.square().sum()).abs().max() <= 1e-9
    assert ((found.directions * v[:2]).sum(1).abs() - 1).abs().max() <= 1e-9
    assert (found.path - offsets @ found.directions.T).abs().max() <= 1e-9
    left = offsets - found.path @ found.directions
    assert (found.residuals - left.norm(dim=1)).abs().max() <= 1e-9


def test_one_checkpoint_repeated_ones_and_a_line() -> None:
    point = torch.randn(9, dtype=DOUBLE, generator=torch.Generator().manual_seed(2))
    for count in (1, 3):
        found = trajectory(lambda _: point, count)
        assert found.directions.count_nonzero() == found.path.count_nonzero() == found.residuals.count_nonzero() == 0
        assert found.path.shape == (count, 2) and found.explained.isnan().all()
    line = trajectory(lambda i: point * (i + 1), 4)
    assert line.explained.tolist() == pytest.approx([1, 0], abs=1e-12)
    assert line.directions[1].count_nonzero() == 0
    assert line.path[0, 0].abs().item() == pytest.approx(3 * point.norm().item())


def test_axes_are_orthonormal_however_thin_the_path() -> None:
    generator = torch.Generator().manual_seed(3)
    long, thin = torch.randn(2, 30, dtype=DOUBLE, generator=generator)
    found = trajectory(lambda i: (5 - i) * long + 1e-5 * (i % 2 - 1) * thin, 6)
    assert (found.directions @ found.directions.T - torch.eye(2, dtype=DOUBLE)).abs().max() <= 1e-14
