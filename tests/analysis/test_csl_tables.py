"""What csl writes at task ends: the published files against aggregation by hand, and who they are about."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from analysis_context import MLP, TINY

from plans import make_plan
from plastiscope.experiment import run
from plastiscope.formats.csl_files import read_csl
from plastiscope.load import LoadedRun, load_run

SHORT = (*TINY, *MLP, "selection=last", "analysis=[csl]", "learner.lr=0.2", "epochs=3")
INCREMENTAL = (*SHORT, "num_tasks=2", "csl.mode=both", "csl.input_gradient=true", "data.label_noise=0.2")
SAME = (*SHORT, "task_shift_mode=permuted_input", "num_tasks=2", "seed=3")


def made(folder: Path, *overrides: str) -> LoadedRun:
    run(make_plan(*overrides), folder)
    return load_run(folder)


def files(folder: Path, task: int) -> Path:
    return folder / f"task_{task:04d}_mlp" / "csl"


def columns(folder: Path, task: int) -> dict[str, np.ndarray]:
    with np.load(files(folder, task) / "per_sample.npz", allow_pickle=False) as found:
        return dict(found)


def summary(folder: Path, task: int) -> dict:
    return json.loads((files(folder, task) / "summary.json").read_text())


@pytest.fixture(scope="module")
def incremental(tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    return made(tmp_path_factory.mktemp("incremental") / "run", *INCREMENTAL)


def test_published_files_hold_the_mean_over_active_epochs_when_classes_come(incremental):
    csl, lt, facts = read_csl(files(incremental.folder, 1), "digits", 0, 0.2)
    losses, norms = incremental.samples("loss"), incremental.samples("grad_input_l2").values.astype(np.float64)
    assert np.isnan(losses.values[:3]).any()
    np.testing.assert_allclose(csl, np.nanmean(losses.values.astype(np.float64), 0), rtol=1e-6)
    age = np.cumsum(np.isfinite(norms), 0)
    means = np.where(np.isfinite(norms), np.cumsum(np.nan_to_num(norms), 0) / np.maximum(age, 1), np.nan)
    tau = np.nanmean(means)
    learned = np.nansum(np.where(np.isnan(means), np.nan, means <= tau), 0) / age[-1]
    np.testing.assert_allclose(lt, 1 - learned, atol=1e-6)
    assert facts["tau"] == pytest.approx(tau, rel=1e-9)
    assert facts["kept_epochs"] == [1, 2, 3, 4, 5, 6] and facts["num_epochs"] == 6
    n = len(losses.ids)
    assert facts["losses_shape"] == facts["loss_grads_shape"] == [6, n] and csl.shape == (n,)
    wanted = {"csl_definition": "csl_active_mean", "lt_definition": "lt_frac", "mode": "posthoc", "split": "train"}
    wanted |= {"logit_scope": "active", "contains_l2": False, "filled_epochs": [], "grad_kind": "input"}
    wanted |= {"label_source": "trained", "dataset": "digits", "run_idx": 0, "noise_level": 0.2}
    assert {key: facts[key] for key in wanted} == wanted


def test_rows_that_are_no_ids_say_whose_they_are(incremental):
    folder = files(incremental.folder, 1)
    ids = np.load(folder / "ids_digits_run0_noise_0.2.npy")
    np.testing.assert_array_equal(ids, incremental.samples("loss").ids)
    facts = read_csl(folder, "digits", 0, 0.2)[2]
    assert facts["ids_path"] == "ids_digits_run0_noise_0.2.npy"


def test_the_table_holds_both_kinds_of_values(incremental):
    found = columns(incremental.folder, 1)
    for prefix in ("", "online_"):
        losses = incremental.samples(f"{prefix}loss").values.astype(np.float64)
        np.testing.assert_allclose(found[f"{prefix}csl_active_sum"], np.nansum(losses, 0), rtol=1e-6)
        np.testing.assert_array_equal(np.isnan(found[f"{prefix}csl_sum"]), np.isnan(losses).any(0))
        right = incremental.samples(f"{prefix}correct").values
        np.testing.assert_allclose(found[f"{prefix}correctness"], np.nanmean(right, 0), rtol=1e-6)
    assert "lt_frac" in found and "online_lt_frac" not in found
    np.testing.assert_array_equal(found["sample_id"], incremental.samples("loss").ids)
    task = incremental.shift.task(1).train
    places = np.searchsorted(found["sample_id"], task.ids.numpy())
    np.testing.assert_array_equal(found["label_trained"][places], task.labels)
    np.testing.assert_array_equal(found["label"][places], task.clean_labels)
    np.testing.assert_array_equal(found["n_presentations"], np.where(found["entry_task"] == 0, 6, 3))


def test_numbers_of_a_task_are_about_its_own_epochs(incremental):
    """The second task's means are over the epochs 4, 5 and 6; AUROC by counting pairs."""
    ends = incremental.metrics[incremental.metrics["kind"] == "task_end"].iloc[1]
    view = incremental.samples("loss")
    own = view.values[3:].astype(np.float64)
    assert ends["csl/train/total/csl_active_mean"] == pytest.approx(own.mean(), rel=1e-6)
    right = incremental.samples("correct").values[3:]
    assert ends["csl/train/total/never_learned"] == pytest.approx((right == 0).all(0).mean(), rel=1e-6)
    events = ((right[:-1] == 1) & (right[1:] == 0)).sum(0)
    events = np.where((right == 0).all(0), 3, events)
    assert ends["csl/train/total/forgetting_events"] == pytest.approx(events.mean(), rel=1e-6)
    found = columns(incremental.folder, 1)
    noisy, csl = found["label"] != found["label_trained"], own.mean(0)
    wins = [(a > b) + 0.5 * (a == b) for a in csl[noisy] for b in csl[~noisy]]
    assert ends["csl/train/total/auroc_noisy"] == pytest.approx(np.mean(wins), abs=1e-3)
    assert "csl/train/total/online_auroc_noisy" in ends
    assert summary(incremental.folder, 1)["numbers"]["never_learned"] == ends["csl/train/total/never_learned"]


