"""Online loss and accuracy in bins, against the loop written out with plain torch."""

import json

import numpy as np
import pytest
import torch

from plans import make_plan
from plastiscope.error import ConfigError
from plastiscope.experiment import run
from plastiscope.make import load_tasks, make_net
from plastiscope.measure.evaluation import score
from plastiscope.presentation import presentation_order
from plastiscope.run.log import read_rows

FEW = ("data.samples_per_class=9", "data.test_samples_per_class=0", "num_tasks=3", "epochs=2", "batch_size=1")
NET = ("net=mlp", "net.widths=[8]", "learner.lr=0.01", "learner.momentum=0.0", "threads=1", "selection=last")
SHIFT = ("task_shift_mode=permuted_input", "data.validation_share=0.0")
N, EPOCHS, BIN = 90, 6, 70
"""540 presentations, 7 bins and 50 left over: bins end within epochs, at other places than epochs and tasks do."""


def by_hand(plan) -> tuple[np.ndarray, np.ndarray]:
    """Loss and hit of each presentation: forward, note, update."""
    data, shift = load_tasks(plan, torch.device("cpu"))
    net = make_net(plan, data.input_shape, shift.outputs)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    losses, hits = [], []
    for k in range(3):
        task = shift.task(k)
        for epoch in range(2):
            for position in presentation_order(task.train, plan.settings.seed, k, epoch):
                batch = task.train.gather(position.unsqueeze(0))
                before = score(net, [(batch.inputs, batch.targets)], task.loss, 10)
                losses.append(before.losses.item())
                hits.append(before.correct.item())
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(net(batch.inputs), batch.targets).backward()
                optimizer.step()
    return np.array(losses), np.array(hits, dtype=float)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("online") / "run"
    plan = make_plan(*FEW, *NET, *SHIFT, "analysis=[online]", f"online.bin_size={BIN}", "online.raw=true")
    run(plan, folder)
    return folder, *by_hand(plan)


def bins_of(folder):
    return [dict(np.load(path)) for path in sorted(folder.glob("task_*/online/bins.npz"))]


def test_bins_are_means_of_scores_from_before_the_update(finished):
    folder, losses, hits = finished
    bins = bins_of(folder)
    assert [b["presentations"].tolist() for b in bins] == [[70, 140], [210, 280, 350], [420, 490]]
    for name, values in (("loss", losses), ("accuracy", hits)):
        found = np.concatenate([b[name] for b in bins])
        assert found == pytest.approx(values[: 7 * BIN].reshape(7, BIN).mean(1), rel=1e-5)


def test_numbers_are_the_newest_bin_of_an_epoch_and_the_mean_of_a_task(finished):
    folder, losses, hits = finished
    rows = read_rows(folder / "metrics.jsonl")
    epochs = [row for row in rows if row["kind"] == "epoch"]
    ended = [(e + 1) * N // BIN for e in range(EPOCHS)]
    assert ended == [1, 2, 3, 5, 6, 7]
    for row, bins in zip(epochs, ended, strict=True):
        newest = slice((bins - 1) * BIN, bins * BIN)
        assert row["online/train/total/bin_loss"] == pytest.approx(losses[newest].mean(), rel=1e-5)
        assert row["online/train/total/bin_accuracy"] == pytest.approx(hits[newest].mean(), rel=1e-12)
    for k, row in enumerate(row for row in rows if row["kind"] == "task_end"):
        assert row["online/train/total/loss"] == pytest.approx(losses.reshape(3, -1)[k].mean(), rel=1e-5)
        assert row["online/train/total/accuracy"] == pytest.approx(hits.reshape(3, -1)[k].mean(), rel=1e-12)


def test_raw_values_are_those_of_each_presentation(finished):
    folder, losses, hits = finished
    stored = [np.load(path) for path in sorted(folder.glob("task_*/online/presentations_epoch_*.npz"))]
    assert len(stored) == EPOCHS
    assert np.concatenate([part["loss"] for part in stored]) == pytest.approx(losses, rel=1e-4, abs=1e-6)
    assert np.array_equal(np.concatenate([part["accuracy"] for part in stored]), hits)
    assert all(part["loss"].dtype == np.float32 for part in stored)


def test_the_summary_counts(finished):
    folder, losses, _ = finished
    summary = json.loads((folder / "task_0001_mlp" / "online" / "summary.json").read_text())
    assert (summary["presentations"], summary["bins"], summary["settings"]["bin_size"]) == (4 * N, 3, BIN)
    assert summary["task_mean"]["loss"] == pytest.approx(losses.reshape(3, -1)[1].mean(), rel=1e-5)


def test_an_epoch_without_a_whole_bin_has_no_number_of_bins_and_keeps_nothing_by_itself(tmp_path):
    run(make_plan(*FEW, *NET, *SHIFT, "analysis=[online]", "online.bin_size=100000"), tmp_path / "run")
    keys = set().union(*read_rows(tmp_path / "run" / "metrics.jsonl"))
    assert {key for key in keys if key.startswith("online")} == {
        "online/train/total/loss",
        "online/train/total/accuracy",
    }
    assert [len(b["loss"]) for b in bins_of(tmp_path / "run")] == [0, 0, 0]
    assert not list((tmp_path / "run").glob("task_*/online/presentations*"))


def test_a_regression_has_losses_alone(tmp_path):
    stream = (
        "experiment=slowly_changing_regression",
        "num_tasks=2",
        "task_shift_mode.examples_per_task=40",
        "online.bin_size=25",
    )
    run(make_plan(*stream), tmp_path / "run")
    assert [sorted(b) for b in bins_of(tmp_path / "run")] == [["loss", "presentations"]] * 2
    assert [b["presentations"].tolist() for b in bins_of(tmp_path / "run")] == [[25], [50, 75]]


def test_it_needs_training_and_every_epoch():
    plan = make_plan(*FEW, "analysis=[online]")
    assert "training steps" in plan.analyses[0].needs_training()
    with pytest.raises(ConfigError, match=r"online\.every=2: must be 1"):
        make_plan(*FEW, "analysis=[online]", "online.every=2")
