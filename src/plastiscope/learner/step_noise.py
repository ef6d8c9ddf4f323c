"""Normal noise on parameters at every step, as a function of the seed, the purpose and the step.

A generator is seeded for each block of steps, so nothing has to be kept in a checkpoint, and a run draws the same
numbers whether it advances alone or beside others. Small networks draw many steps at once, large ones each step anew.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from plastiscope.measure.keyed import Seed, named_seed

BLOCK = 1 << 15
"""Numbers that are drawn at once, or more if a single step needs more."""
MOST_STEPS = 256
"""Steps of a block at most."""


class StepNoise:
    """Standard normal numbers of the shapes of parameters [*lead, ...], each run's from its own seed.

    The numbers are those of torch's generator of the parameters' device, so they differ between CPU and GPU.
    """

    def __init__(self, parameters: Sequence[Tensor], seed: Seed, purpose: str, lead: int = 0) -> None:
        """Prepare the block.

        Args:
            parameters: whose shapes, type and device the numbers have.
            seed: of the run; or of each run along the leading axis.
            purpose: what the noise is for; different purposes give unrelated numbers.
            lead: number of leading axes, 0 or 1.
        """
        first = parameters[0]
        sizes = [prod(parameter.shape[lead:]) for parameter in parameters]
        # torch's CPU generator knows the lower 32 bits of a seed alone: hashes of the blocks would repeat after some
        # 100,000 of them, seeds that count up do not.
        self._seeds = [named_seed(one, purpose) for one in ([seed] if isinstance(seed, int) else seed)]
        self.steps = min(MOST_STEPS, max(1, BLOCK // sum(sizes)))
        self._block = torch.empty(len(self._seeds), self.steps, sum(sizes), dtype=first.dtype, device=first.device)
        self._generator = torch.Generator(first.device)
        self._number = -1
        places = (self._block if lead else self._block[0]).unbind(lead)
        self._views = [
            [
                part.unflatten(-1, parameter.shape[lead:]) if parameter.ndim > lead else part.squeeze(-1)
                for part, parameter in zip(place.split(sizes, -1), parameters, strict=True)
            ]
            for place in places
        ]

    def at(self, step: int) -> list[Tensor]:
        """The numbers of `step` (from 0) for each parameter, of its shape; overwritten by later calls."""
        number, place = divmod(step, self.steps)
        if number != self._number:
            for seed, own in zip(self._seeds, self._block, strict=True):
                own.normal_(generator=self._generator.manual_seed(seed + number))
            self._number = number
        return self._views[place]
