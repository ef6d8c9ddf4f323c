"""How smooth the loss is along its gradient, and how many directions of the input a layer still tells apart.

Numbers, each `smoothness/<phase>/<total or layer>/<quantity>`, the phase being pre_training, post_training or epoch:

- total: effective_beta; grad_predictiveness_eta_<eta> for each step size and grad_predictiveness, the largest of them;
  loss_range along the same steps; loss and gradient_norm at the weights themselves.
- a layer: grad_predictiveness, the same of its own weights' gradient; partial_jacobian_rank of its features, the mean
  over samples, and its standard error. The layer `outputs` is the active outputs of the network.

The loss is that of the task over a frozen set of its samples (analysis/frozen_set.py), in evaluation mode. Everything
is measured on a copy of the network.
"""

import copy
import dataclasses
import math
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.analysis.analysis import Analysis, When
from plastiscope.analysis.frozen_set import FrozenSet, frozen_set
from plastiscope.analysis.parameters import TOTAL, by_layer
from plastiscope.error import ConfigError, require
from plastiscope.event import Context, Numbers
from plastiscope.landscape.settings import Split
from plastiscope.measure import smoothness
from plastiscope.measure.input_curvature import in_double
from plastiscope.measure.jacobian_rank import jacobian_spectra, partial_jacobian_ranks, patch_columns
from plastiscope.measure.landscape.frozen import FrozenLoss
from plastiscope.measure.landscape.preserved import preserved
from plastiscope.measure.landscape.space import choose
from plastiscope.net.capture import differentiable_features
from plastiscope.net.units import UnitDescription
from plastiscope.run.storage import plain, read_json, write_by, write_json

OUTPUTS = "outputs"
"""Name of the network's outputs among the layers."""
RANK, RANK_ERROR = "partial_jacobian_rank", "partial_jacobian_rank_se"

Arrays = dict[str, Any]


class Precision(Enum):
    """Of gradients and Jacobians."""

    float32 = "float32"
    float64 = "float64"


class BatchNorm(Enum):
    """What batch normalisations normalise with."""

    stored = "stored"
    """Their running statistics, as in evaluation."""
    batch = "batch"
    """The statistics of each batch, as in training; the size of a batch is then part of the loss."""


class Outside(Enum):
    """What the pixels around the patch are, when Jacobians are taken."""

    kept = "kept"
    """Those of the sample."""
    zeros = "zeros"
    """Zeros, after normalisation; as published."""


