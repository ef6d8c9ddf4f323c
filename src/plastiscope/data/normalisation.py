"""Mean and standard deviation of the training split, and normalisations from given numbers."""

from collections.abc import Iterable, Sequence
from enum import Enum

import torch
from torch import Tensor

from plastiscope.data.samples import Normalisation
from plastiscope.error import ConfigError


class NormalisationKind(Enum):
    """Where mean and standard deviation come from."""

    published = "published"
    """The constants that publications on the data set use."""
    auto = "auto"
    """Of the training samples (without validation), per channel of images and per feature otherwise; stored."""
    none = "none"
    """Bytes are divided by 255, floats stay as they are."""


def statistics(chunks: Iterable[Tensor], scale: float, correction: int = 0) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of raw / scale, per channel of [b, c, h, w] and per feature otherwise.

    Sums are taken in float64 of the values minus the first one, so that a large common offset costs no digits.

    Args:
        chunks: raw inputs [b, ...].
        scale: raw values are divided by it first.
        correction: 1 divides by n - 1 instead of n.

    Returns:
        float64 mean and std of shape [c, 1, 1] or of one input.
    """
    count, shift, total, squares = 0, None, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        x = chunk.to(torch.float64) / scale
        if x.ndim == 4:
            x = x.movedim(1, -1).flatten(0, 2)
        shift = x[0] if shift is None else shift
        centred = x - shift
        count += len(x)
        total = total.to(x) + centred.sum(0)
        squares = squares.to(x) + centred.square().sum(0)
    if shift is None:
        raise ConfigError("normalisation=auto: there are no training samples to take mean and std from.")
    variance = (squares - total * total / count) / max(count - correction, 1)
    mean, std = shift + total / count, variance.clamp_min(0).sqrt()
    return (mean[:, None, None], std[:, None, None]) if chunk.ndim == 4 else (mean, std)


def automatic(chunks: Iterable[Tensor], scale: float) -> Normalisation:
    """The normalisation by the mean and std of `chunks`; what never varies is divided by 1."""
    mean, std = statistics(chunks, scale)
    return Normalisation(mean.float(), torch.where(std > 0, std, 1.0).float(), scale)


def constants(
    mean: Sequence[float], std: Sequence[float], scale: float, input_shape: tuple[int, ...], device: torch.device
) -> Normalisation:
    """The normalisation by given numbers: one, or one per channel of images, or one per feature.

    Raises:
        ConfigError: their count does not fit one input of shape `input_shape`, or a std is not positive.
    """
    wanted = input_shape[0]
    for name, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, wanted):
            raise ConfigError(
                f"{name}={list(values)}: must be 1 number or {wanted}, for inputs of shape {input_shape}."
            )
    if min(std) <= 0:
        raise ConfigError(f"std={list(std)}: must be above 0.")
    shape = (-1,) + (1,) * (len(input_shape) - 1)
    return Normalisation(
        torch.tensor(list(mean), dtype=torch.float32, device=device).view(shape),
        torch.tensor(list(std), dtype=torch.float32, device=device).view(shape),
        scale,
    )
