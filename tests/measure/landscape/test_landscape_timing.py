"""The choice of a route; how long one takes is not tested."""

import pytest
import torch
from landscape_cases import DOUBLE, fixture_f, frozen_loss
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.measure.landscape.operator import Backend
from plastiscope.measure.landscape.timing import Timing, choose_candidate, time_candidates, time_forward


def test_the_fastest_for_what_is_planned() -> None:
    timings = [
        Timing(Backend.retained, 32, build=1.0, product=0.1),
        Timing(Backend.rebuilt, 32, build=0.0, product=0.2),
        Timing(Backend.jvp, 32, 0.0, 0.0, "no forward mode"),
    ]
    assert choose_candidate(timings, 5).backend is Backend.rebuilt
    assert choose_candidate(timings, 20).backend is Backend.retained
    with pytest.raises(ConfigError, match="no forward mode"):
        choose_candidate(timings[2:], 5)


def test_candidates() -> None:
    frozen = fixture_f()
    found = time_candidates(frozen, 10, micro_batches=(32, 128, 512))
    routes = (Backend.retained, Backend.rebuilt, Backend.jvp)
    assert [(t.backend, t.micro_batch) for t in found] == [(b, size) for b in routes for size in (32, 64)]
    assert all(t.product > 0 and not t.reason for t in found)
    many = time_candidates(frozen, 50, backends=[Backend.linearised], micro_batches=[64])
    assert [t.backend for t in many] == [Backend.linearised]
    assert set(time_forward(frozen, [16, 128])) == {16, 64}


def test_what_cannot_be_used_says_why() -> None:
    class OneWay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, grad):
            return 2 * grad

    class Net(nn.Linear):
        def forward(self, inputs):
            return OneWay.apply(super().forward(inputs))

    net = Net(4, 3).double()
    frozen = frozen_loss(net, torch.randn(8, 4, dtype=DOUBLE), torch.randint(0, 3, (8,)), 3)
    found = time_candidates(frozen, 2, micro_batches=[8])
    assert [bool(t.reason) for t in found] == [False, False, True]
    assert choose_candidate(found, 2).backend is not Backend.jvp


def test_batches_that_couple_their_samples_keep_their_size() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    frozen = frozen_loss(net, torch.randn(20, 4, dtype=DOUBLE), torch.randint(0, 3, (20,)), 3, micro_batch=10)
    assert {t.micro_batch for t in time_candidates(frozen, 2, micro_batches=(5, 20))} == {10}
    assert set(time_forward(frozen)) == {10}
