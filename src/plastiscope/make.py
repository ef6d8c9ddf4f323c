"""What a run is made of, out of its plan: device, threads, data, tasks, networks, learner, what its callbacks see."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plastiscope.allocator import keep_freed_pages
from plastiscope.branch import Branch
from plastiscope.build import Plan
from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError
from plastiscope.event import Context
from plastiscope.formats.checkpoints import fit
from plastiscope.learner.learner import Learner, Reset
from plastiscope.learner.trainee import InitialNet, Trainee
from plastiscope.learner.training_forward import Compile, Precision, TrainingForward
from plastiscope.measure.keyed import named_seed
from plastiscope.net.describe import describe
from plastiscope.net.units import UnitDescription
from plastiscope.replicas import (
    Made,
    check_memory,
    check_tasks,
    memory_of_a_run,
    optimizer_of,
    plans_of,
    refuse_loaders,
    refuse_what_is_slower,
    stack_networks,
    views_of,
)
from plastiscope.run.generators import seed_generators
from plastiscope.run.journal import Journal
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.snapshots import SavedWeights
from plastiscope.selection import BestWeights, Selection
from plastiscope.task_shift_mode.task import TaskShift
from plastiscope.trained_run import TrainedRun


def choose_device(wanted: str) -> torch.device:
    """The torch device for `device`.

    Raises:
        ConfigError: it is not there.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"device={wanted}: torch finds no such device here; use device=cpu or device=auto") from None
    return device


def set_threads(plan: Plan, stored: dict[str, Any] | None, net: nn.Module, torchs_choice: int) -> None:
    """As the run began, as the settings say, or: one for a small network, else torch's choice."""
    before = None if stored is None else stored.get("threads")
    torch.set_num_threads(before or plan.settings.threads or (1 if _is_small(net) else torchs_choice))
    if before is not None and plan.settings.threads not in (None, before):
        print(f"threads={before}, as the run began: another count would change its numbers", flush=True)


def _is_small(net: nn.Module) -> bool:
    """Whether more than one thread only costs time: fully connected, less than a million parameters."""
    layered = any(isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.LayerNorm) for m in net.modules())
    return not layered and sum(p.numel() for p in net.parameters()) < 1_000_000


def load_tasks(plan: Plan, device: torch.device) -> tuple[DataSet, TaskShift]:
    """The data and the sequence of tasks.

    Raises:
        ConfigError: more tasks are wanted than the data allow.
        DataError: the data are missing or damaged.
    """
    data = plan.data.load(plan.settings.seed, device)
    shift = plan.task_shift_mode.make(data, plan.settings.seed)
    selects = plan.settings.selection is Selection.val_best and plan.settings.replay.folder is None
    if selects and shift.task(0).validation is None:
        raise ConfigError(
            "selection=val_best needs validation samples, these data have none; "
            "set data.validation_share=0.1 or selection=last"
        )
    most = shift.num_tasks_possible
    if most is not None and plan.settings.num_tasks > most:
        raise ConfigError(f"num_tasks={plan.settings.num_tasks}: at most {most} are possible ({shift.limit_reason})")
    return data, shift


def make_net(plan: Plan, input_shape: tuple[int, ...], outputs: int, k: int = 0) -> nn.Module:
    """The k-th freshly initialised network of a run on the CPU, always the same bits; k = 0 is the one it trains."""
    with torch.random.fork_rng([]):
        torch.manual_seed(named_seed(plan.settings.seed, "net", k))
        return plan.net.make(input_shape, outputs)


def make_learner(
    plan: Plan, shift: TaskShift, data: DataSet, device: torch.device, branch: Branch | None = None
) -> Learner:
    """The learner with its network on the device, and the global generators seeded.

    Raises:
        RunError: the weights of `branch` are of another network.
    """
    keep_freed_pages()
    initial_net = _initial_net(plan, data, shift)
    net = _first_net(initial_net, branch)
    units = _described(net, data)
    net.to(device)
    if getattr(net, "prefers_channels_last", False):
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    seed_generators(named_seed(plan.settings.seed, "run"))
    return plan.learner.make(Trainee(net, units, initial_net, plan.settings.seed))


def _first_net(initial_net: InitialNet, branch: Branch | None) -> nn.Module:
    """The network with which a run begins."""
    net = initial_net(0)
    if branch is not None:
        fit(net, branch.weights, branch.where)
    return net


def _initial_net(plan: Plan, data: DataSet, shift: TaskShift) -> InitialNet:
    return lambda k: make_net(plan, data.input_shape, shift.outputs, k)


def _described(net: nn.Module, data: DataSet) -> UnitDescription:
    with torch.random.fork_rng([]):
        return describe(net, torch.zeros(2, *data.input_shape))


