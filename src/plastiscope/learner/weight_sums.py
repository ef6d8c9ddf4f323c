"""Sums of absolute weights over the rows and columns of units, many of one parameter from one pass over it."""

from typing import NamedTuple

import torch
from torch import Tensor

from plastiscope.learner.unit_parameters import Slices

CHUNK = 1 << 18
"""Elements of |W| that are held at a time, so that they stay in the cache."""


class _Sum(NamedTuple):
    """One sum of |w|: the dimensions of `view` that go, where it goes to, whether it is added there.

    Columns in blocks are summed over all else first, for torch sums whole columns fast and blocks of them slowly.
    """

    view: Tensor
    dims: tuple[int, ...]
    blocks: tuple[int, int] | None
    out: Tensor
    is_first: bool

    def take(self) -> None:
        """Take the sum of what `view` holds now."""
        if self.blocks is None and self.is_first:
            torch.sum(self.view, self.dims, out=self.out)
            return
        value = self.view.sum(self.dims)
        if self.blocks is not None:
            value = value.unflatten(-1, self.blocks).sum(-1)
        if self.is_first:
            self.out.copy_(value)
        else:
            self.out.add_(value)


class AbsoluteSums:
    """Sums of |W| over each unit's rows or columns of one parameter, from one pass over it.

    Where a layer divides its rows by their lengths, W is what its inputs are multiplied with.
    """

    def __init__(self, slices: Slices) -> None:
        """Prepare the pass over the parameter [*lead, out, ...] of `slices`."""
        self.tensor, self.lead, self._source = slices.tensor.detach(), slices.lead, slices
        self.targets: list[tuple[Slices, Tensor, bool]] = []
        self._buffer: Tensor | None = None
        self._passes: list[list[tuple[Tensor, Tensor, list[_Sum]]]] = []

    def add(self, slices: Slices, out: Tensor, is_first: bool) -> None:
        """Also sum over the units of `slices` into `out` [n, *lead, units]; add to it unless `is_first`."""
        self.targets.append((slices, out, is_first))

    def prepare(self) -> None:
        """Make the buffer, and the views of all passes into each of the n places."""
        self._passes = [self._passes_into(place) for place in range(len(self.targets[0][1]))]

    def _passes_into(self, place: int) -> list[tuple[Tensor, Tensor, list[_Sum]]]:
        """Pieces of the parameter: rows, or with a leading axis runs."""
        whole = self.tensor
        size = self._size_of_pieces()
        if self._buffer is None:
            self._buffer = torch.empty_like(whole.narrow(0, 0, size))
        passes = []
        for start in range(0, len(whole), size):
            part = whole.narrow(0, start, min(size, len(whole) - start))
            absolute = self._buffer.narrow(0, 0, len(part))
            sum_of = self._sum if self.lead or len(part) == len(whole) else self._sum_of_rows
            sums = [sum_of(absolute, start, slices, out[place], first) for slices, out, first in self.targets]
            passes.append((part, absolute, [one for one in sums if one is not None]))
        return passes

    def _size_of_pieces(self) -> int:
        whole = self.tensor
        are_single = all(slices.block == 1 for slices, _, _ in self.targets if slices.axis == 0)
        if whole.numel() <= CHUNK or self._source.normed is not None or not (self.lead or are_single):
            return len(whole)
        return max(1, CHUNK * len(whole) // whole.numel())

    def _sum(self, absolute: Tensor, start: int, slices: Slices, out: Tensor, is_first: bool) -> _Sum:
        """Of all rows and columns of a network, or of the runs from `start` on."""
        lead, axis = self.lead, self.lead + slices.axis
        view = absolute.narrow(axis, slices.offset, slices.width * slices.block)
        others = tuple(dim for dim in range(lead, view.ndim) if dim != axis)
        blocks = None if slices.block == 1 else (slices.width, slices.block)
        return _Sum(view, others, blocks, out.narrow(0, start, len(absolute)) if lead else out, is_first)

    def _sum_of_rows(self, absolute: Tensor, start: int, slices: Slices, out: Tensor, is_first: bool) -> _Sum | None:
        """Of the rows from `start` on, of a single network."""
        if slices.axis != 0:
            return self._sum(absolute, start, slices, out, is_first and start == 0)
        first, last = max(slices.offset, start), min(slices.offset + slices.width, start + len(absolute))
        if first >= last:
            return None
        out, view = out.narrow(0, first - slices.offset, last - first), absolute.narrow(0, first - start, last - first)
        return _Sum(view, tuple(range(1, view.ndim)), None, out, is_first)

    def __call__(self, place: int) -> None:
        """Take the sums of the weights as they are now into the place'th row of each target."""
        for part, absolute, sums in self._passes[place]:
            torch.abs(part if self._source.normed is None else self._source.effective(), out=absolute)
            for one in sums:
                one.take()
