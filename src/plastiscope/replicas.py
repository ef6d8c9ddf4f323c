"""Runs of one config that advance together: the seeds seed .. seed + R - 1, on stacked parameters.

Each has a run folder of its own, seed_0003 and so on, in the group's folder, with the files it would write alone. The
group's folder has the config, the status and the one checkpoint. The networks of the runs are views into the stacked
parameters, so whatever looks at a run sees a plain network, and what it loads into it arrives in the stack.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.build import Plan
from plastiscope.data.samples import DataSet
from plastiscope.error import ConfigError
from plastiscope.learner.learner import Learner
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.trainee import InitialNet
from plastiscope.measure.landscape.memory import free_memory, gigabytes
from plastiscope.net.stacked import loses_on_cpu, stack, unstacked_state
from plastiscope.net.units import UnitDescription
from plastiscope.selection import Selection
from plastiscope.task_shift_mode.task import TaskShift, check_alike

CHECKED_TASKS = 20
"""Tasks of which it is known before anything is trained that the runs can share them."""
OBJECTS = 1 << 20
"""Bytes that a run takes beside its tensors: network, tasks, journal, context; measured at 10 to 160 runs."""


@dataclass(frozen=True)
class Made:
    """What is trained, one run or several that advance together, before anything is written.

    Attributes:
        plan: of all of it.
        plans, data, shifts, nets: of each run.
        learner: of all runs.
    """

    plan: Plan
    plans: list[Plan]
    data: list[DataSet]
    shifts: list[TaskShift]
    nets: list[nn.Module]
    learner: Learner


def plans_of(plan: Plan) -> list[Plan]:
    """The plan of each run, as it would be alone."""
    return [_alone(plan, plan.settings.seed + r) for r in range(plan.settings.replicas)]


def _alone(plan: Plan, seed: int) -> Plan:
    settings = replace(plan.settings, seed=seed, replicas=1)
    config = {**plan.config, "seed": seed, "replicas": 1}
    return replace(plan, settings=settings, analyses=copy.deepcopy(plan.analyses), config=config)


def folder_of(group: Path, plan: Plan) -> Path:
    """The folder of one of the runs."""
    return group / f"seed_{plan.settings.seed:04d}"


def refuse_what_is_slower(net: nn.Module, device: torch.device) -> None:
    """Refuse networks that are faster one after another.

    Raises:
        ConfigError: convolutions on a CPU.
    """
    if device.type == "cpu" and loses_on_cpu(net):
        raise ConfigError(
            "replicas: networks with convolutions are slower together than one after another on a CPU; run one process "
            "per seed (-m launcher=local seed=0,1,2), or take an accelerator"
        )


def refuse_loaders(data: DataSet, replicas: int) -> None:
    """Refuse data that each run would read through processes of its own.

    Raises:
        ConfigError: says how many these would be.
    """
    workers = getattr(data.train.source, "workers", 0)
    if workers:
        raise ConfigError(
            f"replicas: these data are read from files by {workers} processes, and {replicas} runs would start "
            f"{workers * replicas}; put them into arrays (data=arrays), or run one process per seed"
        )


def memory_of_a_run(plan: Plan, net: nn.Module, units: UnitDescription, input_shape: tuple[int, ...]) -> int:
    """Bytes that one more run takes, about: weights and what goes with them, inputs and features of a step, objects."""
    copies = 3 + (plan.settings.selection is not Selection.last)  # weights, gradients, where the networks come from
    copies += 2 if plan.learner.optimizer is not Optimizer.sgd else int(plan.learner.momentum > 0)
    weights = copies * sum(t.numel() * t.element_size() for t in net.state_dict().values())
    passed = 12 * plan.settings.batch_size * (math.prod(input_shape) + 2 * units.num_units)
    return weights + passed + OBJECTS


def check_memory(plan: Plan, each: int, device: torch.device) -> None:
    """Refuse more runs than fit, of `each` bytes.

    Raises:
        ConfigError: says how many do.
    """
    needed, free = plan.settings.replicas * each, free_memory(device)
    if needed > free:
        raise ConfigError(
            f"replicas={plan.settings.replicas} need about {gigabytes(needed)}, and {gigabytes(free)} are free; "
            f"replicas={int(free // each)} would fit"
        )


def stack_networks(
    nets: Sequence[nn.Module], initial_nets: Sequence[InitialNet], example: Tensor
) -> tuple[nn.Module, InitialNet]:
    """The stacked networks of all runs, and what gives the k-th fresh ones, stacked too."""

    def fresh(k: int) -> nn.Module:
        return stack([initial_net(k) for initial_net in initial_nets], example)

    return stack(nets, example), fresh


def views_of(stacked: nn.Module, make: Callable[[], nn.Module], runs: int) -> list[nn.Module]:
    """A plain network for each run whose parameters and buffers are views into the stacked ones."""
    nets = []
    for r in range(runs):
        net, states = make(), unstacked_state(stacked, r)
        for name, tensor in [*net.named_parameters(), *net.named_buffers()]:
            if name in states:
                tensor.data = states[name]
        nets.append(net)
    return nets


def optimizer_of(stacked: torch.optim.Optimizer, stacked_net: nn.Module, net: nn.Module) -> torch.optim.Optimizer:
    """What analyses may see of the optimiser: its kind and its groups, with the parameters of one network."""
    own = dict(net.named_parameters())
    of = {id(parameter): own[name] for name, parameter in stacked_net.named_parameters()}

    def groups(_: Any) -> list[dict[str, Any]]:
        return [{**group, "params": [of[id(p)] for p in group["params"]]} for group in stacked.param_groups]

    kind = type(stacked)
    one = type(kind.__name__, (kind,), {"param_groups": property(groups), "__init__": lambda self: None})
    view: torch.optim.Optimizer = one()
    return view


def check_tasks(shifts: Sequence[TaskShift], num_tasks: int) -> None:
    """Look at the first tasks of all runs; those that come later are checked as they begin.

    Raises:
        ConfigError: they cannot be learnt in the same steps.
    """
    for k in range(min(num_tasks, CHECKED_TASKS)):
        check_alike([shift.task(k) for shift in shifts])
