"""Convolutional networks in channels_last against torch's default memory format; what `prefers_channels_last` rests on.

python -m benchmarks.channels_last

One training step on the CPU with one thread, inputs as they come from a gather (default format); the two take turns.
"""

import copy

import torch
import torch.nn.functional as F

from benchmarks.timing import in_turns, machine, ratios, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.net.convnet import ConvNet
from plastiscope.net.net import NetConfig
from plastiscope.net.resnet18 import ResNet18

CASES: list[tuple[str, NetConfig, int, int, int]] = [
    ("convnet", ConvNet(), 2, 100, 200),
    ("resnet18 width 16", ResNet18(width=16), 100, 90, 40),
    ("resnet18 width 64", ResNet18(width=64), 100, 16, 20),
]


def measure(config: NetConfig, outputs: int, batch: int, rounds: int) -> list[list[float]]:
    """Seconds of a step in [default, channels_last]."""
    torch.manual_seed(0)
    inputs, targets = torch.randn(batch, 3, 32, 32), torch.randint(outputs, (batch,))
    net = config.make((3, 32, 32), outputs)
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)

    def step(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()
        optimizer.step()

    optimizers = [torch.optim.SGD(n.parameters(), lr=0.01, momentum=0.9, fused=True) for n in (net, other)]
    return in_turns([lambda: step(net, optimizers[0]), lambda: step(other, optimizers[1])], rounds, warm_up=3)


def main() -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    print(f"channels_last against the default format, one thread, seconds of a step\n{machine()}")
    print(f"{'network':20}{'batch':>6}{'rounds':>8}  {'default, ms':26}{'channels_last, ms':26}ratio")
    for name, config, outputs, batch, rounds in CASES:
        default, last = measure(config, outputs, batch, rounds)
        shown = "".join(f"{spread([1e3 * s for s in times], 1):26}" for times in (default, last))
        print(f"{name:20}{batch:6}{rounds:8}  {shown}{spread(ratios(last, default))}")


if __name__ == "__main__":
    main()
