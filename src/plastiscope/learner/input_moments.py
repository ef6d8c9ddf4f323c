"""Second moments of what layers read: exponential means over steps of h h^T, h an input of a linear layer or a patch.

Hooks keep references to the inputs of a step, no copies, and only while they listen, so an evaluation leaves no trace.
(Autograd keeps these inputs for the weights' gradients, so nothing overwrites them within a step.)
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.learner.unit_parameters import Part, Slices

BLOCK = 64
"""Rows of inputs that are noted before they are worked off at once, of steps with fewer."""
CHUNK = 1 << 22
"""Numbers of patches of a convolution that are made at a time."""


def module_of(slices: Slices) -> str:
    """Path of the module that owns a parameter."""
    return slices.name.rpartition(".")[0]


def obstacle(net: nn.Module, part: Part) -> str:
    """Why the inputs of a layer's units are not one vector that one row of weights reads; "" when they are."""
    if len(part.weights) != 1:
        return "two layers of weights make its units"
    (slices,) = part.weights
    module = net.get_submodule(module_of(slices))
    if slices.block != 1 or slices.axis != 0:
        return "a unit has several rows of weights"
    if slices.normed is not None:
        return "its rows of weights are divided by their lengths"
    if isinstance(module, nn.Conv2d):
        is_plain = module.groups == 1 and not isinstance(module.padding, str) and module.padding_mode == "zeros"
        return "" if is_plain else "its convolution has groups, or padding other than a number of zeros"
    return "" if isinstance(module, nn.Linear) else f"its weights are those of a {type(module).__name__}"


