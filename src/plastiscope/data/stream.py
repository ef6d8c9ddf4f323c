"""Streams: samples that come one after the other, each presentation counted, in the order in which they come.

What a stream shows in task k is drawn anew for each task, or comes again within it, so its samples are no fixed set
to which values could be attached. `is_stream` on the source says so; analyses that need such a set refuse it by name.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from plastiscope.data.order import Order, Presentation
from plastiscope.data.samples import ArraySource, Source


class StreamSource(ArraySource):
    """A stretch of a stream, on the device as one tensor."""

    is_stream = True


class Recurring:
    """Another source, whose samples a task presents more than once in an epoch."""

    is_stream = True

    def __init__(self, source: Source) -> None:
        """Show `source`."""
        self.source = source

    @property
    def ids(self) -> Tensor:
        """Ids int64 [n], those of the source."""
        return self.source.ids

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.source.input_shape

    @property
    def device(self) -> torch.device:
        """Where batches appear."""
        return self.source.device

    def __len__(self) -> int:
        return len(self.source)

    def stream(self, rows: Tensor, size: int) -> Iterator[Tensor]:
        """Inputs of `rows`, `size` at a time."""
        return self.source.stream(rows, size)


class AsTheyCome(Presentation):
    """Samples are presented in the order of their view."""

    def __init__(self, weights: Tensor | None = None) -> None:
        """Weights float32 [rows of the source] of the losses, or None."""
        super().__init__(Order.random, torch.empty(0), weights)

    @property
    def name(self) -> str:
        """Of the order, for records."""
        return "as they come"

    def positions(self, rows: Tensor, ids: Tensor) -> Tensor:
        """0, 1, ..., n - 1."""
        return torch.arange(len(rows), device=rows.device)
