"""The top level of the config: settings of the run itself, beside the groups."""

from dataclasses import dataclass, field
from enum import Enum

from plastiscope.error import require
from plastiscope.learner.training_forward import Compile, Precision
from plastiscope.replay import ReplaySettings
from plastiscope.run.journal import SnapshotSettings
from plastiscope.run.sample_store import SampleSettings
from plastiscope.run.wandb_sink import WandbSettings
from plastiscope.selection import Selection


class OtherCode(Enum):
    """What to do when a run goes on with another revision of plastiscope, or other versions of torch or numpy."""

    warn = "warn"
    """Say what differs, and go on."""
    refuse = "refuse"
    """Say what differs, and end."""


class InitFromStart(Enum):
    """With which task a run begins that takes its first weights from another run."""

    next = "next"
    """The one after those that the weights have learnt: the same sequence of tasks goes on."""
    first = "first"
    """The first one of its own tasks."""


@dataclass(kw_only=True)
class Settings:
    """Settings of a run; configs/config.yaml lists the same fields."""

    name: str = "run"
    """Of the run; its folder is outputs/<name>/<net>/<time>."""
    num_tasks: int = 5
    epochs: int = 12
    """Per task."""
    batch_size: int = 64
    seed: int = 0
    replicas: int = 1
    """Runs with the seeds seed, seed + 1, ... that advance together in one process, each with a folder of its own."""
    device: str = "auto"
    """auto (an accelerator if there is one), cpu, cuda, cuda:1."""
    precision: Precision = Precision.float32
    """Of the products in training steps: float32, tf32, bfloat16; weights and analyses are float32."""
    compile: Compile = Compile.none
    """Whether the forward pass of training steps is compiled: none, default, cuda_graphs."""
    threads: int | None = None
    """CPU threads of torch; null = one for a small fully connected network, else as many as torch chooses.
    Other counts give other last bits, so a run keeps the count it began with."""
    eval_every: int = 1
    """Epochs between evaluations; a task's last epoch is always evaluated."""
    selection: Selection = Selection.val_best
    """Which of a task's weights go on into its analyses and the next task."""
    checkpoint_every_s: float = 60.0
    """Seconds after which the next epoch boundary writes a checkpoint; task ends and signals always do."""
    verbose: bool = False
    """Also print the train accuracy every 25 batches and the seconds of each epoch."""
    figures: bool = True
    """Draw the figures when the run is finished."""
    use_wandb: bool = True
    wandb: WandbSettings = field(default_factory=WandbSettings)
    snapshots: SnapshotSettings = field(default_factory=SnapshotSettings)
    samples: SampleSettings = field(default_factory=SampleSettings)
    replay: ReplaySettings = field(default_factory=ReplaySettings)
    init_from: str | None = None
    """Folder of a run whose weights this one begins with, or of a group that has one of its seed; null = none."""
    init_from_task: int | None = None
    """Those of the end of this task, from 0; null = of the last one that was finished."""
    init_from_start: InitFromStart = InitFromStart.next
    """next: go on with the task after it; first: begin with task 0."""
    resume_other_code: OtherCode = OtherCode.warn
    """What to do when a run goes on with other code than it was last started with."""
    dry_run: bool = False
    """Say what the run would do and cost; train and write nothing."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(self.name not in ("", ".", "..") and "/" not in self.name, "name", self.name, "must be a folder name")
        for key in ("num_tasks", "epochs", "batch_size", "eval_every", "replicas"):
            require(getattr(self, key) >= 1, key, getattr(self, key), "must be 1 or more")
        require(self.seed >= 0, "seed", self.seed, "must be 0 or more")
        allowed = self.threads is None or 1 <= self.threads <= 1024
        require(allowed, "threads", self.threads, "must be 1 to 1024, or null")
        require(self.checkpoint_every_s >= 0, "checkpoint_every_s", self.checkpoint_every_s, "must be 0 or more")
        alone = self.replicas == 1 or self.replay.folder is None
        require(
            alone, "replicas", self.replicas, "must be 1 in a replay; look at the folder of one run, such as seed_0000"
        )
        told = not self.dry_run or self.replay.folder is None
        require(
            told, "dry_run", self.dry_run, "is a forecast of a training; leave it out where saved weights are looked at"
        )
        self._check_branch()
        kind = self.device.split(":")[0]
        require(kind in ("auto", "cpu", "cuda", "mps"), "device", self.device, "must be auto, cpu, cuda or mps")

    def _check_branch(self) -> None:
        task = self.init_from_task
        require(task is None or task >= 0, "init_from_task", task, "must be 0 or more, or null")
        named = task is None or self.init_from is not None
        require(named, "init_from_task", task, "is a task of another run; name its folder by init_from=")


RESUMABLE = (
    *("num_tasks", "verbose", "figures", "use_wandb", "wandb", "checkpoint_every_s"),
    *("threads", "device", "replay.share", "resume_other_code", "dry_run"),
)
"""Settings that may differ when a run goes on, with all below them."""


def is_resumable(key: str) -> bool:
    """Whether a dotted key is one of `RESUMABLE`, or below one."""
    return any(key == free or key.startswith(f"{free}.") for free in RESUMABLE)
