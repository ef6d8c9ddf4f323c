"""The studies of smoothness, of Jacobian ranks and of the landscape under task shifts, at the size of a test."""

import json

import numpy as np
import pytest
import torch

from experiments.batch_norm_smoothness import run as batch_norm_smoothness
from experiments.loss_landscape_taskshift import run as loss_landscape_taskshift
from experiments.rank_diminishing import run as rank_diminishing
from plastiscope.build import compose_plan
from plastiscope.run.log import read_rows

FEW = ("data.samples_per_class=4", "data.test_samples_per_class=2", "batch_size=20")


def rows_of(readme: str) -> list[list[str]]:
    """Cells of all rows of the tables."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in readme.splitlines() if line.startswith("|")
    ]


@pytest.fixture(scope="module")
def smooth(real_data, tmp_path_factory):
    """One seed of the deep linear network, two epochs of each task."""
    study, runs = batch_norm_smoothness, tmp_path_factory.mktemp("batch_norm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "NETS", {"deep linear": study.NETS["deep linear"]})
        patch.setattr(study, "TASKS", 2)
        more = (f"data.folder={real_data}", "num_tasks=2", "epochs=2", "smoothness.num_samples=30", *FEW)
        return runs, *study.measure(runs, 1, *more)


def test_curves_go_from_before_training_through_every_epoch(smooth):
    runs, epochs, found, accuracy = smooth
    assert epochs.tolist() == [0, 1, 2, 3, 4]
    rows = read_rows(runs / "deep_linear_without_0" / "metrics.jsonl")
    values = found["deep linear"]["without"]
    first = next(row for row in rows if row["kind"] == "task_end")
    assert values["effective_beta"][0, 0] == first["smoothness/pre_training/total/effective_beta"]
    last = [row for row in rows if row["kind"] == "epoch"][-1]
    relative = last["smoothness/epoch/total/grad_predictiveness"] / last["smoothness/epoch/total/gradient_norm"]
    assert values["relative_change"][0, -1] == relative
    assert set(accuracy["deep linear"]) == set(batch_norm_smoothness.ARMS)
    assert batch_norm_smoothness.draw(epochs, {"one": found["deep linear"], "other": found["deep linear"]})


def test_the_two_ways_to_normalise_look_at_one_network(smooth):
    runs, _, found, _ = smooth
    one, other = (torch.load(runs / f"deep_linear_with_{name}_0" / "snapshots" / "epoch_000004.pt", weights_only=True)
                  for name in ("statistics_of_the_batch", "running_statistics"))  # fmt: skip
    assert all(torch.equal(one[key], other[key]) for key in one)
    betas = [found["deep linear"][arm]["effective_beta"][0, -1] for arm in list(batch_norm_smoothness.ARMS)[1:]]
    assert betas[0] != betas[1]


def test_levels_are_geometric_means(monkeypatch):
    monkeypatch.setattr(batch_norm_smoothness, "TASKS", 2)
    values = {name: np.array([[3.0, 1, 4, 1, 16], [12.0, 1, 4, 1, 16]]) for name in batch_norm_smoothness.QUANTITIES}
    level = batch_norm_smoothness.summary({"net": {"arm": values}})["net"]["arm"]["loss_range"]
    assert level == pytest.approx({"before": 6.0, "during": 8**0.5, "task_ends": 8.0, "factor": 1.0})


def test_the_table_of_smoothness_is_that_of_the_results():
    study = batch_norm_smoothness
    levels = json.loads((study.HERE / "results.json").read_text())["levels"]
    names = {label.replace("grad", "grad"): name for name, label in study.QUANTITIES.items()}
    net, checked = "", 0
    for first, label, *cells in rows_of((study.HERE / "README.md").read_text()):
        net = first or net
        if label in names:
            for arm, cell in zip(study.ARMS, cells, strict=True):
                numbers = levels[net][arm][names[label]]
                shown = [float(text) for text in cell.rstrip(")").split(" (")]
                assert shown == pytest.approx([numbers["during"], numbers["before"]], rel=5e-3)
                checked += 1
    assert checked == 24


@pytest.fixture(scope="module")
def ranked(real_data, tmp_path_factory):
    """One seed of two networks, one epoch."""
    study = rank_diminishing
    linear = ("net=deep_linear", "net.widths=[20,12,12]", "learner.lr=0.01")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "NETS", {"deep linear": linear, "convolutional": study.NETS["convolutional"]})
        patch.setattr(study, "EPS", (0.01, 1e-6))
        more = (f"data.folder={real_data}", "epochs=1", "smoothness.jacobian_samples=3", "smoothness.patch=4", *FEW)
        return study.measure(tmp_path_factory.mktemp("ranks"), 1, *more)


def test_ranks_fall_with_the_widths_and_never_rise_in_a_linear_net(ranked):
    found, accuracy = ranked
    assert set(accuracy) == {"deep linear", "convolutional"}
    linear = found["deep linear"]
    assert linear["layers"] == ["linear_1", "linear_2", "linear_3", "outputs"]
    for phase in rank_diminishing.PHASES:
        values = linear[phase]["rank, eps 1e-06"]
        assert values.shape == (1, 4, 3)
        assert values[0, :, 0].tolist() == [16, 12, 12, 10]
        assert rank_diminishing.rises(values) == 0
        assert found["convolutional"][phase]["rank, eps 0.01"].max() <= 16
    assert rank_diminishing.draw({str(i): linear for i in range(4)})


def test_means_and_rises_of_ranks_by_hand():
    values = np.array([[[4.0, 6], [3, 7]], [[8.0, 8], [6, 6]]])  # [seeds, layers, samples]
    means, errors = rank_diminishing.over_seeds(values)
    assert means.tolist() == [6.5, 5.5] and errors == pytest.approx([1.5, 0.5])
    assert rank_diminishing.rises(values) == 0.25


def test_the_numbers_of_the_ranks_readme_are_those_of_the_results():
    study = rank_diminishing
    networks = json.loads((study.HERE / "results.json").read_text())["networks"]
    checked = 0
    for net, phase, *cells in rows_of((study.HERE / "README.md").read_text()):
        if net in networks:
            of_phase = networks[net][next(key for key, label in study.PHASES.items() if label == phase)]
            ends = [of_phase["rank, eps 0.01"]["mean"][i] for i in (0, len(networks[net]["layers"]) // 2, -2, -1)]
            assert [float(cell) for cell in cells[:4]] == pytest.approx(ends, abs=0.051)
            assert float(cells[4].rstrip(" %")) == pytest.approx(
                100 * of_phase["rank, eps 0.01"]["share_of_rises"], abs=0.051
            )
            checked += 1
    assert checked == 2 * len(study.NETS)


@pytest.mark.parametrize("mode", loss_landscape_taskshift.MODES)
def test_landscape_ranks_and_weights_stand_beside_each_other(mode, real_data, tmp_path):
    study = loss_landscape_taskshift
    few = ("num_tasks=2", "epochs=1", "net.channels=[3,4,5]", "net.widths=[6]", "figures=false", "lla.spectrum.top_k=2")
    less = ("lla.evaluation_data.num_samples=20", "lla.planes.grid_resolution=3", "lla.spectrum.hutchinson_probes=2")
    less = (*less, "lla.spectrum.esd.num_probes=1", "lla.spectrum.esd.lanczos_steps=3", "lla.spectrum.tol=0.1")
    plan = [*study.overrides_of(mode), *study.SMALL, f"data.folder={real_data}", "use_wandb=false", *few, *less, *FEW]
    folder = study.done(tmp_path / "run", *plan)
    numbers = study.numbers_of(folder)
    assert all(len(values) == 2 for values in numbers.values())
    layers = ["conv_1", "conv_2", "conv_3", "linear_1"]
    assert [key.split("/")[2] for key in numbers if key.endswith("/effective_rank")] == ["layer_mean", *layers]
    assert [key for key in numbers if key.startswith("weight_sv_gini")][-1] == "weight_sv_gini/head.weight"
    for key in study.LANDSCAPE:
        assert np.isfinite([numbers[f"{phase}/{key}"] for phase in study.PHASES]).all()
    assert numbers["pre_training/plane_hessian_center_loss"] != numbers["post_training/plane_hessian_center_loss"]
    assert study.draw({mode: numbers, "again": numbers})
    assert compose_plan(*plan).settings.wandb.project == f"loss_landscape_taskshift_{mode}"


def test_ratios_leave_out_the_first_task():
    study = loss_landscape_taskshift
    numbers = {f"pre_training/{name}": [1.0, 2, 4, 8] for name in study.LANDSCAPE}
    numbers |= {f"post_training/{name}": [100.0, 2, 8, 32] for name in study.LANDSCAPE}
    assert set(study.ratios(numbers).values()) == {2.0}


def test_the_table_of_landscapes_is_that_of_the_results():
    study = loss_landscape_taskshift
    found = json.loads((study.HERE / "results.json").read_text())
    phases = {"before": "pre_training", "after": "post_training"}
    mode, checked = "", 0
    for shift, task, phase, *cells in rows_of((study.HERE / "README.md").read_text()):
        mode = shift.replace(" ", "_") if shift.replace(" ", "_") in study.MODES else mode
        if phase in phases:
            numbers = {key: values[int(task)] for key, values in found[mode]["by task"].items()}
            trace, error = cells.pop(2).rstrip(")").split(" (")
            assert float(error) == pytest.approx(numbers[f"{phases[phase]}/hessian_trace_stderr"], rel=0.03)
            names = ("plane_hessian_center_loss", "hessian_top_eig_1", "sam_center_gap", "hessian_trace_estimate")
            expected = [numbers[f"{phases[phase]}/{name}"] for name in names]
            assert [float(cell) for cell in (*cells, trace)] == pytest.approx(expected, rel=0.017)
            checked += 1
    assert checked == 12
