"""Ranks against brute force, closed forms and the published example."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from measure.rank_cases import MATRICES, orthogonal
from plastiscope.measure.rank import (
    centre_columns,
    count_to_share,
    effective_rank,
    nuclear_frobenius,
    numerical_rank,
    participation_of_spectrum,
    participation_ratio,
    ranks_of_spectrum,
    representation_ranks,
    singular_values,
    singular_values_of_gram,
    smaller_gram,
)

KEYS = [
    "stable_rank",
    "effective_rank",
    "approx_rank_99",
    "srank_99_l1",
    "numerical_rank",
    "nuclear_frobenius",
    "participation_ratio",
]

each_matrix = pytest.mark.parametrize("features", MATRICES.values(), ids=MATRICES.keys())


def least_count(weights: list[float], share: float) -> int:
    held = 0.0
    for k, weight in enumerate(weights, start=1):
        held += weight
        if held >= share * sum(weights):
            return k
    raise AssertionError("the weights never hold the share")


def brute_force(features: Tensor, centred: bool) -> dict[str, float]:
    """By loops over NumPy's singular values; the participation ratio from the covariance."""
    a = features.numpy()
    centred_a = a - a.mean(0)
    s = np.linalg.svd(centred_a if centred else a, compute_uv=False)
    p = [x / sum(s) for x in s]
    covariance = centred_a.T @ centred_a / len(a)
    return {
        "stable_rank": sum(x**2 for x in s) / s[0] ** 2,
        "effective_rank": math.exp(-sum(x * math.log(x) for x in p if x > 0)),
        "approx_rank_99": least_count([x**2 for x in s], 0.99),
        "srank_99_l1": 1 + sum(sum(p[: k + 1]) < 0.99 for k in range(len(p))),
        "numerical_rank": sum(x >= 0.01 * s[0] for x in s),
        "nuclear_frobenius": np.linalg.norm(centred_a if centred else a, "nuc") / np.linalg.norm(s),
        "participation_ratio": np.trace(covariance) ** 2 / np.trace(covariance @ covariance) if len(a) > 1 else 0.0,
    }


@each_matrix
@pytest.mark.parametrize("centred", [False, True])
def test_equals_brute_force(features: Tensor, centred: bool) -> None:
    one_centred_sample_is_zero = centred and len(features) == 1
    expected = dict.fromkeys(KEYS, 0.0) if one_centred_sample_is_zero else brute_force(features, centred)
    ranks = representation_ranks(features, centred)
    assert list(ranks) == KEYS
    assert ranks == pytest.approx(expected, rel=1e-10)


@each_matrix
def test_does_not_depend_on_rotation_or_scale(features: Tensor) -> None:
    n, d = features.shape
    ranks = representation_ranks(features)
    for other in (features @ orthogonal(d), 1e-30 * features, 1e30 * features):
        assert representation_ranks(other) == pytest.approx(ranks, rel=1e-10)
    of_rows = ranks_of_spectrum(singular_values(orthogonal(n) @ features))
    assert of_rows == pytest.approx({key: ranks[key] for key in of_rows}, rel=1e-10)


@each_matrix
def test_is_capped_by_both_dimensions(features: Tensor) -> None:
    assert all(rank <= min(features.shape) + 1e-10 for rank in representation_ranks(features).values())


def test_published_example() -> None:
    s = torch.tensor([1.0, 4.0, 2.0, 1.0])
    assert ranks_of_spectrum(s) == pytest.approx(
        {
            "stable_rank": 1.375,
            "effective_rank": 2**1.75,
            "approx_rank_99": 4,
            "srank_99_l1": 4,
            "numerical_rank": 4,
            "nuclear_frobenius": 8 / math.sqrt(22),
        },
        rel=1e-12,
    )
    assert effective_rank(s) == pytest.approx(3.363586, abs=5e-7)
    assert numerical_rank(s, eps=0.3) == 2
    assert nuclear_frobenius(s) ** 2 == pytest.approx(2.909091, abs=5e-7)
    assert participation_of_spectrum(s) == pytest.approx(1.766423, abs=5e-7)
    descending = s.double().sort(descending=True).values
    assert count_to_share(descending.square(), 0.9) == 2
    assert count_to_share(descending, 0.9) == 4


