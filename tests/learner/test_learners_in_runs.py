"""Every learner through the trainer: stopped in the middle of an epoch it goes on bit for bit; on all networks."""

import signal
from pathlib import Path

import pytest
import torch

from plans import make_plan
from plastiscope.experiment import run
from plastiscope.learner.learner import Learner
from plastiscope.run.status import read_status

GRADIENT_LEARNERS = {
    "l2": ["learner=l2"],
    "l2_init": ["learner=l2_init", "learner.strength=0.1", "learner.reset=head"],
    "head_reset": ["learner=head_reset"],
    "retrained": ["learner=retrained"],
    "shrink_and_perturb": ["learner=shrink_and_perturb", "learner.noise_std=0.01"],
    "shrink_and_perturb_task": ["learner=shrink_and_perturb_task"],
    "period": ["learner=backprop", "learner.layer_lr.update_period=2", "learner.layer_lr.depth_decay=0.5"],
    "time": ["learner=backprop", "learner.layer_lr.time_decay=1.0", "learner.layer_lr.restart=never"],
    "scale": ["learner=backprop", "learner.effective_lr=0.01", "learner.optimizer=adam"],
    "project": ["learner=backprop", "learner.effective_lr_mode=project"],
}
SOON = ["learner.replacement_rate=0.02", "learner.maturity_threshold=4"]
LEARNERS = GRADIENT_LEARNERS | {
    "redo": ["learner=redo", "learner.reset_period=5", "learner.tau=0.5"],
    "continual_backprop": ["learner=continual_backprop", "learner.util_type=adaptable_contribution", *SOON],
    "rank_restoring_cbp": ["learner=rank_restoring_cbp", *SOON],
    "upgd": ["learner=upgd"],
    "spectral_regularization": ["learner=spectral_regularization"],
}
NETS = {
    "mlp": ["net=mlp", "net.widths=[12,8]", "net.norm=batch"],
    "convnet": [
        *("net=convnet", "net.channels=[4,5]", "net.kernel_sizes=[3,3]", "net.widths=[6]", "net.norm=batch"),
        "data.resize=14",
    ],
    "resnet18": ["net=resnet18", "net.width=2"],
}
SMALL = (
    *("data.samples_per_class=20", "data.test_samples_per_class=5", "batch_size=8", "selection=last", "analysis=[]"),
    *("num_tasks=2", "epochs=2", "threads=1", "learner.lr=0.01"),
)


def contents(folder: Path) -> dict[str, bytes]:
    names = ["metrics.jsonl", *(f"snapshots/{path.name}" for path in (folder / "snapshots").glob("*.pt"))]
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_run_stopped_in_the_middle_of_an_epoch_goes_on_bit_for_bit(learner, tmp_path, monkeypatch):
    """Stopped in the second task, at a step at which a period is under way."""
    plan = (*SMALL, *NETS["mlp"], *LEARNERS[learner])
    run(make_plan(*plan), tmp_path / "finished")
    taken, step = 0, Learner.step

    def counted(self, batch):
        nonlocal taken
        taken += 1
        if taken == 13:
            signal.raise_signal(signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", counted)
        with pytest.raises(SystemExit):
            run(make_plan(*plan), tmp_path / "run")
    run(make_plan(*plan), tmp_path / "run")
    assert contents(tmp_path / "run") == contents(tmp_path / "finished")


@pytest.mark.parametrize("net", ["convnet", "resnet18"])
@pytest.mark.parametrize("learner", GRADIENT_LEARNERS)
def test_they_train_every_kind_of_network(learner, net, tmp_path):
    run(make_plan(*SMALL, "epochs=1", *NETS[net], *LEARNERS[learner]), tmp_path / "run")
    assert read_status(tmp_path / "run")["state"] == "done"
    first, last = (
        torch.load(sorted((tmp_path / "run" / "snapshots").glob("*.pt"))[i], weights_only=True) for i in (0, -1)
    )
    assert first.keys() == last.keys()
    assert any(not torch.equal(first[name], last[name]) for name in first)
