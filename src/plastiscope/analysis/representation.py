"""Representations and weights, layer by layer: dormant units, ranks, magnitudes, norms of steps, drift.

Numbers, each `representation/<subset>/<layer>/<quantity>`:

- `current`, `next`, `previous`, a sample of the current task, of what the next one brings and of what the earlier ones
  brought: the dormancy rules of measure/dormant.py and the ranks of measure/rank.py. In `total` all hidden units count
  alike, and there are the rank dynamics over layers; `layer_mean` is the mean over layers. Layers with maxout have
  maxout_unused, the share of their pieces that never win.
- `weights`: magnitude, norm, effective learning rate and distance from the initial weights and the task's first ones;
  singular values of projected and SVD-parametrised layers.
- `steps`, in every epoch's row: grad_norm, update_norm, update_ratio.
- `fixed`, one sample of task 0 for the whole run: cka_init and cka_prev, the likeness of its features to those at
  initialisation and at the end of the task before.

The network as initialised is looked at as the run begins, on the first task as the `next` one: a row of kind run_begin,
task_idx and global_epoch -1. Nothing has been learnt or has moved then, so of `weights` there are the sizes, and of the
other samples nothing.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from plastiscope.analysis.analysis import Analysis
from plastiscope.analysis.features import LayerFeatures, collect, unused_pieces
from plastiscope.analysis.parameters import TOTAL, by_layer, parameters_of
from plastiscope.analysis.sample import Sample, Subset, draw, draw_from
from plastiscope.analysis.steps import StepNorms, Steps
from plastiscope.analysis.weights import (
    LayerNumbers,
    drift,
    is_adaptive,
    magnitudes,
    singular_values_of,
    sizes,
    weight_ginis,
)
from plastiscope.error import ConfigError, require
from plastiscope.event import Context, Numbers
from plastiscope.measure import dormant, rank_dynamics
from plastiscope.measure.cka import linear_cka
from plastiscope.measure.rank import participation_ratio, ranks_of_spectrum, singular_values
from plastiscope.net.units import Layer, UnitDescription
from plastiscope.run.storage import write_by, write_json

LAYER_MEAN = "layer_mean"
DYNAMICS = ("rank_drop_gini", "rank_decay_centroid", "rank_drop_centroid", "normalized_aurc")


class When(Enum):
    """When to look."""

    task_end = "task_end"
    epoch = "epoch"
    both = "both"


@dataclass(kw_only=True)
class Representation(Analysis):
    """What a network's layers make of samples, and what has become of their weights."""

    when: When = When.task_end
    """task_end, epoch, both."""
    subsets: list[Subset] = field(default_factory=lambda: list(Subset))
    """Of current, next, previous."""
    samples: int = 1000
    """Of each subset at most; every rank is capped by their number."""
    batch_size: int = 250
    """Samples in a forward."""
    centred: bool = False
    """Subtract each unit's mean before the ranks (the participation ratio always does)."""
    flatten: bool = False
    """Ranks of units at positions, not of means over positions; one pass a layer."""
    numerical_eps: float = 0.01
    """Of the numerical rank, relative to the largest singular value."""
    theta: float = 0.01
    """dormant_rate: a unit is dormant if a smaller share of its values is non-zero."""
    tau: float = 0.025
    """dormant_redo: a unit is dormant if its mean |h| is at most so many times the layer's."""
    absmean: float = 0.01
    """dormant_absmean: a unit is dormant if its mean |h| is smaller, in the unit of the activations."""
    attention_outputs: bool = True
    """Of a transformer, also look at what attention adds, one unit per embedding dimension (not in the totals)."""
    norm_outputs: bool = False
    """Of a transformer, also look at what its norms give (not in the totals)."""
    steps: Steps = Steps.last
    """Steps of an epoch whose gradients and updates are measured: none, last, all (their mean)."""
    weight_ginis: bool = False
    """Gini coefficient of the singular values of each weight; one decomposition each."""
    cka: bool = True
    """Compare features with those at initialisation and at the end of the task before; two more forwards."""

    name = "representation"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(self.samples >= 2, "samples", self.samples, "must be 2 or more")
        require(self.batch_size >= 1, "batch_size", self.batch_size, "must be 1 or more")
        require(0 < self.numerical_eps < 1, "numerical_eps", self.numerical_eps, "must be in (0, 1)")
        for name in ("theta", "tau", "absmean"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        self._step_norms = StepNorms(self.steps)
        self._first: dict[str, Tensor] = {}
        self._first_of = -1
        self._fixed: Sample | None = None
        self._rules = dormant.DORMANCY_RULES | {
            "dormant_rate": partial(dormant.dormant_rate, theta=self.theta),
            "dormant_redo": partial(dormant.dormant_redo, tau=self.tau),
            "dormant_absmean": partial(dormant.dormant_absmean, threshold=self.absmean),
        }

    def on_run_begin(self, context: Context) -> Numbers:
        """Refuse a network without hidden layers; a look at the initialisation, if these weights are it."""
        if not context.units.layers:
            raise ConfigError(
                f"{self.name}: no hidden layer was found in this network, so there are no representations to look at; "
                "give the network a unit_description(), or leave this analysis out with analysis=[...]"
            )
        if context.epochs_completed > 0 or context.task is not None:
            return {}
        numbers = self._weight_numbers(context, {}, {})
        of_samples, summary = self._look_at_samples(context)
        self._write_summary(context, summary, "summary_before_training.json")
        return numbers | of_samples

    def on_task_begin(self, context: Context) -> None:
        """Keep the weights that the task begins with."""
        self._first = {name: parameter.clone() for name, parameter in parameters_of(context.net).items()}
        self._first_of = context.task_idx

    def hears(self, event: str, is_last: bool) -> bool:
        """The steps that are measured."""
        return super().hears(event, is_last) and (self.steps is Steps.all or (self.steps is Steps.last and is_last))

    def on_backward(self, context: Context) -> None:
        """Norms of the gradients."""
        self._step_norms.on_backward(context)

    def on_update(self, context: Context) -> None:
        """Norms of the update."""
        self._step_norms.on_update(context)

    def on_epoch_end(self, context: Context) -> Numbers:
        """Norms of the epoch's steps; and a look, if epochs are looked at."""
        numbers = self._named("steps", self._step_norms.take(context))
        if self.when is not When.task_end and self.is_due(context.epochs_completed):
            numbers |= self._look(context)
        return numbers

    def on_task_end(self, context: Context) -> Numbers:
        """A look, if task ends are looked at."""
        if self.when is When.epoch or not self.is_due(context.task_idx + 1):
            return {}
        return self._look(context)

    def state_dict(self) -> dict[str, Any]:
        """The weights that the task began with, and the norms of the epoch under way."""
        return {"first": self._first, "first_of": self._first_of, "step_norms": self._step_norms.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._first, self._first_of = state["first"], state["first_of"]
        self._step_norms.load_state_dict(state["step_norms"])

    def _look(self, context: Context) -> Numbers:
        """All numbers of this moment; arrays and a summary into the task's folder."""
        has_initial = 0 in context.snapshots.epochs()  # a replay may lack it, and the weights that a task began with
        initial = context.snapshots.load(0) if has_initial else {}
        first = self._first if self._first_of == context.task_idx else {}
        numbers = self._weight_numbers(context, initial, first)
        of_samples, summary = self._look_at_samples(context)
        numbers |= of_samples
        if self.cka:
            numbers |= self._named("fixed", self._likeness(context, initial))
        self._write_summary(context, summary, "summary.json")
        return numbers

    def _weight_numbers(self, context: Context, initial: Mapping[str, Tensor], first: Mapping[str, Tensor]) -> Numbers:
        """Sizes, and the distances from the initial weights and the task's first ones, where these are known."""
        parts = by_layer(context.units, parameters_of(context.net))
        weights = magnitudes(context.net, parts) | sizes(context, parts) | drift(context, initial, first)
        weights |= singular_values_of(context.net) | (weight_ginis(context.net) if self.weight_ginis else {})
        return self._named("weights", weights)

    def _look_at_samples(self, context: Context) -> tuple[Numbers, dict[str, Any]]:
        """Numbers of each subset that there is, and what the summary says of them."""
        numbers: Numbers = {}
        summary: dict[str, Any] = {}
        for subset in self.subsets:
            sample = draw(context, subset, self.samples)
            if sample is not None:
                of_sample, summary[subset.value] = self._look_at(context, subset.value, sample)
                numbers |= self._named(subset.value, of_sample)
        return numbers, summary

    def _look_at(self, context: Context, subset: str, sample: Sample) -> tuple[LayerNumbers, dict[str, Any]]:
        """Numbers of one sample, and what the summary says of it."""
        numbers: LayerNumbers = {}
        about: dict[str, Any] = {}
        arrays = {"ids": sample.ids.cpu().numpy(), "tasks": sample.tasks.numpy()}
        layers = self._layers(context.units)
        for group in [[layer] for layer in layers] if self.flatten else [layers]:  # flattened features fill the memory
            for name, found in collect(context.net, group, sample, self.batch_size, self.flatten).items():
                spectrum = singular_values(found.matrix, self.centred)
                ranks = ranks_of_spectrum(spectrum, self.numerical_eps)
                ranks["participation_ratio"] = participation_ratio(found.matrix)
                shares = {rule: dormant.dormant_share(found.activity, of) for rule, of in self._rules.items()}
                numbers |= {(name, quantity): value for quantity, value in (shares | ranks).items()}
                arrays |= _arrays(name, found, spectrum)
                about[name] = {"n": found.matrix.shape[0], "d": found.matrix.shape[1]}
        numbers |= self._totals(context.units, numbers)
        unused = unused_pieces(context.net, context.units.layers, sample, self.batch_size)
        numbers |= {(name, "maxout_unused"): share for name, share in unused.items()}
        file = f"{subset}_epoch_{context.epochs_completed:06d}.npz"
        write_by(context.folder(self.name) / file, lambda out: np.savez(out, **arrays))  # type: ignore[arg-type]
        return numbers, {"file": file, "n": len(sample), "layers": about}

    def _totals(self, units: UnitDescription, numbers: Mapping[tuple[str, str], float]) -> LayerNumbers:
        """Over the hidden layers: shares of all units and of the mean layer, mean ranks, how effective rank changes."""
        names, widths = [layer.name for layer in units.layers], [layer.width for layer in units.layers]
        totals: LayerNumbers = {}
        for quantity in dict.fromkeys(quantity for _, quantity in numbers):
            values = [numbers[name, quantity] for name in names]
            if quantity in self._rules:
                totals[TOTAL, quantity], totals[LAYER_MEAN, quantity] = dormant.total_shares(values, widths)
            else:
                totals[LAYER_MEAN, quantity] = sum(values) / len(values)
        if len(names) > 1:
            ranks = [numbers[name, "effective_rank"] for name in names]
            totals |= {(TOTAL, key): getattr(rank_dynamics, key)(ranks) for key in DYNAMICS}
        return totals

    def _likeness(self, context: Context, initial: Mapping[str, Tensor]) -> LayerNumbers:
        """cka_init and, from the second task on, cka_prev of each hidden layer, on the fixed sample."""
        sample = self._fixed = self._fixed or draw_from(
            {0: context.shift.task(0).train}, self.samples, context.rng("fixed_sample").initial_seed()
        )
        if sample is None:
            return {}
        others = {"cka_init": initial} if initial else {}
        before = context.task_idx * context.epochs
        if context.task_idx > 0 and before in context.snapshots.epochs():
            others["cka_prev"] = context.snapshots.load(before)
        look = partial(collect, context.net, context.units.layers, sample, self.batch_size)
        now, numbers, device = look(), {}, sample.ids.device
        for quantity, weights in others.items():
            then = look(weights={name: tensor.to(device) for name, tensor in weights.items()})
            for name, found in now.items():
                numbers[name, quantity] = linear_cka(found.matrix, then[name].matrix)
        return numbers

    def _layers(self, units: UnitDescription) -> list[Layer]:
        more = (units.attention_outputs if self.attention_outputs else ()) + (
            units.norm_outputs if self.norm_outputs else ()
        )
        return [*units.layers, *more]

    def _named(self, subset: str, numbers: LayerNumbers) -> Numbers:
        return {self.key(subset, layer, quantity): float(value) for (layer, quantity), value in numbers.items()}

    def _write_summary(self, context: Context, subsets: dict[str, Any], name: str) -> None:
        content = {
            "settings": {key: _plain(value) for key, value in dataclasses.asdict(self).items()},
            "epochs_completed": context.epochs_completed,
            "effective_lr": "lr / norm" if is_adaptive(context.optimizer) else "lr / norm^2",
            "fixed_sample": None if self._fixed is None else self._fixed.ids.tolist(),
            "subsets": subsets,
        }
        write_json(context.folder(self.name) / name, content)


def _arrays(layer: str, found: LayerFeatures, spectrum: Tensor) -> dict[str, Any]:
    units = found.activity
    return {
        f"{layer}/singular_values": spectrum.cpu().numpy(),
        f"{layer}/non_zero_share": (units.non_zero.double() / units.values).cpu().numpy(),
        f"{layer}/mean_absolute": units.mean_absolute.cpu().numpy(),
    }


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.value if isinstance(value, Enum) else value
