"""How the network runs in a training step: in which precision, and compiled or not. Analyses always see float32."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum

import torch
from torch import Tensor, nn


class Precision(Enum):
    """Of the products in training steps; weights, losses, updates and analyses are float32."""

    float32 = "float32"
    tf32 = "tf32"
    """On an accelerator that has it: float32 with products of 10-bit mantissas."""
    bfloat16 = "bfloat16"
    """Products in bfloat16 (torch.autocast); its range is that of float32, so the loss needs no scaling."""


class Compile(Enum):
    """Whether the forward pass of training steps is compiled."""

    none = "none"
    default = "default"
    """torch.compile."""
    cuda_graphs = "cuda_graphs"
    """torch.compile with mode="reduce-overhead", which replays CUDA graphs; on an accelerator only."""


class TrainingForward:
    """The outputs of a network in a step, float32.

    A network that torch.compile cannot treat runs as it is, and the reason is said once.
    """

    def __init__(self, net: nn.Module, precision: Precision, compile: Compile) -> None:
        """Of `net`, whose parameters stay as they are."""
        self.net, self.precision = net, precision
        self._call: Callable[[Tensor], Tensor] = net
        self._is_tried = compile is Compile.none
        if compile is not Compile.none:
            mode = "reduce-overhead" if compile is Compile.cuda_graphs else None
            self._call = torch.compile(net, mode=mode)

    def __call__(self, inputs: Tensor) -> Tensor:
        """[*lead, b, ...] -> [*lead, b, k]."""
        is_mixed = self.precision is Precision.bfloat16
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=is_mixed):
            outputs = self._call(inputs) if self._is_tried else self._first(inputs)
        return outputs.float() if is_mixed else outputs

    def _first(self, inputs: Tensor) -> Tensor:
        self._is_tried = True
        try:
            return self._call(inputs)
        # What a compiler of other people raises has no common type; nothing has run then, so nothing is lost.
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            print(f"compile: this network is not compiled ({reason}); going on without", file=sys.stderr)
            self._call = self.net
            return self._call(inputs)


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Inside, products of float32 on an accelerator are TF32 if the precision says so, else exact; then as before."""
    cudnn, is_tf32 = torch.backends.cudnn, precision is Precision.tf32
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32
    try:
        torch.set_float32_matmul_precision("high" if is_tf32 else "highest")
        cudnn.allow_tf32 = is_tf32
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