def test_where_all_samples_stay_files_hold_the_sum_and_rows_are_ids(tmp_path):
    every = ("data.samples_per_class=null", "data.test_samples=0", "data.validation_share=0.0", "epochs=1")
    loaded = made(tmp_path / "run", *SAME, *every, "csl.mode=online", "figures=true")
    folder = files(tmp_path / "run", 1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "csl_digits_run3_noise_0.0.npy",
        "metrics_digits_run3_noise_0.0.json",
        "per_sample.npz",
        "summary.json",
    ]
    csl, lt, facts = read_csl(folder, "digits", 3, 0.0)
    view = loaded.samples("online_loss")
    np.testing.assert_array_equal(view.ids, np.arange(len(csl)))
    np.testing.assert_allclose(csl, view.values.astype(np.float64).sum(0), rtol=1e-6)
    assert lt is None and facts["lt_path"] is None and facts["tau"] is None and facts["lt_definition"] is None
    assert (facts["mode"], facts["csl_definition"], facts["ids_path"]) == ("online", "csl_sum", None)
    assert "csl/train/total/online_csl_active_mean" in loaded.metrics
    assert not any("auroc" in key for key in loaded.metrics), "no label was changed"
    assert (tmp_path / "run" / "figures" / "csl_histogram.png").exists()


def test_a_change_of_the_inputs_brings_no_new_samples(tmp_path):
    """The files of each task are about the run so far."""
    loaded = made(tmp_path / "run", *SAME)
    losses = loaded.samples("loss").values.astype(np.float64)
    for task, epochs in ((0, 3), (1, 6)):
        csl, _, facts = read_csl(files(tmp_path / "run", task), "digits", 3, 0.0)
        np.testing.assert_allclose(csl, losses[:epochs].sum(0), rtol=1e-6)
        assert facts["kept_epochs"] == list(range(1, epochs + 1)) and facts["csl_definition"] == "csl_sum"


