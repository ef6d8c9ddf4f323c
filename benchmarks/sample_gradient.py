"""Per-sample gradients against bare passes on the same network, batch and memory format, one thread.

OMP_NUM_THREADS=1 python -m benchmarks.sample_gradient

    input gradient    loss and input-gradient norm of each sample, over one forward and one backward to the inputs
    alone             one forward and one backward of each sample alone, over the same: how much faster one batch is
    parameter norms   ||gradient by the parameters|| of each sample, over one gradient of the batch's mean loss: of the
                      engine `ghost`, which `auto` takes here; of vmap; of the loop, on a few samples and scaled up
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import in_turns, machine, ratios, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.measure.loss import Loss
from plastiscope.measure.sample_gradient import Engine, loss_and_input_gradient, parameter_gradient_norms
from plastiscope.net.mlp import Mlp
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18

OUTPUTS = 10
FEW = 8


@dataclass(frozen=True)
class Case:
    """A network, the shape of its inputs, the batch, how many rounds, and the ratios wanted."""

    name: str
    net: NetConfig
    shape: tuple[int, ...]
    batch: int
    rounds: int
    wanted: tuple[str, str, str]


CASES = [
    Case("mlp, 64 inputs, batch 256", Mlp(), (64,), 256, 100, ("<= 1.05", ">= 4", "<= 0.7")),
    Case("mlp, 3x32x32, batch 256", Mlp(), (3, 32, 32), 256, 40, ("<= 1.05", ">= 4", "<= 0.7")),
    Case("resnet18 width 16, batch 128", ResNet18(width=16), (3, 32, 32), 128, 10, ("<= 1.05", ">= 2.5", "<= 1.9")),
]


@dataclass
class Sides:
    """What is timed, on one network and batch; parameters are frozen but for the bare parameter gradient."""

    net: nn.Module
    inputs: Tensor
    targets: Tensor

    @classmethod
    def of(cls, case: Case) -> "Sides":
        """Of a case, with random inputs."""
        torch.manual_seed(0)
        net = case.net.make(case.shape, OUTPUTS).eval().requires_grad_(False)
        if getattr(net, "prefers_channels_last", False):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(net, torch.randn(case.batch, *case.shape), torch.randint(OUTPUTS, (case.batch,)))

    def bare_input(self) -> None:
        """One forward, one backward to the inputs."""
        x = self.inputs.detach().requires_grad_()
        torch.autograd.grad(F.cross_entropy(self.net(x), self.targets, reduction="sum"), x)

    def input_gradient(self) -> None:
        """Ours."""
        loss_and_input_gradient(self.net, Loss.cross_entropy, self.inputs, self.targets, OUTPUTS)

    def alone(self) -> None:
        """Norms of the input gradients, one sample after the other."""
        for x, y in zip(self.inputs.split(1), self.targets.split(1), strict=True):
            leaf = x.detach().requires_grad_()
            torch.autograd.grad(F.cross_entropy(self.net(leaf), y), leaf)[0].norm()

    def bare_parameters(self) -> None:
        """The gradient of the batch's mean loss by the parameters."""
        self.net.requires_grad_(True)
        torch.autograd.grad(F.cross_entropy(self.net(self.inputs), self.targets), list(self.net.parameters()))
        self.net.requires_grad_(False)

    def norms(self, engine: Engine, n: int) -> Callable[[], Tensor]:
        """Ours for the first n samples, by an engine."""
        few = self.inputs[:n], self.targets[:n]
        return lambda: parameter_gradient_norms(self.net, Loss.cross_entropy, *few, OUTPUTS, engine)


def measure(case: Case) -> list[str]:
    """A column of ratios for each quantity."""
    sides, n = Sides.of(case), case.batch
    ours, bare = in_turns([sides.input_gradient, sides.bare_input], 2 * case.rounds, 2)
    few = max(3, case.rounds // 8)
    alone, together = in_turns([sides.alone, sides.input_gradient], few)
    ghost, gradient = in_turns([sides.norms(Engine.ghost, n), sides.bare_parameters], case.rounds, 2)
    sides_of_others = [sides.norms(Engine.vmap, n), sides.norms(Engine.loop, FEW), sides.bare_parameters]
    vmap, loop, against = in_turns(sides_of_others, few)
    looped = [ratio * n / FEW for ratio in ratios(loop, against)]
    first = [spread(ratios(ours, bare)), spread(ratios(alone, together), 1), spread(ratios(ghost, gradient))]
    return [*first, spread(ratios(vmap, against), 1), spread(looped, 1)]


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_pages()
    print(f"Per-sample gradients over bare passes, one thread; ratios of pairs: median [quartiles]\n{machine()}")
    print(f"{'':30}{'input gradient':24}{'alone':22}{'parameter norms':24}{'vmap':22}{'loop':22}")
    for case in CASES:
        print(f"{case.name:30}" + "".join(f"{c:{w}}" for c, w in zip(measure(case), (24, 22, 24, 22, 22), strict=True)))
        print(f"{'  wanted':30}" + "".join(f"{c:{w}}" for c, w in zip(case.wanted, (24, 22, 24), strict=True)))


if __name__ == "__main__":
    main()
