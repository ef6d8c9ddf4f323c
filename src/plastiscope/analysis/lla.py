"""Loss landscape analysis: the landscape around the weights at the beginning and at the end of each task.

What is computed and written is `plastiscope.landscape`'s; here a task gives it a network, a loss and data. The samples
are drawn once per look, after the task's shift, with the evaluation transform, and copied, so the landscape does not
move under the look. Numbers keep their published names under pre_training/ and post_training/.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from plastiscope.analysis.analysis import Analysis, When
from plastiscope.analysis.frozen_set import FrozenSet, frozen_set, frozen_size
from plastiscope.error import ConfigError
from plastiscope.event import Context, Numbers
from plastiscope.landscape.look import Here, Landscape, SavedPoint, State, opened
from plastiscope.landscape.routes import Routes
from plastiscope.landscape.settings import BatchNormPolicy, Endpoints, LandscapeSettings, filled
from plastiscope.landscape.slices import are_sharded, own_rows
from plastiscope.landscape.study import everything
from plastiscope.measure.landscape.space import choose
from plastiscope.run.snapshots import Snapshots, digest
from plastiscope.run.storage import read_json, write_by
from plastiscope.task_shift_mode.task import NewHead

_NAMES = "|".join(part.name for part in fields(LandscapeSettings))
KEY = re.compile(rf"(?<![\w.])((?:{_NAMES})(?:\.\w+)*(?==)|(?:{_NAMES})(?:\.\w+)+)")
"""A setting of a look in a message: its key before "=", or a nested one."""
LAST_STEP = "last step"
"""What a replay says of weights at task ends that were not selected."""


@dataclass(kw_only=True)
class Lla(LandscapeSettings, Analysis):
    """Planes, spectrum, robust surface and mode connectivity of each task's loss."""

    when: When = When.post
    """At which weights of a task; numbers of its beginning are in the row of its end, and at once in summary.json."""

    name = "lla"
    shared_events = ("on_task_begin", "on_task_end")

    def __post_init__(self) -> None:
        """Check the ranges."""
        try:
            LandscapeSettings.__post_init__(self)
        except ConfigError as error:  # the key in front gets its prefix where settings are read
            key, colon, text = str(error).partition(":")
            raise ConfigError(key + colon + KEY.sub(rf"{self.name}.\1", text)) from None
        Analysis.__post_init__(self)
        self._routes: Routes | None = None
        self._seconds: Numbers = {}

    def forecast(self, context: Context) -> float:
        """Seconds of its looks at a task, from the routes that are the fastest here."""
        if not self.enables_something:
            return 0.0
        with self._in_words_of_a_run(), opened(self._landscape(context, When.post)) as look:
            return look.forecast.seconds * (2 if self.when is When.both else 1)

    def on_run_begin(self, context: Context) -> None:
        """What would fail at the first look fails before anything is trained."""
        if self.enables_something:
            with self._in_words_of_a_run():
                choose(context.net, self.params)
                self._weight_decay(context)

    def on_task_begin(self, context: Context) -> Numbers:
        """Scratch of earlier tasks goes; the first point of the path; the look before training.

        As a run begins, routes are chosen and the cost of its looks is forecast (and refused, if the budget says so).
        """
        _clear(context, context.task_idx)
        self._keep_point(context, 0)
        if self._routes is None and self.enables_something and not context.processes.is_ahead:
            with self._in_words_of_a_run(), opened(self._landscape(context, When.post)) as look:
                self._routes = look.routes
        return self._look(context, When.pre) if self.when is not When.post else {}

    def on_epoch_end(self, context: Context) -> None:
        """A point of the path."""
        self._keep_point(context, context.epoch + 1)

    def on_task_end(self, context: Context) -> Numbers:
        """The look after training."""
        numbers = self._look(context, When.post) if self.when is not When.pre else {}
        if self.enables_something and self.is_due(context.task_idx + 1):
            self._seconds = _seconds(context.folder(self.name))
        return numbers

    def take_seconds(self) -> Numbers:
        """Of the looks at a task, in the row of its end: `lla_runtime_sec`, and `lla_runtime_sec/<phase>`."""
        seconds, self._seconds = self._seconds, {}
        return seconds

    def on_run_end(self, context: Context) -> None:
        """Scratch of the last task goes."""
        _clear(context, context.task_idx + 1)

    def state_dict(self) -> dict[str, Any]:
        """The routes that the first look chose."""
        return {"routes": None if self._routes is None else self._routes.facts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._routes = None if state["routes"] is None else Routes.restored(state["routes"])

    def _look(self, context: Context, when: When) -> Numbers:
        """The numbers of one look, with their published prefix."""
        if not self.enables_something or not self.is_due(context.task_idx + 1):
            return {}
        with self._in_words_of_a_run(), opened(self._landscape(context, when)) as look:
            numbers = everything(look)
            self._routes = look.routes
        return {f"{_phase(when)}/{key}": value for key, value in numbers.items()}

    @contextmanager
    def _in_words_of_a_run(self) -> Iterator[None]:
        """Mistakes in settings are told with the keys by which a run names them: `lla.params`."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(KEY.sub(rf"{self.name}.\1", str(error))) from None

    def _landscape(self, context: Context, when: When) -> Landscape:
        """Network, loss and data of the task, as they are now."""
        settings = filled(LandscapeSettings(**{f.name: getattr(self, f.name) for f in fields(LandscapeSettings)}))
        data, connectivity = settings.evaluation_data, settings.mode_connectivity
        assert data.num_samples is not None

        def draw(num_samples: int, split: str, rows: Callable[[int], slice] | None = None) -> FrozenSet:
            return frozen_set(context, num_samples=num_samples, seed=data.fixed_eval_seed, split=split, rows=rows)

        is_slice = self._is_sharded(context, settings)
        rows = partial(own_rows, processes=context.processes) if is_slice else None
        found = draw(data.num_samples, data.split.value, rows)
        is_connected = settings.enable_mode_connectivity
        wants_statistics = is_connected or settings.bn.policy is BatchNormPolicy.recompute
        start, why_none = self._start(context) if is_connected else (None, "")
        test = draw(data.num_samples, "test") if is_connected else None
        path, here = self._path(context) if when is When.post and self._wants_path else ([], Here())
        return Landscape(
            net=context.net,
            inputs=found.inputs,
            targets=found.targets,
            ids=found.ids,
            is_slice=is_slice,
            loss=found.loss,
            active_outputs=found.active_outputs,
            folder=context.folder(self.name) / _phase(when),
            settings=settings,
            seed=context.seed,
            weight_decay=self._weight_decay(context),
            path=path,
            here=here,
            start=start,
            without_start=why_none,
            test=None if test is None else (test.inputs, test.targets),
            training_inputs=draw(connectivity.bn_samples, "train").inputs if wants_statistics else None,
            training_batch=context.batch_size,
            processes=context.processes,
            routes=self._routes,
            tells=self._routes is None,
            about=_about(context, found, data.split.value),
        )

    def _is_sharded(self, context: Context, settings: LandscapeSettings) -> bool:
        """Whether each process draws only its slice of the samples."""
        data, itemsize = settings.evaluation_data, getattr(torch, settings.dtype).itemsize
        assert data.num_samples is not None
        samples, numbers = frozen_size(context, data.num_samples, data.split)
        device = next(context.net.parameters()).device
        return are_sharded(settings, context.processes, context.net, samples, numbers * itemsize, device)

    def _weight_decay(self, context: Context) -> float:
        """The learner's, if it is to count."""
        found = {float(group.get("weight_decay", 0.0)) for group in context.optimizer.param_groups}
        if self.loss.include_weight_decay and len(found) > 1:
            raise ConfigError(f"loss.include_weight_decay=true: the learner has several weight decays, {sorted(found)}")
        return found.pop() if self.loss.include_weight_decay else 0.0

    @property
    def _wants_path(self) -> bool:
        return self.enable_planes and self.planes.include_trajectory and self.when is not When.pre

    def _keep_point(self, context: Context, epochs: int) -> None:
        """Keep the weights after so many epochs of the task, if they are a point of the path of a training.

        Of those of every epoch a digest is kept: the weights at the task's end are those of the epoch that is selected.
        """
        if not self._wants_path or context.is_replay or not self.is_due(context.task_idx + 1):
            return
        place = context.folder(self.name) / "trajectory"
        place.mkdir(exist_ok=True)
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in context.net.state_dict().items()}
        if epochs:
            write_by(_digest(place, epochs), lambda file: file.write(digest(state).encode()))
        if epochs in self._chosen(context):
            write_by(_point(place, epochs), lambda file: torch.save(state, file))

    def _chosen(self, context: Context) -> list[int]:
        """Epochs of a task after which a training keeps the weights; the last one is always among them."""
        return [*spread(range(context.epochs), self.planes.max_checkpoints), context.epochs]

    def _path(self, context: Context) -> tuple[list[SavedPoint], Here]:
        """Weights of the task's training, oldest first, and where those looked at lie among them.

        In a training those that were kept, in a replay those that are walked.
        """
        if context.is_replay:
            return self._walked(context)
        place, first = context.folder(self.name) / "trajectory", context.task_idx * context.epochs
        there = [e for e in self._chosen(context) if _point(place, e).exists()]
        own = digest(context.net.state_dict())
        last_first = (context.epochs, *range(1, context.epochs))  # where several are equal, nothing was selected
        found = [e for e in last_first if _digest(place, e).exists() and _digest(place, e).read_text() == own]
        points = {first + e: SavedPoint(f"epoch {first + e}", _loader(_point(place, e))) for e in there}
        return placed(points, first + found[0] if found else None, first + context.epochs)

    def _walked(self, context: Context) -> tuple[list[SavedPoint], Here]:
        """The path from the weights that are walked; those of a task's end may be those of an earlier epoch."""
        first, last, snapshots = context.task_idx * context.epochs, context.epochs_completed, context.snapshots
        walked = [e for e in context.epochs_of_task() if e < last]
        here: int | None = last
        if context.replay_facts.get("task_end_weights", LAST_STEP) != LAST_STEP:
            within = [e for e in walked if e > first]
            found = [e for e in within if digest(snapshots.load(e)) == context.weights_digest]
            is_last = within == list(range(first + 1, last))  # the only one that is not there
            here = found[0] if found else last if is_last else None
        if first > 0 and first in snapshots.epochs() and _keeps_outputs(context):
            walked = [first, *walked]
        chosen = spread(walked, self.planes.max_checkpoints)
        return placed({e: SavedPoint(f"epoch {e}", partial(snapshots.load, e)) for e in chosen}, here, last)

    def _start(self, context: Context) -> tuple[SavedPoint | None, str]:
        """The other end of the curves, or why there is none."""
        settings = self.mode_connectivity
        if settings.endpoints is Endpoints.run:
            saved, epochs = Snapshots(Path(str(settings.run)) / "snapshots"), context.epochs_completed
            if epochs not in saved.epochs():
                there = ", ".join(map(str, saved.epochs())) or "none"
                return None, f"{saved.folder} has no weights after {epochs} epochs; there are: {there}"
            return SavedPoint(f"epoch {epochs} of {settings.run}", partial(saved.load, epochs)), ""
        before = context.task_idx * context.epochs
        if context.task_idx == 0:
            return None, "the first task has no task before it"
        if not _keeps_outputs(context):
            return None, "the head was made anew as the task began, so the outputs before mean nothing in it"
        if before not in context.snapshots.epochs():
            return None, f"the weights at the end of the task before, after {before} epochs, were not saved"
        return SavedPoint(f"epoch {before}", partial(context.snapshots.load, before)), ""