def test_of_many_tasks_only_some_write_the_table(tmp_path):
    loaded = made(tmp_path / "run", *SAME, "num_tasks=5", "epochs=1", "csl.max_tasks=2")
    there = [(files(tmp_path / "run", k) / "per_sample.npz").exists() for k in range(5)]
    assert there == [False, False, True, False, True]
    assert all(summary(tmp_path / "run", k)["numbers"] for k in range(5))
    assert len(loaded.samples("loss").epochs_completed) == 5


def test_columns_on_request(tmp_path):
    loaded = made(tmp_path / "run", *SAME, "csl.first_epochs=2", "csl.per_task=true", "csl.all_outputs=true")
    found, losses = columns(tmp_path / "run", 1), loaded.samples("loss").values.astype(np.float64)
    np.testing.assert_allclose(found["csl_first_2"], losses[:2].sum(0), rtol=1e-6)
    np.testing.assert_allclose(found["csl_task_1"], losses[3:].sum(0), rtol=1e-6)
    np.testing.assert_allclose(found["csl_all"], loaded.samples("loss_all").values.sum(0, np.float64), rtol=1e-6)


def test_the_loss_over_all_outputs_and_facts_of_two_axes(tmp_path):
    """Outputs whose classes have not entered count too; norms that curvature measures have fewer epochs."""
    beside = ("analysis=[csl,curvature]", "csl.input_gradient=false", "curvature.every=2", "curvature.directions=1")
    loaded = made(tmp_path / "run", *SHORT, "num_tasks=1", "csl.all_outputs=true", *beside)
    task, view = loaded.task(0), loaded.samples("loss_all")
    batch = task.train.gather(torch.argsort(task.train.ids))
    with torch.no_grad():
        outputs = loaded.net(task=0)(batch.inputs)
    assert task.active_outputs < outputs.shape[1]
    wanted = torch.nn.functional.cross_entropy(outputs, batch.targets, reduction="none")
    assert view.ids.tolist() == batch.ids.tolist()
    np.testing.assert_allclose(view.values[-1], wanted, rtol=1e-5)
    assert (view.values > loaded.samples("loss").values).all()
    facts = read_csl(files(loaded.folder, 0), "digits", 0, 0.0)[2]
    n = len(view.ids)
    assert (facts["losses_shape"], facts["loss_grads_shape"]) == ([3, n], [2, n])


def test_a_task_without_a_due_epoch_has_nothing_to_write(tmp_path):
    loaded = made(tmp_path / "run", *SAME, "epochs=2", "csl.every=3", "num_tasks=2")
    assert not files(tmp_path / "run", 0).exists()
    assert loaded.samples("loss").epochs_completed.tolist() == [3]
    assert read_csl(files(tmp_path / "run", 1), "digits", 3, 0.0)[2]["kept_epochs"] == [3]


def test_an_attempt_that_was_killed_while_it_wrote_is_written_over(tmp_path):
    plan = make_plan(*SAME)
    (csl,) = plan.analyses
    write = csl.on_task_end

    def after_a_kill(context):
        folder = context.folder("csl")
        np.save(folder / f"csl_digits_run3_noise_{context.label_noise!r}.npy", np.zeros(3))
        return write(context)

    csl.on_task_end = after_a_kill
    run(plan, tmp_path / "run")
    assert len(read_csl(files(tmp_path / "run", 1), "digits", 3, 0.0)[0]) > 3


@pytest.mark.parametrize("setting", ["first_epochs=0", "max_tasks=0", "every=0", "batch_size=0"])
def test_settings_out_of_range_are_refused(setting):
    from plastiscope.error import ConfigError

    with pytest.raises(ConfigError, match=rf"csl\.{setting}"):
        make_plan("analysis=[csl]", f"csl.{setting}")
