"""The learner: owner of the network and the optimiser; every update rule is one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError, require
from plastiscope.learner.effective_lr import EFFECTIVE_LR, EffectiveLrMode, Projection, scaled_steps
from plastiscope.learner.explicit_gradient import ExplicitGradient
from plastiscope.learner.fused_step import fused_step
from plastiscope.learner.layer_rates import LayerLr, LayerRates, Restart
from plastiscope.learner.optimizer import Optimizer, ParameterGroups, clip_norm, make_optimizer, parameter_groups
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.training_forward import TrainingForward
from plastiscope.measure.loss import per_sample_loss
from plastiscope.net.scale_invariance import scale_invariant_parameters
from plastiscope.net.svd import penalised
from plastiscope.task_shift_mode.task import NewHead, Task


class Reset(Enum):
    """What is initialised anew when a task begins (the first one excepted)."""

    nothing = "nothing"
    head = "head"
    network = "network"


@dataclass(kw_only=True)
class LearnerConfig:
    """Settings every learner has; the base of the components of the config group `learner`."""

    optimizer: Optimizer = Optimizer.sgd
    lr: float = 0.05
    """Step size at a task's start."""
    momentum: float = 0.9
    """Of SGD (heavy ball, torch's form)."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    """Of Adam and AdamW."""
    eps: float = 1e-8
    """Of Adam and AdamW."""
    weight_decay: float = 0.0
    """lambda of the penalty lambda/2 ||theta||^2: gradient += lambda theta in SGD and Adam, decoupled in AdamW."""
    milestones: list[int] = field(default_factory=list)
    """Epochs of a task at which the step size is multiplied by `decay`; the schedule restarts with each task."""
    decay: float = 0.2
    """Factor at each milestone."""
    clip_norm: float | None = None
    """The gradient's total norm is clipped to this; null = never."""
    reset: Reset = Reset.nothing
    """What is initialised anew at a task's start."""
    keep_optimizer_state: bool = False
    """Leave the optimiser's state of what is reset as it is (as published)."""
    keep_buffers: bool = False
    """Leave running statistics as they are when the network is reset (as published)."""
    layer_lr: LayerLr = field(default_factory=LayerLr)
    """How step sizes differ by layer; they multiply the schedule."""
    effective_lr: float | None = None
    """Constant effective rate of scale-invariant layers, in the place of lr; null = they take lr."""
    effective_lr_mode: EffectiveLrMode = EffectiveLrMode.scale
    """scale: step size effective_lr ||w||^2 (Adam: ||w||); project: lr, and ||w|| is kept, effective_lr stays null."""
    autograd: bool = True
    """false: gradients of plain fully connected networks by hand, equal up to rounding; faster for small ones."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        require(0 <= self.lr < float("inf"), "lr", self.lr, "must be 0 or more, and finite")
        require(0 <= self.momentum < 1, "momentum", self.momentum, "must be in [0, 1)")
        require(len(self.betas) == 2 and all(0 <= b < 1 for b in self.betas), "betas", self.betas, "two in [0, 1)")
        require(self.eps > 0, "eps", self.eps, "must be more than 0")
        require(self.weight_decay >= 0, "weight_decay", self.weight_decay, "must be 0 or more")
        require(self.decay > 0, "decay", self.decay, "must be more than 0")
        require(self.milestones == sorted(self.milestones), "milestones", self.milestones, "must be ascending")
        require(
            self.clip_norm is None or self.clip_norm > 0, "clip_norm", self.clip_norm, "must be more than 0 or null"
        )
        effective, projects = self.effective_lr, self.effective_lr_mode is EffectiveLrMode.project
        require(effective is None or 0 < effective < float("inf"), "effective_lr", effective, "must be more than 0")
        require(
            effective is None or not projects,
            "effective_lr",
            effective,
            "effective_lr_mode=project keeps the norms and steps by lr; leave effective_lr null",
        )

    def make(self, trainee: Trainee) -> "Learner":
        """The learner of `trainee`; update rules of their own override this."""
        return Learner(self, trainee)

    def lr_at(self, epoch: int) -> float:
        """Step size in epoch `epoch` of a task."""
        return self.lr * self.schedule(epoch)

    def schedule(self, epoch: int) -> float:
        """What step sizes are multiplied by in epoch `epoch` of a task."""
        return self.decay ** sum(epoch >= milestone for milestone in self.milestones)

    @property
    def is_adaptive(self) -> bool:
        """Whether the size of a step does not depend on the gradient's scale."""
        return self.optimizer is not Optimizer.sgd


