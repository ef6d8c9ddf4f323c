"""Sweeps as jobs of their own: what they were submitted with, how many work at once, and mishaps in words."""

import hashlib
import json
import os
import pickle
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override
from omegaconf.errors import OmegaConfBaseException

from plastiscope.error import PlastiscopeError
from plastiscope.run.code import freeze
from plastiscope.run.lock import take
from plastiscope.run.storage import write_atomic

if TYPE_CHECKING:
    from plastiscope.build import Plan
    from plastiscope.run.forecast import Forecast

LOOK_EVERY_S = 0.5
"""How often a job that waits for its turn looks whether it has come."""


class Submitted(Callback):
    """Jobs run with the config and the code with which they were submitted, whatever is edited meanwhile.

    Hydra composes the config of each job when the sweep is submitted, to check it, and again when the job begins,
    which in a queue may be days later, and when it begins again. Here what was composed first is kept, in a file per
    job in the sweep's folder, and a job reads that. The code of plastiscope is copied beside it, and a job imports that
    copy; other packages, plug-ins among them, are imported from where they are.
    """

    def __init__(self, freeze_code: bool = True) -> None:
        """Keep configs, and with `freeze_code` the code too."""
        self.freeze_code = freeze_code

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Have the launching process keep what it composes; it hands the way to read it to its jobs."""
        if is_dry(config):
            return
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        launch = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
        kept = Path(config.hydra.sweep.dir).absolute() / ".submitit"
        if str(config.hydra.launcher.get("_target_")).endswith("SlurmLauncher") and not has_accounting():
            do_without_accounting()
        hydra.config_loader = KeptConfigs(hydra.config_loader.get_search_path(), kept / "configs" / launch)
        add_to_script(f"# {launch}", config)
        if self.freeze_code:
            import_first(freeze(kept / "code"), config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """In a job of SLURM, see to it that it can be requeued."""
        if "SLURM_JOB_ID" in os.environ and str(config.hydra.launcher.get("_target_")).endswith("SlurmLauncher"):
            requeue_undisturbed()


def requeue_undisturbed() -> None:
    """Let submitit's `scontrol requeue` end, whatever signals come meanwhile.

    A short grace time is over while it still runs: SLURM then sends SIGTERM to every process of the job. Submitit
    ignores that, the program that it has started would end of it, and the job would have failed although it is saved.
    A signal that is ignored as a program starts stays ignored in it.
    """
    from submitit.slurm.slurm import SlurmJobEnvironment

    requeue = SlurmJobEnvironment._requeue

    def undisturbed(job: SlurmJobEnvironment, countdown: int) -> None:
        before = {signum: signal.signal(signum, signal.SIG_IGN) for signum in (signal.SIGTERM, signal.SIGUSR2)}
        try:
            requeue(job, countdown)
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    SlurmJobEnvironment._requeue = undisturbed  # type: ignore[assignment]


def has_accounting() -> bool:
    """Whether this SLURM tells what has become of its jobs; or there is no SLURM, which is told elsewhere."""
    if shutil.which("srun") is None:
        return True
    try:
        return subprocess.run(["sacct", "-n"], capture_output=True, timeout=30).returncode == 0
    except (OSError, subprocess.SubprocessError):
        return False


def do_without_accounting() -> None:
    """Have submitit wait for the results of jobs without asking for their states, which warns each time; say so."""
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

    class Unasked(SlurmInfoWatcher):
        def _make_command(self) -> None:
            return None

    SlurmJob.watcher = Unasked(delay_s=600)
    print(
        "this SLURM keeps no accounts (sacct): a job that is cancelled is waited for until you stop this command; the "
        "other jobs go on without it",
        file=sys.stderr,
    )


def import_first(folder: Path, config: DictConfig) -> None:
    """Let the jobs of a sweep look in `folder` first for what they import.

    SLURM may start jobs without our environment, so it gets a line for its batch script.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    add_to_script(f"export PYTHONPATH={shlex.quote(str(folder))}:$PYTHONPATH", config)


