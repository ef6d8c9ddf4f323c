"""Published checkpoints of CIFAR-100 networks, scored sample by sample: what all scoring commands share."""

import argparse
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plastiscope.data.cifar100 import Cifar100
from plastiscope.data.partition import validation_mask
from plastiscope.data.samples import Batch, Samples
from plastiscope.error import DataError, RunError
from plastiscope.formats.checkpoints import (
    CheckpointFolder,
    Layout,
    Wanted,
    by_presentation,
    family,
    find_checkpoints,
    first_difference,
)
from plastiscope.formats.content import read_vector
from plastiscope.formats.sample_trees import EpochScores
from plastiscope.formats.scoring_facts import claim, is_scored, note_scored
from plastiscope.measure.class_schedule import ClassSchedule
from plastiscope.measure.loss import Loss, per_sample_loss
from plastiscope.measure.sample_gradient import loss_and_input_gradient
from plastiscope.net.resnet18 import ResNet18
from plastiscope.net.resnet18_shortcut import ResNet18Shortcut
from plastiscope.run.processes import Part, Processes, share_out
from plastiscope.task_shift_mode.views import presented

NORMALIZATIONS = {
    "lop": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "csl_mem": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}
"""Mean and std of the images: of the incremental study, and of the noisy-label study."""
FAMILIES = {"resnet18": (ResNet18, "fc"), "resnet18_shortcut": (ResNet18Shortcut, "linear")}
"""By the names of their parameters: how to make the network, and its head."""
BATCHES_IN_PART = 4
"""So many batches are scored between two files of a shared scoring; fixed, so that its bytes are the same for all."""
VALIDATION_PER_CLASS = 50
"""Images of each class that incremental CIFAR-100 keeps for validation: the first ones."""
SCHEDULE = ClassSchedule()
"""Incremental CIFAR-100: 5 classes, and 5 more after every 200 epochs."""

Score = Callable[[nn.Module, Batch, int], dict[str, Tensor]]
"""Network, batch and number of active outputs -> values [b] by name."""


@dataclass(frozen=True)
class Scorer:
    """What it takes to score checkpoints.

    Attributes:
        samples: the training images in file order: row = id.
        class_order: classes in the order of presentation, of incremental runs; None = all are in training always.
        batch_size: images at once.
        processes: who shares the work.
        schedule: how many classes are in training after so many epochs.
    """

    samples: Samples
    class_order: tuple[int, ...] | None
    batch_size: int
    processes: Processes
    schedule: ClassSchedule = SCHEDULE

    def active(self, epoch: int) -> tuple[Samples, int | None]:
        """The images of the classes in training, their targets as the loss sees them, and how many classes it sees."""
        if self.class_order is None:
            return self.samples, None
        classes = self.class_order[: self.schedule.classes_seen(epoch)]
        return presented(self.samples, classes, classes), len(classes)

    def score(
        self, state: dict[str, Tensor], source: Path, epoch: int, score: Score, parts: Path
    ) -> tuple[Samples, Part]:
        """The images in training at `epoch` and their values, the same in every process.

        Args:
            state: weights.
            source: their file.
            epoch: number of epochs completed, for the classes in training.
            score: what to compute of a batch.
            parts: folder for what is done while some is missing.

        Raises:
            RunError: the weights are of no network that is known here, have too few outputs, or give NaN.
        """
        samples, active = self.active(epoch)
        net, outputs = network(state, source, self.samples.source.device, self.class_order)
        rows = torch.arange(len(samples), device=samples.rows.device).split(self.batch_size * BATCHES_IN_PART)

        def compute(i: int) -> Part:
            batches = samples.select(rows[i]).batches(self.batch_size)
            found = [score(net, batch, active or outputs) for batch in batches]
            return {name: torch.cat([part[name] for part in found]).float().cpu().numpy() for name in found[0]}

        done = share_out(parts, len(rows), compute, self.processes)
        values = {name: np.concatenate([part[name] for part in done]) for name in done[0]} if done else {}
        for name, row in values.items():
            if np.isnan(row).any():  # in the files NaN would be read as "class not in training"
                image = samples.ids[int(np.isnan(row).argmax())].item()
                raise RunError(f"{source} gives {name} NaN for image {image}: it has diverged; leave its epoch out.")
        return samples, values


