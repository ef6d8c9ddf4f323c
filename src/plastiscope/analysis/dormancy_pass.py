"""A pass over samples that counts the dormant units of a network's layers, reduced where their activations appear."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.event import undisturbed
from plastiscope.measure.sample_dormancy import NON_NEGATIVE, Rule, Thresholds, dormant_units, sum_of_absolute
from plastiscope.net.capture import capture
from plastiscope.net.module_outputs import module_outputs
from plastiscope.net.units import Layer, Site, by_unit
from plastiscope.run.processes import Part

Score = Callable[[Batch, Tensor], Mapping[str, Tensor]]
"""A batch and its outputs -> values [b] by name, of the same forward."""


@dataclass(frozen=True)
class Question:
    """A rule, and the layers it is asked of.

    Attributes:
        name: of the quantity, such as "persample_strict"; with the site where that is not the usual one.
        rule: when a unit is dormant.
        layers: in the order of execution; at least one.
    """

    name: str
    rule: Rule
    layers: tuple[Layer, ...]

    @property
    def names(self) -> list[str]:
        """What the numbers of each layer are called: "<question>.<layer>"."""
        return [f"{self.name}.{layer.name}" for layer in self.layers]

    @property
    def num_units(self) -> int:
        """Units of all layers."""
        return sum(layer.width for layer in self.layers)


@dataclass(frozen=True, kw_only=True)
class DormancyPass:
    """What is asked of which network; see `count`.

    Attributes:
        net: in evaluation mode.
        questions: at least one.
        thresholds: of the rules.
        scales: mean |h| over the data set by site, where a rule needs it (`mean_absolute`).
    """

    net: nn.Module
    questions: Sequence[Question]
    thresholds: Thresholds
    scales: Mapping[Site, float]

    def count(self, batches: Iterable[Batch], score: Score | None = None) -> Part:
        """Count the dormant units of some samples.

        Args:
            batches: of the samples.
            score: also measures each batch.

        Returns:
            ids int64 [n]; for each question and layer "<question>.<layer>" float32 [n], dormant units of each sample
            (NaN where an activation is not finite), and "silent/<question>.<layer>" int64 [units], samples on which
            each unit is dormant; values of `score` float32 [n].
        """
        asked = self._by_site()
        ids: list[Tensor] = []
        rows: dict[str, list[Tensor]] = defaultdict(list)
        silent: dict[str, Tensor] = {}

        def receive(site: Site, feature: Tensor) -> None:
            layer, names = asked[site]
            h, is_non_negative = by_unit(feature, layer.unit_axis), layer.activation in NON_NEGATIVE
            found = dormant_units(h, names, self.thresholds, self.scales.get(site, torch.nan), is_non_negative)
            for rule, (per_sample, of_units) in found.items():
                for name in names[rule]:
                    rows[name].append(per_sample)
                    silent[name] = (
                        silent[name].add_(of_units) if name in silent else of_units.to(torch.float64, copy=True)
                    )

        with torch.no_grad(), capture(self.net, asked, receive):
            for batch in batches:
                ids.append(batch.ids)
                outputs = self.net(batch.inputs)
                for metric, values in (score(batch, outputs) if score else {}).items():
                    rows[metric].append(values)
        arrays = {name: torch.cat(values).to(torch.float32).cpu().numpy() for name, values in rows.items()}
        counts = {f"silent/{name}": units.to(torch.int64).cpu().numpy() for name, units in silent.items()}
        return {"ids": torch.cat(ids).cpu().numpy(), **arrays, **counts}

    def _by_site(self) -> dict[Site, tuple[Layer, dict[Rule, list[str]]]]:
        """The layer at each site, and what its numbers are called, by rule."""
        asked: dict[Site, tuple[Layer, dict[Rule, list[str]]]] = {}
        for question in self.questions:
            for layer, name in zip(question.layers, question.names, strict=True):
                _, names = asked.setdefault(layer.site, (layer, {}))
                names.setdefault(question.rule, []).append(name)
        return asked


def sums_of_absolute(net: nn.Module, layers: Iterable[Layer], batches: Iterable[Batch]) -> dict[Site, Tensor]:
    """Sum of |h| and number of values of each layer over some samples, float64 [2] by site."""
    by_site = {layer.site: layer for layer in layers}
    sums: dict[Site, Tensor] = {}

    def receive(site: Site, feature: Tensor) -> None:
        h = by_unit(feature, by_site[site].unit_axis)
        found = torch.stack([sum_of_absolute(h), torch.tensor(h.numel(), dtype=torch.float64, device=h.device)])
        sums[site] = sums[site] + found if site in sums else found

    with torch.no_grad(), capture(net, by_site, receive):
        for batch in batches:
            net(batch.inputs)
    return sums


def module_dormancy(net: nn.Module, batches: Iterable[Tensor], eps: float = 1e-6) -> Tensor:
    """Share of units that are dormant on each sample by the published definition, `persample_module`.

    Units are the channels and outputs of all nn.Conv2d and nn.Linear modules, shortcuts and head included (4,900 in the
    published ResNet-18 with 100 outputs); a unit is dormant on a sample if its raw output, at no position, is larger
    than eps. Sign and size of an output before a norm say little: the other rules are to be preferred.

    Args:
        net: unwrapped; scored in evaluation mode and left as it is.
        batches: inputs [b, ...] on its device, in any sizes.
        eps: threshold.

    Returns:
        float32 [n] on the CPU, in the order of the samples; NaN where an output is not finite.

    Raises:
        ConfigError: a convolution or linear layer is not called in a forward.
    """
    waiting = iter(batches)
    first = next(waiting, None)
    if first is None:
        return torch.empty(0)
    rule = Rule.persample_module
    question = Question(rule.value, rule, module_outputs(net, first[:2]))
    samples = (Batch(x, x, torch.arange(len(x))) for x in chain([first], waiting))
    with undisturbed(net):
        part = DormancyPass(net=net, questions=[question], thresholds=Thresholds(eps=eps), scales={}).count(samples)
    return torch.from_numpy((dormant_of_all(part, question) / question.num_units).astype(np.float32))


def dormant_of_all(counts: Mapping[str, npt.NDArray], question: Question) -> npt.NDArray[np.float64]:
    """Dormant units of all layers on each sample, [n]: the sum of "<question>.<layer>"."""
    return np.sum([counts[name] for name in question.names], axis=0, dtype=np.float64)
