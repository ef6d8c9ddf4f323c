"""Input curvature of a batch, n = 10, against bare gradient passes on the same network and batch, one thread.

OMP_NUM_THREADS=1 python -m benchmarks.input_curvature

    ours / bare        over n + 1 forwards and backwards to the inputs; what is more is directions, norms and traces
    published / ours   the published batched recipe (both gradients anew for each direction, 2 n passes) over ours
    float64, central   over the same bare passes
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import in_turns, machine, ratios, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.measure.input_curvature import Difference, Probe, in_double, input_curvature
from plastiscope.measure.loss import Loss
from plastiscope.net.mlp import Mlp
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18

OUTPUTS, DIRECTIONS, STEP = 10, 10, 1e-3
CASES: list[tuple[str, NetConfig, tuple[int, ...], int, int]] = [  # name, network, shape of an input, batch, rounds
    ("mlp, 64 inputs, batch 256", Mlp(), (64,), 256, 60),
    ("mlp, 3x32x32, batch 256", Mlp(), (3, 32, 32), 256, 20),
    ("mlp, 3x32x32, batch 500", Mlp(), (3, 32, 32), 500, 10),
    ("resnet18 width 16, batch 128", ResNet18(width=16), (3, 32, 32), 128, 5),
]


@dataclass
class Sides:
    """What is timed, on one frozen network and batch."""

    net: nn.Module
    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        self.ids = torch.arange(len(self.inputs))
        self.double = in_double(self.net)

    def gradient(self, inputs: Tensor) -> Tensor:
        """One forward, one backward to the inputs."""
        x = inputs.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(self.net(x), self.targets, reduction="sum"), x)[0]

    def bare(self) -> None:
        """As many gradients as forward differences need."""
        for _ in range(DIRECTIONS + 1):
            self.gradient(self.inputs)

    def published(self) -> Tensor:
        """Both gradients for each direction, random signs from torch's generator, norms."""
        total = torch.zeros(len(self.inputs))
        for _ in range(DIRECTIONS):
            v = torch.randint_like(self.inputs, 2).mul_(2).sub_(1) * STEP
            dg = self.gradient(self.inputs + v) - self.gradient(self.inputs)
            total += dg.flatten(1).norm(dim=1)
        return total / DIRECTIONS

    def ours(self, difference: Difference = Difference.forward) -> None:
        """The measure of the package."""
        probe = Probe(seed=0, directions=DIRECTIONS, difference=difference)
        input_curvature(self.net, Loss.cross_entropy, self.inputs, self.targets, self.ids, OUTPUTS, probe)

    def central(self) -> None:
        """The same with central differences."""
        self.ours(Difference.central)

    def in_float64(self) -> None:
        """The same in double precision."""
        arguments = self.inputs.double(), self.targets, self.ids, OUTPUTS, Probe(seed=0, directions=DIRECTIONS)
        input_curvature(self.double, Loss.cross_entropy, *arguments)


def main() -> None:
    torch.set_num_threads(1)
    keep_freed_pages()
    print(f"Input curvature, n = {DIRECTIONS}, one thread; ratios of rounds: median [quartiles]\n{machine()}")
    columns = ("ours / bare", "published / ours", "central / bare", "float64 / bare")
    print(f"{'':30}" + "".join(f"{name:24}" for name in columns) + "\n" + f"{'  wanted':30}{'<= 1.10':24}>= 1.6")
    for name, config, shape, batch, rounds in CASES:
        torch.manual_seed(0)
        net = config.make(shape, OUTPUTS).eval().requires_grad_(False)
        if getattr(net, "prefers_channels_last", False):
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        sides = Sides(net, torch.randn(batch, *shape), torch.randint(OUTPUTS, (batch,)))
        ours, bare, published = in_turns([sides.ours, sides.bare, sides.published], rounds)
        central, double, again = in_turns([sides.central, sides.in_float64, sides.bare], max(3, rounds // 5))
        shown = [ratios(ours, bare), ratios(published, ours), ratios(central, again), ratios(double, again)]
        print(f"{name:30}" + "".join(f"{spread(column):24}" for column in shown))


if __name__ == "__main__":
    main()
