"""Published snapshots through the whole analysis after a run: looked at, collected, drawn, exported."""

import sys

import numpy as np
import pytest
import torch

from plans import make_plan
from plastiscope import app
from plastiscope.experiment import run
from plastiscope.make import load_tasks, make_net

TASKS, INDICES = 3, (0, 3)
ARMS = {"base_deep_learning_system": "incremental_cifar", "retrained_network": "incremental_cifar/retrained"}
RANDOM = np.random.default_rng(0)
ORDERS = {index: RANDOM.permutation(100) for index in INDICES}


def plan_of(arm, folder, data, index=0):
    return make_plan(
        f"experiment={ARMS[arm]}", "net.width=4", "threads=1", f"num_tasks={TASKS}", "data.samples_per_class=10",
        "data.test_samples_per_class=2", f"data.folder={data}", "analysis=[representation,continual]",
        "representation.samples=60", f"replay.folder={folder / 'results' / arm}", f"replay.index={index}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def looked_at(real_data, tmp_path_factory):
    """Two arms with two indices each, their snapshots 200 epochs apart, and a look at each of them."""
    folder, data = tmp_path_factory.mktemp("snapshots"), real_data / "cifar-100-python-mini"
    like = plan_of("base_deep_learning_system", folder, data)
    for arm in ARMS:
        place = folder / "results" / arm
        for name in ("model_parameters", "class_order"):
            (place / name).mkdir(parents=True)
        for index in INDICES:
            torch.manual_seed(index)
            net = make_net(like, (3, 32, 32), 100)
            for k in range(TASKS + 1):
                torch.save(net.state_dict(), place / "model_parameters" / f"index-{index}_epoch-{200 * k}.pt")
                with torch.no_grad():
                    for parameter in net.parameters():
                        parameter.add_(0.05 * torch.randn_like(parameter))
            np.save(place / "class_order" / f"index-{index}.npy", ORDERS[index])
            run(plan_of(arm, folder, data, index), folder / "looks" / f"{arm}_{index}")
    return folder


def call(monkeypatch, entry, *arguments):
    monkeypatch.setattr(sys, "argv", [f"plastiscope-{entry}", *map(str, arguments)])
    getattr(app, entry)()


def test_all_figures_that_snapshots_can_give(looked_at, monkeypatch, capsys):
    call(monkeypatch, "collect", looked_at / "looks")
    assert "4 runs: 4 done" in capsys.readouterr().out
    call(monkeypatch, "plot", looked_at / "looks", "figure=all")
    pictures = {path.stem for path in (looked_at / "looks" / "figures").glob("*.png")}
    assert pictures == {
        "relative_accuracy", "best_test_accuracy", "test_accuracy_per_epoch", "next_task_dormant_units", "stable_rank",
    }  # fmt: skip
    rows = (looked_at / "looks" / "figures" / "stable_rank.csv").read_text().splitlines()
    assert [row.split(",")[1:3] for row in rows[1:]] == [["1", "2"], ["2", "2"], ["3", "2"]] * 2  # two indices each


def test_the_published_arrays_of_published_snapshots(looked_at, monkeypatch, tmp_path):
    """Indices are those of the snapshots; every value is measured; nothing is said of epochs without snapshots."""
    call(monkeypatch, "collect", looked_at / "looks", "--export", tmp_path / "results")
    assert {path.name for path in (tmp_path / "results").iterdir()} == {*ARMS}
    for arm in ARMS:
        place = tmp_path / "results" / arm
        assert np.load(place / "experiment_indices.npy").tolist() == [*INDICES]
        for index in INDICES:
            found = {path.parent.name: np.load(path) for path in place.glob(f"*/index-{index}.npy")}
            assert found.pop("class_order").tolist() == ORDERS[index].tolist()
            assert found.pop("accuracy_per_class_in_order").shape == (5 * TASKS,)
            assert {*found} == {
                "weight_magnitude_analysis",
                *(f"{of}_{what}_analysis" for of in ("next_task", "previous_tasks")
                  for what in ("dormant_units", "effective_rank", "stable_rank")),
            }  # fmt: skip
            assert all(values.shape == (TASKS,) and np.isfinite(values).all() for values in found.values())


def test_magnitudes_and_the_first_dormant_units_are_those_of_the_files(looked_at, real_data, monkeypatch, tmp_path):
    call(monkeypatch, "collect", looked_at / "looks", "--export", tmp_path / "results")
    arm, place = "retrained_network", tmp_path / "results" / "retrained_network"
    plan = plan_of(arm, looked_at, real_data / "cifar-100-python-mini", 3)
    states = [
        torch.load(looked_at / f"results/{arm}/model_parameters/index-3_epoch-{200 * k}.pt", weights_only=True)
        for k in range(TASKS)
    ]
    net = make_net(plan, (3, 32, 32), 100)
    names = [name for name, _ in net.named_parameters()]
    means = [torch.cat([state[name].flatten() for name in names]).abs().mean().item() for state in states]
    stored = np.load(place / "weight_magnitude_analysis" / "index-3.npy")
    assert stored == pytest.approx(means, rel=1e-6)
    net.load_state_dict(states[0])
    plan.task_shift_mode.class_order = ORDERS[3].tolist()
    _, shift = load_tasks(plan, torch.device("cpu"))
    assert sorted(shift.task(0).classes) == sorted(ORDERS[3][:5])
    features = {}
    for module in net.modules():
        if isinstance(module, torch.nn.AdaptiveAvgPool2d):
            module.register_forward_hook(lambda module, given, output: features.update(last=output.flatten(1)))
    ids = np.load(looked_at / f"looks/{arm}_3/task_0000_resnet18/representation/next_epoch_000000.npz")["ids"]
    samples = shift.task(0).new_train
    at = {int(i): p for p, i in enumerate(samples.ids)}
    with torch.no_grad():
        net.eval()(samples.gather(torch.tensor([at[int(i)] for i in ids])).inputs)
    values = torch.linalg.svdvals(features["last"].double())
    expected = int((values.cumsum(0) / values.sum() < 0.99).sum()) + 1
    assert np.load(place / "next_task_stable_rank_analysis" / "index-3.npy")[0] == expected
