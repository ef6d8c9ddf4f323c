"""Features of the training forward: what the units put out in the step itself, kept until the step is over.

Hooks are installed once. They keep references, no copies, and only while `listen` is entered, so an evaluation leaves
no trace and costs nothing. Functional activations have no module to hook; a network that has some is watched by
`net.capture` around each forward, which is slower.
"""

from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.net.capture import capture
from plastiscope.net.stacked import is_whole
from plastiscope.net.units import Layer, Site


class TrainingFeatures:
    """The features of layers in the last forward of the network for which it listened.

    A tensor that a later operation of the forward overwrites in place would be read too late. The first forward copies
    all features and sees which were overwritten; those are copied from then on.
    """

    def __init__(self, net: nn.Module, layers: Sequence[Layer]) -> None:
        """Install the hooks for the sites of `layers`.

        Raises:
            ConfigError: the network runs as a whole, and its modules are not called.
        """
        if is_whole(net):
            raise ConfigError(
                "runs of this network advance together only as a whole, so what its units put out in a step cannot be "
                "heard; use a learner that replaces no units, or one process per run"
            )
        self._net = net
        self._sites = [layer.site for layer in layers]
        self._is_functional = any(site.function is not None for site in self._sites)
        self._listening = False
        self._outputs: dict[str, list[Tensor]] = defaultdict(list)
        self._given: list[Tensor] | None = None
        self._versions: list[tuple[str, Tensor, int]] = []
        self._copied: set[str] | None = None
        self._watch: AbstractContextManager[None] | None = None
        if not self._is_functional:
            self._install()

    def _install(self) -> None:
        def begin(module: nn.Module, _: Any) -> None:
            if self._listening and module is self._net:
                for outputs in self._outputs.values():
                    outputs.clear()

        self._net.register_forward_pre_hook(begin)
        for path in dict.fromkeys(site.module for site in self._sites):
            module = self._net.get_submodule(path)
            # A copy of the network has these hooks too; they hear their own module only.
            module.register_forward_hook(self._hook(path, module))

    def _hook(self, path: str, own: nn.Module) -> Any:
        outputs = self._outputs[path]

        def keep(module: nn.Module, _: Any, output: Any) -> None:
            if not self._listening or module is not own:
                return
            tensor = (output[0] if isinstance(output, tuple) else output).detach()
            if self._copied is None:
                self._versions.append((path, tensor, tensor._version))
                tensor = tensor.clone()
            elif path in self._copied:
                tensor = tensor.clone()
            outputs.append(tensor)

        return keep

    def listen(self, wanted: bool) -> "TrainingFeatures":
        """Enter this around a step; only if `wanted` its features are kept."""
        self._listening, self._given = wanted, None
        return self

    def __enter__(self) -> None:
        if self._listening and self._is_functional:
            self._watch = capture(self._net, self._sites, self._receive)
            self._watch.__enter__()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._listening = False
        if self._watch is not None:
            watch, self._watch = self._watch, None
            watch.__exit__(kind, error, at)

    def _receive(self, site: Site, feature: Tensor) -> None:
        key = str(site)
        self._outputs[key] = [feature.clone()]

    def give(self, features: list[Tensor]) -> None:
        """Hand over the features of a forward that ran without the modules, in the order of the layers."""
        self._given = features

    def take(self) -> list[Tensor]:
        """The features of the step, detached, in the order of the layers; they are forgotten here.

        Raises:
            ConfigError: an activation did not run in the forward.
        """
        if self._given is not None:
            given, self._given = self._given, None
            return given
        try:
            if self._is_functional:
                found = [self._outputs[str(site)][0] for site in self._sites]
            else:
                found = [self._outputs[site.module][site.call] for site in self._sites]
        except IndexError:
            raise ConfigError(
                "an activation did not run in the forward of a step, so its units have no features; make the network "
                "call it, or use a learner that replaces no units"
            ) from None
        if self._copied is None:
            self._copied = {path for path, tensor, version in self._versions if tensor._version != version}
            self._versions.clear()
        for outputs in self._outputs.values():
            outputs.clear()
        return found
