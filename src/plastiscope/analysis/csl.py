"""Cumulative sample loss: the loss of every training sample over the epochs, and what follows from it.

Post-hoc values are those of the definition that publications use: after the epoch, evaluation mode, clean inputs, the
labels that the network is told, the outputs active in the task, no penalty term. Online values are those that the
training steps computed anyway: from before the update, in training mode, of augmented inputs. The two never share a
matrix.

Source: Ravikumar et al. 2025, "Towards memorization estimation: fast, formal and free" (CSL); Toneva et al. 2019
(forgetting); Pleiss et al. 2020 (AUM); Swayamdipta et al. 2020 (cartography).
"""

import dataclasses
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.analysis.csl_online import PresentedMargins, presented_values
from plastiscope.analysis.csl_tables import ONLINE, sample_table, write_tables
from plastiscope.analysis.per_sample import SampleAnalysis, Score
from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError, require
from plastiscope.event import Context, Numbers
from plastiscope.measure.loss import Loss, class_index, correct, margin, per_sample_loss
from plastiscope.measure.sample_gradient import loss_and_input_gradient
from plastiscope.run.storage import write_json
from plastiscope.task_shift_mode.task import Task


class Mode(Enum):
    """Where the values come from."""

    posthoc = "posthoc"
    """From a pass over all samples after the epoch."""
    online = "online"
    """From the training steps; costs no pass."""
    both = "both"