def losses(net: nn.Module, batch: Batch, outputs: int, compute_grad: bool = True) -> dict[str, Tensor]:
    """`loss`, and with `compute_grad` the norm of its gradient with respect to the image, `grad`, from one backward."""
    if compute_grad:
        loss, norm, _ = loss_and_input_gradient(net, Loss.cross_entropy, batch.inputs, batch.targets, outputs)
        return {"loss": loss, "grad": norm}
    with torch.no_grad():
        return {"loss": per_sample_loss(Loss.cross_entropy, net(batch.inputs)[:, :outputs], batch.targets)}


def network(
    state: dict[str, Tensor], source: Path, device: torch.device, class_order: Sequence[int] | None
) -> tuple[nn.Module, int]:
    """The network that the weights are of, in evaluation mode, and its number of outputs.

    Args:
        state: weights; width and number of outputs are read from them.
        source: their file, for errors.
        device: where it runs.
        class_order: output j shall stand for the j-th class presented, where in the file output c stands for class c.

    Raises:
        RunError: no network that is known here has such weights, or it has too few outputs.
    """
    name = family(state)
    width = len(state["conv1.weight"]) if "conv1.weight" in state else 1
    if not name:
        difference = first_difference(ResNet18(width=width).make((3, 32, 32), 100).state_dict(), state)
        raise RunError(f"{source} holds no ResNet-18 of a known kind: {difference} (as {' or '.join(FAMILIES)}).")
    kind, head = FAMILIES[name]
    outputs = len(state[f"{head}.weight"])
    if class_order is not None and max(class_order) >= outputs:
        raise RunError(
            f"{source} has {outputs} outputs, from 0, and class {max(class_order)} is asked for; give classes it has."
        )
    if class_order is not None:
        others = [c for c in range(outputs) if c not in class_order]
        state = by_presentation(state, head, [*class_order, *others])
    net = kind(width=width).make((3, 32, 32), outputs)
    difference = first_difference(net.state_dict(), state)
    if difference:
        raise RunError(f"{source} is damaged or no {name}: {difference}.")
    net.load_state_dict(state)
    return net.to(device).eval().requires_grad_(False), outputs


