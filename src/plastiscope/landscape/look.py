"""What is looked at, and what the parts of one look share: the frozen loss, the operator, the eigenpairs."""

import copy
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.landscape import eigenvectors
from plastiscope.landscape.forecast import (
    Forecast,
    Scene,
    fitted,
    forecast,
    planned_pairs,
    planned_probes,
    refuse_too_long,
    with_steps,
)
from plastiscope.landscape.routes import Routes, choose_routes
from plastiscope.landscape.settings import LandscapeSettings, described, filled
from plastiscope.landscape.slices import are_sharded, joined, sliced, some, without_effect
from plastiscope.landscape.work import Work
from plastiscope.measure.landscape.batching import couples_samples, refuse_random
from plastiscope.measure.landscape.eigenpairs import Eigenpairs
from plastiscope.measure.landscape.frozen import FrozenLoss, PerSampleLoss, rows
from plastiscope.measure.landscape.krylov import vector_bytes
from plastiscope.measure.landscape.memory import budget
from plastiscope.measure.landscape.operator import Backend, HessianOperator, NonFiniteProduct, self_check
from plastiscope.measure.landscape.preserved import landscape_of, preserved
from plastiscope.measure.loss import Loss
from plastiscope.run.processes import Part, Processes
from plastiscope.run.snapshots import digest

ASYMMETRY = 1e-4
"""Of products of an operator, above which it is no Hessian."""
DIFFERENCE = 1e-3
"""Of a curvature by products from one by differences of the loss, above which one of them is wrong."""
State = Mapping[str, Tensor]
Numbers = dict[str, float]


@dataclass(frozen=True)
class SavedPoint:
    """Weights that were saved: a name such as "epoch 12", and how to load the state dict."""

    name: str
    load: Callable[[], State]


@dataclass(frozen=True)
class Here:
    """Where the weights that are looked at lie on a path.

    Attributes:
        name: of them.
        before: points of the path that come before them; None = all.
        is_known: whether that is so; if not, they come last in the files, and no line joins them to the path.
    """

    name: str = "the weights"
    before: int | None = None
    is_known: bool = True


