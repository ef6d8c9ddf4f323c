"""One run, from its plan to its finished folder: seed, build, resume, train or replay, status, clean-up."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from plastiscope.branch import Branch, open_branches
from plastiscope.build import Plan, as_known_to, build, plain, read_config
from plastiscope.desk import Desk, record_failure
from plastiscope.error import ConfigError, RunError, of_the_disk
from plastiscope.event import Context
from plastiscope.follow import follow, left_to_the_first
from plastiscope.identity import changed_since, holds_finished
from plastiscope.learner.training_forward import Precision, products_in
from plastiscope.loop import Loop
from plastiscope.make import choose_device, make_all, make_context, make_run, set_threads, training_forward
from plastiscope.replay import Replay, goes_on, refuse_training
from plastiscope.replicas import Made
from plastiscope.run.checkpoint import Checkpoints
from plastiscope.run.folder import in_use
from plastiscope.run.forecast import Forecast
from plastiscope.run.processes import Processes, join_processes, leave_processes
from plastiscope.run.progress import Progress
from plastiscope.run.roster import Roster
from plastiscope.run.sample_store import SampleStore
from plastiscope.run.signals import Preempted
from plastiscope.run.snapshots import Snapshots
from plastiscope.run.status import State, write_status
from plastiscope.run.storage import read_json
from plastiscope.source import Source, check_data, open_source, with_class_order
from plastiscope.trainer import Position, Trainer
from plastiscope.walk import Walk


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
        desk.open(made, device, overrides, source, branches)
        loop: Loop
        if source is None:
            loop = _trainer(made, processes, desk, branches[0].first_task if branches else 0)
        else:
            loop = _replay(made, source, processes, desk)
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
            desk.clear_parts()
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


def _trainer(made: Made, processes: Processes, desk: Desk, first_task: int = 0) -> Trainer:
    settings = made.plan.settings
    runs = [make_run(made, r, journal) for r, journal in enumerate(desk.journals)]
    for run in runs:
        run.context.processes = processes
    return Trainer(
        learner=made.learner,
        runs=runs,
        keeper=desk.keeper,
        batch_size=settings.batch_size,
        eval_every=settings.eval_every,
        verbose=settings.verbose,
        precision=settings.precision,
        position=Position(task=first_task),
    )


def _replay(made: Made, source: Source, processes: Processes, desk: Desk) -> Replay:
    (journal,) = desk.journals
    return Replay(
        learner=made.learner,
        context=_context_of_replay(made, source, processes, journal.folder, journal.samples),
        callbacks=made.plan.analyses,
        journal=journal,
        keeper=desk.keeper,
        checkpoints=source.checkpoints,
        eval_every=made.plan.settings.eval_every,
        share=made.plan.settings.replay.share,
    )


def _context_of_replay(made: Made, source: Source, processes: Processes, folder: Path, samples: SampleStore) -> Context:
    context = make_context(made.plan, made.shifts[0], made.learner, source.checkpoints, samples, folder)
    context.checkpoints, context.processes, context.replay_facts = source.walked, processes, source.facts
    return context


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
        _follow_replay(made, source, folder, processes)
    finally:
        torch.set_num_threads(threads_before)


def _follow_replay(made: Made, source: Source, folder: Path, processes: Processes) -> None:
    walk = Walk(
        learner=made.learner,
        context=_context_of_replay(made, source, processes, folder, SampleStore(folder / "samples")),
        callbacks=made.plan.analyses,
        checkpoints=source.checkpoints,
        share=made.plan.settings.replay.share,
    )
    loaded = Checkpoints(folder / "checkpoint").load()
    if loaded is not None:
        walk.load_state_dict(loaded[0])
    processes.barrier()  # it writes no checkpoint before all have read the last one
    with left_to_the_first(processes), products_in(Precision.float32):
        walk.follow()


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


def note_failure(folder: Path, error: Exception) -> None:
    """Leave the reason in a job's folder, if it can be, when a job of a sweep failed before its run began."""
    with suppress(OSError):
        if not (folder / "status.json").exists():
            folder.mkdir(parents=True, exist_ok=True)
            record_failure(folder, error)