def choose_device(text: str, processes: Processes) -> torch.device:
    """The device that --device means; several processes of one machine take its GPUs in turn."""
    if text != "auto":
        try:
            torch.zeros(1, device=text).cpu()  # a device may have a name and not be there
        except (RuntimeError, AssertionError, ImportError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise DataError(f"--device {text} cannot be used ({reason}); try cpu.") from None
        return torch.device(text)
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", processes.rank % torch.cuda.device_count())


def cifar100(data_path: Path, normalization: str, device: torch.device) -> Samples:
    """All training images of CIFAR-100 in file order, clean; ids and rows are positions in the file.

    Args:
        data_path: holds cifar-100-python, or its files themselves; nothing is downloaded.
        normalization: lop or csl_mem.
        device: where the images lie.
    """
    torch.backends.cudnn.allow_tf32 = False  # scores are float32
    mean, std = (list(values) for values in NORMALIZATIONS[normalization])
    settings = Cifar100(folder=str(data_path), download=False, validation_share=0.0, mean=mean, std=std)
    return settings.load(0, device).train


def is_validation(samples: Samples) -> np.ndarray:
    """Which images incremental CIFAR-100 keeps for validation and never trains on, bool [n]."""
    return validation_mask(samples.clean_labels.cpu().numpy(), 0.0, VALIDATION_PER_CLASS)


def read_class_order(path: Path) -> tuple[int, ...]:
    """Classes in the order of their presentation.

    Raises:
        DataError: no such file, or not distinct classes.
    """
    if not path.is_file():
        raise DataError(
            f"There is no class order {path}; without it the classes in training at an epoch are not known. Put the "
            "file of the run there (its results have class_order/index-0.npy)."
        )
    order = read_vector(path)
    if order.dtype.kind not in "iu" or order.min(initial=0) < 0 or len(np.unique(order)) < len(order) or not len(order):
        raise DataError(f"{path} must hold distinct classes, from 0; it is no class order.")
    return tuple(order.tolist())


def class_order_of(model_dir: Path, given: Path | None, index: int, strict: bool) -> tuple[int, ...] | None:
    """The class order of published results: the given file, or class_order/index-{i}.npy beside the snapshots.

    Without either, None and a warning: all classes count as in training, so that classes that have not entered are
    scored too.

    Raises:
        DataError: no class order, when strict; or a file that is none.
    """
    beside = model_dir.resolve().parent / "class_order" / f"index-{index}.npy"
    if given is not None or beside.exists():
        return read_class_order(given or beside)
    text = f"there is no class order {beside}, so all classes count as in training at every epoch"
    if strict:
        raise DataError(f"{text}; put the file of the run there.")
    warnings.warn(text, stacklevel=2)
    return None


def find_snapshots(options: argparse.Namespace) -> CheckpointFolder:
    """The snapshots of --model_dir and --experiment_index."""
    return find_checkpoints(options.model_dir, Layout.incremental_cifar, Wanted(index=options.experiment_index))


def tree_facts(options: argparse.Namespace, order: tuple[int, ...] | None) -> dict[str, Any]:
    """What stands beside a tree of scores."""
    return {
        "model_dir": str(options.model_dir.resolve()),
        "experiment_index": options.experiment_index,
        "normalization": options.normalization,
        "class_order": order and list(order),
        "logit_scope": "all" if order is None else "active",
        "mode": "posthoc",
        "contains_l2": False,
        "split": "train and validation",
    }


def epoch_scores(epoch: int, samples: Samples, values: Part, **metadata: object) -> EpochScores:
    """Scores of images with their ids and classes."""
    ids, labels = samples.ids.cpu().numpy(), samples.labels.cpu().numpy()
    return EpochScores(epoch, ids, labels, values, metadata)


@dataclass(frozen=True)
class Claim:
    """The right to write the files of one run into a folder, and what of them is complete.

    Attributes:
        path: of the facts beside the files.
        key: a hash of what tells this scoring from others; unfinished parts of others are not taken for its own.
    """

    path: Path
    key: str

    @classmethod
    def make(cls, path: Path, facts: dict[str, Any], origin: Sequence[str], outputs: Sequence[Path]) -> "Claim":
        """Claim the folder of `path`; RunError if it has files of another run."""
        claim(path, facts, origin, outputs)
        known = json.dumps({key: facts.get(key) for key in origin}, sort_keys=True, default=str)
        return cls(path, hashlib.sha256(known.encode()).hexdigest()[:12])

    def parts(self, epoch: int) -> Path:
        """Folder for unfinished work on an epoch."""
        return self.path.parent / f".parts_{self.key}_epoch_{epoch}"


def score_each(
    checkpoints: CheckpointFolder,
    epochs: Sequence[int],
    claimed: Claim,
    scorer: Scorer,
    score: Score,
    write: Callable[[int, Samples, Part, float], Path],
    name_of: Callable[[int], int] = lambda epoch: epoch,
) -> None:
    """Score checkpoints one after the other and write each as soon as it is done; what is complete stays.

    Args:
        checkpoints: where they are.
        epochs: epochs completed of those wanted.
        claimed: of the folder.
        scorer: samples, schedule, processes.
        score: what to compute of a batch.
        write: (number of the epoch in file names, samples, values, seconds) -> the main file; called in the first
            process only.
        name_of: number of the epoch in file names.
    """
    waiting = [e for e in epochs if not is_scored(claimed.path, name_of(e), checkpoints.path(e))]
    scorer.processes.barrier()  # nobody notes a finished epoch before all know what is waiting
    for epoch in epochs:
        number, path = name_of(epoch), checkpoints.path(epoch)
        if epoch in waiting:
            begin = time.perf_counter()
            samples, values = scorer.score(checkpoints.load(epoch), path, epoch, score, claimed.parts(number))
            if scorer.processes.is_first:
                main_file = write(number, samples, values, time.perf_counter() - begin)
                note_scored(claimed.path, number, path, main_file)
        if scorer.processes.is_first:
            print(f"epoch {number}: {'scored' if epoch in waiting else 'was there'}", flush=True)


def full_row(scorer: Scorer, samples: Samples, values: np.ndarray) -> np.ndarray:
    """Values of some images as a row over all of them, float32 [n], NaN elsewhere."""
    row = np.full(len(scorer.samples), np.nan, np.float32)
    row[samples.rows.cpu().numpy()] = values
    return row
