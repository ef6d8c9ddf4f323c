"""Counting the dormant units of each sample, against the forward and loss that it shares.

python -m benchmarks.dormant

One pass over the same batches, in evaluation mode and without gradients; the sides take turns in one process, so
under one allocator. The clock is that of the process, so that others on the machine count less.

    default     persample_strict at the activations, in the same pass as the loss, over forward and loss alone
    + rate ...  what each further rule in the same pass adds to the default, in parts of forward and loss. The module
                rule reads other sites, all raw outputs; the scale of redo (mean |h| over the samples) is given here,
                a run takes another forward for it
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import in_turns, machine, ratios, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.analysis.dormancy_pass import DormancyPass, Question
from plastiscope.data.samples import Batch
from plastiscope.measure.sample_dormancy import Rule, Thresholds
from plastiscope.net.mlp import Mlp
from plastiscope.net.module_outputs import module_outputs
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18

WANTED, WANTED_MORE = 1.15, 0.15
MORE = {
    "+ rate": Rule.persample_rate,
    "+ redo": Rule.persample_redo,
    "+ module": Rule.persample_module,
}


@dataclass(frozen=True)
class Case:
    """A network, and batches of random inputs."""

    name: str
    net: NetConfig
    input_shape: tuple[int, ...]
    batch_size: int
    batches: int
    rounds: int

    def make(self) -> tuple[nn.Module, list[Batch]]:
        """The network in evaluation mode, and its batches."""
        torch.manual_seed(0)
        net = self.net.make(self.input_shape, 10).eval()
        if getattr(net, "prefers_channels_last", False):
            net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        batches = []
        for i in range(self.batches):
            ids = torch.arange(self.batch_size) + i * self.batch_size
            batches.append(Batch(torch.randn(self.batch_size, *self.input_shape), ids % 10, ids))
        return net, batches


CASES = [
    Case("mlp 64-256-256-10, batch 500", Mlp(), (64,), 500, 4, 300),
    Case("resnet18 width 16, batch 128", ResNet18(width=16), (3, 32, 32), 128, 1, 40),
]


def losses(batch: Batch, outputs: Tensor) -> dict[str, Tensor]:
    """Loss of each sample."""
    return {"loss": F.cross_entropy(outputs, batch.targets, reduction="none")}


@torch.no_grad()
def bare(net: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Forward and loss alone."""
    return torch.cat([losses(batch, net(batch.inputs))["loss"] for batch in batches])


def counting(net: nn.Module, batches: Sequence[Batch], rules: Sequence[Rule]) -> Callable[[], object]:
    """The pass with some rules."""
    layers = net.unit_description().layers  # type: ignore[operator]
    raw = module_outputs(net, batches[0].inputs[:2])
    questions = [Question(rule.value, rule, raw if rule is Rule.persample_module else layers) for rule in rules]
    scales = {layer.site: 0.5 for layer in layers}
    dormancy = DormancyPass(net=net, questions=questions, thresholds=Thresholds(), scales=scales)
    return partial(dormancy.count, batches, losses)


def measure(case: Case) -> dict[str, list[float]]:
    """Cost of the default over the bare pass, and what each further rule adds, of each round."""
    net, batches = case.make()
    rules = {"default": [Rule.persample_strict], **{key: [Rule.persample_strict, rule] for key, rule in MORE.items()}}
    sides = [partial(bare, net, batches), *(counting(net, batches, some) for some in rules.values())]
    alone, default, *more = in_turns(sides, case.rounds, clock=time.process_time)
    found = {"ms a batch": [1e3 * t / case.batches for t in alone], "default": ratios(default, alone)}
    for key, times in zip(MORE, more, strict=True):
        found[key] = ratios([t - d for t, d in zip(times, default, strict=True)], alone)
    return found


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_pages()  # as every run does
    print(f"Dormant units of each sample, one thread; ratios of pairs: median [quartiles]\n{machine()}")
    print(f"wanted: default <= {WANTED}, each further rule <= {WANTED_MORE}")
    print(f"{'':30}{'default':22}" + "".join(f"{key:22}" for key in MORE) + "ms a batch")
    for case in CASES:
        found = measure(case)
        shown = "".join(f"{spread(found[key]):22}" for key in ("default", *MORE))
        print(f"{case.name:30}{shown}{statistics.median(found['ms a batch']):.2f}")


if __name__ == "__main__":
    main()