@pytest.mark.parametrize("n", [2, 5, 64, 99])
def test_identity(n: int) -> None:
    expected = {key: float(n) for key in KEYS} | {"nuclear_frobenius": math.sqrt(n), "participation_ratio": n - 1.0}
    assert representation_ranks(torch.eye(n)) == pytest.approx(expected, rel=1e-12)
    assert participation_of_spectrum(singular_values(torch.eye(n))) == pytest.approx(n, rel=1e-12)


def test_a_share_reached_exactly_counts_whatever_the_rounding() -> None:
    ranks = representation_ranks(torch.eye(100) * 0.1)
    assert ranks["approx_rank_99"] == ranks["srank_99_l1"] == 99
    sum_of_200 = torch.tensor([98.0, 68.0, 30.0, 2.0, 1.0, 1.0])  # the first four hold 198
    assert ranks_of_spectrum(sum_of_200)["srank_99_l1"] == 4
    assert ranks_of_spectrum(sum_of_200.double().sqrt())["approx_rank_99"] == 4
    assert numerical_rank(torch.tensor([1.0, 0.01, 0.0099], dtype=torch.float64)) == 2


def test_rank_one() -> None:
    features = torch.outer(torch.arange(1.0, 8.0), torch.tensor([1.0, -2.0, 0.0, 3.0]))
    assert representation_ranks(features) == pytest.approx(dict.fromkeys(KEYS, 1.0), rel=1e-10)


def test_zero_has_rank_zero_and_constant_features_do_not_vary() -> None:
    assert representation_ranks(torch.zeros(5, 3)) == dict.fromkeys(KEYS, 0.0)
    constant = torch.full((7, 3), 0.1, dtype=torch.float64)
    assert representation_ranks(constant, centred=True) == dict.fromkeys(KEYS, 0.0)
    assert representation_ranks(constant) == pytest.approx(dict.fromkeys(KEYS, 1.0) | {"participation_ratio": 0.0})


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (8, 300_000)])
def test_not_finite_features_have_rank_nan(shape: tuple[int, int], bad: float) -> None:
    features = torch.ones(shape)
    features[1, 2] = bad
    assert all(math.isnan(rank) for rank in representation_ranks(features).values())


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("centred", [False, True])
def test_large_maps_go_through_the_gram_matrix_to_the_same_ranks(transposed: bool, centred: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(16, 5, generator=generator) @ torch.randn(5, 140_000, generator=generator)
    features = weights + torch.arange(140_000) / 1e4
    features = features.T if transposed else features
    s = np.linalg.svd(
        features.double().numpy() - (features.double().numpy().mean(0) if centred else 0), compute_uv=False
    )
    found = singular_values(features, centred)
    significant = s > 1e-5 * s[0]
    assert found.numpy()[significant] == pytest.approx(s[significant], rel=1e-8)
    assert found.numpy() == pytest.approx(s, abs=1e-6 * s[0])
    assert found.equal(singular_values_of_gram(smaller_gram(features, centred)))


def test_a_gram_matrix_summed_over_batches_gives_the_singular_values() -> None:
    features = MATRICES["tall"].float()
    gram = sum(batch.double().T @ batch.double() for batch in features.split(9))
    assert singular_values_of_gram(gram).numpy() == pytest.approx(singular_values(features).numpy(), rel=1e-12)


def test_a_gram_matrix_has_no_spurious_rank() -> None:
    s = singular_values_of_gram(smaller_gram(MATRICES["low rank"]))
    assert (s > 0).sum() == 3
    assert (singular_values_of_gram(torch.full((3, 3), torch.nan))).isnan().all()


@each_matrix
def test_participation_ratio_needs_no_singular_values(features: Tensor) -> None:
    of_spectrum = participation_of_spectrum(singular_values(features, centred=True))
    assert participation_ratio(features) == pytest.approx(of_spectrum, rel=1e-9)


def test_constant_columns_become_exactly_zero() -> None:
    matrix = torch.full((7, 2), 0.1, dtype=torch.float64)
    matrix[:, 1] += torch.arange(7)
    assert centre_columns(matrix)[:, 0].eq(0).all()
    assert centre_columns(matrix)[:, 1].tolist() == pytest.approx([-3, -2, -1, 0, 1, 2, 3], abs=1e-15)
