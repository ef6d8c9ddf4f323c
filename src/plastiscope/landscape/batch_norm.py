"""Statistics of batch normalisations away from weights that were trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from plastiscope.landscape.look import Look
from plastiscope.landscape.settings import BatchNormPolicy
from plastiscope.measure.keyed import keyed_uniform
from plastiscope.measure.landscape.connectivity import fresh_statistics, norms_with_statistics


def statistics_batches(look: Look) -> list[Tensor]:
    """Inputs from which statistics are estimated anew: at most `bn_samples` of the training's, in batches of its size.

    They are shuffled first, as a training's are: batches of one class would have the statistics of one class. A last
    batch of a single sample, which has no variance, joins the one before it.
    """
    landscape, frozen = look.landscape, look.frozen
    inputs = frozen.inputs if landscape.training_inputs is None else landscape.training_inputs
    inputs = inputs[shuffled(look, len(inputs))[: look.settings.mode_connectivity.bn_samples]].to(frozen.inputs)
    size = max(2, landscape.training_batch)
    if len(inputs) % size == 1 and len(inputs) > size:
        return [*inputs[: -size - 1].split(size), inputs[-size - 1 :]] if len(inputs) > size + 1 else [inputs]
    return list(inputs.split(size))


def shuffled(look: Look, n: int) -> Tensor:
    """A seeded order of n samples."""
    return keyed_uniform(look.seed, "statistics", torch.arange(n)).argsort()


def recomputes(look: Look) -> bool:
    """Whether planes re-estimate statistics in every cell: they are asked to, and there are some."""
    return look.settings.bn.policy is BatchNormPolicy.recompute and bool(norms_with_statistics(look.frozen.net))


@contextmanager
def cell_statistics(look: Look, batches: list[Tensor] | None) -> Iterator[None]:
    """Inside, the statistics of the live parameters by the policy: of `batches`, or as stored (None)."""
    if batches is None:
        yield
    else:
        with fresh_statistics(look.frozen.net, batches):
            yield