@dataclass(kw_only=True)
class Smoothness(Analysis):
    """Effective beta, gradient predictiveness, range of the loss along a step, ranks of Jacobians by the input."""

    when: When = When.post
    """pre, post, both."""
    epochs: int | None = None
    """Also look after every so many epochs; null = never."""
    enable_beta: bool = True
    """effective_beta, uphill."""
    enable_predictiveness: bool = True
    """grad_predictiveness, downhill."""
    enable_loss_range: bool = True
    """loss_range, downhill."""
    enable_jacobian_rank: bool = True
    """partial_jacobian_rank of each layer."""
    eta_min: float = 1e-4
    """Smallest step size; a step is so many gradients long."""
    eta_max: float = 1e-2
    """Largest one."""
    eta_count: int = 3
    """How many, evenly spaced in their logarithm."""
    num_samples: int = 2048
    """Frozen samples of the task; fewer where it has fewer."""
    seed: int = 42
    """Of the drawing of samples."""
    split: Split = Split.train
    """train, val, test of the current task."""
    batch_size: int = 500
    """Samples in a forward at most."""
    batch_norm: BatchNorm = BatchNorm.stored
    """stored, batch; the Jacobians of single samples always have the stored statistics."""
    precision: Precision = Precision.float64
    """float64, float32; a step of 1e-4 gradients is lost among the last digits of weights in float32."""
    jacobian_samples: int = 8
    """Samples whose Jacobians are taken."""
    patch: int = 16
    """Pixels a side of the patch by which features are differentiated; of smaller inputs all."""
    patch_offset: list[int] | None = None
    """Row and column of its first pixel (of a vector: its first feature); null = in the middle."""
    patch_outside: Outside = Outside.kept
    """kept, zeros."""
    rank_eps: float = 0.01
    """Smallest singular value that counts, relative to the largest."""

    name = "smoothness"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "must be 1 or more, or null")
        require(self.eta_min > 0, "eta_min", self.eta_min, "must be above 0")
        require(self.eta_max >= self.eta_min, "eta_max", self.eta_max, f"must be eta_min={self.eta_min} or more")
        require(self.eta_count >= 1, "eta_count", self.eta_count, "must be 1 or more")
        require(self.num_samples >= 2, "num_samples", self.num_samples, "must be 2 or more")
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more")
        for name in ("batch_size", "jacobian_samples", "patch"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "must be 1 or more")
        require(0 < self.rank_eps < 1, "rank_eps", self.rank_eps, "must be in (0, 1)")

    def on_run_begin(self, context: Context) -> None:
        """Refuse a patch that does not lie within the inputs, and having nothing to measure."""
        if not (self._along_gradient or self.enable_jacobian_rank):
            raise ConfigError(f"{self.name}: every enable_* is false, so there is nothing to measure; leave it out")
        patch_columns(context.shift.task(0).train.input_shape, self.patch, self.patch_offset)

    def on_task_begin(self, context: Context) -> Numbers:
        """The look before training, if it is wanted."""
        is_wanted = self.when is not When.post and self.is_due(context.task_idx + 1)
        return self._look(context, "pre_training") if is_wanted else {}

    def on_epoch_end(self, context: Context) -> Numbers:
        """A look during training, if it is wanted."""
        is_wanted = self.epochs is not None and context.epochs_completed % self.epochs == 0
        return self._look(context, "epoch", f"epoch_{context.epochs_completed:06d}") if is_wanted else {}

    def on_task_end(self, context: Context) -> Numbers:
        """The look after training, if it is wanted."""
        is_wanted = self.when is not When.pre and self.is_due(context.task_idx + 1)
        return self._look(context, "post_training") if is_wanted else {}

    @property
    def _along_gradient(self) -> bool:
        return self.enable_beta or self.enable_predictiveness or self.enable_loss_range

    def _look(self, context: Context, phase: str, file: str = "") -> Numbers:
        """All numbers of this moment; arrays and a summary into the task's folder."""
        frozen = frozen_set(context, num_samples=self.num_samples, seed=self.seed, split=self.split)
        numbers: dict[tuple[str, str], float] = {}
        arrays: Arrays = {"epochs_completed": np.array(context.epochs_completed)}
        about: dict[str, Any] = {"file": f"{file or phase}.npz", "epochs_completed": context.epochs_completed}
        if self._along_gradient:
            numbers |= self._measure_steps(context, frozen, arrays)
            about |= _about(frozen)
            arrays["ids"] = frozen.ids.numpy()
        if self.enable_jacobian_rank:
            few = frozen_set(context, num_samples=self.jacobian_samples, seed=self.seed, split=self.split)
            numbers |= self._measure_ranks(context, few, arrays)
            about["jacobians"] = _about(few) | {"pixels": int(arrays["jacobian/pixels"])}
        self._write(context, file or phase, arrays, about)
        return {self.key(phase, part, quantity): value for (part, quantity), value in numbers.items()}

    def _measure_steps(self, context: Context, of: FrozenSet, arrays: Arrays) -> dict[tuple[str, str], float]:
        """What gradient and loss do along the gradient; arrays by step size."""
        etas = smoothness.step_sizes(self.eta_min, self.eta_max, self.eta_count)
        net = self._copy(context.net)
        if self.batch_norm is BatchNorm.batch:
            _normalise_by_batch(net)
        numbers: dict[tuple[str, str], float] = {}
        with preserved(net):
            frozen = self._loss(net, of)
            with smoothness.movable(frozen) as (theta, loss_at, gradient_at):
                gradient, loss = gradient_at(theta), loss_at(theta)
                numbers[TOTAL, "loss"] = loss
                numbers[TOTAL, "gradient_norm"] = torch.linalg.vector_norm(gradient, dtype=torch.float64).item()
                arrays |= {"etas": np.array(etas)}
                if self.enable_beta:
                    beta = smoothness.effective_beta(gradient_at, theta, gradient, etas)
                    numbers[TOTAL, "effective_beta"] = beta
                    arrays["effective_beta"] = np.array(beta)
                if self.enable_predictiveness:
                    changes = _changes_by_layer(context.units, frozen, gradient_at, theta, gradient, etas)
                    arrays |= {f"grad_predictiveness/{part}": np.array(values) for part, values in changes.items()}
                    numbers |= {(part, "grad_predictiveness"): max(values) for part, values in changes.items()}
                    by_eta = zip(etas, changes[TOTAL], strict=True)
                    numbers |= {(TOTAL, f"grad_predictiveness_eta_{eta:.6g}"): value for eta, value in by_eta}
                if self.enable_loss_range:
                    losses = smoothness.losses_along_step(loss_at, theta, gradient, etas)
                    arrays["losses"] = np.array([loss, *losses])
                    numbers[TOTAL, "loss_range"] = smoothness.loss_range([loss, *losses])
        return numbers

    def _measure_ranks(self, context: Context, of: FrozenSet, arrays: Arrays) -> dict[tuple[str, str], float]:
        """Ranks of the layers' Jacobians: mean and standard error over samples; arrays of singular values."""
        net = self._copy(context.net)
        all_features = differentiable_features(net, context.units.layers, OUTPUTS)
        columns = patch_columns(of.inputs.shape[1:], self.patch, self.patch_offset).to(of.inputs.device)
        inputs = self._cast(of.inputs)
        if self.patch_outside is Outside.zeros:
            kept = torch.zeros_like(inputs[0]).flatten().index_fill(0, columns, 1.0)
            inputs = inputs * kept.view(inputs[0].shape)

        def features(x: Tensor) -> dict[str, Tensor]:
            found = all_features(x)
            return found | {OUTPUTS: found[OUTPUTS][:, : of.active_outputs]}

        with preserved(net):
            spectra = [jacobian_spectra(features, sample, columns) for sample in inputs]
        ranks = [partial_jacobian_ranks(spectrum, self.rank_eps) for spectrum in spectra]
        arrays |= {"jacobian/pixels": np.array(len(columns)), "jacobian/ids": of.ids.numpy()}
        numbers: dict[tuple[str, str], float] = {}
        for layer in spectra[0]:
            values = np.array([rank[layer] for rank in ranks])
            arrays[f"jacobian/ranks/{layer}"] = values
            stacked = torch.stack([spectrum[layer] for spectrum in spectra])
            arrays[f"jacobian/singular_values/{layer}"] = stacked.float().cpu().numpy()
            numbers[layer, RANK] = float(values.mean())
            if len(values) > 1:
                numbers[layer, RANK_ERROR] = float(values.std(ddof=1) / math.sqrt(len(values)))
        return numbers

    def _loss(self, net: nn.Module, of: FrozenSet) -> FrozenLoss:
        """The loss over the frozen samples, in batches of equal size (but for one sample)."""
        batches = -(-len(of) // self.batch_size)
        return FrozenLoss(
            net=net,
            inputs=self._cast(of.inputs),
            targets=self._cast(of.targets),
            loss=of.loss,
            active_outputs=of.active_outputs,
            space=choose(net),
            micro_batch=-(-len(of) // batches),
        )

    def _copy(self, net: nn.Module) -> nn.Module:
        """A copy that may be moved: a signal in the middle of a look then leaves the network itself as it is."""
        return copy.deepcopy(net) if self.precision is Precision.float32 else in_double(net)

    def _cast(self, values: Tensor) -> Tensor:
        return values.double() if self.precision is Precision.float64 and values.is_floating_point() else values

    def _write(self, context: Context, file: str, arrays: Arrays, about: dict[str, Any]) -> None:
        """Arrays into a file of their own, what is known of them into the task's summary beside the other looks."""
        folder = context.folder(self.name)
        write_by(folder / f"{file}.npz", lambda out: np.savez(out, **arrays))
        stored = read_json(folder / "summary.json") or {}
        looks = stored.get("looks", {}) | {file: about}
        settings = plain(dataclasses.asdict(self))
        write_json(folder / "summary.json", {"settings": settings, "looks": dict(sorted(looks.items()))})


def _changes_by_layer(
    units: UnitDescription,
    frozen: FrozenLoss,
    gradient_at: smoothness.GradientAt,
    theta: Tensor,
    gradient: Tensor,
    etas: list[float],
) -> dict[str, list[float]]:
    """||g(theta - eta g) - g(theta)|| for each eta: of all weights ("total") and of each layer's own."""
    found: dict[str, list[float]] = {}
    for change in smoothness.gradient_changes(gradient_at, theta, gradient, [-eta for eta in etas]):
        for part, tensors in by_layer(units, frozen.space.named(change.double())).items():
            norms = torch.stack([tensor.norm() for tensor in tensors])
            found.setdefault(part, []).append(norms.norm().item())
    return found


def _normalise_by_batch(net: nn.Module) -> None:
    """Let batch normalisations use the statistics of each batch, also in evaluation mode."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.track_running_stats = False
            module.running_mean = module.running_var = None


def _about(of: FrozenSet) -> dict[str, Any]:
    return {"n": len(of), "note": of.note, "sha256": of.sha256}
