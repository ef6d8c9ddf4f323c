"""Sums of |W| by unit, against each unit's own entries; large weights are taken in pieces."""

import pytest
import torch

from plastiscope.learner.unit_parameters import Slices
from plastiscope.learner.weight_sums import CHUNK, AbsoluteSums

SHAPES = {
    "small": (6, 8),
    "convolution": (6, 8, 3, 2),
    "large together": (200, 500),
    "large": (700, 800),
    "large convolution": (300, 400, 3, 3),
}


@pytest.mark.parametrize("lead", [0, 1])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_rows_columns_blocks_and_parts_of_an_axis(shape, lead):
    weight = torch.randn(shape, dtype=torch.float64)
    if len(shape) == 4:
        weight = weight.to(memory_format=torch.channels_last)
    # Of the large ones a piece is a run, of those that are so together two, and the last one.
    tensor = torch.stack([weight, 2.0 * weight, 3.0 * weight]) if lead else weight
    out, inputs = shape[:2]
    rows = Slices("w", tensor, 0, out, lead=lead)
    columns = Slices("w", tensor, 1, inputs, lead=lead)
    blocks = Slices("w", tensor, 1, inputs // 4, block=4, lead=lead)
    some_rows = Slices("w", tensor, 0, out - 3, offset=2, lead=lead)
    some_columns = Slices("w", tensor, 1, inputs - 3, offset=2, lead=lead)
    both = [rows, columns, blocks, some_rows, some_columns]
    sums = AbsoluteSums(rows)
    places = [torch.full((2, *tensor.shape[:lead], slices.width), 7.0, dtype=torch.float64) for slices in both]
    twice = torch.full((2, *tensor.shape[:lead], out), 7.0, dtype=torch.float64)
    for slices, place in zip(both, places, strict=True):
        sums.add(slices, place, is_first=True)
    sums.add(rows, twice, is_first=True)
    sums.add(rows, twice, is_first=False)
    sums.prepare()
    assert (weight.numel() > CHUNK) == (shape[0] >= 300)
    for _ in range(2):
        sums(1)
    absolute = tensor.abs()
    for slices, place in zip(both, places, strict=True):
        view = slices.view(absolute)
        torch.testing.assert_close(place[1], view.flatten(lead + 1).sum(-1))
        assert (place[0] == 7.0).all()
    torch.testing.assert_close(twice[1], 2 * rows.view(absolute).flatten(lead + 1).sum(-1))


def test_rows_in_blocks_are_not_torn():
    weight = torch.randn(1200, 300)
    slices = Slices("w", weight, 0, 400, block=3)
    place = torch.zeros(1, 400)
    sums = AbsoluteSums(slices)
    sums.add(slices, place, is_first=True)
    sums.prepare()
    sums(0)
    torch.testing.assert_close(place[0], weight.abs().view(400, 900).sum(1))