def make_all(plan: Plan, device: torch.device, branches: Sequence[Branch] = ()) -> Made:
    """Data, tasks, networks and learner of a plan; with `branches`, one for each run, their weights to begin with.

    Raises:
        ConfigError: runs that cannot advance together.
        RunError: the weights of a branch are of another network.
    """
    data, shift = load_tasks(plan, device)
    if plan.settings.replicas > 1:
        return _make_several(plan, device, branches, data, shift)
    learner = make_learner(plan, shift, data, device, branches[0] if branches else None)
    return Made(plan, [plan], [data], [shift], [learner.net], learner)


def _make_several(
    plan: Plan, device: torch.device, branches: Sequence[Branch], data: DataSet, shift: TaskShift
) -> Made:
    """The same of runs that advance together, on stacked networks; `data` and `shift` are those of the first."""
    one = make_net(plan, data.input_shape, shift.outputs)
    refuse_loaders(data, plan.settings.replicas)
    refuse_what_is_slower(one, device)
    units = _described(one, data)
    check_memory(plan, memory_of_a_run(plan, one, units, data.input_shape), device)
    plans = plans_of(plan)
    loaded = [load_tasks(alone, device) for alone in plans]
    made, shifts = [data for data, _ in loaded], [shift for _, shift in loaded]
    check_tasks(shifts, plan.settings.num_tasks)
    keep_freed_pages()
    initial_nets = [_initial_net(alone, *both) for alone, both in zip(plans, loaded, strict=True)]
    begun: list[Branch | None] = [*branches] or [None] * len(plans)
    first_nets = [_first_net(*both) for both in zip(initial_nets, begun, strict=True)]
    stacked, initial_net = stack_networks(first_nets, initial_nets, torch.zeros(2, *made[0].input_shape))
    stacked.to(device)
    seed_generators(named_seed(plan.settings.seed, "run"))
    seeds = [one.settings.seed for one in plans]
    learner = plan.learner.make(Trainee(stacked, units, initial_net, seeds, lead=1))
    nets = views_of(stacked, lambda: initial_nets[0](0).to(device), len(plans))
    return Made(plan, plans, made, shifts, nets, learner)


def training_forward(plan: Plan, learner: Learner, device: torch.device) -> TrainingForward | None:
    """How the network runs in a step; None as it is.

    Raises:
        ConfigError: the learner or the device cannot have it so.
    """
    precision, compiled = plan.settings.precision, plan.settings.compile
    if precision is not Precision.bfloat16 and compiled is Compile.none:
        return None
    if learner.works_in_blocks:
        raise ConfigError("learner.autograd=false: its steps are float32 and not compiled; leave precision and compile")
    if compiled is not Compile.none and learner.hears_modules:
        raise ConfigError(
            "compile: this learner hears the modules of the network in a step, and a compiled network does not call "
            "them; set compile=none"
        )
    if compiled is Compile.cuda_graphs and device.type != "cuda":
        raise ConfigError(f"compile=cuda_graphs: device={device} has no CUDA graphs; set compile=default or none")
    return TrainingForward(learner.net, precision, compiled)


def make_context(
    plan: Plan, shift: TaskShift, learner: Learner, snapshots: SavedWeights, samples: SampleStore, folder: Path
) -> Context:
    """What the callbacks of a run in `folder` see, before its first task."""
    settings = plan.settings
    return Context(
        seed=settings.seed,
        num_tasks=settings.num_tasks,
        epochs=settings.epochs,
        shift=shift,
        net=learner.net,
        units=learner.units,
        optimizer=learner.optimizer,
        batch_size=settings.batch_size,
        run_folder=folder,
        arch=plan.arch,
        snapshots=snapshots,
        sample_store=samples,
        sample_settings=settings.samples,
        owned_metrics=frozenset(metric for analysis in plan.analyses for metric in analysis.owns()),
        learner_resets_head=plan.learner.reset is not Reset.nothing,
        data_name=plan.data_name,
        label_noise=float(getattr(plan.data, "label_noise", 0.0)),
    )


def make_run(made: Made, r: int, journal: Journal) -> TrainedRun:
    """One of the runs that are trained, which writes through `journal`."""
    plan, learner = made.plans[r], made.learner
    context = make_context(plan, made.shifts[r], learner, journal.snapshots, journal.samples, journal.folder)
    if learner.lead:
        context.net = made.nets[r]
        context.optimizer = optimizer_of(learner.optimizer, learner.net, context.net)
    best = BestWeights(plan.settings.selection)
    return TrainedRun(index=r, context=context, callbacks=plan.analyses, journal=journal, best=best)