def add_to_script(line: str, config: DictConfig) -> None:
    """Add a line to the batch script of a sweep's jobs, if they have one."""
    launcher = config.hydra.launcher
    if "setup" in launcher:
        with flag_override(config, ["readonly", "struct"], [False, False]):
            launcher.setup = [*(launcher.setup or []), line]


class KeptConfigs(ConfigLoaderImpl):
    """Composes the config of a job once, and keeps it in a folder.

    Attributes:
        folder: where it is kept.
        made: the folders of this process's sweeps.
    """

    made: ClassVar[list[Path]] = []

    def __init__(self, search_path: ConfigSearchPath, folder: Path) -> None:
        """Look for YAML files in the search path, and keep what was composed in `folder`."""
        super().__init__(search_path)
        self.folder = folder
        self.made.append(folder)

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of the job with these overrides, as it was when this was first asked."""
        path = self.folder / f"{hashlib.sha256(json.dumps(sweep_overrides).encode()).hexdigest()[:16]}.pkl"
        if not path.exists():
            composed = super().load_sweep_config(master_config, sweep_overrides)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, pickle.dumps(composed))
        kept: DictConfig = pickle.loads(path.read_bytes())
        return kept


def is_dry(config: DictConfig) -> bool:
    """Whether only a forecast is wanted."""
    return config.get("dry_run") is True


class DryRun(Callback):
    """With dry_run=true a sweep is told, job by job and in all; nothing is submitted, and no file written."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Tell it, and end the program: what comes after this writes multirun.yaml and starts the jobs."""
        if not is_dry(config):
            return
        code = 1
        try:
            code = tell_sweep(config)
        except Exception:  # Hydra would warn of it, and submit the sweep
            traceback.print_exc()
        raise SystemExit(code)


def tell_sweep(config: DictConfig) -> int:
    """Print what each job of a sweep would do and cost, and their sum; returns the exit code.

    Jobs that differ in the seed alone cost the same, so one of them is timed. Each is looked at of those that have
    begun, that branch off another run, or that are groups: of these the seed may decide whether they can start.
    """
    from plastiscope.run.forecast import amount, duration

    told: dict[tuple[str, ...], Forecast] = {}
    seconds = size = 0.0
    counts = {"done": 0, "refused": 0}
    overrides = overrides_of_jobs(config)
    common = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    for own in overrides:
        name = " ".join(override for override in own if override not in common)
        try:
            forecast = _forecast_of_job(config, own, told)
        except (PlastiscopeError, HydraException, OmegaConfBaseException) as error:
            counts["refused"] += 1
            print(f"{name}\n    refused: {str(error).splitlines()[0]}", flush=True)
            continue
        if forecast is None:
            counts["done"] += 1
            print(f"{name}\n    done already", flush=True)
            continue
        seconds, size = seconds + forecast.to_come.seconds, size + forecast.to_come.size
        print(f"{name}\n    {forecast.line()}", flush=True)
    counted = "".join(f", {number} {what}" for what, number in counts.items() if number)
    print(
        f"dry run of {len(overrides)} jobs{counted}; nothing is submitted, nothing is kept\n"
        f"in all about {duration(seconds)} one after another, {amount(size)}"
    )
    return 2 if counts["refused"] else 0


def overrides_of_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job of a sweep, as Hydra's own sweeper makes them."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    swept = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    parsed = OverridesParser.create().parse_overrides([*swept, *config.hydra.overrides.task])
    return [own for batch in BasicSweeper.split_arguments(parsed, None) for own in batch]


