"""One run, from its plan to its finished folder: seed, build, resume, train or replay, status, clean-up."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plastiscope.allocator import keep_freed_pages
from plastiscope.branch import Branch, open_branches
from plastiscope.build import Plan, as_known_to, build, plain, read_config
from plastiscope.data.samples import DataSet
from plastiscope.desk import Desk, record_failure
from plastiscope.error import ConfigError, RunError, of_the_disk
from plastiscope.event import Context
from plastiscope.follow import follow, left_to_the_first
from plastiscope.formats.checkpoints import fit
from plastiscope.identity import changed_since, holds_finished
from plastiscope.learner.learner import Learner, Reset
from plastiscope.learner.trainee import InitialNet, Trainee
from plastiscope.learner.training_forward import Compile, Precision, TrainingForward, products_in
from plastiscope.loop import Loop
from plastiscope.measure.keyed import named_seed
from plastiscope.net.describe import describe
from plastiscope.net.units import UnitDescription
from plastiscope.replay import Replay, goes_on, refuse_training
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
from plastiscope.run.checkpoint import Checkpoints
from plastiscope.run.folder import in_use
from plastiscope.run.forecast import Forecast
from plastiscope.run.generators import seed_generators
from plastiscope.run.processes import Processes, join_processes, leave_processes
from plastiscope.run.progress import Progress
from plastiscope.run.roster import Roster
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.signals import Preempted
from plastiscope.run.snapshots import SavedWeights, Snapshots
from plastiscope.run.status import State, write_status
from plastiscope.run.storage import read_json
from plastiscope.selection import BestWeights, Selection
from plastiscope.source import Source, check_data, open_source, with_class_order
from plastiscope.task_shift_mode.task import TaskShift
from plastiscope.trainer import Position, TrainedRun, Trainer


def run(plan: Plan, folder: Path, overrides: list[str] | None = None) -> None:
    """Train `plan` in `folder`, or walk the saved weights that `replay.folder` names; go on where the folder stands.

    With `dry_run` only say what that would do and cost.

    Under torchrun or srun the first process trains and writes, and all share the analyses out.

    Raises:
        PlastiscopeError: what the user can mend; the status says `failed` if the run had begun.
        SystemExit: a signal stopped the run, which is saved; the exit code is 128 + the signal's number.
    """
    processes = join_processes()
    if processes.world == 1:
        return _run(plan, folder, overrides or [], processes)
    folder = processes.agreed(folder)  # the time in its name is that of the first process
    try:
        with _enrolled(folder, processes) as together:
            _run(plan, folder, overrides or [], together)
    finally:
        leave_processes()


@contextmanager
def _enrolled(folder: Path, processes: Processes) -> Iterator[Processes]:
    """Inside, several processes know of each other which of them are there.

    Raises:
        RunError: others work in the folder already.
    """
    roster = Roster(folder / ".processes", processes.rank, processes.world)
    in_order = True
    try:
        if not processes.least(roster.is_ours):
            raise in_use(folder)
        in_order = False
        roster.sign()
        processes.barrier()  # from here on, a lock that is open is that of a process that has gone
        yield replace(processes, roster=roster)
        in_order = True
    finally:
        roster.leave(in_order)


def _run(plan: Plan, folder: Path, overrides: list[str], processes: Processes) -> None:
    if processes.world > 1 and plan.settings.replicas > 1:
        raise ConfigError(f"replicas={plan.settings.replicas}: take one process, they advance together in it")
    plan, stored, is_done = _where_it_stands(plan, folder)
    if is_done:
        if processes.rank == 0:
            more = " Raise num_tasks to go on." if plan.settings.replay.folder is None else ""
            print(f"{folder} is done already ({plan.settings.num_tasks} tasks); nothing to do.{more}")
        return
    if plan.settings.dry_run:
        if processes.is_first:
            print(_rehearse(plan, folder, stored).text(), flush=True)
        return
    if stored is not None:
        told = changed_since(stored, choose_device(plan.settings.device), plan.settings.resume_other_code)
        if told and processes.is_first:
            print(told, file=sys.stderr)
    processes.barrier()  # all have seen the folder as it was
    if processes.is_first:
        _run_first(plan, folder, overrides, stored, processes)
    else:
        _follow(plan, folder, processes)


def _where_it_stands(plan: Plan, folder: Path) -> tuple[Plan, dict[str, Any] | None, bool]:
    """The plan as the folder knows it, its run.json (None of a run that has not begun), and whether all is done.

    Raises:
        RunError: the folder holds another run, or one of several that advance together, or is damaged.
    """
    stored = read_json(folder / "run.json")
    if stored is None and (folder / "run.json").exists():
        raise RunError(f"{folder}/run.json is damaged; put it back, or start in another folder (hydra.run.dir=...)")
    if stored is not None and "replica_of" in stored:
        raise RunError(
            f"{folder} is one of several runs that advance together; go on with all of them, in {stored['replica_of']}"
        )
    if plan.settings.replay.folder is not None:
        plan = with_class_order(plan)
        refuse_training(plan.analyses)
    if stored is None:
        return plan, None, False
    theirs = plain(read_config(folder, trust=True))  # compared as it stands; nothing that it names is imported
    plan = as_known_to(plan, theirs)
    return plan, stored, holds_finished(plan, theirs, folder) and not _has_more(plan, stored, folder)


def forecast(plan: Plan, folder: Path) -> Forecast | None:
    """What `plan` would do and cost in `folder`, without touching it; None where all is done already.

    Raises:
        PlastiscopeError: what would stop the run before its first look.
    """
    plan, stored, is_done = _where_it_stands(plan, folder)
    return None if is_done else _rehearse(plan, folder, stored)


def _rehearse(plan: Plan, folder: Path, stored: dict[str, Any] | None) -> Forecast:
    from plastiscope.rehearsal import rehearse

    return rehearse(plan, folder, stored)


def _run_first(
    plan: Plan, folder: Path, overrides: list[str], stored: dict[str, Any] | None, processes: Processes
) -> None:
    """All of a run, or of several that advance together, but for what other processes of a replay do."""
    threads_before = torch.get_num_threads()
    device = choose_device(plan.settings.device)
    desk = Desk(folder)
    try:
        torch.set_num_threads(1)  # so that statistics of the data do not depend on the machine
        branches = open_branches(plan, folder, stored)
        made = make_all(plan, device, branches)
        source = open_source(plan, made.data[0], made.learner.units.head) if plan.settings.replay.folder else None
        set_threads(plan, stored or (None if source is None else source.about), made.nets[0], threads_before)
        check_data(stored, made.data[0], folder)
        made.learner.through = training_forward(plan, made.learner, device)
        for branch, data in zip(branches, made.data, strict=bool(branches)):
            branch.check(data)
        desk.open(made, device, overrides, stored, source, branches)
        loop: Loop
        if source is None:
            loop = _trainer(made, processes, desk, branches[0].first_task if branches else 0)
        else:
            loop = _replay(made, source, processes, folder, desk)
        _resume(made, loop, desk, branches)
        for branch, journal in zip(branches, desk.journals, strict=bool(branches)):
            if branch.initial is not None:
                journal.snapshot(0, branch.initial)
        processes.barrier()  # the folder is ready: the others read where we are
        processes.barrier()
        with products_in(Precision.float32), processes.watched():
            loop.run()
        if source is None:
            processes.release()
        desk.finish(plan.settings.num_tasks, plan.settings.figures)
    except Preempted as stop:
        if processes.missing:
            lost = RunError(f"{processes.missing} has stopped; the run is saved: start the same command again")
            write_status(folder, State.preempted, error=str(lost))
            raise lost from None
        raise SystemExit(128 + stop.signum) from None
    except OSError as error:
        told = of_the_disk(error, folder)
        desk.fail(told or error)
        if told is None:
            raise
        raise told from error
    except Exception as error:
        desk.fail(error)
        raise
    finally:
        desk.close()
        torch.set_num_threads(threads_before)


def resume(folder: Path, changes: list[str], trust: bool = False) -> None:
    """Go on with the run in `folder`, with changes such as "num_tasks=10"."""
    run(build(read_config(folder, trust, changes), changes), folder, changes)


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
    if plan.settings.replicas == 1:
        data, shift = load_tasks(plan, device)
        learner = make_learner(plan, shift, data, device, branches[0] if branches else None)
        return Made(plan, [plan], [data], [shift], [learner.net], learner)
    data, shift = load_tasks(plan, device)
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


def _trainer(made: Made, processes: Processes, desk: Desk, first_task: int = 0) -> Trainer:
    settings, learner = made.plan.settings, made.learner
    runs = []
    for r, (plan, journal) in enumerate(zip(made.plans, desk.journals, strict=True)):
        context = make_context(plan, made.shifts[r], learner, journal.snapshots, journal.samples, journal.folder)
        context.processes = processes
        if learner.lead:
            context.net = made.nets[r]
            context.optimizer = optimizer_of(learner.optimizer, learner.net, context.net)
        best = BestWeights(settings.selection)
        runs.append(TrainedRun(index=r, context=context, callbacks=plan.analyses, journal=journal, best=best))
    return Trainer(
        learner=learner,
        runs=runs,
        keeper=desk.keeper,
        batch_size=settings.batch_size,
        eval_every=settings.eval_every,
        verbose=settings.verbose,
        precision=settings.precision,
        position=Position(task=first_task),
    )


def _replay(made: Made, source: Source, processes: Processes, folder: Path, desk: Desk | None) -> Replay:
    plan, learner = made.plan, made.learner
    context = make_context(plan, made.shifts[0], learner, source.checkpoints, SampleStore(folder / "samples"), folder)
    context.checkpoints, context.processes, context.replay_facts = source.walked, processes, source.facts
    if desk is not None:
        context.sample_store = desk.journals[0].samples
    return Replay(
        learner=learner,
        context=context,
        callbacks=plan.analyses,
        journal=None if desk is None else desk.journals[0],  # type: ignore[arg-type]  # only the first process has one
        keeper=None if desk is None else desk.keeper,  # type: ignore[arg-type]
        checkpoints=source.checkpoints,
        eval_every=plan.settings.eval_every,
        share=plan.settings.replay.share,
    )


def _follow(plan: Plan, folder: Path, processes: Processes) -> None:
    """What the processes beside the first do: their share of what is shared out."""
    threads_before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        device = choose_device(plan.settings.device)
        made = make_all(plan, device)
        source = open_source(plan, made.data[0], made.learner.units.head) if plan.settings.replay.folder else None
        processes.barrier()  # the first one has made the folder
        torch.set_num_threads(read_json(folder / "run.json")["threads"])
        if source is None:
            processes.barrier()
            _follow_training(made, folder, processes)
            return
        replay = _replay(made, source, processes, folder, None)
        loaded = Checkpoints(folder / "checkpoint").load()
        if loaded is not None:
            replay.load_state_dict(loaded[0])
        processes.barrier()  # it writes no checkpoint before all have read the last one
        with left_to_the_first(processes), products_in(Precision.float32):
            replay.follow()
    finally:
        torch.set_num_threads(threads_before)


def _follow_training(made: Made, folder: Path, processes: Processes) -> None:
    plan, samples = made.plan, SampleStore(folder / "samples")
    context = make_context(plan, made.shifts[0], made.learner, Snapshots(folder / "snapshots"), samples, folder)
    context.processes = processes
    with left_to_the_first(processes), products_in(Precision.float32):
        follow(made.learner, context, plan.analyses)


def _resume(made: Made, loop: Loop, desk: Desk, branches: Sequence[Branch]) -> None:
    """Take up the newest checkpoint, if there is one; open progress and mirror."""
    loaded = desk.keeper.load(branches[0].first_task * made.plan.settings.epochs if branches else -1)
    if loaded is not None:
        state, warning = loaded
        loop.take_up(state)
        if warning:
            print(warning, file=sys.stderr)
        print(f"going on at {loop.where()}", flush=True)
    desk.mirror(made)
    done, total = loop.progress
    desk.keeper.progress = Progress(total, done, made.plan.settings.verbose)


def _has_more(plan: Plan, stored: dict[str, Any], folder: Path) -> bool:
    """Whether there are checkpoints now that the finished replay in the folder has not walked.

    Raises:
        RunError: it has walked others.
    """
    replay, before = plan.settings.replay, stored.get("replay_of", {}).get("epochs_completed", [])
    if replay.folder is None:
        return False
    now, _ = replay.walked(replay.open(), plan.settings.num_tasks, plan.settings.epochs)
    return goes_on(before, now, folder)


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


def note_failure(folder: Path, error: Exception) -> None:
    """Leave the reason in a job's folder, if it can be, when a job of a sweep failed before its run began."""
    with suppress(OSError):
        if not (folder / "status.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            record_failure(folder, error)