@dataclass(frozen=True, eq=False, kw_only=True)
class Landscape:
    """A network, a loss and data, and where results go.

    Attributes:
        net: the network; as before afterwards.
        inputs, targets: the frozen set, on the network's device.
        loss: of each sample: a `Loss`, or any function of outputs and targets.
        active_outputs: the loss sees the first so many outputs; None = all.
        folder: for results.
        settings: what to compute.
        seed: of all random numbers.
        weight_decay: lambda, for `loss.include_weight_decay`.
        path: saved weights of the training, oldest first, without those of `net`; for the trajectory plane.
        here: where among them those of `net` lie.
        start: the other end of the curves of mode connectivity.
        without_start: why there is none, for the record.
        test: inputs and targets of samples that were not trained on, for the curves.
        training_inputs: for running statistics along the curves and, by `bn.policy=recompute`, in planes; None = the
            frozen set.
        training_batch: samples in a batch of the training, for the same.
        processes: who shares the work.
        ids: of the samples (of all processes), for the record.
        is_slice: inputs and targets are those of this process, the other ones hold the rest, in the order of ranks.
        routes: those of an earlier look of the same run; None = choose.
        tells: print the forecast.
        about: facts for the record: task, name of the network, ...
    """

    net: nn.Module
    inputs: Tensor
    targets: Tensor
    loss: Loss | PerSampleLoss
    folder: Path
    active_outputs: int | None = None
    settings: LandscapeSettings = field(default_factory=LandscapeSettings)
    seed: int = 0
    weight_decay: float = 0.0
    path: Sequence[SavedPoint] = ()
    here: Here = Here()
    start: SavedPoint | None = None
    without_start: str = "no other end was given"
    test: tuple[Tensor, Tensor] | None = None
    training_inputs: Tensor | None = None
    training_batch: int = 64
    processes: Processes = field(default_factory=Processes)
    ids: Tensor | None = None
    is_slice: bool = False
    routes: Routes | None = None
    tells: bool = True
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Look:
    """One look under way; only inside `opened`.

    Attributes:
        landscape: what is looked at.
        settings: its settings, filled in by profile and budget.
        frozen: the loss.
        work: shared pieces, files, seconds.
        facts: for summary.json: what was chosen, cut and warned of.
        routes: how products and losses are computed, and what they cost.
        forecast: of the cost, under these settings.
        products: with the Hessian, counted whoever computed them.
    """

    landscape: Landscape
    settings: LandscapeSettings
    frozen: FrozenLoss
    work: Work
    routes: Routes
    forecast: Forecast
    facts: dict[str, Any] = field(default_factory=dict)
    products: int = 0

    @property
    def seed(self) -> int:
        """Of all random numbers."""
        return self.landscape.seed

    @property
    def micro_batch(self) -> int:
        """Samples in a forward of planes and curves."""
        return self.routes.forward_batch

    @cached_property
    def weights(self) -> Tensor:
        """theta, [D]."""
        return self.frozen.space.values(self.frozen.net)

    @cached_property
    def operator(self) -> HessianOperator:
        """The Hessian, by the route that is set or was the fastest."""
        return HessianOperator(self.frozen, Backend(self.routes.backend))

    @cached_property
    def checked(self) -> dict[str, Any]:
        """What one process finds out about the operator before it is used (see `check`); noted in the facts."""
        found = self.work.facts("check", lambda: check(self.operator, self.seed))
        self.products += found.pop("products")
        self.facts["self_check"] = found
        self.warn(*found.pop("warnings"))
        return found

    def warn(self, *texts: str) -> None:
        """Keep sentences for the record."""
        known = self.facts.setdefault("warnings", [])
        known.extend(text for text in texts if text not in known)

    @cached_property
    def eigenpairs(self) -> Eigenpairs:
        """The extreme pairs that spectrum and planes need, top ones first; one process computes them.

        Raises:
            NonFiniteProduct: there is no spectrum here; in every process.
        """
        if self.checked["fault"]:
            raise NonFiniteProduct(self.checked["fault"])

        def search() -> Part:
            with self.work.steps("eigenpairs", eigenvectors.most_steps(self.settings)) as done:
                return eigenvectors.compute(self.operator, self.settings, self.seed, self.room(), done)

        part = self.work.once("eigenpairs", search)
        pairs = eigenvectors.restored(part, self.weights.device)
        self.products += pairs.products
        self.warn(*pairs.notes)
        return pairs

    def room(self) -> int:
        """Bytes that a basis may take now; where processes look together, in the one that has the least."""
        return _room(self.frozen, self.work)

    def eigenvectors(self) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Values float64 [n], unit rows [n, D], residuals float64 [n], and whether the first two span a unique plane.

        Those at the top come first, in their order, then the smallest ones, descending.

        Raises:
            NonFiniteProduct: there is no spectrum here; in every process.
        """
        pairs = self.eigenpairs
        return pairs.values, pairs.vectors, pairs.residuals, pairs.is_plane_unique

    def common(self) -> dict[str, Any]:
        """What every result's record carries."""
        frozen = self.frozen
        return {
            "dtype": str(frozen.parameters[0].dtype).removeprefix("torch."),
            "params": self.settings.params,
            "dimension": frozen.space.dimension,
            "samples": frozen.total_samples,
            "evaluation_set": frozen.fingerprint,
            "mode": "eval",
            "bn_policy": self.settings.bn.policy.value,
            "weight_decay": frozen.weight_decay,
            "seed": self.seed,
            "device": str(frozen.inputs.device),
            "versions": versions(),
        }


