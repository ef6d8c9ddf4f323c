"""Losses of several runs that stand along leading axes: each run's own."""

import pytest
import torch

from plastiscope.measure.loss import Loss, correct, per_sample_loss

TARGETS = {
    "classes": (Loss.cross_entropy, torch.randint(4, (3, 5), generator=torch.Generator().manual_seed(0))),
    "probabilities": (Loss.cross_entropy, torch.rand(3, 5, 4, dtype=torch.float64).softmax(-1)),
    "multi-hot": (Loss.binary_cross_entropy, (torch.arange(60).view(3, 5, 4) % 3 == 0).double()),
    "real": (Loss.mse, torch.arange(60, dtype=torch.float64).view(3, 5, 4)),
}


@pytest.mark.parametrize("loss, targets", TARGETS.values(), ids=TARGETS)
def test_each_run_has_its_own_losses_and_hits(loss, targets):
    outputs = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    losses, hits = per_sample_loss(loss, outputs, targets), correct(loss, outputs, targets)
    assert losses.shape == (3, 5)
    for r in range(3):
        torch.testing.assert_close(losses[r], per_sample_loss(loss, outputs[r], targets[r]), rtol=1e-14, atol=0)
        if hits is None:
            assert loss is Loss.mse
        else:
            assert torch.equal(hits[r], correct(loss, outputs[r], targets[r]))
