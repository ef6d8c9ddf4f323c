"""The choice of a route; how long one takes is not tested."""

import pytest
import torch
from landscape_cases import DOUBLE, fixture_f, frozen_loss
from torch import nn

from plastiscope.error import ConfigError
from plastiscope.measure.landscape import timing
from plastiscope.measure.landscape.operator import Backend, HessianOperator
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
    found = time_candidates(frozen, 10, micro_batches=(16, 32, 128))
    tried = [(t.backend, t.micro_batch) for t in found]
    assert tried[:3] == [(backend, 32) for backend in timing.TIMED]
    assert (choose_candidate(found[:3], 10).backend, 64) in tried[3:]
    assert {size for _, size in tried[3:]} == {16, 64}
    assert all(t.product > 0 or "too long to be the fastest" in t.reason for t in found)
    assert choose_candidate(found, 10).product > 0
    assert set(time_forward(frozen, [16, 128])) == {16, 64}


def test_tracing_is_tried_last_where_it_can_pay_and_never_with_a_loss_of_ones_own(monkeypatch) -> None:
    monkeypatch.setattr(timing, "TIMED", (Backend.rebuilt,))
    own = fixture_f(loss=lambda outputs, targets: nn.functional.cross_entropy(outputs, targets, reduction="none"))
    for above, frozen, is_tried in ((0.0, fixture_f(), True), (1e9, fixture_f(), False), (0.0, own, False)):
        monkeypatch.setattr(timing, "LINEARISE_ABOVE", above)
        found = time_candidates(frozen, 10, micro_batches=[32])
        assert [t.backend for t in found if t.backend is Backend.linearised] == [Backend.linearised] * is_tried
        assert all(t.micro_batch == 32 for t in found)


def test_what_is_far_off_is_given_up_after_its_first_product() -> None:
    frozen = fixture_f(micro_batch=64)
    for backend in (Backend.rebuilt, Backend.retained):
        candidate = timing._Candidate(frozen, HessianOperator, backend, 64)
        found = candidate.timed(10, Timing(Backend.rebuilt, 64, 0.0, 0.0))
        assert "too long to be the fastest" in found.reason
        assert candidate.operator.count == 1


def test_a_large_set_is_timed_by_its_first_samples() -> None:
    class Counting(nn.Linear):
        largest = 0

        def forward(self, inputs):
            self.seen = getattr(self, "seen", 0) + len(inputs)
            self.largest = max(self.largest, len(inputs))
            return super().forward(inputs)

    net = Counting(4, 3)
    frozen = frozen_loss(net, torch.randn(5000, 4), torch.randint(0, 3, (5000,)), 3)
    found = time_candidates(frozen, 2, [Backend.rebuilt], [8, 200])
    assert net.largest == 200 and net.seen <= (128 + 200) * 3
    assert all(t.reason or (t.build == 0 and t.product > 0) for t in found)


def test_what_is_close_is_timed_again_and_the_smallest_time_of_the_race_counts(monkeypatch) -> None:
    """First three products of each, then one of each to warm up, then rounds: 2 of the first, 2.4 of the second."""
    taken = iter([3.0, 3.0, 3.0, 2.8, 2.8, 2.8, *(9.0, 9.0), *(3.0, 2.9), *(2.0, 2.4), *(2.5, 3.0)])
    monkeypatch.setattr(timing._Candidate, "seconds", lambda self: next(taken))
    found = time_candidates(fixture_f(), timing.AGAIN_FROM, [Backend.rebuilt], [16, 64])
    assert [(t.micro_batch, t.product) for t in found] == [(64, 2.0), (16, 2.4)]
    assert next(taken, None) is None
    taken = iter([3.0, 3.0, 3.0, 2.8, 2.8, 2.8])
    assert choose_candidate(time_candidates(fixture_f(), 9, [Backend.rebuilt], [16, 64]), 9).micro_batch == 16
    taken = iter([1.0, 1.0, 1.0, 1.9, 1.4, 1.4, 3.0, 1.1, 1.1, 0.9, 0.9, 0.9])
    found = time_candidates(fixture_f(), 9, [Backend.rebuilt, Backend.jvp, Backend.retained], [16, 64])
    tried = [(t.backend, t.micro_batch) for t in found]
    assert (Backend.rebuilt, 16) in tried and (Backend.jvp, 16) not in tried


def test_a_race_is_run_on_the_same_samples(monkeypatch) -> None:
    raced = {}

    def seconds(self):
        raced[self.size] = len(self.operator.frozen)
        return 1.0

    monkeypatch.setattr(timing._Candidate, "seconds", seconds)
    torch.manual_seed(0)
    frozen = frozen_loss(nn.Linear(4, 3), torch.randn(200, 4), torch.randint(0, 3, (200,)), 3)
    time_candidates(frozen, 9, [Backend.retained], [4, 150])
    assert raced == {4: 128, 150: 150}
    time_candidates(frozen, timing.AGAIN_FROM, [Backend.retained], [4, 150])
    assert raced == {4: 150, 150: 150}


def test_graphs_that_would_not_fit_are_no_candidates(monkeypatch) -> None:
    monkeypatch.setattr(timing, "budget", lambda device, sharing: 1000)
    found = time_candidates(fixture_f(), 2, [Backend.retained, Backend.rebuilt], [64])
    assert "retained became rebuilt" in found[0].reason
    assert choose_candidate(found, 2).backend is Backend.rebuilt


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
    assert "OneWay" in found[2].reason or "forward" in found[2].reason or "jvp" in found[2].reason
    assert choose_candidate(found, 2).backend is not Backend.jvp


def test_batches_that_couple_their_samples_keep_their_size() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False)).double()
    frozen = frozen_loss(net, torch.randn(20, 4, dtype=DOUBLE), torch.randint(0, 3, (20,)), 3, micro_batch=10)
    assert {t.micro_batch for t in time_candidates(frozen, 2, micro_batches=(5, 20))} == {10}
    assert set(time_forward(frozen)) == {10}
