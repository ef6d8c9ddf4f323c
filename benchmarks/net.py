"""Layers and networks of other kinds against the plain ones: forward, and forward with backward; one thread.

OMP_NUM_THREADS=1 python -m benchmarks.net

Process time of training mode; the variant and the plain one take turns, and the figure is the median of the ratios of
pairs. Backward to the parameters, and in single layers also to the inputs, as inside a network.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.timing import in_turns, machine, ratios, spread
from plastiscope.allocator import keep_freed_pages
from plastiscope.net.activation import Activation
from plastiscope.net.convnet import ConvNet
from plastiscope.net.layers import Kind, Layers
from plastiscope.net.mlp import Mlp, Norm
from plastiscope.net.net import NetConfig
from plastiscope.net.projection import PhiAt
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.vgg16 import Vgg16
from plastiscope.net.weight_normalised import InputStatistic

KINDS = {
    "weight_normalised": Layers(kind=Kind.weight_normalised),
    "weight_normalised, second_moment": Layers(
        kind=Kind.weight_normalised, input_statistic=InputStatistic.second_moment
    ),
    "svd": Layers(kind=Kind.svd),
    "projection": Layers(kind=Kind.projection),
}
MAPPED = Layers(kind=Kind.projection, phi_at=PhiAt.map)


@dataclass(frozen=True)
class Case:
    """A plain module, its variants, inputs, and whether the gradient goes on to the inputs."""

    name: str
    make: Callable[[Layers], nn.Module]
    inputs: tuple[int, ...]
    kinds: dict[str, Layers]


LAYER_CASES = [
    Case("linear 256 -> 256, batch 256", lambda kind: kind.linear(256, 256, 1.4), (256, 256), KINDS),
    Case("linear 784 -> 100, batch 1", lambda kind: kind.linear(784, 100, 1.4), (1, 784), KINDS),
    Case("conv 32 -> 64, 3x3, batch 100, 14x14", lambda kind: kind.conv(32, 64, 3, 1.4), (100, 32, 14, 14), KINDS),
]

MLP_VARIANTS: dict[str, NetConfig] = {
    "norm=batch": Mlp(norm=Norm.batch),
    "norm=layer": Mlp(norm=Norm.layer),
    **{name: Mlp(layers=layers) for name, layers in KINDS.items()},
    "projection, phi_at=map": Mlp(layers=MAPPED),
    "activation=prelu": Mlp(activation=Activation.prelu),
    "activation=maxout": Mlp(activation=Activation.maxout),
    "activation=crelu": Mlp(activation=Activation.crelu),
}
CONVNET_VARIANTS: dict[str, NetConfig] = {
    "norm=batch": ConvNet(norm=Norm.batch),
    "norm=layer": ConvNet(norm=Norm.layer),
    **{name: ConvNet(layers=layers) for name, layers in KINDS.items()},
    "projection, phi_at=map": ConvNet(layers=MAPPED),
    "activation=prelu": ConvNet(activation=Activation.prelu),
    "activation=maxout": ConvNet(activation=Activation.maxout),
    "activation=crelu": ConvNet(activation=Activation.crelu),
}
NET_CASES: list[tuple[str, NetConfig, dict[str, NetConfig], tuple[int, ...], int]] = [
    ("mlp 784-256-256-10, batch 256", Mlp(), MLP_VARIANTS, (256, 784), 30),
    ("convnet, batch 100, 3x32x32", ConvNet(), CONVNET_VARIANTS, (100, 3, 32, 32), 15),
    (
        "resnet18 width 16, batch 32",
        ResNet18(width=16),
        {name: ResNet18(width=16, layers=layers) for name, layers in KINDS.items()},
        (32, 3, 32, 32),
        9,
    ),
    (
        "vgg16 width 16 without a norm, batch 32",
        Vgg16(width=16, norm=Norm.none),
        {
            "norm=batch": Vgg16(width=16),
            "norm=layer": Vgg16(width=16, norm=Norm.layer),
            "weight_normalised": Vgg16(width=16, norm=Norm.none, layers=KINDS["weight_normalised"]),
        },
        (32, 3, 32, 32),
        9,
    ),
]


def forward_and_backward(module: nn.Module, inputs: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """The two things that are timed; the gradient of the inputs is computed where they ask for it."""
    weights = torch.randn_like(module(inputs))

    def forward() -> None:
        with torch.no_grad():
            module(inputs)

    def both() -> None:
        module.zero_grad()
        (module(inputs) * weights).sum().backward()

    return forward, both


def step(net: nn.Module, inputs: Tensor) -> tuple[Callable[[], object], Callable[[], object]]:
    """The same of a network with its loss."""
    targets = torch.randint(10, (len(inputs),))

    def forward() -> None:
        with torch.no_grad():
            F.cross_entropy(net(inputs), targets)

    def both() -> None:
        net.zero_grad()
        F.cross_entropy(net(inputs), targets).backward()

    return forward, both


def compare(
    name: str, plain: nn.Module, variant: nn.Module, timed: Callable[..., tuple], inputs: Tensor, rounds: int
) -> None:
    """Time the pair and print its row."""
    row = ""
    for one, other in zip(timed(plain, inputs), timed(variant, inputs), strict=True):
        began = time.process_time()
        other()
        repeats = max(1, int(0.003 / max(time.process_time() - began, 1e-6)))
        sides = [repeated(call, repeats) for call in (one, other)]
        bare, ours = in_turns(sides, rounds, warm_up=2, clock=time.process_time)
        row += f"{1e3 * sorted(bare)[rounds // 2] / repeats:9.3f}  {spread(ratios(ours, bare), 2):20}"
    print(f"  {name:36}{row}", flush=True)


def repeated(call: Callable[[], object], times: int) -> Callable[[], object]:
    """So many calls, so that a turn is long enough for the clock."""

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def fitted(net: nn.Module) -> nn.Module:
    """In the memory format in which a run trains it."""
    if getattr(net, "prefers_channels_last", False):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return net


def main() -> None:
    keep_freed_pages()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"Layers and networks of other kinds over the plain ones, one thread\n{machine()}")
    print(f"{'':38}{'plain, ms':>9}  {'forward':20}{'plain, ms':>9}  forward and backward")
    for case in LAYER_CASES:
        print(case.name)
        inputs = torch.randn(*case.inputs, requires_grad=True)
        for name, layers in case.kinds.items():
            compare(name, case.make(Layers()), case.make(layers), forward_and_backward, inputs, 30)
    for title, config, variants, shape, rounds in NET_CASES:
        print(title)
        inputs = torch.randn(*shape)
        for name, other in variants.items():
            compare(name, *(fitted(c.make(shape[1:], 10)) for c in (config, other)), step, inputs, rounds)


if __name__ == "__main__":
    main()
