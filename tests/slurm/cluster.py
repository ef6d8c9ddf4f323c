"""A SLURM of one node, started as root without systemd: munged, slurmctld and slurmd, no accounting.

Needs, once: apt-get install -y --no-install-recommends slurm-wlm munge
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "srun", "sinfo", "scontrol")
SECONDS_TO_START = 60.0

CONF = """ClusterName=one
SlurmctldHost={node}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/daemon
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why no SLURM can be started here; "" if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install -y --no-install-recommends slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a SLURM of its own needs root"


@contextmanager
def slurm(folder: Path, cpus: int = 3) -> Iterator[dict[str, str]]:
    """A SLURM whose state lies in `folder`; gives the environment in which srun finds it.

    Raises:
        RuntimeError: it does not come up; holds the end of its logs.
    """
    node = socket.gethostname().split(".")[0]
    folder.chmod(0o755)
    for part in ("controller", "daemon"):
        (folder / part).mkdir()
    ports = {"controller": _free_port(), "daemon": _free_port()}
    (folder / "slurm.conf").write_text(CONF.format(node=node, folder=folder, cpus=cpus, **ports))
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    started: list[subprocess.Popen] = []
    try:
        for command in (_munged(folder), ["slurmctld", "-D"], ["slurmd", "-D", "-N", node]):
            started.append(_start(command, environment, folder))
            if command[0] == "munged":
                _wait(folder, lambda: (folder / "munge.socket").exists())
        _wait(folder, lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environment))
        yield environment
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _munged(folder: Path) -> list[str]:
    """Munge with a key and a socket of its own, so that one of the machine stays as it is."""
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    files = (
        "key-file=munge.key",
        "socket=munge.socket",
        "pid-file=munge.pid",
        "log-file=munge.log",
        "seed-file=munge.seed",
    )
    options = [f"--{name}={folder / file}" for name, _, file in (entry.partition("=") for entry in files)]
    return ["munged", "--foreground", "--force", *options]


def _start(command: list[str], environment: dict[str, str], folder: Path) -> subprocess.Popen:
    with open(folder / f"{command[0]}.out", "wb") as out:
        return subprocess.Popen(command, env=environment, stdout=out, stderr=out)


def _wait(folder: Path, is_up: object) -> None:
    """Ask again until it is up."""
    until = time.monotonic() + SECONDS_TO_START
    while not is_up():  # type: ignore[operator]
        if time.monotonic() > until:
            logs = [path for pattern in ("*.log", "*.out") for path in sorted(folder.glob(pattern))]
            ends = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs)
            raise RuntimeError(f"SLURM did not come up in {SECONDS_TO_START:.0f} s\n{ends}")
        time.sleep(0.1)


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