@contextmanager
def opened(landscape: Landscape) -> Iterator[Look]:
    """A look; inside, the network is in evaluation mode, afterwards everything is as before.

    Raises:
        ConfigError: the forecast is above what the budget allows, or network, loss and data do not fit together.
    """
    settings = filled(landscape.settings)
    dtype = getattr(torch, settings.dtype)
    net = landscape.net if _is_of(landscape.net, dtype) else copy.deepcopy(landscape.net).to(dtype)
    _refuse_single(net, _as(landscape.inputs, dtype), settings)
    with landscape_of(
        net,
        _as(landscape.inputs, dtype),
        _as(landscape.targets, dtype),
        loss=landscape.loss,
        active_outputs=_outputs(net, landscape, dtype),
        params=settings.params,
        micro_batch=min(settings.evaluation_data.eval_batch_size, len(landscape.inputs)),
        weight_decay=landscape.weight_decay if settings.loss.include_weight_decay else 0.0,
    ) as frozen:
        processes = landscape.processes
        frozen = replace(frozen, sharing=processes.sharing(frozen.inputs.device))
        frozen = _alone_or_coupled(frozen)
        if landscape.is_slice:
            if frozen.coupling:
                raise ConfigError(f"shard_data: {frozen.coupling} couples samples; set shard_data=false")
            frozen = joined(frozen, processes)
        elif are_sharded(settings, processes, net, len(frozen), _bytes(frozen), frozen.inputs.device, frozen.coupling):
            if landscape.training_inputs is None:
                landscape = replace(landscape, training_inputs=landscape.inputs)
            frozen = sliced(frozen, processes)
        work = Work(landscape.folder, _identity(landscape, settings, frozen), processes)
        with work.phase("timing"):
            look = _prepared(landscape, settings, frozen, work)
        yield look


def _alone_or_coupled(frozen: FrozenLoss) -> FrozenLoss:
    """The loss, marked where samples turn out to depend on those beside them.

    Raises:
        ConfigError: the network is random.
    """
    refuse_random(frozen)
    if frozen.coupling_modules or not couples_samples(frozen):
        return frozen
    return replace(frozen, coupling="a function that the network or the loss calls")


def _identity(landscape: Landscape, settings: LandscapeSettings, frozen: FrozenLoss) -> dict[str, Any]:
    """All that the results depend on, but for the routes, which are themselves a part."""
    return {
        "weights": digest(landscape.net.state_dict()),
        "data": frozen.fingerprint,
        "active_outputs": frozen.active_outputs,
        "weight_decay": frozen.weight_decay,
        "settings": described(settings),
        "seed": landscape.seed,
        "slices": landscape.processes.world if frozen.shards else 1,
    }


