"""Rank over the layers against the hand-made example and brute force."""

import math

import pytest
import torch

from plastiscope.measure.rank_dynamics import (
    RankDrop,
    gini,
    normalized_aurc,
    rank_decay_centroid,
    rank_drop_centroid,
    rank_drop_gini,
    rank_drops,
    weight_sv_gini,
)

EXAMPLE = (64, 32, 32, 8)


def test_example() -> None:
    assert rank_drops(EXAMPLE).tolist() == [0.5, 0, 0.75]
    assert rank_drops(EXAMPLE, RankDrop.difference).tolist() == [32, 0, 24]
    assert rank_drop_gini(EXAMPLE) == pytest.approx(0.4, rel=1e-12)
    assert rank_drop_gini(EXAMPLE, RankDrop.difference) == pytest.approx(64 / 168, rel=1e-12)
    assert rank_decay_centroid(EXAMPLE) == pytest.approx(120 / 136, rel=1e-12)
    assert normalized_aurc(EXAMPLE) == pytest.approx(100 / 192, rel=1e-12)
    assert rank_drop_centroid(EXAMPLE) == pytest.approx(104 / 56, rel=1e-12)
    assert rank_drop_centroid(EXAMPLE, RankDrop.ratio) == pytest.approx(2.75 / 1.25, rel=1e-12)


def test_the_largest_possible_rank_goes_first() -> None:
    assert rank_drop_gini(EXAMPLE, first=128) == rank_drop_gini((128, *EXAMPLE))


@pytest.mark.parametrize("seed", range(3))
def test_gini_is_half_the_relative_mean_difference(seed: int) -> None:
    x = torch.rand(11, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 3
    mean_difference = sum(abs(a - b) for a in x.tolist() for b in x.tolist()) / 11**2
    assert gini(x) == pytest.approx(mean_difference / (2 * x.mean().item()), rel=1e-12)
    ascending = x.sort().values
    assert weight_sv_gini(x) == pytest.approx(
        (11 + 1 - 2 * (ascending.cumsum(0).sum() / x.sum()).item()) / 11, rel=1e-12
    )


def test_gini_bounds() -> None:
    assert gini([3.0, 3.0, 3.0]) == 0
    assert gini([0.0, 0.0, 5.0]) == pytest.approx(2 / 3)
    assert gini([0.0, 0.0]) == gini([]) == 0


def test_rising_ranks() -> None:
    assert rank_drop_gini((4, 8, 16)) == 0
    assert normalized_aurc((4, 8, 16)) == 2.25
    assert math.isnan(rank_drop_centroid((4, 8, 16)))


def test_layers_of_rank_zero() -> None:
    assert rank_drops((4, 0, 0, 2)).tolist() == [1, 0, 0]
    assert math.isnan(rank_decay_centroid((0, 0)))
    assert math.isnan(normalized_aurc((0, 3)))
    assert math.isnan(normalized_aurc((5,)))
    assert rank_decay_centroid((5,)) == 0


@pytest.mark.parametrize("ranks", [(math.nan, 2, 1), (3, math.nan, 1), (3, 0, math.nan)])
def test_nan_is_not_hidden(ranks: tuple[float, ...]) -> None:
    for measure in (rank_drop_gini, rank_decay_centroid, rank_drop_centroid, normalized_aurc):
        assert math.isnan(measure(ranks)), measure