class Learner:
    """Gradient descent on the task's loss; `mechanism` is where a subclass acts after the optimiser's step.

    Attributes:
        through: how the network runs in a step, if not as it is.
        on_backward, on_update: called in `step` when set; the trainer sets them when a callback listens.
    """

    def __init__(self, config: LearnerConfig, trainee: Trainee) -> None:
        """Own the network; its parameters that need no gradient are left alone."""
        self.config, self.net, self.units, self.initial_net = config, trainee.net, trainee.units, trainee.initial_net
        self.seed, self.lead = trainee.seed, trainee.lead
        self.parameters = [p for p in self.net.parameters() if p.requires_grad]
        self.layer_rates, self.projection = self._rates_of_layers()
        self.optimizer = make_optimizer(config, self.parameter_groups())
        self._penalised = penalised(self.net)
        self._explicit = None if config.autograd else self._explicit_gradient()
        self.task: Task | None = None
        self.through: TrainingForward | None = None
        self.on_backward: Callable[[], None] | None = None
        self.on_update: Callable[[], None] | None = None

    def take_up(self, task: Task) -> None:
        """Work on `task` from here, changing nothing; all that a resume within the task needs."""
        self.task = task

    def begin_task(self, task: Task) -> None:
        """Start `task`, already taken up: new head or reset, as the task and the settings say."""
        if self.layer_rates is not None:
            self.layer_rates.begin_task()
        reset = self.config.reset if task.index > 0 else Reset.nothing
        if reset is Reset.network:
            self._reset_network(task.index)
        if task.new_head is not NewHead.keep:
            self._reset_head(task.index, zeros=task.new_head is NewHead.zeros)
        elif reset is Reset.head:
            self._reset_head(task.index, zeros=False)

    def begin_epoch(self, epoch: int, epochs: int | None = None) -> None:
        """Set the step sizes of epoch `epoch` of the task.

        Args:
            epoch: from 0.
            epochs: of each task; step sizes that fall in time need it.
        """
        time = self._time(epoch, epochs)
        for group in self.optimizer.param_groups:
            factor = 1.0 if self.layer_rates is None else self.layer_rates.factor(group["layer"], time)
            if EFFECTIVE_LR in group:
                assert self.config.effective_lr is not None
                group["lr"], group[EFFECTIVE_LR] = 1.0, self.config.effective_lr * self.config.schedule(epoch) * factor
            else:
                group["lr"] = self.config.lr_at(epoch) * factor

    def _time(self, epoch: int, epochs: int | None) -> float:
        """t/T: epochs completed in the task, or in the run, in units of a task's."""
        if self.config.layer_lr.time_decay == 0:
            return 0.0
        if epochs is None:
            raise ValueError("step sizes that fall in time need the number of epochs of a task")
        assert self.task is not None
        before = 0 if self.config.layer_lr.restart is Restart.task else self.task.index
        return before + epoch / epochs

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One update: forward, loss, backward, gradients adjusted, optimiser, mechanism.

        The gradient is that of sum_i w_i loss_i / b, plus the penalties that layers of the network ask for; w_i = 1
        where the batch has no weights.

        Returns:
            Per-sample losses [*lead, b] and active outputs [*lead, b, k] from before the update, detached.
        """
        if self._explicit is not None:
            losses, outputs = self._explicit_steps(self._explicit, batch.each(lambda tensor: tensor.unsqueeze(0)))
            return losses[0], outputs[0]
        assert self.task is not None
        self._forget_gradients()
        outputs = self.forward(batch.inputs)
        if self.task.active_outputs < outputs.shape[-1]:
            outputs = outputs[..., : self.task.active_outputs]
        losses = per_sample_loss(self.task.loss, outputs, batch.targets)
        share = 1.0 / losses.shape[-1]
        losses.backward(torch.full_like(losses, share) if batch.weights is None else batch.weights * share)
        for layer in self._penalised:
            layer.add_penalty_gradient()
        self._follow_gradients()
        return losses.detach(), outputs.detach()

    def _follow_gradients(self) -> None:
        """The rest of a step, from the gradients on."""
        self.adjust_gradients()
        _call(self.on_backward)
        if self.config.clip_norm is not None:
            clip_norm(self.parameters, self.config.clip_norm, self.lead)
        self.update()
        _call(self.on_update)
        self.mechanism()
        if self.projection is not None:
            self.projection.project()

    def forward(self, inputs: Tensor) -> Tensor:
        """The outputs of the network in a step."""
        outputs: Tensor = self.net(inputs) if self.through is None else self.through(inputs)
        return outputs

    @property
    def hears_modules(self) -> bool:
        """Whether it hears the network's modules in a step, which a compiled network does not call."""
        return False

    def wants_features(self) -> bool:
        """Whether the mechanism of the step that comes next needs the features of the training forward."""
        return False

    def hear(self, features: Mapping[str, Tensor]) -> None:
        """Take the features [*lead, b, units] of a step without autograd, by the paths of modules; for `mechanism`."""

    def adjust_gradients(self) -> None:
        """What a learner adds to `.grad` after the backward pass, such as the gradient of a penalty; nothing here."""

    @property
    def works_in_blocks(self) -> bool:
        """Whether `step_block` is cheaper than single steps; the trainer then gives it blocks that nobody watches."""
        return self._explicit is not None

    def step_block(self, block: Batch) -> tuple[Tensor, Tensor]:
        """The updates of a block of batches, one after the other, as `step` makes them.

        Args:
            block: every tensor with a leading axis of n steps.

        Returns:
            Losses [n, *lead, b] and active outputs [n, *lead, b, k] from before each update, detached.
        """
        if self._explicit is not None:
            return self._explicit_steps(self._explicit, block)
        losses, outputs = zip(*(self.step(batch) for batch in block.steps()), strict=True)
        return torch.stack(losses), torch.stack(outputs)

    def _explicit_gradient(self) -> ExplicitGradient:
        if type(self).step is not Learner.step:
            raise ConfigError("learner.autograd=false: this learner has a step of its own; use learner.autograd=true")
        return ExplicitGradient(self.net, self.lead)

    def _explicit_steps(self, explicit: ExplicitGradient, block: Batch) -> tuple[Tensor, Tensor]:
        """`step_block` without autograd: outputs are kept, and the losses of all steps computed from them at once."""
        assert self.task is not None
        outputs = explicit.start(block, self.task.loss, self.task.active_outputs)
        is_heard = self.on_backward is not None or self.on_update is not None
        groups = self._plain_groups()
        self._forget_gradients()
        for i in range(len(outputs)):
            # The same updates whether somebody looks or not.
            rates = None if groups is None else [group["lr"] for group in groups]
            explicit.backward(i, None if is_heard else rates)
            if self.wants_features():
                self.hear(explicit.features)
            if is_heard or rates is None:
                explicit.fill_gradients()
            if rates is None:
                self._follow_gradients()
                continue
            if is_heard:
                _call(self.on_backward)
                explicit.descend(rates)
                _call(self.on_update)
            self.mechanism()
        return per_sample_loss(self.task.loss, outputs, block.targets), outputs

    def _plain_groups(self) -> list[dict[str, Any]] | None:
        """The optimiser's group of each parameter, when all that becomes of a gradient is theta -= lr gradient."""
        kind, config = type(self), self.config
        has_own_rule = kind.update is not Learner.update or kind.adjust_gradients is not Learner.adjust_gradients
        is_more = config.clip_norm is not None or self.layer_rates is not None or self.projection is not None
        groups = self.optimizer.param_groups
        is_sgd = type(self.optimizer) is torch.optim.SGD
        if has_own_rule or is_more or not is_sgd or any(g["momentum"] or g["weight_decay"] for g in groups):
            return None
        group_of = {parameter: group for group in groups for parameter in group["params"]}
        return [group_of[parameter] for parameter in self.parameters]

    def _forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def update(self) -> None:
        """The optimiser's step, by the rates of the layers."""
        if self.layer_rates is None:
            fused_step(self.optimizer)
            return
        with self.layer_rates.due_only(), scaled_steps(self.optimizer, self.config.is_adaptive, self.lead):
            self.optimizer.step()

    def mechanism(self) -> None:
        """What a learner does after the optimiser's step, such as replacing units; nothing here."""

    def numbers(self) -> Mapping[str, float | Tensor]:
        """What the learner did since the task began, for the task's row under `learner/`; nothing here.

        A tensor is a number, or one number for each run along the leading axis.
        """
        return {}

    def numbers_of(self, run: int) -> dict[str, float]:
        """`numbers` of one of the runs that advance together; a number of all of them counts for each."""
        found = self.numbers()
        return {
            key: float(value[run] if isinstance(value, Tensor) and value.ndim else value)
            for key, value in found.items()
        }

    def must_be_finite(self) -> dict[str, Tensor]:
        """Tensors of the learner's own, by a name for people, that stop the run when they are not finite.

        Each has the leading axes of the runs.
        """
        return {}

    def end_task(self) -> None:
        """The task is over; nothing here."""

    def state_dict(self) -> dict[str, Any]:
        """All that a resume needs besides the network's own state dict."""
        parts = {"layer_rates": self.layer_rates, "projection": self.projection}
        own = {name: part.state_dict() for name, part in parts.items() if part is not None}
        return {"optimizer": self.optimizer.state_dict(), **own}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        if self.layer_rates is not None:
            self.layer_rates.load_state_dict(state["layer_rates"])
        if self.projection is not None:
            self.projection.load_state_dict(state["projection"])

    def parameter_groups(self) -> ParameterGroups:
        """The trained parameters as an optimiser takes them: by layer where their rates differ."""
        facts: dict[nn.Parameter, dict[str, Any]] = {}
        if self.layer_rates is not None:
            facts = {parameter: {"layer": layer} for parameter, layer in self.layer_rates.layer_of.items()}
        if self.config.effective_lr is not None:
            for i, together in enumerate(self._invariant()):
                for parameter in together:
                    facts[parameter] |= {"invariant": i, EFFECTIVE_LR: self.config.effective_lr}
        return parameter_groups(self.net, self.parameters, facts)

    def _rates_of_layers(self) -> tuple[LayerRates | None, Projection | None]:
        """What the settings ask for; nothing by default."""
        config, rates, projection = self.config, None, None
        if config.layer_lr.varies or config.effective_lr is not None:
            rates = LayerRates(self.net, self.units, config.layer_lr)
        if config.effective_lr_mode is EffectiveLrMode.project:
            projection = Projection(self._invariant(), self.lead)
        return rates, projection

    def _invariant(self) -> list[list[nn.Parameter]]:
        """The scale-invariant parameters, those together that are so together."""
        found = scale_invariant_parameters(self.net, self.units, self.lead)
        if not found:
            raise ConfigError(
                "learner.effective_lr and effective_lr_mode=project need scale-invariant layers, and this network has "
                "none; use one whose layers a norm follows directly (such as net.norm=batch) or weight-normalised ones"
            )
        return found

    def reinitialised(self, parameters: Sequence[nn.Parameter]) -> None:
        """`parameters` have new first values; what is kept of the old ones goes."""
        self.forget_optimizer_state(parameters)
        if self.layer_rates is not None:
            self.layer_rates.forget(parameters)
        if self.projection is not None:
            self.projection.renew(parameters)

    def forget_optimizer_state(self, parameters: Iterable[nn.Parameter]) -> None:
        """Clear momentum, moments and step counts of `parameters`, unless the settings keep them.

        Zeros are what torch starts from; removing the entries would leave fused SGD with half of its buffers.
        """
        if not self.config.keep_optimizer_state:
            for parameter in parameters:
                for value in self.optimizer.state.get(parameter, {}).values():
                    value.zero_()

    def _reset_head(self, k: int, zeros: bool) -> None:
        try:
            head = self.net.get_submodule(self.units.head)
        except AttributeError:
            head = None
        if head is None or not self.units.head:
            raise ConfigError(
                "the head of this network was not found, so it cannot be reset; use learner.reset=nothing"
            )
        with torch.no_grad():
            if zeros:
                _start_at_zero(head)
            else:
                head.load_state_dict(self.initial_net(k).get_submodule(self.units.head).state_dict())
        self.reinitialised(list(head.parameters()))

    def _reset_network(self, k: int) -> None:
        fresh = self.initial_net(k).state_dict()
        if self.config.keep_buffers:
            for name, _ in self.net.named_buffers():
                fresh.pop(name, None)
        self.net.load_state_dict(fresh, strict=not self.config.keep_buffers)
        self.reinitialised(self.parameters)


def _call(listener: Callable[[], None] | None) -> None:
    if listener is not None:
        listener()


def _start_at_zero(head: nn.Module) -> None:
    """Outputs 0 on all inputs; layers with weights of several factors know how they can learn from there."""
    start = getattr(head, "start_at_zero", None)
    if callable(start):
        start()
        return
    for parameter in head.parameters():
        parameter.zero_()