def _prepared(landscape: Landscape, settings: LandscapeSettings, frozen: FrozenLoss, work: Work) -> Look:
    """Routes, forecast and cuts: what one process decides for all, and for a resume."""
    scene = Scene(
        samples=frozen.total_samples,
        dimension=frozen.space.dimension,
        itemsize=frozen.parameters[0].element_size(),
        path=bool(landscape.path),
        start=landscape.start is not None,
        processes=landscape.processes.world,
    )
    planned = planned_pairs(settings, scene.dimension) + planned_probes(settings, scene)

    def choose() -> dict[str, Any]:
        known = landscape.routes
        own = frozen.alone()  # one process chooses, and waits for no other
        routes = known or choose_routes(own, settings, planned, may_time=not landscape.processes.is_ahead)
        return {"routes": routes.facts, "vectors": _room(own, work) // vector_bytes(HessianOperator(own))}

    chosen = work.facts("routes", choose)
    work.is_together = frozen.shards is not None
    routes = Routes.restored(chosen["routes"])
    settings, cuts = fitted(settings, routes, scene)
    settings, too_many = with_steps(settings, chosen["vectors"], scene)
    cuts += too_many
    _refuse_single(frozen.net, frozen.inputs, settings)
    expected = forecast(settings, routes, scene)
    refuse_too_long(settings, expected)
    if landscape.tells:
        work.say(f"landscape: {expected.told()}" + "".join(f"; {c['key']} cut to {c['to']}" for c in cuts))
    look = Look(
        landscape=landscape,
        settings=settings,
        frozen=_some(frozen, settings, landscape.processes).with_micro_batch(routes.product_batch),
        work=work,
        routes=routes,
        forecast=expected,
        facts={"routes": routes.facts, "forecast": expected.facts, "cuts": cuts},
    )
    look.frozen.fingerprint  # noqa: B018  # where samples are sharded all ask together, once
    if frozen.shards:
        look.facts["slices"] = {"processes": landscape.processes.world}
    if reason := without_effect(settings, landscape.processes):
        look.warn(reason)
        if landscape.tells:
            work.say(f"landscape: {reason}")
    if frozen.coupling_modules:
        look.warn(
            f"{frozen.coupling_modules[0]} normalises without running statistics, so the loss of a sample depends on "
            f"its micro-batch: {routes.product_batch} samples, which is not tuned"
        )
    if too_many:
        look.warn(f"memory holds {chosen['vectors']} Lanczos vectors, so the runs of the density are that short")
    if cuts and settings.budget.max_seconds and expected.seconds > settings.budget.max_seconds:
        look.warn("the budget is exceeded all the same: everything that may be cut is as small as it may be")
    return look


def _some(frozen: FrozenLoss, settings: LandscapeSettings, processes: Processes) -> FrozenLoss:
    """The loss over as many samples as are asked for."""
    asked = settings.evaluation_data.num_samples
    return frozen if asked is None or asked >= frozen.total_samples else some(frozen, asked, processes)


def _room(frozen: FrozenLoss, work: Work) -> int:
    """Bytes that a basis of vectors may take; the same in processes that look together."""
    room = budget(frozen.inputs.device, sharing=frozen.sharing)
    return int(work.processes.least(float(room))) if work.is_together else room


def _bytes(frozen: FrozenLoss) -> int:
    return frozen.inputs.nbytes + frozen.targets.nbytes


def _refuse_single(net: nn.Module, inputs: Tensor, settings: LandscapeSettings) -> None:
    """A batch normalisation without running statistics knows no variance of a last batch of a single sample.

    Raises:
        ConfigError: there is such a batch, and the network fails on it.
    """
    data, n = settings.evaluation_data, len(inputs)
    asked = n if data.num_samples is None else min(n, data.num_samples)
    if not asked or all(min(data.eval_batch_size, k) > 1 and k % data.eval_batch_size != 1 for k in (n, asked)):
        return
    try:
        with preserved(net), torch.no_grad():
            net(inputs[:1])
    except ValueError as error:
        fits = [size for size in range(2, n + 1) if n % size != 1 and asked % size != 1]
        near = min(fits, key=lambda size: abs(size - data.eval_batch_size), default=None)
        way = "take two samples or more" if near is None else f"set evaluation_data.eval_batch_size={near}"
        raise ConfigError(
            f"{asked} samples leave a batch of a single one, on which the network fails ({error}): {way}"
        ) from None


def check(operator: HessianOperator, seed: int) -> dict[str, Any]:
    """Loss and gradient at the weights, whether products are symmetric and repeatable, parameters without influence.

    `fault` says why there is no spectrum; "" where there is one.
    """
    frozen, before = operator.frozen, operator.count
    point, norm = frozen.measure(), frozen.gradient().double().norm().item()
    unused = frozen.without_influence()
    found: dict[str, Any] = {"loss": point.loss, "standard_error": point.standard_error, "accuracy": point.accuracy}
    found |= {"gradient_norm": norm, "parameters_without_influence": list(unused), "fault": "", "warnings": []}
    if unused:
        found["warnings"].append(f"the loss does not depend on {', '.join(unused)}: zeros in the Hessian")
    if not (math.isfinite(point.loss) and math.isfinite(norm)):
        found["fault"] = "loss or gradient are not finite at the weights, so there is no spectrum"
        return found | {"products": 0}
    try:
        checked = self_check(operator, seed)
        found |= {"symmetry": checked.symmetry, "is_repeatable": checked.is_repeatable}
        if checked.symmetry > ASYMMETRY:
            found["warnings"].append(f"products are not symmetric ({checked.symmetry:.1e}); do not trust the spectrum")
        if math.isfinite(checked.difference):
            found["difference"] = checked.difference
        if checked.difference > DIFFERENCE:
            found["warnings"].append(
                f"products are not the curvature that differences of the loss show ({checked.difference:.1e} of it); "
                "do not trust the spectrum"
            )
        if not checked.is_repeatable:
            found["warnings"].append("the same product twice gives other bits on this device")
    except NonFiniteProduct as error:
        found["fault"] = str(error)
    return found | {"products": operator.count - before}


@cache
def versions() -> dict[str, str]:
    """Of what computed the numbers."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("plastiscope", "torch", "numpy")}}


def _is_of(net: nn.Module, dtype: torch.dtype) -> bool:
    return all(p.dtype == dtype for p in net.parameters())


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _outputs(net: nn.Module, landscape: Landscape, dtype: torch.dtype) -> int:
    if landscape.active_outputs is not None:
        return landscape.active_outputs
    with preserved(net), torch.no_grad():
        return rows(net(_as(landscape.inputs[:2], dtype))).shape[1]
