"""Input curvature of each sample: how sharply its loss bends around it, from gradients at random points close by.

- values of each sample: `input_curv_norm`, `input_curv_fro2`, `input_trace`, `input_rayleigh_mean` (definitions in
  measure/input_curvature.py); `grad_input_l2`, unless another analysis has kept it for that epoch; on request
  `grad_param_l2`, `input_curv_noise` and the published `legacy_curv`, `legacy_directional_eig`.
- numbers of each look, `curvature/train/total/<metric>`: the means of these; `below_noise`, the share of samples whose
  `input_curv_norm` is not above what rounding alone gives.
- at task ends `summary.json`: settings, the means at each look, the engine of the parameter gradients and why.

One look costs n + 1 forwards and backwards of all samples (n = `directions`), with central differences 2 n + 1.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.analysis.per_sample import SampleAnalysis, Score, mean
from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError, require
from plastiscope.event import Context, Numbers
from plastiscope.measure.input_curvature import Difference, Probe, in_double, input_curvature, legacy_divisors
from plastiscope.measure.sample_gradient import (
    Choice,
    Engine,
    choose_engine,
    parameter_gradient_norms,
    require_separate_samples,
    why_not,
)
from plastiscope.run.sample_store import Values
from plastiscope.run.storage import write_json
from plastiscope.task_shift_mode.task import Task

GRADIENT, BELOW = "grad_input_l2", "below_noise"
LEGACY = ("legacy_curv", "legacy_directional_eig")


class Precision(Enum):
    """In which numbers the network is evaluated."""

    float32 = "float32"
    float64 = "float64"
    """A copy of the network in double precision; about twice the time."""


class EngineSetting(Enum):
    """How the norms of parameter gradients are computed."""

    auto = "auto"
    """ghost if it can treat the network, else vmap, else loop: follows from the network alone."""
    fastest = "fastest"
    """What takes the least time on the first batch; kept with the run, so a resume uses it again. Two runs may choose
    differently and then differ by rounding. On several processes the same as auto."""
    ghost = "ghost"
    vmap = "vmap"
    loop = "loop"


@dataclass(kw_only=True)
class Curvature(SampleAnalysis):
    """Input curvature of every sample; the last epoch of each task is always looked at."""

    every: int = 10
    """Epochs from one look to the next; the last epoch of each task is looked at besides."""
    directions: int = 10
    """Random directions for each sample, n."""
    difference: Difference = Difference.forward
    """forward: the gradient at the sample is shared by all directions; central: twice the cost, smaller error."""
    h: float | None = None
    """Step, in normalised units of the input (with `pixel_std` in pixel units); null = 1e-3, central 1e-2."""
    temperature: float = 1.0
    """Outputs are divided by it before the loss; grad_input_l2 is of that loss too and is kept only at 1."""
    precision: Precision = Precision.float32
    """float32 or float64."""
    pixel_std: list[float] | None = None
    """Deviations by which the pixels were divided, one for each channel or one for all: curvature in pixel units by
    the chain rule; null = normalised units. grad_input_l2 stays in normalised units."""
    noise: bool = False
    """Also keep what rounding alone gives for each sample, `input_curv_noise`."""
    legacy: bool = False
    """Also the published quantities, `legacy_curv` (= h times the norm) and `legacy_directional_eig` (= h^2 times the
    trace)."""
    legacy_batch: int | None = None
    """Batch size of a published script that took the mean loss: its values are divided by the size of the batch that
    each sample was in, the last one smaller; null = summed loss."""
    parameter_gradient: bool = False
    """Also the norm of each sample's gradient by all parameters that are trained, `grad_param_l2`."""
    engine: EngineSetting = EngineSetting.auto
    """Of the parameter gradients: auto, fastest, ghost, vmap, loop."""

    name = "curvature"
    is_late = True
    """Keeps an input gradient that no other analysis has kept."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        require(self.directions >= 1, "directions", self.directions, "must be 1 or more")
        require(self.h is None or self.h > 0, "h", self.h, "must be above 0, or null")
        require(self.temperature > 0, "temperature", self.temperature, "must be above 0")
        stds = self.pixel_std
        require(stds is None or (len(stds) > 0 and min(stds) > 0), "pixel_std", stds, "each must be above 0")
        batch = self.legacy_batch
        require(
            batch is None or (self.legacy and batch >= 1), "legacy_batch", batch, "needs legacy=true, and 1 or more"
        )
        self._choice: Choice | None = None

    def on_run_begin(self, context: Context) -> None:
        """Refuse a network whose samples see each other, and deviations that do not fit the inputs."""
        require_separate_samples(context.net)
        self._unit(context.shift.task(0).train.input_shape, torch.device("cpu"))

    def epochs(self, context: Context) -> list[int]:
        """Epochs that are due, and the last one of the task."""
        last = [e for e in context.epochs_of_task() if e > 0][-1:]
        return sorted({*super().epochs(context), *last})

    def look(self, context: Context) -> Numbers:
        """Probe all samples, write the rows, return the means."""
        if self.parameter_gradient and self._choice is None:
            self._choice = self._choose(context)
        values = self.score_all(context, self.score(context, context.current_task))
        if self.legacy_batch is not None:
            self._divide(context, values)
        below = {BELOW: values.pop(BELOW)}
        gradient = {GRADIENT: values.pop(GRADIENT)}
        shared = self.fill_in(context, gradient) if self.temperature == 1 else {}  # else not the task's own loss
        return self.record(context, values) | shared | self.means(context, below)

    def score(self, context: Context, task: Task) -> Score:
        """Curvature and gradient norms of a batch; NaN for samples whose class has not entered."""
        later = torch.from_numpy(self.samples(context).later_ids).to(task.train.rows.device)
        net = context.net if self.precision is Precision.float32 else in_double(context.net)
        probe = self._probe(context, task)

        def score(batch: Batch) -> dict[str, Tensor]:
            enters = ~torch.isin(batch.ids, later)
            if not enters.all():
                nothing = torch.full((len(batch.ids),), float("nan"), device=batch.ids.device)
                return dict.fromkeys(self._metrics(), nothing)
            return self._values(net, context, task, batch, probe)

        return score

    def on_task_end(self, context: Context) -> None:
        """Write what was measured, and how."""
        store, k = context.sample_store, context.task_idx
        if not context.processes.is_first or k not in store.tasks():
            return
        store.sync()
        block, kept = store.block(k), [m for m in self._metrics() if m in store.block(k).metrics()]
        train = self.samples(context).subsets["train"]
        means = {
            m: {e: mean(row[train]) for e, row in block.rows(m).items() if e in self.epochs(context)} for m in kept
        }
        about = {
            "settings": dataclasses.asdict(self),
            "step": self._probe(context, context.current_task).h,
            "samples": len(block.ids),
            "epochs_completed": self.epochs(context),
            "means": means,
        }
        if self._choice is not None:
            about |= {"engine": self._choice.engine.value, "engine_reason": self._choice.reason}
        write_json(context.folder(self.name) / "summary.json", about)

    def state_dict(self) -> dict[str, Any]:
        """The engine chosen for the parameter gradients."""
        return {} if self._choice is None else {"engine": self._choice.engine.value, "reason": self._choice.reason}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._choice = Choice(Engine(state["engine"]), state["reason"]) if state else None

    def _metrics(self) -> list[str]:
        """All that `score` gives for a sample."""
        return [
            *("input_curv_norm", "input_curv_fro2", "input_trace", "input_rayleigh_mean", GRADIENT, BELOW),
            *(["input_curv_noise"] if self.noise else []),
            *(LEGACY if self.legacy else []),
            *(["grad_param_l2"] if self.parameter_gradient else []),
        ]

    def _values(self, net: nn.Module, context: Context, task: Task, batch: Batch, probe: Probe) -> dict[str, Tensor]:
        inputs, targets = self._cast(batch.inputs), self._cast(batch.targets)
        found = input_curvature(net, task.loss, inputs, targets, batch.ids, task.active_outputs, probe)
        values = {
            "input_curv_norm": found.norm,
            "input_curv_fro2": found.fro2,
            "input_trace": found.trace,
            "input_rayleigh_mean": found.rayleigh_mean,
            GRADIENT: found.gradient_norms,
            BELOW: found.norm <= found.noise,
            "input_curv_noise": found.noise,
            "legacy_curv": found.legacy_curv,
            "legacy_directional_eig": found.legacy_directional_eig,
        }
        if self.parameter_gradient:
            assert self._choice is not None
            values["grad_param_l2"] = parameter_gradient_norms(
                net, task.loss, inputs, targets, task.active_outputs, self._choice.engine, _trained(context)
            )
        return {metric: values[metric] for metric in self._metrics()}

    def _cast(self, values: Tensor) -> Tensor:
        return values.double() if self.precision is Precision.float64 and values.is_floating_point() else values

    def _probe(self, context: Context, task: Task) -> Probe:
        return Probe(
            seed=context.seed,
            directions=self.directions,
            difference=self.difference,
            step=self.h,
            temperature=self.temperature,
            unit=self._unit(task.train.input_shape, task.train.rows.device),
        )

    def _unit(self, shape: Sequence[int], device: torch.device) -> Tensor | None:
        """Size of a pixel unit in normalised units, broadcasting against an input of `shape`."""
        if self.pixel_std is None:
            return None
        if len(self.pixel_std) not in (1, shape[0]):
            raise ConfigError(
                f"{self.name}.pixel_std={self.pixel_std}: must be one number, or one for each of {shape[0]} channels"
            )
        dtype = torch.float64 if self.precision is Precision.float64 else torch.float32
        stds = torch.tensor(self.pixel_std, dtype=dtype, device=device)
        return (1 / stds).view(-1, *[1] * (len(shape) - 1))

    def _divide(self, context: Context, values: dict[str, Values]) -> None:
        """The published scale of a mean-reduced loss, over the samples of each subset in their order."""
        assert self.legacy_batch is not None
        for columns in self.samples(context).subsets.values():
            for metric in LEGACY:
                part = values[metric][columns]
                part /= legacy_divisors(len(part), self.legacy_batch).numpy()

    def _choose(self, context: Context) -> Choice:
        """The engine for the parameter gradients, by the first batch of the task."""
        task = context.current_task
        batch = next(task.train.batches(self.batch_size))
        arguments = context.net, task.loss, batch.inputs, batch.targets, task.active_outputs
        if self.engine in (EngineSetting.auto, EngineSetting.fastest):
            by_timing = self.engine is EngineSetting.fastest and context.processes.world == 1
            return choose_engine(*arguments, by_timing, _trained(context))
        engine = Engine(self.engine.value)
        if reason := why_not(engine, *arguments, _trained(context)):
            raise ConfigError(
                f"{self.name}.engine={engine.value}: cannot treat this network ({reason}); set it to auto"
            )
        return Choice(engine, "as set")


def _trained(context: Context) -> set[str] | None:
    """Names of the parameters that the optimiser has; None = all, if it has none of them."""
    trained = {id(p) for group in context.optimizer.param_groups for p in group["params"]}
    return {name for name, p in context.net.named_parameters() if id(p) in trained} or None
