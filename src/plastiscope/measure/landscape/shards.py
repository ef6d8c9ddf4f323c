"""A frozen set whose samples lie on several processes.

Each process computes the sums over its own samples; one sum over the processes gives those of all. Weights and vectors
are the same bits everywhere, because whoever has the same sums computes the same next vector.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from plastiscope.error import RunError

SumOverProcesses = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes, the same bits on each; a collective call."""
_MARKS = 4093
"""A prime whose small multiples float32 counts exactly."""


@dataclass(frozen=True)
class Shards:
    """The samples of a loss lie on several processes.

    Attributes:
        samples: N, over all of them.
        total: sum over processes.
        first: place of the first own sample among them.
    """

    samples: int
    total: SumOverProcesses
    first: int = 0

    def every(self, own: Tensor) -> Tensor:
        """Values [N, ...] of all samples in their order, of this process' own [n, ...]; exact in every dtype."""
        found = own.new_zeros(self.samples, *own.shape[1:])
        found[self.first : self.first + len(own)] = own
        return self.total(found)

    def total_at(self, vectors: Tensor, sums: Tensor) -> Tensor:
        """Sum over processes of what each has computed from the same `vectors`, in one call.

        Raises:
            RunError: the vectors were not the same everywhere, so the sums mean nothing.
        """
        words = vectors.contiguous().view(torch.int64 if vectors.element_size() == 8 else torch.int32)
        mark = (words.sum() % _MARKS).to(sums.dtype)
        marks = torch.stack([mark, torch.ones_like(mark)])
        found, marks, processes = self.total(torch.cat([sums.flatten(), marks])).split([sums.numel(), 1, 1])
        if not torch.equal(marks, processes * mark):
            raise RunError(
                "the processes that share the samples have come apart: they multiply different vectors. Start them "
                "with the same build of torch on machines of one kind, or use one process"
            )
        return found.view_as(sums)
