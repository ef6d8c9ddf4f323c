"""Every learner on a CUDA device: no step waits for it, alone, stacked, without autograd and in mixed precision."""

import pytest
import torch
from learning import batches, start
from torch import nn

from plastiscope.data.samples import Batch, side_by_side
from plastiscope.learner.backprop import Backprop
from plastiscope.learner.continual_backprop import ContinualBackprop
from plastiscope.learner.l2_init import L2Init
from plastiscope.learner.layer_rates import LayerLr
from plastiscope.learner.learner import Learner, LearnerConfig
from plastiscope.learner.optimizer import Optimizer
from plastiscope.learner.redo import Redo
from plastiscope.learner.shrink_and_perturb import ShrinkAndPerturb
from plastiscope.learner.spectral_regularization import SpectralRegularization
from plastiscope.learner.trainee import Trainee
from plastiscope.learner.training_forward import Compile, Precision, TrainingForward
from plastiscope.learner.upgd import Upgd
from plastiscope.net.mlp import Mlp
from plastiscope.net.stacked import stack

NET, SHAPE = Mlp(widths=[9, 7]), (5,)
REPLACING = ContinualBackprop(replacement_rate=0.1, maturity_threshold=2)
CONFIGS: dict[str, LearnerConfig] = {
    "backprop": Backprop(),
    "backprop, adam, clipped": Backprop(optimizer=Optimizer.adam, clip_norm=0.5),
    "backprop, rates by layer": Backprop(layer_lr=LayerLr(depth_decay=0.5, update_period=2)),
    "continual_backprop": REPLACING,
    "l2_init": L2Init(),
    "redo": Redo(reset_period=2, tau=0.5),
    "shrink_and_perturb": ShrinkAndPerturb(),
    "spectral_regularization": SpectralRegularization(),
    "upgd": Upgd(),
    "by hand": Backprop(momentum=0.0, autograd=False),
    "continual_backprop by hand": ContinualBackprop(
        replacement_rate=0.1, maturity_threshold=2, momentum=0.0, autograd=False
    ),
}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def step_without_waiting(learner: Learner, given: list[Batch]) -> None:
    """The first steps make kernels and workspaces; whatever makes the host wait for the device later is an error."""
    for batch in given[:3]:
        learner.step(batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in given[3:]:
            learner.step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for parameter in learner.parameters:
        assert torch.isfinite(parameter).all()


def on_device(runs: int) -> list[Batch]:
    """Batches of one run, or of several side by side."""
    given = [batches(SHAPE, [6] * 12, seed=run, dtype=torch.float32) for run in range(max(runs, 1))]
    joined = [side_by_side(some, 0) if runs else some[0] for some in zip(*given, strict=True)]
    return [batch.each(lambda tensor: tensor.cuda()) for batch in joined]


def learner_of(config: LearnerConfig, runs: int) -> Learner:
    here = start(config, NET, SHAPE, dtype=torch.float32)

    def initial_net(k: int) -> nn.Module:
        return stack([here.initial_net(k + run) for run in range(runs)]) if runs else here.initial_net(k)

    seed = list(range(runs)) if runs else 0
    learner = config.make(Trainee(initial_net(0).cuda(), here.units, initial_net, seed, lead=int(runs > 0)))
    learner.take_up(here.task)
    learner.begin_epoch(0, 1)
    learner.net.train()
    return learner


@pytest.mark.parametrize("runs", [0, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_no_step_waits(config, runs):
    step_without_waiting(learner_of(config, runs), on_device(runs))


@pytest.mark.parametrize("precision", Precision)
def test_no_step_waits_in_other_precisions(precision):
    learner = learner_of(Backprop(), 0)
    learner.through = TrainingForward(learner.net, precision, Compile.none)
    step_without_waiting(learner, on_device(0))
