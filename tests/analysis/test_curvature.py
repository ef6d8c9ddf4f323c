"""The analysis of input curvature: rows against brute force, what it shares with csl, the engine it keeps."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_context import MLP, TINY, make_context

from plans import make_plan
from plastiscope.analysis.csl import Csl
from plastiscope.analysis.curvature import Curvature, EngineSetting, Precision
from plastiscope.data.samples import Batch
from plastiscope.error import ConfigError
from plastiscope.event import Context
from plastiscope.experiment import run
from plastiscope.load import load_run
from plastiscope.measure.input_curvature import Difference, Probe, input_curvature
from plastiscope.measure.loss import per_sample_loss
from plastiscope.run.processes import Processes

INCREMENTAL = ("task_shift_mode=class_incremental", "samples.population=run", "samples.validation=true")


@pytest.fixture
def context_at(tmp_path: Path) -> Iterator[Callable[..., Context]]:
    """Makes contexts whose networks are frozen and whose stores are closed at the end."""
    made: list[Context] = []

    def at(*overrides: str, task: int = 0, net: tuple[str, ...] = MLP) -> Context:
        context = make_context(tmp_path / f"run_{len(made)}", "analysis=[]", *overrides, task=task, net=net)
        context.net.requires_grad_(False)
        made.append(context)
        return context

    yield at
    for context in made:
        context.sample_store.close()


def rows(context: Context, task: int = 0) -> dict[str, np.ndarray]:
    """The newest row of each metric."""
    context.sample_store.sync()
    block = context.sample_store.block(task)
    return {metric: np.array(block.rows(metric)[context.epochs_completed]) for metric in block.metrics()}


def whole(context: Context, of_subset: str = "train") -> Batch:
    task = context.current_task
    samples = task.train if of_subset == "train" else task.validation
    return samples.gather(torch.arange(len(samples)))


def test_rows_are_the_measure_of_each_sample(context_at) -> None:
    context = context_at(*INCREMENTAL, "seed=3", task=1)
    analysis = Curvature(directions=3, batch_size=17, precision=Precision.float64, noise=True)
    numbers = analysis.look(context)
    found, n = rows(context, 1), len(context.current_task.train)
    net = context.net.double()
    for subset, columns in (
        ("train", slice(0, n)),
        ("validation", slice(n, n + len(whole(context, "validation").ids))),
    ):
        batch, task = whole(context, subset), context.current_task
        expected = input_curvature(
            net,
            task.loss,
            batch.inputs.double(),
            batch.targets,
            batch.ids,
            task.active_outputs,
            Probe(seed=3, directions=3),
        )
        for metric, values in (
            ("input_curv_norm", expected.norm),
            ("input_curv_fro2", expected.fro2),
            ("input_trace", expected.trace),
            ("input_rayleigh_mean", expected.trace / batch.inputs[0].numel()),
            ("input_curv_noise", expected.noise),
            ("grad_input_l2", expected.gradient_norms),
        ):
            np.testing.assert_allclose(found[metric][columns], values, rtol=1e-5, err_msg=metric)
            mean = found[metric][columns].mean(dtype=np.float64)
            assert numbers[f"curvature/{subset}/total/{metric}"] == pytest.approx(mean)


def test_samples_whose_class_has_not_entered_have_no_value(context_at) -> None:
    context = context_at(*INCREMENTAL)
    analysis = Curvature(directions=2, parameter_gradient=True, legacy=True, noise=True)
    numbers = analysis.look(context)
    later = np.isin(context.sample_store.block(0).ids, analysis.samples(context).later_ids)
    assert 0 < later.sum() < len(later)
    for metric, row in rows(context).items():
        assert (np.isnan(row) == later).all(), metric
    assert not any("/later/" in key for key in numbers)


def test_last_epoch_of_each_task_is_always_looked_at(context_at) -> None:
    context = context_at("epochs=5")
    assert Curvature(every=2).epochs(context) == [2, 4, 5]
    assert Curvature(every=100, initial=True).epochs(context) == [0, 5]
    context = context_at("epochs=5", task=1)
    assert Curvature(every=4, initial=True).epochs(context) == [8, 10]


def test_parameter_gradients_of_the_trained_parameters(context_at) -> None:
    context = context_at()
    frozen = next(iter(context.net.parameters()))
    for group in context.optimizer.param_groups:
        group["params"] = [p for p in group["params"] if p is not frozen]
    Curvature(directions=1, parameter_gradient=True).look(context)
    trained = [p for p in context.net.parameters() if p is not frozen]
    context.net.requires_grad_(True)
    batch, task = whole(context), context.current_task
    losses = per_sample_loss(task.loss, context.net(batch.inputs)[:, : task.active_outputs], batch.targets)
    for loss, found in zip(losses, rows(context)["grad_param_l2"], strict=True):
        gradients = torch.autograd.grad(loss, trained, retain_graph=True)
        expected = torch.stack([g.norm() for g in gradients]).norm().item()
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("setting", EngineSetting)
def test_the_engine_is_kept_and_told(setting: EngineSetting, context_at) -> None:
    context = context_at()
    analysis = Curvature(directions=1, parameter_gradient=True, engine=setting)
    assert analysis.state_dict() == {}
    analysis.on_epoch_end(context)
    analysis.on_task_end(context)
    state = analysis.state_dict()
    told = json.loads((context.folder("curvature") / "summary.json").read_text())
    assert (told["engine"], told["engine_reason"]) == (state["engine"], state["reason"])
    if setting is EngineSetting.auto:
        assert state == {"engine": "ghost", "reason": "it can treat the network"}
    elif setting is not EngineSetting.fastest:
        assert state["engine"] == setting.value
    resumed = Curvature(directions=1, parameter_gradient=True, engine=setting)
    resumed.load_state_dict({"engine": "loop", "reason": "as it was"})
    resumed.look(context)
    assert resumed.state_dict()["engine"] == "loop"


def test_several_processes_do_not_choose_by_timing(context_at) -> None:
    context = context_at()
    context.processes = Processes(0, 2)
    choice = Curvature(parameter_gradient=True, engine=EngineSetting.fastest)._choose(context)
    assert choice.reason == "it can treat the network"


def test_an_engine_that_cannot_treat_the_network_is_refused(context_at, monkeypatch) -> None:
    context = context_at()
    context.net.register_parameter("scale", torch.nn.Parameter(torch.ones(())))
    context.net.register_forward_hook(lambda net, _, outputs: outputs * net.scale)
    context.optimizer.add_param_group({"params": [context.net.scale]})
    with pytest.raises(ConfigError, match=r"curvature.engine=ghost: .*scale belongs to .*auto"):
        Curvature(parameter_gradient=True, engine=EngineSetting.ghost).look(context)


def test_legacy_values_of_a_published_script_with_a_mean_loss(context_at) -> None:
    """Of 32 samples in batches of 20 the first are divided by 20, the last by 12; of other subsets likewise."""
    context = context_at("samples.validation=true")
    n = len(context.current_task.train)
    size = n * 20 // 32
    Curvature(directions=2, legacy=True, h=0.01).look(context)
    summed = rows(context)
    np.testing.assert_allclose(summed["legacy_curv"], 0.01 * summed["input_curv_norm"], rtol=1e-6)
    np.testing.assert_allclose(summed["legacy_directional_eig"], 1e-4 * summed["input_trace"], rtol=1e-6)
    Curvature(directions=2, legacy=True, h=0.01, legacy_batch=size).look(context)
    divided = rows(context)
    validation = len(summed["legacy_curv"]) - n
    divisors = [size] * size + [n - size] * (n - size) + [min(size, validation)] * min(size, validation)
    for metric in ("legacy_curv", "legacy_directional_eig"):
        ratios = summed[metric][: len(divisors)] / divided[metric][: len(divisors)]
        np.testing.assert_allclose(ratios, divisors, rtol=1e-6)
    np.testing.assert_array_equal(divided["input_curv_norm"], summed["input_curv_norm"])


def test_difference_temperature_step_and_units_reach_the_measure(context_at) -> None:
    context = context_at()
    batch, task = whole(context), context.current_task
    options = {"directions": 2, "difference": Difference.central, "h": 0.05, "temperature": 2.0, "pixel_std": [0.25]}
    numbers = Curvature(**options).look(context)
    probe = Probe(
        seed=context.seed,
        directions=2,
        difference=Difference.central,
        step=0.05,
        temperature=2.0,
        unit=torch.tensor(4.0),
    )
    expected = input_curvature(context.net, task.loss, *_fields(batch), task.active_outputs, probe)
    np.testing.assert_allclose(rows(context)["input_curv_norm"], expected.norm, rtol=1e-4)
    below = (expected.norm <= expected.noise).double().mean().item()
    assert numbers["curvature/train/total/below_noise"] == pytest.approx(below)
    assert "grad_input_l2" not in rows(context)  # the gradient of another loss
    assert not any("grad_input_l2" in key for key in numbers)


def _fields(batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return batch.inputs, batch.targets, batch.ids


@pytest.mark.parametrize("curvature_first", [True, False])
def test_the_input_gradient_is_kept_once(curvature_first: bool, context_at) -> None:
    """Whichever looks first writes the row; the other one leaves it, and epochs of both have room."""
    context = context_at("epochs=3")
    analyses = [Curvature(directions=1, every=2), Csl(input_gradient=True)]
    for epoch in (1, 2, 3):
        context.epochs_completed = epoch
        for analysis in analyses if curvature_first else analyses[::-1]:
            analysis.on_epoch_end(context)
    context.sample_store.sync()
    block = context.sample_store.block(0)
    assert list(block.rows("grad_input_l2")) == [1, 2, 3]
    assert list(block.rows("input_curv_norm")) == [2, 3]


def test_a_row_of_the_input_gradient_that_is_there_stays(context_at) -> None:
    context, analysis = context_at(), Curvature(directions=1)
    at, mark = context.epochs_completed, np.full(len(context.current_task.train), 7, np.float32)
    analysis.block(context).write("grad_input_l2", at, mark, context.epochs_of_task())
    analysis.look(context)
    np.testing.assert_array_equal(rows(context)["grad_input_l2"], mark)


def test_a_run_of_images_writes_what_it_says(tmp_path: Path) -> None:
    """Summary and store of a run agree; equal runs have equal bytes (also test_every_analysis)."""
    plan = make_plan(*TINY, *MLP, "num_tasks=2", "analysis=[curvature]", "curvature.directions=2")
    run(plan, tmp_path / "run")
    view = load_run(tmp_path / "run").samples("input_curv_norm")
    assert view.epochs_completed.tolist() == [2, 4]
    for task, epoch in enumerate((2, 4)):
        (path,) = tmp_path.glob(f"run/task_{task:04d}_*/curvature/summary.json")
        about = json.loads(path.read_text())
        assert about["epochs_completed"] == [epoch]
        assert about["step"] == 1e-3
        assert about["settings"]["difference"] == "forward"
        assert about["means"]["input_curv_norm"] == {str(epoch): pytest.approx(float(np.nanmean(view.values[task])))}
        assert about["samples"] == np.isfinite(view.values[task]).sum()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"directions": 0}, "directions=0"),
        ({"h": 0.0}, "h=0.0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"pixel_std": [0.2, 0.0]}, "pixel_std="),
        ({"pixel_std": []}, "pixel_std="),
        ({"legacy_batch": 20}, "legacy_batch=20"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Curvature(**settings)


def test_networks_and_inputs_that_cannot_be_are_refused_before_the_run(context_at) -> None:
    context = context_at()
    with pytest.raises(ConfigError, match=r"pixel_std=\[1.0, 2.0\]: .*channels"):
        Curvature(pixel_std=[1.0, 2.0]).on_run_begin(context)
    context = context_at(net=(*MLP, "net.norm=batch"))
    Curvature(pixel_std=[1.0]).on_run_begin(context)
    context.net.norm_1.running_mean = context.net.norm_1.running_var = None
    with pytest.raises(ConfigError, match="norm_1"):
        Curvature().on_run_begin(context)