def _forecast_of_job(
    config: DictConfig, overrides: list[str], told: "dict[tuple[str, ...], Forecast]"
) -> "Forecast | None":
    """Of one job; None where it is done.

    Args:
        config: of the sweep.
        overrides: of the job.
        told: what was told of jobs that have not begun, by their overrides without the seed; grows.
    """
    from plastiscope.build import build
    from plastiscope.experiment import forecast

    hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    job = hydra.config_loader.load_sweep_config(config, overrides)
    HydraConfig.instance().set_config(job)
    folder = Path(job.hydra.sweep.dir, job.hydra.sweep.subdir)
    with flag_override(job, ["readonly", "struct"], [False, False]):
        del job["hydra"]
    plan = build(job, overrides)
    same = tuple(override for override in overrides if not override.startswith("seed="))
    is_alike = _costs_what_other_seeds_cost(plan) and not (folder / "run.json").exists()
    if is_alike and same in told:
        return told[same]
    found = forecast(plan, folder)
    if found is not None and is_alike:
        told[same] = found
    return found


def _costs_what_other_seeds_cost(plan: "Plan") -> bool:
    """Whether the seed decides neither if the run may start nor at which task.

    It decides whose weights a branch goes on with, and what those have learnt; and whether the tasks of runs that
    advance together are of one size.
    """
    return plan.settings.init_from is None and plan.settings.replicas == 1


class Turns(Callback):
    """Of the jobs of a sweep on this machine only so many work at once; the others wait, before they load anything."""

    def __init__(self, at_once: int | None = None) -> None:
        """Let `at_once` jobs work; None = as many as there are CPUs for this process."""
        self.at_once = at_once or len(os.sched_getaffinity(0))
        self._held = -1  # a descriptor: a job that is requeued pickles what belongs to its launcher

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Wait until one of the places is free; the system frees it when this process ends."""
        if os.environ.get("SUBMITIT_LOCAL_GLOBALID", "0") != "0":  # processes of one job come in together
            return
        folder = Path(config.hydra.sweep.dir) / ".submitit" / "turns"
        folder.mkdir(parents=True, exist_ok=True)
        while not any(self.take(folder / str(place)) for place in range(self.at_once)):
            time.sleep(LOOK_EVERY_S)

    def take(self, place: Path) -> bool:
        """Take a place, if it is free."""
        file = take(place, 0.0)
        if file is None:
            return False
        self._held = os.dup(file.fileno())  # with the lock
        file.close()
        return True


def mishap(error: Exception) -> str:
    """What to tell someone whose sweep could not be submitted or waited for; "" for errors of another kind.

    Of a sweep that was not taken the kept configs go, and what submitit wrote.
    """
    text, kind = str(error), type(error)
    if 'Could not detect "srun"' in text:
        _forget()
        return "launcher=slurm: there is no SLURM here; submit from a machine of the cluster, or take launcher=local"
    if not kind.__module__.startswith("submitit."):
        return ""
    if "timed-out too many times" in text:
        return (
            "a job has run into its time limit as often as hydra.launcher.max_num_timeout allows. It is saved: start "
            "the same command again, and it goes on"
        )
    if kind.__name__ == "UncompletedJobError" or text.startswith("Job (task="):
        job = re.search(r"Job \S+", text)
        lines = text.splitlines()
        last = f" ({lines[-1].strip()})" if len(lines) > 1 else ""
        return (
            f"{job.group().lower() if job else 'a job'} has ended without a result{last}. What its run had saved is "
            "kept: start the same command again, and it goes on"
        )
    _forget()
    return f"SLURM did not take the sweep ({_reasons(text)}); see hydra.launcher.* in your site file"


def _forget() -> None:
    """Remove the configs of sweeps that were not taken, and the scripts and jobs that submitit wrote for them.

    Files of other launches into the same folder stay: scripts name their launch, and jobs the folder of their configs.
    """
    while KeptConfigs.made:
        configs = KeptConfigs.made.pop()
        shutil.rmtree(configs, ignore_errors=True)
        kept = configs.parent.parent
        for path in (*kept.glob("*.pkl"), *kept.glob(".submission_file_*.sh")):
            with suppress(OSError):
                if not path.is_symlink() and configs.name.encode() in path.read_bytes():
                    path.unlink()
        with suppress(OSError):  # other launches keep theirs there
            configs.parent.rmdir()


def _reasons(text: str) -> str:
    """What sbatch says, in one line."""
    lines = (
        line.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("fatal: ") for line in text.splitlines()
    )
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))
