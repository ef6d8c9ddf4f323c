"""Loss and accuracy of a network over batches; the one loop over samples that scoring uses."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from plastiscope.measure.loss import Loss, correct, per_sample_loss


@dataclass(frozen=True)
class Scores:
    """Per-sample results in the order of the batches: losses float32 [n]; correct bool [n], None for regression."""

    losses: Tensor
    correct: Tensor | None

    @property
    def loss(self) -> float:
        """Mean loss, summed in float64."""
        return self.losses.double().mean().item()

    @property
    def accuracy(self) -> float | None:
        """Share of samples classified rightly, in [0, 1]; None for regression."""
        return None if self.correct is None else self.correct.double().mean().item()


@torch.no_grad()
def score(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], loss: Loss, active_outputs: int) -> Scores:
    """Score samples in evaluation mode; the modes of all modules are as before afterwards.

    Args:
        net: network.
        batches: (inputs, targets) of at least one sample.
        loss: what to score with.
        active_outputs: the loss sees the first so many outputs.
    """
    modes = [(module, module.training) for module in net.modules()]
    net.eval()
    losses, rights = [], []
    try:
        for inputs, targets in batches:
            outputs = net(inputs)[:, :active_outputs]
            losses.append(per_sample_loss(loss, outputs, targets))
            rights.append(correct(loss, outputs, targets))
    finally:
        for module, training in modes:
            module.training = training
    known = [r for r in rights if r is not None]
    return Scores(torch.cat(losses), torch.cat(known) if known else None)