class _Moment:
    """The moment of one layer's inputs; tensors have one axis of runs, of length 1 where there is none."""

    def __init__(self, module: nn.Module, weight: Tensor, lead: int, decay: float, is_diagonal: bool) -> None:
        self.module, self.lead, self.decay, self.is_diagonal = module, lead, decay, is_diagonal
        size = weight[(0,) * (lead + 1)].numel()
        runs = weight.shape[0] if lead else 1
        self.moment = weight.detach().new_zeros(runs, size, *(() if is_diagonal else (size,)))
        self.updates = 0
        self.noted: list[Tensor] = []

    def rows(self, inputs: Sequence[Tensor]) -> Iterator[Tensor]:
        """The vectors that the weights read, in pieces [runs, rows, d]."""
        for x in inputs:
            x = x if self.lead else x.unsqueeze(0)
            if not isinstance(self.module, nn.Conv2d):
                yield x.flatten(1, -2)
                continue
            conv, d = self.module, self.moment.shape[1]
            assert not isinstance(conv.padding, str)
            at_once = max(1, CHUNK // (len(x) * d * x.shape[-1] * x.shape[-2]))
            for some in x.split(at_once, 1):
                patches = F.unfold(some.flatten(0, 1), conv.kernel_size, conv.dilation, conv.padding, conv.stride)
                yield patches.unflatten(0, some.shape[:2]).transpose(-1, -2).flatten(1, 2)

    def update(self, inputs: Sequence[Tensor]) -> None:
        """S <- d S + (1 - d) mean over rows of h h^T; few rows are only noted, as a copy."""
        self.updates += 1
        if not isinstance(self.module, nn.Conv2d):
            rows = torch.cat(list(self.rows(inputs)), 1)
            if rows.shape[1] < BLOCK:
                if sum(noted.shape[1] for noted in self.noted) + rows.shape[1] > BLOCK:
                    self.work_off()
                self.noted.append(rows)
                return
            inputs = [rows if self.lead else rows[0]]
        self.work_off()
        new = torch.zeros_like(self.moment)
        number = 0
        for piece in self.rows(inputs):
            self._add(new, piece, 1.0)
            number += piece.shape[1]
        self.moment.mul_(self.decay).add_(new, alpha=(1.0 - self.decay) / number)

    def work_off(self) -> None:
        """Count in what was noted: after n steps S_n = d^n S_0 + (1 - d) sum_k d^(n-k) mean h_k h_k^T."""
        noted, self.noted = self.noted, []
        n = len(noted)
        if n == 0:
            return
        self.moment.mul_(self.decay**n)
        shares = [(1.0 - self.decay) * self.decay ** (n - k) / rows.shape[1] for k, rows in enumerate(noted, start=1)]
        scaled = [rows * share**0.5 for rows, share in zip(noted, shares, strict=True)]
        self._add(self.moment, torch.cat(scaled, 1), 1.0)

    def _add(self, moment: Tensor, rows: Tensor, share: float) -> None:
        if self.is_diagonal:
            moment.add_(rows.square().sum(1), alpha=share)
        else:
            moment.baddbmm_(rows.mT, rows, alpha=share)

    def corrected(self) -> Tensor:
        """S / (1 - d^t), [*lead, d, d]; of t = 0 updates 0."""
        self.work_off()
        moment = self.moment / (1.0 - self.decay**self.updates) if self.updates else self.moment
        moment = torch.diag_embed(moment) if self.is_diagonal else moment
        return moment if self.lead else moment[0]


class InputMoments:
    """The moments of all layers whose units are replaced, and the inputs of the step under way."""

    def __init__(self, net: nn.Module, parts: Sequence[Part], decay: float, is_diagonal: bool, lead: int) -> None:
        """Install the hooks.

        Args:
            net: the network that is trained.
            parts: its layers.
            decay: d of the exponential means.
            is_diagonal: keep the diagonal alone.
            lead: number of leading axes of every parameter.

        Raises:
            ConfigError: a layer's units are not made from one vector by one row of weights; names it and the reason.
        """
        self._net, self.lead, self._listening = net, lead, False
        self._inputs: dict[str, list[Tensor]] = defaultdict(list)
        self._of: dict[str, _Moment] = {}
        for part in parts:
            reason = obstacle(net, part)
            if reason:
                raise ConfigError(
                    f"the units of layer {part.layer.name} cannot have rank-restoring weights: {reason}. Use "
                    "learner=continual_backprop, learner.residual_mode=inner_only, or a network of plain layers"
                )
            (slices,) = part.weights
            module = net.get_submodule(module_of(slices))
            self._of[slices.name] = _Moment(module, slices.tensor, lead, decay, is_diagonal)
        net.register_forward_pre_hook(self._begin)
        for name in self._of:
            module = net.get_submodule(name.rpartition(".")[0])
            module.register_forward_pre_hook(self._hook(name, module))

    def _begin(self, module: nn.Module, _: Any) -> None:
        if self._listening and module is self._net:
            for inputs in self._inputs.values():
                inputs.clear()

    def _hook(self, name: str, own: nn.Module) -> Any:
        def keep(module: nn.Module, given: tuple[Any, ...]) -> None:
            # A copy of the network has these hooks too; they hear their own module only.
            if self._listening and module is own:
                self._inputs[name].append(given[0].detach())

        return keep

    def __enter__(self) -> None:
        self._listening = True

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listening = False

    def give(self, inputs: Mapping[nn.Module, Tensor]) -> None:
        """Take the inputs of a step that ran without the modules."""
        for name, moment in self._of.items():
            self._inputs[name] = [inputs[moment.module]]

    def inputs(self, name: str) -> list[Tensor]:
        """What the layer of a weight read in the last forward that was heard.

        Raises:
            ConfigError: it was not called.
        """
        if not self._inputs[name]:
            raise ConfigError(
                f"the layer of {name} did not run as a module in the forward of a step, so its inputs are not known; "
                "use learner=continual_backprop"
            )
        return self._inputs[name]

    def update(self) -> None:
        """Count in the inputs of the step."""
        for name, moment in self._of.items():
            moment.update(self.inputs(name))

    def corrected(self, name: str) -> Tensor:
        """The second moment [*lead, d, d] of what the layer of a weight reads."""
        return self._of[name].corrected()

    def rows(self, name: str) -> Iterator[Tensor]:
        """The inputs of the step in pieces [*lead, rows, d]."""
        for piece in self._of[name].rows(self.inputs(name)):
            yield piece if self.lead else piece[0]

    def mean(self, name: str) -> Tensor:
        """Their mean, [*lead, d]."""
        sums, number = [], 0
        for piece in self.rows(name):
            sums.append(piece.sum(-2))
            number += piece.shape[-2]
        return torch.stack(sums).sum(0) / number

    def all_anew(self) -> None:
        """Forget all steps."""
        for moment in self._of.values():
            moment.updates, moment.noted = 0, []
            moment.moment.zero_()

    def traces(self) -> Tensor:
        """Sum of the layers' tr(S), [*lead], to see whether all are finite."""
        total = [one.moment if one.is_diagonal else one.moment.diagonal(dim1=-2, dim2=-1) for one in self._of.values()]
        summed = torch.stack([diagonal.sum(-1) for diagonal in total]).sum(0)
        return summed if self.lead else summed[0]

    def state_dict(self) -> dict[str, Any]:
        """By weight: the moment, how many updates it had, and the rows that are only noted."""
        return {
            name: {"moment": one.moment.clone(), "updates": one.updates, "noted": [rows.clone() for rows in one.noted]}
            for name, one in self._of.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        for name, one in self._of.items():
            one.moment.copy_(state[name]["moment"])
            one.updates = state[name]["updates"]
            one.noted = [rows.to(one.moment) for rows in state[name]["noted"]]
