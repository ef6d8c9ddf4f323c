"""Per-sample values against each saved network, asked sample by sample, and against what each step saw."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from analysis_context import MLP, TINY, make_context
from torch import Tensor, nn

from plans import make_plan
from plastiscope.analysis.csl_online import PresentedMargins
from plastiscope.build import Plan
from plastiscope.data.samples import Samples
from plastiscope.error import ConfigError
from plastiscope.event import Callback, Context
from plastiscope.experiment import run
from plastiscope.load import LoadedRun, load_run
from plastiscope.measure.loss import margin

BOTH = ("analysis=[csl]", "csl.mode=both", "csl.input_gradient=true", "csl.all_outputs=true", "csl.batch_size=7")
SHORT = (*TINY, *MLP, "num_tasks=2", "selection=last", "snapshots.every=1", "learner.lr=0.2")
NET = ("net.norm=batch", "net.dropout=0.3")
"""What tells evaluation mode from training mode."""


@dataclass(kw_only=True)
class Eavesdropper(Callback):
    """Notes what each step of an epoch saw, by id."""

    name: str = "eavesdropper"
    seen: dict[int, dict[int, tuple[float, float, float]]] = field(default_factory=dict)

    def on_batch_end(self, context: Context) -> None:
        assert context.batch is not None and context.losses is not None and context.logits is not None
        rows = self.seen.setdefault(context.epochs_completed + 1, {})
        for i, (loss, logits) in enumerate(zip(context.losses.tolist(), context.logits, strict=True)):
            target = int(context.batch.targets[i])
            others = max(v for j, v in enumerate(logits.tolist()) if j != target)
            is_right = float(int(logits.argmax()) == target)
            rows[int(context.batch.ids[i])] = (loss, is_right, np.float32(logits[target].item() - others))


def explicit(net: nn.Module, x: Tensor, target: int, active: int) -> dict[str, float]:
    """One sample alone, in float64."""
    x = x.double().unsqueeze(0).requires_grad_()
    outputs = net.double().eval()(x)
    told = torch.tensor([target])
    loss = F.cross_entropy(outputs[:, :active], told)
    (gradient,) = torch.autograd.grad(loss, x)
    logits = outputs[0, :active].tolist()
    others = max(value for j, value in enumerate(logits) if j != target)
    return {
        "loss": loss.item(),
        "correct": float(logits[target] > others),
        "margin": logits[target] - others,
        "grad_input_l2": gradient.norm().item(),
        "loss_all": F.cross_entropy(outputs, told).item(),
    }


def check_posthoc(loaded: LoadedRun, metrics: tuple[str, ...], clean: Samples) -> None:
    """Each value of each whole row against the saved network of that epoch; NaN exactly where the class waits."""
    views = {metric: loaded.samples(metric) for metric in metrics}
    place = {int(i): p for p, i in enumerate(clean.ids)}
    inputs = clean.gather(torch.arange(len(clean))).inputs
    last = loaded.shift.task(loaded.config["num_tasks"] - 1)
    for row, epochs_completed in enumerate(views["loss"].epochs_completed):
        task, net = loaded.shift.task(int(views["loss"].tasks[row])), loaded.net(epochs_completed=int(epochs_completed))
        for column, i in enumerate(views["loss"].ids.tolist()):
            label = int(clean.labels[place[i]])
            reference = (
                explicit(net, inputs[place[i]], last.classes.index(label), task.active_outputs)
                if (label in task.classes)
                else None
            )
            for metric, view in views.items():
                value = view.values[row, column]
                if reference is not None:
                    assert value == pytest.approx(reference[metric], rel=2e-4, abs=2e-6), (metric, epochs_completed, i)
                elif metric != "loss_all":
                    assert np.isnan(value)


def run_with(folder: Path, *overrides: str) -> tuple[LoadedRun, Eavesdropper, Plan]:
    plan = make_plan(*SHORT, *overrides)
    ear = Eavesdropper()
    plan.analyses.append(ear)
    run(plan, folder)
    return load_run(folder), ear, plan


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedRun, Eavesdropper, Plan]:
    """Two tasks of wrongly labelled digits, a network with batch normalisation and dropout, everything measured."""
    folder = tmp_path_factory.mktemp("csl") / "run"
    return run_with(folder, *BOTH, *NET, "data.label_noise=0.2", "samples.population=run")


def test_posthoc_rows_are_what_each_saved_network_says_of_each_sample(heard):
    """Trained (partly wrong) labels, evaluation mode, active outputs; NaN before the class has entered."""
    loaded, _, plan = heard
    data = plan.data.load(0, torch.device("cpu"))
    assert (data.train.labels != data.train.clean_labels).any()
    check_posthoc(loaded, ("loss", "correct", "margin", "grad_input_l2", "loss_all"), data.train)
    view = loaded.samples("loss")
    assert view.values.shape == (4, len(view.ids)) and np.isnan(view.values[:2]).any()
    assert np.isfinite(loaded.samples("loss_all").values).all()


def test_online_rows_are_what_the_steps_saw(heard):
    loaded, ear, _ = heard
    views = [loaded.samples(f"online_{name}") for name in ("loss", "correct", "margin")]
    assert views[0].epochs_completed.tolist() == [1, 2, 3, 4]
    for row, epochs_completed in enumerate(views[0].epochs_completed.tolist()):
        for column, i in enumerate(views[0].ids.tolist()):
            values = tuple(view.values[row, column] for view in views)
            if i in ear.seen[epochs_completed]:
                assert values == ear.seen[epochs_completed][i]
            else:
                assert np.isnan(values).all()


def test_online_and_posthoc_differ(heard):
    """Training mode and evaluation mode are two things, so a mix-up could not go unseen."""
    loaded, _, _ = heard
    one, other = loaded.samples("loss").values, loaded.samples("online_loss").values
    known = np.isfinite(one) & np.isfinite(other)
    assert known.any() and (np.abs(one - other)[known] > 1e-3).mean() > 0.9


def test_logged_means_are_those_of_the_rows(heard):
    loaded, _, _ = heard
    rows = loaded.metrics[loaded.metrics["kind"] == "epoch"]
    for metric in ("loss", "margin", "online_loss", "online_correct", "grad_input_l2"):
        means = np.nanmean(loaded.samples(metric).values.astype(np.float64), axis=1)
        np.testing.assert_allclose(rows[f"csl/train/total/{metric}"], means, rtol=1e-12)


def test_augmentation_is_seen_online_only(tmp_path):
    generator = np.random.default_rng(0)
    arrays = {"x_train": generator.integers(0, 256, (20, 1, 8, 8), dtype=np.uint8), "y_train": np.arange(20) % 2}
    np.savez(tmp_path / "images.npz", **arrays, x_test=arrays["x_train"][:4], y_test=arrays["y_train"][:4])
    images = ("data=arrays", f"data.file={tmp_path / 'images.npz'}", "data.normalisation=auto")
    drop = ("data.samples_per_class=null", "data.validation_share=0.0", "task_shift_mode=none", "num_tasks=1")
    loaded, ear, plan = run_with(tmp_path / "run", *BOTH, *images, *drop, "data.augmentation=crop_flip")
    data = plan.data.load(0, torch.device("cpu"))
    assert data.train.augmentation is not None
    check_posthoc(loaded, ("loss", "margin"), data.train)
    online = loaded.samples("online_loss")
    assert online.values[0].tolist() == [ear.seen[1][i][0] for i in online.ids.tolist()]


def test_only_every_nth_epoch_and_the_untrained_network(tmp_path):
    loaded, _, plan = run_with(tmp_path / "run", *BOTH, "csl.every=2", "csl.initial=true", "epochs=3")
    assert loaded.samples("loss").epochs_completed.tolist() == [0, 2, 4, 6]
    assert loaded.samples("online_loss").epochs_completed.tolist() == [2, 4, 6]
    check_posthoc(loaded, ("loss", "correct"), plan.data.load(0, torch.device("cpu")).train)
    ends = loaded.metrics[loaded.metrics["kind"] == "task_end"]
    initial = loaded.samples("loss").values[0].astype(np.float64)
    assert ends["csl/initial/total/loss"].iloc[0] == pytest.approx(np.nanmean(initial), rel=1e-12)


def test_one_hot_targets_are_scored_as_classes(tmp_path):
    one, hot = tmp_path / "class_index", tmp_path / "one_hot"
    for folder in (one, hot):
        run(make_plan(*SHORT, *BOTH, f"data.targets={folder.name}", "samples.population=run"), folder)
    one, hot = load_run(one), load_run(hot)
    assert one.sample_store.metrics() == hot.sample_store.metrics()
    for metric in one.sample_store.metrics():
        np.testing.assert_allclose(hot.samples(metric).values, one.samples(metric).values, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize("targets", ["real", "multi_hot"])
def test_without_classes_there_is_only_a_loss(targets, tmp_path):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(24, 5)).astype(np.float32), generator.normal(size=(24, 3)).astype(np.float32)
    y = y if targets == "real" else (y > 0).astype(np.float32)
    np.savez(tmp_path / "data.npz", x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    data = ("data=arrays", f"data.file={tmp_path / 'data.npz'}", f"data.targets={targets}", "data.normalisation=none")
    rest = ("data.samples_per_class=null", "data.validation_share=0.0", "task_shift_mode=none", "num_tasks=1")
    both = ("analysis=[csl]", "csl.mode=both", "csl.input_gradient=true")
    plan = make_plan(*SHORT, *both, *data, *rest)
    run(plan, tmp_path / "run")
    loaded = load_run(tmp_path / "run")
    assert loaded.sample_store.metrics() == ["grad_input_l2", "loss", "online_loss"]
    net, samples = loaded.net(epochs_completed=1).double(), loaded.shift.task(0).train
    inputs, told = torch.from_numpy(x).double(), torch.from_numpy(y).double()
    outputs = net(inputs)
    elements = (outputs - told) ** 2 if targets == "real" else F.softplus(outputs) - told * outputs
    by_id = dict(zip(samples.ids.tolist(), elements.mean(1).tolist(), strict=True))
    view = loaded.samples("loss")
    np.testing.assert_allclose(view.values[0], [by_id[i] for i in view.ids.tolist()], rtol=1e-5)
    with pytest.raises(ConfigError, match=r"csl\.all_outputs=true: needs class targets"):
        run(make_plan(*SHORT, *both, "csl.all_outputs=true", *data, *rest), tmp_path / "other")


def test_margins_are_the_same_however_the_steps_are_grouped(monkeypatch):
    from plastiscope.analysis import csl_online

    generator = torch.Generator().manual_seed(0)
    steps = [(torch.randn(n, 4, generator=generator), torch.arange(n) % 4) for n in (5, 5, 3)]
    together, apart = PresentedMargins(), PresentedMargins()
    for outputs, targets in steps:
        together.add(outputs, targets)
    monkeypatch.setattr(csl_online, "MOST_WAITING", 1)
    for outputs, targets in steps:
        apart.add(outputs, targets)
        assert apart._waiting == []
    expected = torch.cat([margin(outputs, targets) for outputs, targets in steps])
    assert torch.equal(together.all(), expected) and torch.equal(apart.all(), expected)


def test_margins_wait_until_there_are_many():
    margins = PresentedMargins()
    margins.add(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64))
    before = margins.all()
    margins.add(torch.ones(1, 3), torch.zeros(1, dtype=torch.int64))
    assert len(before) == 2 and len(margins._waiting) == 1, "nothing is computed in a step, nothing given is changed"


def test_losses_are_the_same_whether_gradients_are_asked_or_not(tmp_path):
    """Of the outputs active in the task: two of ten here."""
    context = make_context(tmp_path / "run", "analysis=[csl]")
    context.net.requires_grad_(False)
    found = []
    for asked in ("true", "false"):
        (csl,) = make_plan(*SHORT, "analysis=[csl]", f"csl.input_gradient={asked}").analyses
        found.append(csl.score_all(context, csl.score(context, context.current_task)))
    assert set(found[0]) - set(found[1]) == {"grad_input_l2"}
    for metric, values in found[1].items():
        np.testing.assert_array_equal(values, found[0][metric])
    assert found[1]["loss"].mean() < 1.5, "ln 2 more or less, not ln 10"


@pytest.mark.parametrize(
    ("overrides", "forwards"),
    [
        ((), 1),
        (("csl.input_gradient=true",), 1),
        (("csl.all_outputs=true", "csl.input_gradient=false"), 3),  # also one for each later task
        (("csl.all_outputs=true", "csl.input_gradient=true"), 4),  # the gradient's own forward
    ],
)
def test_no_forward_that_is_not_needed(overrides, forwards, tmp_path):
    """Later samples are asked only for all outputs, and one forward gives both losses where it needs no gradient."""
    settings = ("samples.population=run", "analysis=[csl]", *overrides)
    (csl,) = make_plan(*SHORT, *settings).analyses
    context = make_context(tmp_path / "run", *settings)
    context.net.requires_grad_(False)
    asked: list[int] = []
    context.net.register_forward_hook(lambda module, inputs, outputs: asked.append(len(outputs)))
    values = csl.score_all(context, csl.score(context, context.current_task))
    assert len(asked) == forwards
    n = len(context.current_task.train)
    assert np.isfinite(values["loss"][:n]).all() and np.isnan(values["loss"][n:]).all()


@pytest.mark.parametrize("setting", ["initial", "input_gradient", "all_outputs"])
def test_what_needs_a_pass_is_refused_online(setting):
    with pytest.raises(ConfigError, match=rf"csl\.{setting}=True: needs a pass of its own"):
        make_plan("analysis=[csl]", "csl.mode=online", f"csl.{setting}=true")


@pytest.mark.parametrize("mode", ["online", "both"])
def test_saved_weights_have_no_online_values(mode):
    (csl,) = make_plan("analysis=[csl]", f"csl.mode={mode}").analyses
    assert csl.needs_training() == f"with mode={mode} takes values from the training steps; set csl.mode=posthoc"
