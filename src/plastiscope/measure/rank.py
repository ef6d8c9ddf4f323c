"""Ranks of representations: how many directions the features of a layer use.

All but the participation ratio are functions of the singular values s_1 >= s_2 >= ... of the features A [n, d], with
p = s / sum(s) and q = s^2 / sum(s^2). Every rank is capped by min(n, d); the zero matrix has rank 0, and features that
are not finite have rank NaN. "Stable rank" names five quantities in public code: the keys here are unambiguous.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_TIE = 1e-12
"""Relative distance to a threshold that counts as reached, so that rounding does not decide ties."""

_GRAM_ASPECT = 4
_GRAM_ELEMENTS = 2**21
_GRAM_BLOCK = 4096


def centre_columns(matrix: Tensor) -> Tensor:
    """The matrix [n, d] less the mean of each column; constant columns become exactly zero."""
    shifted = matrix - matrix[:1]
    return shifted - shifted.mean(0)


def smaller_gram(features: Tensor, centred: bool = False) -> Tensor:
    """A A^T [n, n] when n <= d, else A^T A [d, d], in float64; wide features are never held in float64 as a whole.

    Args:
        features: [n, d].
        centred: whether to subtract each column's mean first.
    """
    n, d = features.shape
    if n > d:
        tall = centre_columns(features.double()) if centred else features.double()
        return tall.T @ tall
    gram = torch.zeros(n, n, dtype=torch.float64, device=features.device)
    for block in features.split(_GRAM_BLOCK, dim=1):
        wide = centre_columns(block.double()) if centred else block.double()
        gram.addmm_(wide, wide.T)
    return gram


def singular_values_of_gram(gram: Tensor) -> Tensor:
    """Singular values [k], descending, of a matrix whose Gram matrix [k, k] is known, such as one summed over batches.

    They are the square roots of the eigenvalues, so small ones are lost: what lies below sqrt(k * 2.2e-16) of the
    largest cannot be told from zero and is set to zero. NaN when the Gram matrix is not finite.
    """
    gram = gram.double()
    if not gram.isfinite().all():
        return torch.full((len(gram),), torch.nan, dtype=torch.float64, device=gram.device)
    eigenvalues = torch.linalg.eigvalsh(gram).flip(0)
    noise = len(gram) * torch.finfo(torch.float64).eps * eigenvalues[:1]
    return torch.where(eigenvalues > noise, eigenvalues, 0.0).sqrt()


def singular_values(features: Tensor, centred: bool = False) -> Tensor:
    """Singular values of features [n, d] in float64, descending, min(n, d) of them; NaN for features not finite.

    By singular value decomposition, accurate to 1e-15 of the largest. Only matrices of more than 2 million elements
    with one side over 4 times the other (flattened feature maps) go through their smaller Gram matrix, which is
    several times as fast and accurate as `singular_values_of_gram` says: enough for features in float32.

    Args:
        features: [n, d].
        centred: whether to subtract each column's mean first.
    """
    n, d = features.shape
    if features.numel() > _GRAM_ELEMENTS and max(n, d) > _GRAM_ASPECT * min(n, d):
        return singular_values_of_gram(smaller_gram(features, centred))
    if not features.isfinite().all():
        return torch.full((min(n, d),), torch.nan, dtype=torch.float64, device=features.device)
    matrix = features.double()
    return torch.linalg.svdvals(centre_columns(matrix) if centred else matrix)


def _rank(s: Tensor, formula: Callable[[Tensor], Tensor]) -> float:
    """Apply a formula to the values, descending and scaled to a largest of 1; 0 for the zero matrix, NaN for NaN."""
    s = s.double().sort(descending=True).values
    if not s.isfinite().all():
        return torch.nan
    if len(s) == 0 or s[0] == 0:
        return 0.0
    return formula(s / s[0]).item()


def count_to_share(weights: Tensor, share: float) -> Tensor:
    """Least k such that the first k of the weights [m] hold a share of their sum; the share is reached within 1e-12."""
    held = weights.cumsum(0) / weights.sum()
    return (held < share * (1 - _TIE)).sum() + 1


def stable_rank(s: Tensor) -> float:
    """||A||_F^2 / ||A||_2^2 = sum(s^2) / s_1^2, the standard meaning of the name."""
    return _rank(s, lambda s: s.square().sum())


def effective_rank(s: Tensor) -> float:
    """exp(-sum(p ln p)) with 0 ln 0 = 0 (Roy & Vetterli 2007, "The effective rank")."""
    return _rank(s, lambda s: torch.special.entr(s / s.sum()).sum().exp())


def approx_rank_99(s: Tensor) -> float:
    """Least k with q_1 + .. + q_k >= 0.99: 99 % of the variance (Yang et al. 2019, arXiv 1909.12255)."""
    return _rank(s, lambda s: count_to_share(s.square(), 0.99))


def srank_99_l1(s: Tensor) -> float:
    """Least k with p_1 + .. + p_k >= 0.99; called "stable rank" by Dohare et al. 2024, which it is not."""
    return _rank(s, lambda s: count_to_share(s, 0.99))


def numerical_rank(s: Tensor, eps: float = 0.01) -> float:
    """Number of singular values s_i >= eps * s_1."""
    return _rank(s, lambda s: (s >= eps * (1 - _TIE)).sum())


def nuclear_frobenius(s: Tensor) -> float:
    """Nuclear over Frobenius norm, sum(s) / sqrt(sum(s^2)); the root of a rank."""
    return _rank(s, lambda s: s.sum() / s.square().sum().sqrt())


def participation_of_spectrum(s: Tensor) -> float:
    """sum(s^2)^2 / sum(s^4) for singular values of centred features; see `participation_ratio`."""
    return _rank(s, lambda s: s.square().sum().square() / s.pow(4).sum())


def participation_ratio(features: Tensor) -> float:
    """(tr C)^2 / tr(C^2), C the covariance of features [n, d]; needs no singular values. 0 when all are constant."""
    gram = smaller_gram(features, centred=True)
    if not gram.isfinite().all():
        return torch.nan
    trace = gram.trace()
    return 0.0 if trace == 0 else (gram / trace).square().sum().reciprocal().item()


def ranks_of_spectrum(s: Tensor, eps: float = 0.01) -> dict[str, float]:
    """All ranks that are functions of the singular values, by key; `eps` is that of the numerical rank."""
    return {
        "stable_rank": stable_rank(s),
        "effective_rank": effective_rank(s),
        "approx_rank_99": approx_rank_99(s),
        "srank_99_l1": srank_99_l1(s),
        "numerical_rank": numerical_rank(s, eps),
        "nuclear_frobenius": nuclear_frobenius(s),
    }


def representation_ranks(features: Tensor, centred: bool = False, eps: float = 0.01) -> dict[str, float]:
    """All ranks of features [n, d], by key; each is capped by min(n, d), so store n, d and `centred` beside them.

    Args:
        features: one row per sample; feature maps averaged over positions, or flattened.
        centred: whether to subtract each column's mean; the participation ratio always does.
        eps: of the numerical rank.
    """
    ranks = ranks_of_spectrum(singular_values(features, centred), eps)
    return ranks | {"participation_ratio": participation_ratio(features)}
