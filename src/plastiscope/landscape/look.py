"""What is looked at, and what the parts of one look share: the frozen loss, the operator, the eigenpairs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.landscape import eigenvectors
from plastiscope.landscape.settings import BackendChoice, LandscapeSettings, described, filled
from plastiscope.landscape.work import Work
from plastiscope.measure.landscape.eigenpairs import Eigenpairs
from plastiscope.measure.landscape.frozen import FrozenLoss, PerSampleLoss
from plastiscope.measure.landscape.operator import Backend, HessianOperator
from plastiscope.measure.landscape.preserved import landscape_of
from plastiscope.measure.loss import Loss
from plastiscope.run.processes import Processes
from plastiscope.run.snapshots import digest

State = Mapping[str, Tensor]
Numbers = dict[str, float]


@dataclass(frozen=True)
class SavedPoint:
    """Weights that were saved: a name such as "epoch 12", and how to load the state dict."""

    name: str
    load: Callable[[], State]


@dataclass(frozen=True, eq=False, kw_only=True)
class Landscape:
    """A network, a loss and data, and where results go.

    Attributes:
        net: the network; as before afterwards.
        inputs, targets: the frozen set, on the network's device.
        loss: of each sample: a `Loss`, or any function of outputs and targets.
        active_outputs: the loss sees the first so many outputs; None = all.
        folder: for results.
        settings: what to compute.
        seed: of all random numbers.
        weight_decay: lambda, for `loss.include_weight_decay`.
        path: saved weights on the way here, oldest first, without those of `net`; for the trajectory plane.
        start: the other end of the curves of mode connectivity.
        without_start: why there is none, for the record.
        test: inputs and targets of samples that were not trained on, for the curves.
        training_inputs: for running statistics along the curves; None = the frozen set.
        training_batch: samples in a batch of the training, for the same.
        processes: who shares the work.
        ids: of the samples, for the record.
        about: facts for the record: task, name of the network, ...
    """

    net: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss | PerSampleLoss
    folder: Path
    active_outputs: int | None = None
    settings: LandscapeSettings = field(default_factory=LandscapeSettings)
    seed: int = 0
    weight_decay: float = 0.0
    path: Sequence[SavedPoint] = ()
    start: SavedPoint | None = None
    without_start: str = "no other end was given"
    test: tuple[Tensor, Tensor] | None = None
    training_inputs: Tensor | None = None
    training_batch: int = 64
    processes: Processes = field(default_factory=Processes)
    ids: Tensor | None = None
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Look:
    """One look under way; only inside `opened`.

    Attributes:
        landscape: what is looked at.
        settings: its settings, filled in by profile and budget.
        frozen: the loss.
        work: shared pieces, files, seconds.
        facts: for summary.json: what was chosen, cut and warned of.
        micro_batch: of planes and curves.
        products: with the Hessian, counted whoever computed them.
    """

    landscape: Landscape
    settings: LandscapeSettings
    frozen: FrozenLoss
    work: Work
    facts: dict[str, Any] = field(default_factory=dict)
    micro_batch: int = 128
    products: int = 0

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return self.landscape.seed

    @cached_property
    def weights(self) -> Tensor:
        """theta, [D]."""
        return self.frozen.space.values(self.frozen.net)

    @cached_property
    def operator(self) -> HessianOperator:
        """The Hessian, by the route that is set or was the fastest."""
        choice = self.settings.spectrum.backend
        backend = Backend.rebuilt if choice is BackendChoice.auto else Backend(choice.value)
        return HessianOperator(self.frozen, backend)

    @cached_property
    def eigenpairs(self) -> Eigenpairs:
        """The extreme pairs that spectrum and planes need, top ones first; one process computes them."""
        part = self.work.once("eigenpairs", lambda: eigenvectors.compute(self.operator, self.settings, self.seed))
        pairs = eigenvectors.restored(part, self.weights.device)
        self.products += pairs.products
        return pairs

    def eigenvectors(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Values float64 [n], unit rows [n, D], residuals float64 [n], and whether the first two span a unique plane.

        Those at the top come first, in their order, then the smallest ones, descending.

        Raises:
            NonFiniteProduct: there is no spectrum here; in every process.
        """
        pairs = self.eigenpairs
        return pairs.values, pairs.vectors, pairs.residuals, pairs.is_plane_unique

    def common(self) -> dict[str, Any]:
        """What every result's record carries."""
        frozen = self.frozen
        return {
            "dtype": str(frozen.parameters[0].dtype).removeprefix("torch."),
            "params": self.settings.params,
            "dimension": frozen.space.dimension,
            "samples": len(frozen),
            "evaluation_set": frozen.fingerprint,
            "mode": "eval",
            "bn_policy": self.settings.bn.policy.value,
            "seed": self.seed,
        }


@contextmanager
def opened(landscape: Landscape) -> Iterator[Look]:
    """A look; inside, the network is in evaluation mode, afterwards everything is as before."""
    settings = filled(landscape.settings)
    decay = landscape.weight_decay if settings.loss.include_weight_decay else 0.0
    with landscape_of(
        landscape.net,
        landscape.inputs,
        landscape.targets,
        loss=landscape.loss,
        active_outputs=_outputs(landscape),
        params=settings.params,
        micro_batch=min(settings.evaluation_data.eval_batch_size, len(landscape.inputs)),
        weight_decay=decay,
    ) as frozen:
        identity = {
            "weights": digest(landscape.net.state_dict()),
            "data": frozen.fingerprint,
            "settings": described(settings),
            "seed": landscape.seed,
        }
        work = Work(landscape.folder, identity, landscape.processes)
        yield Look(landscape, settings, frozen, work, micro_batch=frozen.micro_batch)


def _outputs(landscape: Landscape) -> int:
    if landscape.active_outputs is not None:
        return landscape.active_outputs
    with torch.no_grad():
        return landscape.net(landscape.inputs[:2]).shape[1]
