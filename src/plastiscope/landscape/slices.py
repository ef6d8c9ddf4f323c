"""Which samples of the frozen set a process holds: all of them, or, where they are many, a slice."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from plastiscope.error import ConfigError
from plastiscope.landscape.settings import Engine, LandscapeSettings
from plastiscope.measure.landscape.frozen import FrozenLoss, coupling_modules
from plastiscope.measure.landscape.memory import budget
from plastiscope.run.processes import Processes

COPIES = 2
"""Of the samples, at most at a time: as they are drawn, and as they are frozen."""


def are_sharded(
    settings: LandscapeSettings,
    processes: Processes,
    net: nn.Module,
    samples: int,
    size: int,
    device: torch.device,
    coupling: str = "",
) -> bool:
    """Whether each process holds only a slice of the samples; all of them ask, and get the same answer.

    Args:
        settings: of the look.
        processes: alone, or working apart, they hold all of them.
        net: its normalisations may make samples depend on each other, which then cannot be parted.
        samples: how many there are.
        size: bytes of all of them.
        device: where they are to lie.
        coupling: what else is known to make samples depend on each other.

    Raises:
        ConfigError: the settings ask for what cannot be parted.
    """
    if settings.shard_data == "false" or not may_be_sharded(processes):
        return False
    is_asked, reason = settings.shard_data == "true", _not_parted(settings, net, samples, processes, coupling)
    if is_asked and reason:
        raise ConfigError(f"shard_data=true: {reason}; set shard_data=false")
    if is_asked or reason:
        return is_asked
    room = budget(device, sharing=processes.sharing(device))
    return processes.least(float(room)) < COPIES * size


def may_be_sharded(processes: Processes) -> bool:
    """Whether there are other processes, which look at the same weights at the same time."""
    return processes.world > 1 and not processes.works_apart and not processes.is_ahead


def without_effect(settings: LandscapeSettings, processes: Processes) -> str:
    """Why `shard_data=true` does nothing here; "" where it does, or is not asked for."""
    if settings.shard_data != "true" or may_be_sharded(processes):
        return ""
    if processes.world == 1:
        return "shard_data=true changes nothing in a run of one process, which holds all samples"
    return "shard_data=true changes nothing with replay.share=checkpoints: each process looks at a checkpoint by itself"


def _not_parted(settings: LandscapeSettings, net: nn.Module, samples: int, processes: Processes, coupling: str) -> str:
    spectrum = settings.spectrum
    if samples < processes.world:
        return f"{samples} samples are fewer than the {processes.world} processes"
    if coupled := [*coupling_modules(net), *filter(None, [coupling])]:
        return f"{coupled[0]} normalises without running statistics, so samples depend on those beside them"
    if settings.enable_spectrum and (spectrum.engine is Engine.pyhessian or spectrum.cross_check):
        return "PyHessian needs all samples in one process (spectrum.engine, spectrum.cross_check)"
    return ""


def own_rows(samples: int, processes: Processes) -> slice:
    """The places of this process' samples: blocks in the order of the ranks, as equal as can be."""
    rank, world = processes.rank, processes.world
    return slice(samples * rank // world, samples * (rank + 1) // world)


def sliced(frozen: FrozenLoss, processes: Processes) -> FrozenLoss:
    """The loss over all samples of `frozen`, of which each process keeps its own."""
    rows = own_rows(len(frozen), processes)
    own = replace(frozen, inputs=frozen.inputs[rows].clone(), targets=frozen.targets[rows].clone())
    return own.sharded(processes.sum, rows.start)


def joined(frozen: FrozenLoss, processes: Processes) -> FrozenLoss:
    """The loss over the samples of all processes, of which `frozen` has this one's."""
    counts = torch.zeros(processes.world, dtype=torch.int64)
    counts[processes.rank] = len(frozen)
    return frozen.sharded(processes.sum, int(processes.sum(counts)[: processes.rank].sum()))


def some(frozen: FrozenLoss, asked: int, processes: Processes) -> FrozenLoss:
    """The loss over `asked` of its samples, at equal distances in their order, those of other processes included."""
    chosen = taken(frozen.total_samples, asked)
    if frozen.shards is None:
        return _at(frozen, chosen)
    first = frozen.shards.first
    own = (chosen >= first) & (chosen < first + len(frozen))
    if not processes.least(float(own.sum())):
        raise ConfigError(
            f"shard_data: {asked} samples leave one of {processes.world} processes none; set shard_data=false, or take "
            "more samples (budget.max_seconds cuts them)"
        )
    return _at(frozen, chosen[own] - first).sharded(processes.sum, int((chosen < first).sum()))


def taken(n: int, asked: int) -> Tensor:
    """Places int64 [asked] at equal distances among n."""
    return torch.arange(asked) * n // asked


def _at(frozen: FrozenLoss, places: Tensor) -> FrozenLoss:
    places = places.to(frozen.inputs.device)
    return replace(frozen, inputs=frozen.inputs[places], targets=frozen.targets[places], shards=None)
