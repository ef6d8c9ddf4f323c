"""Linear centred kernel alignment: how alike two representations of the same samples are."""

import torch
from torch import Tensor

from plastiscope.measure.rank import centre_columns


def linear_cka(x: Tensor, y: Tensor) -> float:
    """||X^T Y||_F^2 / (||X^T X||_F ||Y^T Y||_F) of column-centred X, Y, in float64 (Kornblith et al. 2019).

    In [0, 1]; 1 for representations equal up to rotation and scale. Biased towards 1 when n is not much larger than the
    dimensions: store n and d. Goes through n x n Gram matrices when n is less than a dimension.

    Args:
        x: [n, d1] features.
        y: [n, d2] features of the same samples; feature maps averaged over positions.

    Returns:
        NaN when either is constant over the samples, or not finite.

    Raises:
        ValueError: when the numbers of samples differ.
    """
    if len(x) != len(y):
        raise ValueError(f"features of {len(x)} and {len(y)} samples; both must be of the same samples")
    x, y = centre_columns(x.double()), centre_columns(y.double())
    if len(x) < max(x.shape[1], y.shape[1]):
        gram_x, gram_y = x @ x.T, y @ y.T
        alignment = (gram_x * gram_y).sum()
    else:
        gram_x, gram_y = x.T @ x, y.T @ y
        alignment = (x.T @ y).square().sum()
    return (alignment / (torch.linalg.matrix_norm(gram_x) * torch.linalg.matrix_norm(gram_y))).item()
