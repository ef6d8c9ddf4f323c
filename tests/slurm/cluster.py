"""A SLURM of one node, started as root without systemd: munged, slurmctld and slurmd, no accounting.

It has two partitions: a job of `high` pushes out one of `main`, which is told by SIGUSR2 and put back into the queue.

Needs, once: apt-get install -y --no-install-recommends slurm-wlm munge
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "srun", "sinfo", "scontrol")
PATIENCE_S = 90.0
MEMORY_MB = 65_536
"""What the node claims to have."""

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
SlurmctldParameters=preempt_send_user_signal
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=5
SchedulerParameters=sched_interval=2,bf_interval=2
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
NodeName={node} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={node} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=20
PartitionName=high Nodes={node} MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why no SLURM can be started here; "" if one can."""
    missing = [program for program in PROGRAMS if shutil.which(program, path=_path()) is None]
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install -y --no-install-recommends slurm-wlm munge"
    return "" if os.geteuid() == 0 else "a SLURM of its own needs root"


class Cluster:
    """A SLURM of one node, while it is up.

    Attributes:
        environment: in which its programs find it.
        node: name of its node.
    """

    def __init__(self, folder: Path, cpus: int) -> None:
        """Write its configuration into `folder`; nothing is started."""
        self.node = socket.gethostname().split(".")[0]
        self._folder = folder
        self._started: dict[str, subprocess.Popen] = {}
        folder.chmod(0o755)
        for part in ("controller", "daemon"):
            (folder / part).mkdir()
        ports = {"controller": _free_port(), "daemon": _free_port()}
        conf = CONF.format(node=self.node, folder=folder, cpus=cpus, memory=MEMORY_MB, **ports)
        (folder / "slurm.conf").write_text(conf)
        self.environment = {
            **os.environ,
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": _path(),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{Path(__file__).parent}:{os.environ['PYTHONPATH']}",  # jobs know the modules of these tests
        }

    def start(self) -> None:
        """Start all daemons, and wait until jobs may come.

        Raises:
            RuntimeError: it does not come up; holds the end of its logs.
        """
        self._start("munged", *_options_of_munged(self._folder))
        self.wait_until(lambda: (self._folder / "munge.socket").exists())
        self._start("slurmctld", "-D")
        self._start_node()

    def _start_node(self) -> None:
        self._start("slurmd", "-D", "-N", self.node)
        self.wait_until(lambda: "idle" in self.said("sinfo", "-h", "-o", "%T"))

    def stop(self) -> None:
        """End its daemons, and what still runs on its node."""
        for process in reversed(self._started.values()):
            process.send_signal(signal.SIGTERM)
        for process in self._started.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in self._on_node():
            os.kill(pid, signal.SIGKILL)

    def said(self, *command: str) -> str:
        """What a program of it prints."""
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False).stdout

    def states(self) -> dict[str, str]:
        """State by job, such as {"1_0": "RUNNING"}; jobs that are over are not there."""
        return dict(line.split() for line in self.said("squeue", "-h", "-r", "-o", "%i %T").splitlines())

    def preempt(self, jobs: int) -> None:
        """Let as many jobs of the higher partition push out others that fill the node, and end."""
        before = self.states()
        for _ in range(jobs):
            self.said("sbatch", "--partition=high", "--output=/dev/null", "--mem=1", "--wrap=sleep 1000")

        def are_pushed_out() -> bool:
            now = self.states()
            return sum(now.get(job) == "PENDING" for job in before) == jobs

        self.wait_until(are_pushed_out)
        self.said("scancel", "--partition=high")

    def begin_again(self, jobs: set[str]) -> None:
        """Put those of the jobs that have ended into the queue again, and let all begin.

        SLURM would hold them for two minutes; in the second in which its job has ended, a node takes it for revoked.
        """
        self.wait_until(lambda: {self.states().get(job, "PENDING") for job in jobs} == {"PENDING"})
        for job in jobs - set(self.states()):
            self.said("scontrol", "requeue", job)
        asked: dict[str, float] = {}
        begun: set[str] = set()

        def have_begun() -> bool:
            begun.update(job for job, state in self.states().items() if state == "RUNNING")
            for job in jobs - begun:
                if time.monotonic() - asked.get(job, float("-inf")) > 5.0:  # of a job that still ends it is forgotten
                    self.said("scontrol", "update", f"JobId={job}", "StartTime=now+2")
                    asked[job] = time.monotonic()
            return jobs <= begun

        self.wait_until(have_begun)

    def lose_node(self) -> None:
        """Kill all that runs on the node, tell the controller what it would find out by itself, and start it again."""
        for pid in self._on_node():
            os.kill(pid, signal.SIGKILL)
        self._started.pop("slurmd").wait()
        self.said("scontrol", "update", f"NodeName={self.node}", "State=DOWN", "Reason=lost")
        self.wait_until(lambda: "RUNNING" not in self.states().values())
        self.said("scontrol", "update", f"NodeName={self.node}", "State=RESUME")
        self._start_node()

    def _on_node(self) -> list[int]:
        """Processes of slurmd, of its steps and of what runs in them; of no other SLURM."""
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment, name = (entry / "environ").read_bytes().split(b"\0"), (entry / "comm").read_text().strip()
            except OSError:  # it has ended
                continue
            in_job = any(variable.startswith(b"SLURM_JOB_ID=") for variable in environment)
            if f"SLURM_CONF={self._folder}/slurm.conf".encode() in environment:
                found += [int(entry.name)] if in_job or name in ("slurmd", "slurmstepd") else []
        return found

    def wait_until(self, is_so: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
        """Ask again until it is so.

        Raises:
            RuntimeError: it does not come; holds the end of the logs.
        """
        until = time.monotonic() + seconds
        while not is_so():
            if time.monotonic() > until:
                logs = [path for pattern in ("*.log", "*.out") for path in sorted(self._folder.glob(pattern))]
                ends = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-1500:]}" for path in logs)
                raise RuntimeError(f"waited for {seconds:.0f} s\n{ends}")
            time.sleep(0.1)

    def _start(self, program: str, *options: str) -> None:
        with open(self._folder / f"{program}.out", "ab") as out:
            self._started[program] = subprocess.Popen([program, *options], env=self.environment, stdout=out, stderr=out)


@contextmanager
def slurm(folder: Path, cpus: int = 3) -> Iterator[Cluster]:
    """A SLURM whose state lies in `folder`, while inside."""
    cluster = Cluster(folder, cpus)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def _options_of_munged(folder: Path) -> list[str]:
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
    named = [f"--{name}={folder / file}" for name, _, file in (entry.partition("=") for entry in files)]
    return ["--foreground", "--force", *named]


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]
