"""Sweeps as jobs of their own: what they were submitted with, how many work at once, and mishaps in words."""

import fcntl
import hashlib
import json
import os
import pickle
import re
import shlex
import time
from pathlib import Path
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from plastiscope.run.code import freeze
from plastiscope.run.storage import write_atomic

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
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        launch = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{os.getpid()}"
        kept = Path(config.hydra.sweep.dir).absolute() / ".submitit"
        hydra.config_loader = KeptConfigs(hydra.config_loader.get_search_path(), kept / "configs" / launch)
        if self.freeze_code:
            import_first(freeze(kept / "code"), config)


def import_first(folder: Path, config: DictConfig) -> None:
    """Let the jobs of a sweep look in `folder` first for what they import.

    SLURM may start jobs without our environment, so it gets a line for its batch script.
    """
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    launcher = config.hydra.launcher
    if "setup" in launcher:
        with flag_override(config, ["readonly", "struct"], [False, False]):
            launcher.setup = [*(launcher.setup or []), f"export PYTHONPATH={shlex.quote(str(folder))}:$PYTHONPATH"]


class KeptConfigs(ConfigLoaderImpl):
    """Composes the config of a job once, and keeps it in a folder."""

    def __init__(self, search_path: ConfigSearchPath, folder: Path) -> None:
        """Look for YAML files in the search path, and keep what was composed in `folder`."""
        super().__init__(search_path)
        self.folder = folder

    def load_sweep_config(self, master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
        """The config of the job with these overrides, as it was when this was first asked."""
        path = self.folder / f"{hashlib.sha256(json.dumps(sweep_overrides).encode()).hexdigest()[:16]}.pkl"
        if not path.exists():
            composed = super().load_sweep_config(master_config, sweep_overrides)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, pickle.dumps(composed))
        kept: DictConfig = pickle.loads(path.read_bytes())
        return kept


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

    def leave(self) -> None:
        """Let another job have the place."""
        os.close(self._held)

    def take(self, place: Path) -> bool:
        """Take a place, if it is free."""
        file = os.open(place, os.O_CREAT | os.O_RDWR)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._held = file
        return True


def mishap(error: Exception) -> str:
    """What to tell someone whose sweep could not be submitted or waited for; "" for errors of another kind."""
    text, kind = str(error), type(error)
    if 'Could not detect "srun"' in text:
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
    return f"SLURM did not take the sweep ({_reasons(text)}); see hydra.launcher.* in your site file"


def _reasons(text: str) -> str:
    """What sbatch says, in one line."""
    lines = (
        line.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("fatal: ") for line in text.splitlines()
    )
    return "; ".join(dict.fromkeys(line.strip() for line in lines if line.strip()))
