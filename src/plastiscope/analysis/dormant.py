"""Dormant units of each sample: which share of a network's units each training sample leaves silent.

A unit that is silent on one sample is no dead unit but sparsity, so what is dead on the whole data set and what is
dormant on a sample beyond that stand apart. For each rule (`persample_strict` at the activations; at another site the
name has it, as in `persample_strict_module_output`):

- values of each sample: `<rule>`, dormant units over all units; `<rule>_specific`, the same without the units that are
  dead on the data set; at task ends also `<rule>.<layer>`, and `<rule>.layer_mean`, the mean over layers.
- numbers of each look, `dormant/train/<layer, total or layer_mean>/<quantity>`: the means of these; `<rule>_dead`, the
  share of units that are dormant on every sample scored; in `total` `<rule>_dead_kept`, `_dead_new`, `_dead_revived`,
  shares of all units: those dead now and at the look before, now only, then only.
- at task ends `silent_epoch_<epochs completed>.npz`: of each unit the share of samples on which it is dormant.

With `samples.population=run` or `samples.validation=true` dead units and `silent_*.npz` are about all samples scored,
also those that enter later, and the keys of dead units are `dormant/all/...` in the whole run. The values of each
sample are NaN before it enters, as those of csl are, so means are without them.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plastiscope.analysis.dormancy_pass import DormancyPass, Question, Score, dormant_of_all, sums_of_absolute
from plastiscope.analysis.per_sample import SampleAnalysis, merged
from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError, require
from plastiscope.event import Context, Numbers
from plastiscope.measure.loss import Loss, class_index, per_sample_loss
from plastiscope.measure.sample_dormancy import Rule, Thresholds
from plastiscope.net.module_outputs import module_outputs
from plastiscope.net.units import Layer, Site
from plastiscope.run.processes import Part
from plastiscope.run.sample_store import Population, Values
from plastiscope.run.storage import write_by, write_json

LAYER_MEAN = "layer_mean"
SILENT = "silent/"
"""Prefix of the arrays that count the samples on which each unit is dormant."""


class Where(Enum):
    """What is looked at."""

    post_activation = "post_activation"
    """Hidden layers after their activations; of transformers the hidden units of the MLPs."""
    module_output = "module_output"
    """Raw outputs of all convolutions and linear layers, shortcuts too; the head only if `classifier` is true."""
    attention_output = "attention_output"
    """What the attention of each block adds, one unit per embedding dimension."""
    norm_output = "norm_output"
    """What the norms of a transformer give, one unit per embedding dimension."""


class Layers(Enum):
    """When the values of each sample are kept layer by layer."""

    none = "none"
    task_end = "task_end"
    """At the last look of each task."""
    all = "all"


@dataclass(kw_only=True)
class Dormant(SampleAnalysis):
    """Share of units that are dormant on each sample."""

    rules: list[Rule] = field(default_factory=lambda: [Rule.persample_strict])
    """persample_strict, persample_rate, persample_redo (two passes), persample_module (published; its own site)."""
    sites: list[Where] = field(default_factory=lambda: [Where.post_activation])
    """post_activation, module_output, attention_output, norm_output."""
    eps: float = 1e-6
    """Largest |h| of a silent position."""
    relative: bool = False
    """eps in units of the layer's mean |h| over the samples (two passes); not for persample_module."""
    theta: float = 0.01
    """persample_rate: smallest share of active positions of a unit that is not dormant."""
    tau: float = 0.025
    """persample_redo: largest mean |h| of a dormant unit, relative to its layer's over the samples."""
    layers: Layers = Layers.task_end
    """When to keep each sample's values layer by layer: none, task_end, all."""
    classifier: bool = False
    """module_output: also look at the head's outputs."""
    loss: bool = False
    """Also keep each sample's loss, of the same forward and as csl defines it, where csl has not kept it already."""

    name = "dormant"
    is_late = True
    """Keeps a loss that no other analysis has kept."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(len(self.rules) > 0, "rules", self.rules, "must name at least one rule")
        require(len(self.sites) > 0, "sites", self.sites, "must name at least one site")
        for name in ("eps", "theta", "tau"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "must be 0 or more")
        self._dead: dict[str, Tensor] = {}

    def on_run_begin(self, context: Context) -> None:
        """Refuse a network that has not what is to be looked at."""
        self._questions(context)

    def look(self, context: Context) -> Numbers:
        """Count dormant units on all samples, write the rows, return the numbers."""
        questions = self._questions(context)
        thresholds = Thresholds(eps=self.eps, relative=self.relative, theta=self.theta, tau=self.tau)
        scales = self._scales(context, questions, thresholds)
        counting = DormancyPass(net=context.net, questions=questions, thresholds=thresholds, scales=scales)
        score = self._loss_of(context) if self.loss else None
        parts = self.shared(context, lambda batches: counting.count(batches, score))
        silent = {k: np.sum([part[k] for part in parts], axis=0) for k in parts[0] if k.startswith(SILENT)}
        counts = merged([{k: v for k, v in part.items() if k not in silent} for part in parts], self.samples(context))
        for values in counts.values():
            values[self.samples(context).subsets.get("later", slice(0, 0))] = np.nan
        dead = {
            name.removeprefix(SILENT): torch.from_numpy(units == len(self.samples(context)))
            for name, units in silent.items()
        }
        numbers: Numbers = {}
        for question in questions:
            numbers |= self._keep(context, question, counts, dead)
            numbers |= self._dead_numbers(context, question, dead)
        if self.loss:
            numbers |= self.fill_in(context, {"loss": counts["loss"]})
        if context.processes.is_first and context.epochs_completed == self.epochs(context)[-1]:
            self._save(context, questions, silent)
        self._dead = dead
        return numbers

    def state_dict(self) -> dict[str, Any]:
        """Which units were dead at the last look."""
        return {"dead": self._dead}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._dead = state["dead"]

    def _questions(self, context: Context) -> list[Question]:
        """Each rule at each site."""
        raw: tuple[Layer, ...] = ()
        if Rule.persample_module in self.rules or Where.module_output in self.sites:
            samples = context.shift.task(context.task_idx).train
            example = samples.gather(torch.arange(min(2, len(samples)), device=samples.rows.device))
            raw = module_outputs(context.net, example.inputs)
        questions = []
        for rule in dict.fromkeys(self.rules):
            if rule is Rule.persample_module:
                questions.append(Question(rule.value, rule, raw))
                continue
            for site in dict.fromkeys(self.sites):
                suffix = "" if site is Where.post_activation else f"_{site.value}"
                questions.append(Question(rule.value + suffix, rule, self._layers(context, site, raw)))
        return questions

    def _layers(self, context: Context, site: Where, raw: tuple[Layer, ...]) -> tuple[Layer, ...]:
        units = context.units
        layers = {
            Where.post_activation: units.layers,
            Where.module_output: tuple(x for x in raw if self.classifier or x.site.module != units.head),
            Where.attention_output: units.attention_outputs,
            Where.norm_output: units.norm_outputs,
        }[site]
        if not layers:
            raise ConfigError(
                f"{self.name}: this network has nothing at the site {site.value}; choose others with "
                f"{self.name}.sites=[...], or leave this analysis out with analysis=[...]"
            )
        return layers

    def _scales(self, context: Context, questions: list[Question], thresholds: Thresholds) -> dict[Site, float]:
        """Mean |h| over all samples, units and positions of each layer for which a rule needs it: a pass of its own."""
        layers = {layer.site: layer for q in questions if thresholds.need_scale(q.rule) for layer in q.layers}
        if not layers:
            return {}

        def measure(batches: Iterable[Batch]) -> Part:
            sums = sums_of_absolute(context.net, layers.values(), batches)
            return {"sums": torch.stack([sums[site] for site in layers]).cpu().numpy()}

        sums = np.sum([part["sums"] for part in self.shared(context, measure, "_scale")], axis=0)
        return {site: float(total / n) for site, (total, n) in zip(layers, sums, strict=True)}

    def _loss_of(self, context: Context) -> Score:
        """Loss of each sample over the active outputs; NaN before its class enters."""
        task = context.current_task
        later = torch.from_numpy(self.samples(context).later_ids).to(task.train.rows.device)

        def score(batch: Batch, outputs: Tensor) -> dict[str, Tensor]:
            waits = torch.isin(batch.ids, later)
            has_classes = task.loss is Loss.cross_entropy
            told = class_index(batch.targets).masked_fill(waits, 0) if has_classes else batch.targets
            losses = per_sample_loss(task.loss, outputs[:, : task.active_outputs], told)
            return {"loss": losses.masked_fill(waits, torch.nan)}

        return score

    def _keep(
        self, context: Context, question: Question, counts: Mapping[str, Values], dead: Mapping[str, Tensor]
    ) -> Numbers:
        """Write the rows of a question's values and return their means."""
        widths = {name: layer.width for name, layer in zip(question.names, question.layers, strict=True)}
        all_layers, num_dead = dormant_of_all(counts, question), sum(int(dead[name].sum()) for name in widths)
        totals = {
            question.name: _share(all_layers, question.num_units),
            f"{question.name}_specific": _share(all_layers - num_dead, question.num_units),
        }
        by_layer = {name: _share(counts[name], width) for name, width in widths.items()}
        means = np.mean([counts[name] / np.float64(width) for name, width in widths.items()], axis=0)
        by_layer[f"{question.name}.{LAYER_MEAN}"] = means.astype(np.float32)
        specific = {
            name.replace(".", "_specific.", 1): _share(counts[name] - int(dead[name].sum()), width)
            for name, width in widths.items()
        }
        numbers = self.record(context, totals) | self.means(context, by_layer | specific)
        due = self._epochs_of_layers(context)
        if context.epochs_completed in due:
            self.record(context, by_layer, due)
        return numbers

    def _epochs_of_layers(self, context: Context) -> list[int]:
        """Epochs completed at which the values of each layer are kept in this task."""
        looks = self.epochs(context)
        return {Layers.none: [], Layers.task_end: looks[-1:], Layers.all: looks}[self.layers]

    def _dead_numbers(self, context: Context, question: Question, dead: Mapping[str, Tensor]) -> Numbers:
        """Shares of units that are dormant on all samples, and how they differ from those of the look before."""
        shares = {name: dead[name].double().mean().item() for name in question.names}
        now = torch.cat([dead[name] for name in question.names])
        numbers = {name.split(".", 1)[1]: {"dead": share} for name, share in shares.items()}
        numbers[LAYER_MEAN] = {"dead": sum(shares.values()) / len(shares)}
        numbers["total"] = {"dead": now.double().mean().item()}
        if all(self._dead.get(name, Tensor()).shape == dead[name].shape for name in question.names):
            before = torch.cat([self._dead[name] for name in question.names])
            sets = {"dead_kept": now & before, "dead_new": now & ~before, "dead_revived": before & ~now}
            numbers["total"] |= {which: units.double().mean().item() for which, units in sets.items()}
        subset = self._subset(context)
        return {
            self.key(subset, layer, f"{question.name}_{which}"): value
            for layer, some in numbers.items()
            for which, value in some.items()
        }

    def _subset(self, context: Context) -> str:
        """Of all samples scored: "train" or "all", by the settings, so for the whole run; before training "initial"."""
        settings = context.sample_settings
        subset = "all" if settings.validation or settings.population is Population.run else "train"
        return subset if context.epochs_completed else {"train": "initial", "all": "initial_all"}[subset]

    def _save(self, context: Context, questions: list[Question], silent: Mapping[str, npt.NDArray[np.int64]]) -> None:
        """Of each unit the share of samples on which it is dormant, and what was asked."""
        n, folder = len(self.samples(context)), context.folder(self.name)
        shares = {name.removeprefix(SILENT).replace(".", "/", 1): units / n for name, units in silent.items()}
        file = f"silent_epoch_{context.epochs_completed:06d}.npz"
        write_by(folder / file, lambda out: np.savez(out, **shares))  # type: ignore[arg-type]
        asked = {q.name: {"units": q.num_units, "layers": {x.name: x.width for x in q.layers}} for q in questions}
        content = {
            "settings": dataclasses.asdict(self),
            "epochs_completed": context.epochs_completed,
            "samples": n,
            "file": file,
            "questions": asked,
        }
        write_json(folder / "summary.json", content)


def _share(counts: npt.NDArray, units: int) -> Values:
    """Counts over units, rounded once."""
    return (counts.astype(np.float64) / units).astype(np.float32)