@dataclass(kw_only=True)
class Csl(SampleAnalysis):
    """Loss, hit, margin and input gradient of every sample over the epochs; CSL and learning time of them."""

    mode: Mode = Mode.posthoc
    """posthoc is what publications sum, gives learning times, and works on saved weights; online costs no pass."""
    input_gradient: bool | None = None
    """Also the norm of the loss's gradient with respect to the input, of which learning times are made: one backward
    more in each pass. null = wherever there is a pass."""
    all_outputs: bool = False
    """Also the loss over all outputs of the network, of all samples of the block, whether their class is in training
    or not."""

    first_epochs: int | None = None
    """H of the column csl_first_<H>, the sum over the first H epochs in which the class is in training; null = none."""
    per_task: bool = False
    """Also columns csl_task_<k> and lt_frac_task_<k>, over the epochs of each task alone."""
    max_tasks: int | None = 20
    """Of more tasks than this only every n-th (and the last) writes the table of the run so far; null = all."""

    name = "csl"

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        self.has_gradient = self.mode is not Mode.online if self.input_gradient is None else self.input_gradient
        for field in ("initial", "input_gradient", "all_outputs"):
            is_possible = self.mode is not Mode.online or not getattr(self, field)
            require(is_possible, field, getattr(self, field), "needs a pass of its own: mode=posthoc or mode=both")
        for field in ("first_epochs", "max_tasks"):
            value = getattr(self, field)
            require(value is None or value >= 1, field, value, "must be 1 or more, or null")
        self._margins = PresentedMargins()

    def needs_training(self) -> str:
        """Why saved weights are not enough, unless every value comes from a pass over them."""
        if self.mode is Mode.posthoc:
            return ""
        return f"with mode={self.mode.name} takes values from the training steps; set {self.name}.mode=posthoc"

    def owns(self) -> tuple[str, ...]:
        """The values of a pass that others have too: which epochs are summed up does not depend on them."""
        return () if self.mode is Mode.online else ("loss", *["grad_input_l2"] * self.has_gradient)

    def hears(self, event: str, is_last: bool) -> bool:
        """Every step, if online values are kept."""
        return super().hears(event, is_last) and self.mode is not Mode.posthoc

    def on_batch_end(self, context: Context) -> None:
        """Keep the step's outputs for the margins."""
        if self.mode is Mode.posthoc or not self.is_due(context.epochs_completed + 1):
            return
        if context.current_task.loss is Loss.cross_entropy:
            assert context.logits is not None and context.batch is not None
            self._margins.add(context.logits, context.batch.targets)

    def on_epoch_end(self, context: Context) -> Numbers:
        """Score all samples, write what the steps saw, whichever is asked for."""
        due = [] if self.mode is Mode.online else self.epochs(context)
        if due and context.processes.is_first:
            for metric in self.owns():  # others may keep them at fewer epochs
                self.block(context).reserve(metric, due)
        numbers = {} if self.mode is Mode.online else super().on_epoch_end(context)
        saw_the_steps = self.mode is not Mode.posthoc and context.processes.is_first
        if saw_the_steps and self.is_due(context.epochs_completed):
            values = presented_values(context, self._margins.all(), len(self.samples(context)))
            self._margins = PresentedMargins()
            numbers |= self.record(context, values, [e for e in self.epochs(context) if e > 0])
        return numbers

    def on_task_end(self, context: Context) -> Numbers:
        """Means over the samples of what the task's own epochs add up to; the table and files of the run so far."""
        store, k = context.sample_store, context.task_idx
        if not context.processes.is_first or k not in store.tasks():
            return {}
        store.sync()
        has_loss = [prefix for prefix in self._prefixes() if f"{prefix}loss" in store.block(k).metrics()]
        if not has_loss:
            return {}
        stride = 1 if self.max_tasks is None else -(-context.num_tasks // self.max_tasks)
        is_due, is_only = (k + 1) % stride == 0 or k + 1 == context.num_tasks, store.tasks() == [k]
        options = {"first_epochs": self.first_epochs, "per_task": self.per_task}
        so_far = sample_table(context, has_loss, **options) if is_due else None
        own = so_far if so_far is not None and is_only else sample_table(context, has_loss, tasks=[k])
        numbers, folder = own.numbers(), context.folder(self.name)
        if so_far is not None:
            write_tables(context, folder, so_far)
        about = {"settings": dataclasses.asdict(self), "samples": len(own.columns["sample_id"]), "numbers": numbers}
        write_json(folder / "summary.json", about)
        return {self.key("train", "total", name): value for name, value in numbers.items()}

    def _prefixes(self) -> list[str]:
        """Of the metrics this writes; the first one's values are those of the published files."""
        return {Mode.posthoc: [""], Mode.online: [ONLINE], Mode.both: ["", ONLINE]}[self.mode]

    def state_dict(self) -> dict[str, Any]:
        """Margins of the epoch under way."""
        return {"margins": self._margins.all()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self._margins = PresentedMargins(state["margins"])

    def score(self, context: Context, task: Task) -> Score:
        """Loss, hit and margin, on request input gradient and loss over all outputs; NaN before the class enters."""
        net, has_classes = context.net, task.loss is Loss.cross_entropy
        if self.all_outputs and not has_classes:
            raise ConfigError(f"{self.name}.all_outputs=true: needs class targets, these data have none")
        names = ["loss", *["grad_input_l2"] * self.has_gradient, *["correct", "margin"] * has_classes]
        later = torch.from_numpy(self.samples(context).later_ids).to(task.train.rows.device)

        def score(batch: Batch) -> dict[str, Tensor]:
            targets = class_index(batch.targets) if has_classes else batch.targets
            waits = len(later) > 0 and bool(torch.isin(batch.ids[:1], later))  # a batch is of one part
            outputs = None
            if self.all_outputs or not (waits or self.has_gradient):
                outputs = net(batch.inputs)
            if waits:
                found = dict.fromkeys(names, torch.full((len(batch.ids),), float("nan"), device=batch.ids.device))
            else:
                found = self._values(net, task, batch.inputs, targets, outputs)
            if self.all_outputs and outputs is not None:
                found["loss_all"] = per_sample_loss(task.loss, outputs, targets)
            return found

        return score

    def _values(
        self, net: nn.Module, task: Task, inputs: Tensor, targets: Tensor, outputs: Tensor | None
    ) -> dict[str, Tensor]:
        """Values [b] by metric, of samples whose class is in training; `outputs` of the network, if they are known."""
        found: dict[str, Tensor] = {}
        if self.has_gradient or outputs is None:
            found["loss"], norms, active = loss_and_input_gradient(net, task.loss, inputs, targets, task.active_outputs)
            found["grad_input_l2"] = norms
        else:
            active = outputs[:, : task.active_outputs]
            found["loss"] = per_sample_loss(task.loss, active, targets)
        if task.loss is Loss.cross_entropy:
            hits = correct(task.loss, active, targets)
            assert hits is not None
            found |= {"correct": hits.float(), "margin": margin(active, targets)}
        return found