def spread(among: Sequence[int], at_most: int) -> list[int]:
    """At most so many of `among`, from the first on at equal distances, rounded down."""
    n = len(among)
    return [among[i * n // at_most] for i in range(at_most)] if n > at_most else list(among)


def placed(points: Mapping[int, SavedPoint], here: int | None, last: int) -> tuple[list[SavedPoint], Here]:
    """The points of a path without the weights that are looked at, and where these lie.

    Args:
        points: by epochs completed, ascending.
        here: epochs completed at the weights that are looked at; None = not known.
        last: epochs completed at the task's end.
    """
    others = [point for epoch, point in points.items() if epoch != here]
    if here is None:
        return others, Here("the weights, selected", is_known=False)
    before = sum(epoch < here for epoch in points)
    return others, Here("the weights" if here == last else f"epoch {here}, selected", before)


def _keeps_outputs(context: Context) -> bool:
    """Whether the outputs of the task before still mean the same."""
    return not context.learner_resets_head and context.current_task.new_head is NewHead.keep


def _phase(when: When) -> str:
    """Folder of a look, and prefix of its numbers."""
    return f"{when.value}_training"


def _about(context: Context, found: FrozenSet, split: str) -> dict[str, Any]:
    """Facts of the task, for the record."""
    return {
        "task_idx": context.task_idx,
        "epochs_completed": context.epochs_completed,
        "arch": context.arch,
        "split": split,
        "classes": list(found.classes),
        "active_outputs": found.active_outputs,
        "notes": [found.note] if found.note else [],
    }


def _seconds(folder: Path) -> Numbers:
    """What the looks at a task took, as their summaries have it, in all and by phase: both looks of it together."""
    found: Numbers = {}
    for when in (When.pre, When.post):
        for phase, seconds in (read_json(folder / _phase(when) / "summary.json") or {"seconds": {}})["seconds"].items():
            for key in ("lla_runtime_sec", f"lla_runtime_sec/{phase}"):
                found[key] = found.get(key, 0.0) + seconds
    return found


def _point(place: Path, epochs: int) -> Path:
    return place / f"epoch_{epochs:06d}.pt"


def _digest(place: Path, epochs: int) -> Path:
    return place / f"epoch_{epochs:06d}.sha256"


def _loader(path: Path) -> Callable[[], State]:
    def load() -> dict[str, Tensor]:
        return torch.load(path, weights_only=True, map_location="cpu")

    return load


def _clear(context: Context, tasks: int) -> None:
    """Remove what the looks of the first so many tasks leave until a checkpoint is behind them: parts, points."""
    for k in range(tasks if context.processes.is_first else 0):
        place = context.run_folder / f"task_{k:04d}_{context.arch}" / "lla"
        for scratch in (place / "trajectory", *place.glob("*_training/parts")):
            shutil.rmtree(scratch, ignore_errors=True)
